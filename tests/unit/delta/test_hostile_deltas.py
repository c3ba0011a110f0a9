"""The decoder against bytes that nobody made in good faith: refused in one line, in bounded memory and time."""

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from skerry.delivery.delta import DELTA_MEMORY_BYTES, Tensor, apply_delta, make_delta, read_header
from skerry.delivery.delta.form import MAGIC, Cursor, Header, pack, short_hash, write_header
from skerry.delivery.delta.form import number as leb128
from skerry.delivery.delta.head import MAX_PACKED_BYTES, Piece
from skerry.delivery.delta.residual import Op
from skerry.delivery.delta.rest import Way
from skerry.errors import Rejected

SEED = 5
FLIPS = 1000


def _example() -> tuple[bytes, bytes, bytes]:
    random = np.random.default_rng(SEED)
    parts = []
    for step in (0, 1):
        floats = (np.arange(400) * 1e-4 + step * random.normal(size=400) * 1e-3).astype(np.float32)
        integers = np.clip(np.arange(1200) % 200 - 100 + step * random.integers(-1, 2, 1200), -127, 127).astype(np.int8)
        parts.append(b"text that stays " * 9 + bytes(step) + floats.tobytes() + b"between" + integers.tobytes())
    tensors = [
        [
            Tensor("f", 144 + step, 1600, 4, True),
            Tensor(
                "i",
                144 + step + 1607,
                1200,
                1,
                False,
                channels=60,
                inner=1,
                scales=np.asarray([1 + step / 100], dtype=np.float32),
            ),
        ]
        for step in (0, 1)
    ]
    delta = make_delta(parts[0], parts[1], source_tensors=tensors[0], target_tensors=tensors[1])
    assert delta is not None
    return parts[0], parts[1], delta


def _outcome(delta: bytes, source: Path) -> bytes | None:
    out = io.BytesIO()
    try:
        apply_delta(delta, source, out)
    except Rejected:
        return None
    return out.getvalue()


@pytest.mark.parametrize("how", ["flipped", "cut off", "spliced"])
def test_damaged_deltas_are_refused_within_the_memory_cap(how: str, tmp_path: Path) -> None:
    source, target, delta = _example()
    path = tmp_path / "source"
    path.write_bytes(source)
    assert _outcome(delta, path) == target

    random = np.random.default_rng(SEED)
    refused = peak = 0
    for number in range(FLIPS):
        damaged = bytearray(delta)
        at = int(random.integers(len(delta)))
        if how == "flipped":
            damaged[at] ^= 1 << int(random.integers(8))
        elif how == "cut off":
            damaged = damaged[:at]
        else:
            damaged[at : at + 4] = random.bytes(int(random.integers(9)))
        if number % 20 == 0:  # tracing costs ten times as long
            tracemalloc.start()
        got = _outcome(bytes(damaged), path)
        if tracemalloc.is_tracing():
            peak = max(peak, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        # a flipped bit may be one that nothing depends on: then the target must be the true one
        assert got is None or got == target
        refused += got is None
    assert refused > FLIPS * 0.9
    assert 0 < peak < DELTA_MEMORY_BYTES


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"", "more bytes"),
        (b"PK\3\4", "expected the format SKD1"),
        (MAGIC + leb128(DELTA_MEMORY_BYTES), "at most"),
        (MAGIC + b"\xff" * 12, "at most"),
    ],
)
def test_another_format_and_a_hungry_header_are_refused(head: bytes, reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        read_header(Cursor(head))


def test_a_delta_for_another_source_changes_nothing(tmp_path: Path) -> None:
    source, _, delta = _example()
    (tmp_path / "other").write_bytes(source[:-1] + b"x")
    with pytest.raises(Rejected, match="got another file"):
        apply_delta(delta, tmp_path / "other", io.BytesIO())


def test_a_small_delta_cannot_ask_for_a_large_file(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"")
    header = Header(1 << 20, 0, short_hash(b""), 1 << 29, bytes(8))
    bomb = write_header(header) + bytes([0]) + leb128(6) + leb128(6) + leb128(1) + leb128(1 << 29) + leb128(0)
    with pytest.raises(Rejected):
        apply_delta(bomb, tmp_path / "source", io.BytesIO())


def test_random_bytes_behind_a_true_header_are_refused(tmp_path: Path) -> None:
    source, _, delta = _example()
    (tmp_path / "source").write_bytes(source)
    cursor = Cursor(delta)
    read_header(cursor)
    random = np.random.default_rng(SEED)
    for _ in range(200):
        assert _outcome(delta[: cursor.at] + random.bytes(300), tmp_path / "source") is None


def _handmade(head: bytes, *, source: bytes = b"", length: int, rest: bytes | None = None, body: bytes = b"") -> bytes:
    """Return a delta of parts that no encoder would put together."""
    header = Header(DELTA_MEMORY_BYTES, len(source), short_hash(source), length, bytes(8))
    return write_header(header) + pack(head) + (bytes([Way.PACKED]) + pack(b"") if rest is None else rest) + body


def _numbers(*values: int) -> bytes:
    return b"".join(leb128(value) for value in values)


# one symbol that takes no bits; a block of it is its lanes alone
_SILENT = _numbers(1, 7, 1 << 14)


@pytest.mark.parametrize(
    ("delta", "reason"),
    [
        pytest.param(
            _handmade(_numbers(Piece.PACKED, MAX_PACKED_BYTES + 1, 0, 0), length=1 << 25),
            "at most",
            id="a packed piece that would not fit into memory",
        ),
        pytest.param(
            _handmade(_numbers(Piece.TENSOR, 640, Op.FRESH, 1, 0, 11) + bytes(range(11)) + _SILENT * 12, length=640),
            "at most 10",
            id="more tables than elements are worth",
        ),
        pytest.param(
            _handmade(_numbers(Piece.TENSOR, 640, Op.FRESH, 1, 0, 0) + _SILENT + _numbers(1 << 20, 0, 0), length=640),
            "at most 13",
            id="more symbols than elements",
        ),
        pytest.param(
            _handmade(_numbers(Piece.TENSOR, 640, Op.FRESH, 1, 0, 0) + _SILENT + _numbers(20, 1 << 20, 0), length=640),
            "at most 640",
            id="more bits than elements have",
        ),
        pytest.param(
            _handmade(_numbers(Piece.COPY, 0, 0) * (1 << 15) + bytes([Piece.END]), length=0),
            "at most 16384 instructions",
            id="instructions that do nothing",
        ),
        pytest.param(
            _handmade(
                _numbers(Piece.REST, 4, 0), length=4, rest=bytes([Way.MATCHES]) + leb128(1 << 40), body=pack(b"")
            ),
            "at most",
            id="more matches than bytes",
        ),
    ],
)
def test_what_would_cost_more_than_it_makes_is_refused_at_once(delta: bytes, reason: str) -> None:
    out = io.BytesIO()
    with pytest.raises(Rejected, match=reason):
        apply_delta(delta, None, out)
    assert not out.getvalue()


def test_a_header_that_understates_its_memory_is_refused(tmp_path: Path) -> None:
    source, _, delta = _example()
    (tmp_path / "source").write_bytes(source)
    header = read_header(cursor := Cursor(delta))
    modest = Header(1 << 20, header.source_length, header.source_hash, header.target_length, header.target_hash)
    with pytest.raises(Rejected, match="expected its header to say"):
        apply_delta(write_header(modest) + delta[cursor.at :], tmp_path / "source", io.BytesIO())


def test_a_delta_for_a_file_of_another_length_writes_nothing(tmp_path: Path) -> None:
    source, target, delta = _example()
    (tmp_path / "source").write_bytes(source)
    out = io.BytesIO()
    with pytest.raises(Rejected, match=f"a file of {len(target) + 1} bytes"):
        apply_delta(delta, tmp_path / "source", out, length=len(target) + 1)
    assert not out.getvalue()


def test_no_bits_make_a_file_of_any_length_and_no_more(tmp_path: Path) -> None:
    """A symbol that is sure takes no bits: what comes of that is bounded by the length that was signed."""
    blocks = 4
    head = _numbers(Piece.TENSOR, blocks << 17, Op.FRESH, 1, 0, 0) + _SILENT + _numbers(128, 0) * blocks + b"\0"
    states = np.full(32, 1 << 16, dtype="<u4").tobytes()
    delta = _handmade(head, length=blocks << 17, body=states * blocks)
    out = io.BytesIO()
    with pytest.raises(Rejected, match="other bytes"):
        apply_delta(delta, None, out, length=blocks << 17)
    assert out.getvalue() == bytes([7]) * (blocks << 17)
    with pytest.raises(Rejected, match="expected one for a file of 5 bytes"):
        apply_delta(delta, None, out, length=5)
