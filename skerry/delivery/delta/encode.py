"""Making a delta: tensors matched by name, each written in the way that takes fewest bytes, the rest as plain bytes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from skerry.delivery.delta import rans
from skerry.delivery.delta.decode import BLOCK_ELEMENTS, TENSOR_MEMORY_BYTES, Piece
from skerry.delivery.delta.form import Header, number, pack, short_hash, signed, write_header
from skerry.delivery.delta.grid import Tensor, find_grid, write_grid
from skerry.delivery.delta.residual import ALONE, WIDTHS, Op, hint_of, prediction, residual_of, split, unsigned
from skerry.delivery.delta.rest import MAX_REST_BYTES, write_rest

Array = np.ndarray[Any, np.dtype[Any]]

_LEAST_BYTES = 256
_SEARCHED_BYTES = 1 << 16
_BASE_MEMORY = 24 << 20


@dataclass(slots=True)
class _Written:
    """Instructions for the head, and the streams they speak of, in the same order."""

    head: bytearray = field(default_factory=bytearray)
    body: list[bytes] = field(default_factory=list)
    source_at: int = 0
    tensors: bool = False


def make_delta(
    source: bytes, target: bytes, *, source_tensors: Sequence[Tensor] = (), target_tensors: Sequence[Tensor] = ()
) -> bytes | None:
    """Return the delta that turns `source` into `target`; None when what is not tensors is too long for one.

    An empty `source` gives the target compressed by itself, in the same format.
    """
    pairs = list(_pairs(source_tensors, target_tensors))
    kept = _outside(source, [(old.offset, old.length) for old, _ in pairs if old is not None])
    rest = _outside(target, [(new.offset, new.length) for _, new in pairs])
    if max(len(kept), len(rest)) > MAX_REST_BYTES:
        return None

    written = _Written()
    at = 0
    for old, new in pairs:
        if new.offset > at:
            written.head += number(Piece.REST) + number(new.offset - at)
        _write_tensor(written, source, target, old, new)
        at = new.offset + new.length
    if at < len(target):
        written.head += number(Piece.REST) + number(len(target) - at)
    written.head += number(Piece.END)

    # which stretches of the source were tensors is said by the pieces themselves: the rest comes after them
    tail = write_rest(kept, rest)
    memory = _BASE_MEMORY + 2 * (len(kept) + len(rest)) + (TENSOR_MEMORY_BYTES if written.tensors else 0)
    header = Header(
        memory_bytes=-(-memory >> 10) << 10,
        source_length=len(source),
        source_hash=short_hash(source),
        target_length=len(target),
        target_hash=short_hash(target),
    )
    return write_header(header) + pack(bytes(written.head)) + tail + b"".join(written.body)


def _pairs(old: Sequence[Tensor], new: Sequence[Tensor]) -> Iterator[tuple[Tensor | None, Tensor]]:
    """Give each target tensor, in order of its place, its namesake; else the next unclaimed one of its shape."""
    named = {tensor.name: tensor for tensor in old}
    claimed: set[int] = set()
    at = 0
    ordered = [tensor for tensor in sorted(new, key=lambda each: each.offset) if tensor.length >= _LEAST_BYTES]
    names = {tensor.name for tensor in ordered}
    spare = [tensor for tensor in sorted(old, key=lambda each: each.offset) if tensor.name not in names]
    for tensor in ordered:
        if tensor.offset < at:
            continue  # two tensors in one place: the first has it
        at = tensor.offset + tensor.length
        match = named.get(tensor.name) or next((each for each in spare if _alike(each, tensor)), None)
        if match is None or not _alike(match, tensor) or match.offset in claimed:
            yield None, tensor
            continue
        claimed.add(match.offset)
        if match in spare:
            spare.remove(match)
        yield match, tensor


def _alike(one: Tensor, other: Tensor) -> bool:
    return (one.length, one.width, one.floating) == (other.length, other.width, other.floating)


def _outside(data: bytes, spans: Sequence[tuple[int, int]]) -> bytes:
    parts, at = [], 0
    for offset, length in sorted(spans):
        parts.append(data[at:offset])
        at = offset + length
    return b"".join([*parts, data[at:]])


def _write_tensor(written: _Written, source: bytes, target: bytes, old: Tensor | None, new: Tensor) -> None:
    wanted = target[new.offset : new.offset + new.length]
    had = source[old.offset : old.offset + old.length] if old is not None else b""
    moved = number(0)
    if old is not None:
        moved = number(1) + signed(old.offset - written.source_at)
        written.source_at = old.offset + old.length
    if had == wanted:
        written.head += number(Piece.COPY) + number(new.length) + moved[1:]
        return

    head, body, best = b"", [b""], len(wanted) + 1
    for op in _ops(old, new):
        tried_head, tried_body = _modelled(op, had, wanted, old, new)
        size = len(tried_head) + sum(map(len, tried_body))
        if size < best:
            head = number(Piece.TENSOR) + number(new.length) + number(op) + number(new.width) + moved + tried_head
            body, best = tried_body, size
    # searching for repetitions takes long, and finds little where values are as good as random
    if new.length <= _SEARCHED_BYTES or best > new.length * 0.9:
        plain = pack(wanted)
        if len(plain) < best or not head:
            head, body = number(Piece.PACKED) + number(new.length) + moved, [plain]
    written.tensors |= head[0] == Piece.TENSOR
    written.head += head
    written.body += body


def _ops(old: Tensor | None, new: Tensor) -> list[Op]:
    ops = [Op.FRESH_FLOAT] if new.floating else [Op.FRESH]
    if old is not None:
        ops += [Op.SUBTRACT_FLOAT, Op.XOR_FLOAT] if new.floating else [Op.SUBTRACT]
        ops += [Op.PREDICT] if not new.floating and new.channels > 1 else []
    return [op for op in ops if new.width in WIDTHS[op]]


def _modelled(op: Op, had: bytes, wanted: bytes, old: Tensor | None, new: Tensor) -> tuple[bytes, list[bytes]]:
    """Return what the head says of a tensor under `op`, and its streams: symbols and bits, block by block."""
    target = unsigned(wanted, new.width)
    base = unsigned(had, new.width) if op not in ALONE else np.zeros_like(target)
    head = bytearray()
    if op is Op.PREDICT and old is not None:
        grid, with_ratios = find_grid(base, target, old, new)
        head += write_grid(grid, with_ratios=with_ratios)
        base, hints = prediction(grid, base, 0)
    else:
        hints = hint_of(op, base)
    residual = residual_of(op, base, target)
    pieces = [split(op, residual[first : first + BLOCK_ELEMENTS]) for first in range(0, len(residual), BLOCK_ELEMENTS)]
    symbols = np.concatenate([part for part, _ in pieces])
    bounds, tables = _tables(hints, symbols)
    contexts = np.searchsorted(bounds, hints, side="right").astype(np.uint8)

    head += number(len(bounds)) + bytes(bounds.astype(np.uint8)) + b"".join(_table(table) for table in tables)
    body = []
    for index, (part, bits) in enumerate(pieces):
        first = index * BLOCK_ELEMENTS
        coded = rans.encode(part, contexts[first : first + len(part)], tables)
        head += number(len(coded)) + number(len(bits))
        body += [coded, bits]
    return bytes(head), body


def _tables(hints: Array, symbols: Array) -> tuple[Array, Array]:
    """Group neighbouring hints while a table of their own costs more than it saves.

    Returns the hints (G-1,) at which groups 1 to G-1 begin, and the frequencies (G, 256) of each group.
    """
    joint = np.bincount(hints.astype(np.int64) * 256 + symbols, minlength=65536).reshape(256, 256)
    starts = [int(hint) for hint in np.flatnonzero(joint.sum(axis=1))]
    counts = [joint[hint] for hint in starts]
    costs = [rans.cost_bits(each) for each in counts]
    merged = [rans.cost_bits(one + other) for one, other in pairwise(counts)]
    while len(counts) > 1:
        gains = [costs[at] + costs[at + 1] - merged[at] for at in range(len(merged))]
        at = int(np.argmax(gains))
        if gains[at] < 0:
            break
        counts[at : at + 2] = [counts[at] + counts[at + 1]]
        costs[at : at + 2] = [merged[at]]
        del starts[at + 1], merged[at]
        for near in (at - 1, at):
            if 0 <= near < len(merged):
                merged[near] = rans.cost_bits(counts[near] + counts[near + 1])
    return np.asarray(starts[1:], dtype=np.int64), np.stack([rans.table_of(each) for each in counts])


def _table(table: Array) -> bytes:
    present = np.flatnonzero(table)
    steps = np.diff(present, prepend=0)
    pairs = zip(steps.tolist(), table[present].tolist(), strict=True)
    return number(len(present)) + b"".join(number(step) + number(frequency) for step, frequency in pairs)
