"""Reads what a client publishes out of the bytes that it sends (MQTT 5, section 3.3), on a connection without TLS."""

from collections.abc import Iterator

_CONNECT = 1
_PUBLISH = 3


class PublishReader:
    """One direction of one connection; bytes that do not begin as an MQTT connection are none of ours."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._begun = False
        self._foreign = False

    def feed(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        """Yield topic and payload of each message that is whole by now."""
        if not self._begun:
            self._begun = True
            self._foreign = data[:1] != bytes([_CONNECT << 4])
        if self._foreign:
            return
        self._held += data
        while (packet := self._take()) is not None:
            kind, flags, body = packet
            if kind == _PUBLISH:
                yield _read_publish(body, qos=flags >> 1 & 3)

    def _take(self) -> tuple[int, int, bytes] | None:
        found = _read_varint(self._held, 1)
        if found is None:
            return None
        length, start = found
        if len(self._held) < start + length:
            return None
        first, body = self._held[0], bytes(self._held[start : start + length])
        del self._held[: start + length]
        return first >> 4, first & 15, body


def _read_publish(body: bytes, *, qos: int) -> tuple[str, bytes]:
    end = 2 + int.from_bytes(body[:2], "big")
    topic = body[2:end].decode()
    found = _read_varint(body, end + (2 if qos else 0))
    assert found is not None, "expected properties in a PUBLISH of MQTT 5"
    length, start = found
    return topic, body[start + length :]


def _read_varint(data: bytes | bytearray, start: int) -> tuple[int, int] | None:
    """Return a variable byte integer (section 1.5.5) and where it ends, or None while it is incomplete."""
    value = 0
    for place, each in enumerate(data[start : start + 4]):
        value |= (each & 127) << 7 * place
        if each < 128:
            return value, start + place + 1
    return None
