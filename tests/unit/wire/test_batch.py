"""Batches of the outbox: plain JSON of older agents, and the packed form, within bounds."""

import base64
import json
import sys
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.errors import Rejected
from skerry.wire import codec
from skerry.wire.batch import MAGIC, MAX_CONTENT_BYTES, MAX_ENTRIES, decode_batch, encode_batch
from skerry.wire.messages import Entry, Outbox

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def entry(sequence: int, body: bytes, *, kind: str = "window") -> Entry:
    return Entry(sequence, kind, 1.5 * sequence, zlib.crc32(body), base64.b64encode(body).decode())


bodies = st.lists(st.binary(max_size=300), max_size=20)


@given(bodies, st.booleans())
def test_what_was_said_is_what_is_read(contents: list[bytes], packed: bool) -> None:
    outbox = Outbox("ab", tuple(entry(number + 1, body) for number, body in enumerate(contents)))

    assert decode_batch(encode_batch(outbox, packed=packed)) == outbox


def test_the_packed_form_is_less_than_half_of_the_plain_one() -> None:
    outbox = Outbox("ab" * 8, tuple(entry(number, bytes(range(number, number + 90)) * 4) for number in range(1, 33)))

    assert len(encode_batch(outbox, packed=True)) * 2 < len(encode_batch(outbox, packed=False))


def test_an_older_agents_batch_is_read_as_it_was() -> None:
    payload = b'{"entries":[{"body":"eA==","crc":2,"event_time":1,"kind":"window","sequence":1}],"epoch":"ab","v":1}'

    assert decode_batch(payload) == codec.decode(Outbox, payload)


def packed(content: bytes) -> bytes:
    return MAGIC + zstd.compress(content)


def head(*rows: object) -> bytes:
    return json.dumps([1, "ab", list(rows)]).encode() + b"\n"


REFUSED = {
    "no frame": MAGIC + b"nonsense",
    "nothing": MAGIC,
    "a bomb": packed(bytes(MAX_CONTENT_BYTES + 1)),
    "a cut frame": packed(head([1, "window", 1.0, 0, 0]))[:-3],
    "two frames": packed(head()) + zstd.compress(b"x"),
    "no end of the head": packed(b"[]"),
    "no list": packed(b"{}\n"),
    "not five": packed(head([1, "window", 1.0, 0])),
    "a length below 0": packed(head([1, "window", 1.0, 0, -1])),
    "too few bytes": packed(head([1, "window", 1.0, 0, 3]) + b"xy"),
    "too many bytes": packed(head([1, "window", 1.0, 0, 1]) + b"xy"),
    "a text for a number": packed(head(["1", "window", 1.0, 0, 0])),
    "not finite": packed(b'[1,"ab",[[1,"window",NaN,0,0]]]\n'),
    "half a surrogate": packed(b'[1,"ab",[[1,"\\ud800",1.0,0,0]]]\n'),
    "too many entries": packed(head(*[[1, "w", 1.0, 0, 0]] * (MAX_ENTRIES + 1))),
    "no epoch": packed(b"[1,7,[]]\n"),
    "deep": packed(b"[" * 100_000 + b"\n"),
}


@pytest.mark.parametrize("payload", REFUSED.values(), ids=REFUSED)
def test_what_is_no_batch_is_refused_in_one_line(payload: bytes) -> None:
    with pytest.raises(Rejected, match=r"^Outbox[^\n]*$"):
        decode_batch(payload)


def test_a_frame_that_hides_its_length_is_refused() -> None:
    compressor = zstd.ZstdCompressor()
    hidden = compressor.compress(b"x" * 1000) + compressor.flush()

    with pytest.raises(Rejected, match="no length"):
        decode_batch(MAGIC + hidden)


def test_a_frame_that_says_less_than_it_holds_is_refused_before_it_is_read_to_its_end() -> None:
    frame = bytearray(zstd.compress(bytes(200)))
    # the one byte of the content's size, of a frame that is one segment
    frame[5] = 100

    with pytest.raises(Rejected, match="Outbox"):
        decode_batch(MAGIC + bytes(frame))
