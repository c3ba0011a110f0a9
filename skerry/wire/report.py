"""The body of a `window` entry: the counts of one window in varints, some 250 bytes for 16 features.

Layout, version 1: one byte version, 8 bytes of the manifest's SHA-256, 8 bytes of the monitor's digest, then varints
(unsigned LEB128): window number since the commit of that manifest, start and end of the window on the event clock
(seconds), rows, labelled rows, correct rows, latency p50 and p99 in microseconds, number of tables, and for each table
its length and its counts. Tables are the monitor's scalars in order, then its pairs.
"""

from dataclasses import dataclass

from skerry.errors import Rejected

VERSION = 1
MAX_TABLES = 4096
MAX_BINS = 4096


@dataclass(frozen=True, slots=True)
class WindowReport:
    """What a device counted in one window. `manifest` and `monitor` are the first 16 hex digits of the digests.

    `labelled` rows are those whose truth was known on the device, `correct` those of them that the model got right.
    """

    manifest: str
    monitor: str
    window: int
    start: int
    end: int
    rows: int
    labelled: int
    correct: int
    latency_p50_us: int
    latency_p99_us: int
    tables: tuple[tuple[int, ...], ...]


def encode_report(report: WindowReport) -> bytes:
    """Encode a report in version 1."""
    out = bytearray([VERSION])
    out += bytes.fromhex(report.manifest) + bytes.fromhex(report.monitor)
    head = (report.window, report.start, report.end, report.rows, report.labelled, report.correct)
    for number in (*head, report.latency_p50_us, report.latency_p99_us, len(report.tables)):
        _put(out, number)
    for table in report.tables:
        _put(out, len(table))
        for count in table:
            _put(out, count)
    return bytes(out)


def decode_report(body: bytes) -> WindowReport:
    """Decode a report; raises `Rejected` when the body is of another version, too short or too long."""
    if len(body) < 17 or body[0] != VERSION:
        raise Rejected(f"window report: expected version {VERSION}, got {body[:1].hex() or 'nothing'}")
    numbers = _Reader(body, at=17)
    head = [numbers.take() for _ in range(8)]
    tables = tuple(
        tuple(numbers.take() for _ in range(numbers.take(most=MAX_BINS))) for _ in range(numbers.take(most=MAX_TABLES))
    )
    if numbers.at != len(body):
        raise Rejected(f"window report: expected {numbers.at} bytes, got {len(body)}")
    window, start, end, rows, labelled, correct, p50, p99 = head
    return WindowReport(
        manifest=body[1:9].hex(),
        monitor=body[9:17].hex(),
        window=window,
        start=start,
        end=end,
        rows=rows,
        labelled=labelled,
        correct=correct,
        latency_p50_us=p50,
        latency_p99_us=p99,
        tables=tables,
    )


def _put(out: bytearray, number: int) -> None:
    if number < 0:
        raise ValueError(f"expected a count of 0 or more, got {number}")
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


class _Reader:
    """Varints from a bounded buffer."""

    __slots__ = ("_body", "at")

    def __init__(self, body: bytes, *, at: int) -> None:
        self._body = body
        self.at = at

    def take(self, *, most: int = (1 << 63) - 1) -> int:
        number = shift = 0
        while True:
            if self.at >= len(self._body) or shift > 63:
                raise Rejected(f"window report: expected a number at byte {self.at}, got the end")
            byte = self._body[self.at]
            self.at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        if number > most:
            raise Rejected(f"window report: expected at most {most}, got {number}")
        return number
