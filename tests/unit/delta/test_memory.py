"""What a decoder takes, measured: a process of its own applies the worst delta of each kind, below what it must state.

The bytes that come of these deltas have no true hash: a decoder makes all of them before it can tell.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from skerry.delivery.delta.form import Codec, Header, number, pack, short_hash, write_header, zstd_from
from skerry.delivery.delta.head import Piece, memory_of, read_steps, unnamed
from skerry.delivery.delta.residual import Op
from skerry.delivery.delta.rest import Way

MIB = 1 << 20
STATES = np.full(32, 1 << 16, dtype="<u4").tobytes()
TABLES = number(255) + bytes(range(1, 256)) + (number(1) + number(7) + number(1 << 14)) * 256
NOTHING = bytes([Way.PACKED]) + pack(b"")
RANDOM = np.random.default_rng(1)

_CHILD = """
import sys
from pathlib import Path
from skerry.delivery.delta import apply_delta
from skerry.errors import Rejected

class Nowhere:
    def write(self, data):
        return len(data)

def run(delta, source):
    try:
        apply_delta(delta, source, Nowhere())
    except Rejected as refusal:
        assert "make its target" in str(refusal), refusal

def kib(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

folder = Path(sys.argv[1])
run((folder / "trivial").read_bytes(), None)  # loads what is loaded late
delta = (folder / "delta").read_bytes()
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = kib("VmRSS")
run(delta, folder / "source")
print((kib("VmHWM") - before) << 10)
"""

Parts = tuple[bytes, bytes, bytes, bytes, int]
"""Source, head, rest, streams, and the length of the target."""


def _numbers(*values: int) -> bytes:
    return b"".join(map(number, values))


def _quickly_packed(data: bytes) -> bytes:
    if len(data) < 4096:
        return pack(data)
    frame = zstd_from(b"a prefix that nothing refers to", data)
    return bytes([Codec.ZSTD]) + _numbers(len(data), len(frame)) + frame


def _unpacked(data: bytes) -> bytes:
    return bytes([Codec.RAW]) + _numbers(len(data), len(data)) + data


def _matches() -> Parts:
    count = 1 << 18
    streams = (number(32) * count, number(0) * count, number(0) * count, bytes(8 * MIB), b"")
    rest = bytes([Way.MATCHES]) + number(count) + b"".join(map(_quickly_packed, streams))
    return RANDOM.bytes(8 * MIB), _numbers(Piece.REST, 8 * MIB, Piece.END), rest, b"", 8 * MIB


def _prefix() -> Parts:
    source = RANDOM.bytes(8 * MIB)
    frame = zstd_from(source, source[4096:] + source[:4096])
    rest = bytes([Way.PREFIX]) + _numbers(8 * MIB, len(frame)) + frame
    return source, _numbers(Piece.REST, 8 * MIB, Piece.END), rest, b"", 8 * MIB


def _packed_rest() -> Parts:
    rest = bytes([Way.PACKED]) + _quickly_packed(bytes(16 * MIB))
    return b"", _numbers(Piece.REST, 16 * MIB, Piece.END), rest, b"", 16 * MIB


def _packed_pieces() -> Parts:
    body = _quickly_packed(RANDOM.bytes(1024) * 4096) * 3
    return b"", _numbers(Piece.PACKED, 4 * MIB, 0) * 3 + bytes([Piece.END]), NOTHING, body, 12 * MIB


def _product() -> Parts:
    channels, count, rank = 1 << 15, MIB, 60
    thin = RANDOM.bytes((channels + count // channels) * rank)
    grid = _numbers(channels, 1, 1) + np.ones(channels, "<f4").tobytes() + bytes(channels) + _numbers(rank, 10) + thin
    head = _numbers(Piece.TENSOR, count, Op.PREDICT, 1, 1, 0) + grid + TABLES + _numbers(128, 0) * 8
    return RANDOM.bytes(count), head + bytes([Piece.END]), NOTHING, STATES * 8, count


def _floats() -> Parts:
    head = _numbers(Piece.TENSOR, 4 * MIB, Op.SUBTRACT_FLOAT, 4, 1, 0) + TABLES + _numbers(128, 0) * 8
    return RANDOM.bytes(4 * MIB), head + bytes([Piece.END]), NOTHING, STATES * 8, 4 * MIB


def _tables() -> Parts:
    head = (_numbers(Piece.TENSOR, 16384, Op.SUBTRACT, 1, 1, 0) + TABLES + _numbers(64, 0)) * 40
    return RANDOM.bytes(40 * 16384), head + bytes([Piece.END]), NOTHING, STATES[:64] * 40, 40 * 16384


@pytest.mark.parametrize(
    "parts",
    [_matches, _prefix, _packed_rest, _packed_pieces, _product, _floats, _tables],
    ids=lambda each: each.__name__,
)
def test_the_worst_deltas_stay_below_what_their_headers_say(parts: Callable[[], Parts], tmp_path: Path) -> None:
    source, head, rest, body, length = parts()
    header = Header(64 * MIB, len(source), short_hash(source), length, bytes(8))
    steps = read_steps(head, header)
    kept = sum(each for _, each in unnamed(steps, header))
    needed = memory_of(steps, kept=kept, rest=sum(step.length for step in steps if step.piece is Piece.REST))
    (tmp_path / "source").write_bytes(source)
    (tmp_path / "delta").write_bytes(write_header(header) + _unpacked(head) + rest + body)
    trivial = Header(64 * MIB, 0, short_hash(b""), 1, bytes(8))
    (tmp_path / "trivial").write_bytes(write_header(trivial) + pack(_numbers(Piece.REST, 1, 0)) + b"\0" + pack(b"x"))

    child = [sys.executable, "-c", _CHILD, str(tmp_path)]
    done = subprocess.run(child, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert MIB < int(done.stdout) < needed
