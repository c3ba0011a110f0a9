"""The delta decoder against deltas that are whole outside and hostile inside, a fixed number of them.

Flipping bits of a packed head gives little but a broken packing. Here the head, the rest and the streams are taken
apart, changed, and packed again, so that what was changed is what the decoder acts upon. Whatever comes of it: one line
of refusal or the true target, memory below what the header says, and no output beyond the length that was asked for.

    SKERRY_FUZZ_ROUNDS=100000 python -m pytest tests/fuzz
"""

import io
import os
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from skerry.delivery.delta import DELTA_MEMORY_BYTES, Tensor, apply_delta, make_delta
from skerry.delivery.delta.form import MAX_HEAD_BYTES, Cursor, Header, number, read_header, unpack, write_header
from skerry.errors import Rejected

SEED = 7
ROUNDS = int(os.environ.get("SKERRY_FUZZ_ROUNDS", "3000"))
_TRACED = 20
_BORDERS = (0, 1, 2, 3, 4, 5, 127, 128, 255, 16383, 16384, 1 << 17, (1 << 31) - 1, (1 << 62) - 1)


@dataclass(frozen=True, slots=True)
class _Parts:
    header: Header
    head: bytes
    tail: bytes

    def joined(self) -> bytes:
        raw = bytes([0]) + number(len(self.head)) + number(len(self.head)) + self.head
        return write_header(self.header) + raw + self.tail


def _taken_apart(delta: bytes) -> _Parts:
    cursor = Cursor(delta)
    header = read_header(cursor)
    head = unpack(cursor, most=MAX_HEAD_BYTES)
    return _Parts(header, head, cursor.take(cursor.left))


def _text(random: np.random.Generator, size: int) -> bytes:
    return b" ".join(b"%d" % each for each in random.integers(0, 50, size))


def _examples() -> Iterator[tuple[str, bytes, bytes, bytes]]:
    """Give (what it is, source, target, delta), so that every instruction, operation and way of the rest occurs."""
    random = np.random.default_rng(SEED)
    weights = random.normal(size=(128, 128)) * 0.05
    step = (random.normal(size=(128, 3)) @ random.normal(size=(3, 128))) * 0.004
    scales = [np.abs(each).max(axis=1).astype(np.float32) / 127 for each in (weights, weights + step)]
    integers, moved = (
        np.rint(each / grid[:, None]).astype(np.int8)
        for each, grid in zip((weights, weights + step), scales, strict=True)
    )
    floats = (random.normal(size=2000) * 0.05).astype(np.float32)
    tuned = (floats * (1 + random.normal(size=2000) * 1e-3)).astype(np.float32)
    whole = random.integers(0, 100, 600).astype(np.int32)
    pairs = {
        "int8 on another grid": (integers, moved, scales),
        "float32 tuned": (floats, tuned, None),
        "float16 tuned": (floats.astype(np.float16), tuned.astype(np.float16), None),
        "int32 counted on": (whole, whole + 1, None),
        "the same": (floats, floats, None),
        "int64, packed": (whole.astype(np.int64), (whole + 1).astype(np.int64), None),
    }
    text = _text(random, 900)
    for what, (old, new, grid) in pairs.items():
        source, target = b"head" + old.tobytes() + text, b"a head" + new.tobytes() + text[:700] + b"!" + text[750:]
        side = 128 if grid else 1
        tensors = [
            Tensor("w", at, each.nbytes, each.itemsize, each.dtype.kind == "f", side, side, grid[one] if grid else None)
            for one, (at, each) in enumerate(((4, old), (6, new)))
        ]
        delta = make_delta(source, target, source_tensors=tensors[:1], target_tensors=tensors[1:])
        assert delta is not None
        yield what, source, target, delta
        alone = make_delta(b"", target, target_tensors=tensors[1:])
        assert alone is not None
        yield f"{what}, by itself", b"", target, alone

    shifted = np.frombuffer(random.bytes(9000), dtype=np.uint8)
    source, target = shifted.tobytes(), (shifted + (np.arange(9000) % 41 == 0)).astype(np.uint8).tobytes()
    delta = make_delta(source, target[40:] + b"tail")
    assert delta is not None
    yield "no tensors", source, target[40:] + b"tail", delta


EXAMPLES = list(_examples())


def _changed(data: bytes, random: np.random.Generator) -> bytes:
    """Return the bytes with one byte, number or stretch in them changed."""
    out = bytearray(data)
    at = int(random.integers(len(out))) if out else 0
    match int(random.integers(5)):
        case 0 if out:
            out[at] ^= 1 << int(random.integers(8))
        case 1:
            out[at : at + 1] = number(_BORDERS[int(random.integers(len(_BORDERS)))])
        case 2:
            del out[at : at + int(random.integers(1, 5))]
        case 3:
            other = int(random.integers(len(out) + 1))
            out[at:at] = out[other : other + int(random.integers(1, 40))]
        case _ if out:
            out[at] = int(random.integers(256))
    return bytes(out)


def _hostile(parts: _Parts, random: np.random.Generator) -> bytes:
    header, head, tail = parts.header, parts.head, parts.tail
    for _ in range(int(random.integers(1, 4))):
        if random.random() < 0.7:
            head = _changed(head, random)
        else:
            tail = _changed(tail, random)
    return _Parts(header, head, tail).joined()


def _refusal(delta: bytes, path: Path, out: "_Counted") -> str | None:
    try:
        apply_delta(delta, path, out, length=out.most)
    except Rejected as refusal:
        return str(refusal)
    return None


class _Counted(io.BytesIO):
    """Refuses to become longer than it should: a bomb would show here."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def write(self, data: object, /) -> int:
        written = super().write(data)  # type: ignore[arg-type]
        assert self.tell() <= self.most
        return written


@pytest.mark.parametrize(("what", "source", "target", "delta"), EXAMPLES, ids=[each[0] for each in EXAMPLES])
def test_hostile_instructions_end_in_one_line_or_in_the_target(
    what: str, source: bytes, target: bytes, delta: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "source"
    path.write_bytes(source)
    parts = _taken_apart(delta)
    assert apply_delta(parts.joined(), path, io.BytesIO(), length=len(target))

    random = np.random.default_rng([SEED, *what.encode()])
    refused = 0
    for round_number in range(ROUNDS // len(EXAMPLES)):
        hostile = _hostile(parts, random)
        if round_number % _TRACED == 0:
            tracemalloc.start()
        out = _Counted(len(target))
        refusal = _refusal(hostile, path, out)
        refused += refusal is not None
        assert out.getvalue() == target if refusal is None else "\n" not in refusal
        if tracemalloc.is_tracing():
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < parts.header.memory_bytes <= DELTA_MEMORY_BYTES
    assert refused > ROUNDS // len(EXAMPLES) // 2


def test_the_examples_have_every_instruction_and_operation(tmp_path: Path) -> None:
    from skerry.delivery.delta.head import Piece, read_steps
    from skerry.delivery.delta.residual import Op
    from skerry.delivery.delta.rest import Way

    pieces, ops, ways = set(), set(), set()
    for _, _, _, delta in EXAMPLES:
        parts = _taken_apart(delta)
        steps = read_steps(parts.head, parts.header)
        pieces |= {step.piece for step in steps}
        ops |= {step.op for step in steps}
        ways.add(parts.tail[0])
    assert pieces == set(Piece) - {Piece.END}
    assert ops >= set(Op) - {Op.XOR_FLOAT, Op.FRESH}
    assert ways >= {Way.PACKED, Way.MATCHES}
