"""Making a delta: tensors matched by name, each written in the way that takes fewest bytes, the rest as plain bytes."""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from skerry.delivery.delta import rans
from skerry.delivery.delta.decode import gives
from skerry.delivery.delta.form import (
    DELTA_MEMORY_BYTES,
    MAX_FILE_BYTES,
    MAX_HEAD_BYTES,
    Effort,
    Header,
    number,
    pack,
    short_hash,
    signed,
    write_header,
)
from skerry.delivery.delta.grid import Tensor, find_grid, predicted, write_grid
from skerry.delivery.delta.head import (
    BLOCK_ELEMENTS,
    ELEMENTS_PER_TABLE,
    MAX_CHANNELS,
    MAX_PACKED_BYTES,
    MAX_PIECES,
    MAX_REST_BYTES,
    Piece,
    memory_of,
    read_steps,
)
from skerry.delivery.delta.residual import ALONE, WIDTHS, Op, hint_of, residual_of, split, unsigned
from skerry.delivery.delta.rest import write_rest

Array = np.ndarray[Any, np.dtype[Any]]

_LEAST_BYTES = 256
_SEARCHED_BYTES = 1 << 16
_MOST_TENSORS = MAX_PIECES // 4


@dataclass(slots=True)
class _Written:
    """Instructions for the head, and the streams they speak of, in the same order."""

    head: bytearray = field(default_factory=bytearray)
    body: list[bytes] = field(default_factory=list)
    source_at: int = 0
    effort: Effort = field(default_factory=Effort)


def make_delta(
    source: bytes, target: bytes, *, source_tensors: Sequence[Tensor] = (), target_tensors: Sequence[Tensor] = ()
) -> bytes | None:
    """Return the delta that turns `source` into `target`; an empty `source` gives the target packed by itself.

    None when the decoder's bounds leave no room for one: what is not tensors is too long, or a file, or the head. What
    is returned has been applied once, and gave the target. Tensors that do not fit their file are left to the rest.
    """
    pairs = _joined(list(_pairs(_sound(source_tensors, source), _sound(target_tensors, target))), source, target)
    kept = _outside(source, [(old.offset, old.length) for old, _ in pairs if old is not None])
    rest = _outside(target, [(new.offset, new.length) for _, new in pairs])
    if max(len(kept), len(rest)) > MAX_REST_BYTES or max(len(source), len(target)) > MAX_FILE_BYTES:
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
    if len(written.head) > MAX_HEAD_BYTES:
        return None

    head = bytes(written.head)
    header = Header(
        memory_bytes=0,
        source_length=len(source),
        source_hash=short_hash(source),
        target_length=len(target),
        target_hash=short_hash(target),
    )
    memory = memory_of(read_steps(head, header), kept=len(kept), rest=len(rest))
    if memory > DELTA_MEMORY_BYTES:
        return None
    # which stretches of the source were tensors is said by the pieces themselves: the rest comes after them
    parts = [
        write_header(replace(header, memory_bytes=memory)),
        pack(head, written.effort),
        write_rest(kept, rest, written.effort),
        *written.body,
    ]
    delta = b"".join(parts)
    return delta if gives(delta, source, target) else None


def _sound(tensors: Sequence[Tensor], data: bytes) -> list[Tensor]:
    """Return the largest tensors that lie within the file as whole elements and channels, in order, none twice."""
    fit = [tensor for tensor in tensors if tensor.length >= _LEAST_BYTES and _fits(tensor, len(data))]
    fit = sorted(fit, key=lambda each: (-each.length, each.offset))[:_MOST_TENSORS]
    taken: list[Tensor] = []
    at = 0
    for tensor in sorted(fit, key=lambda each: (each.offset, -each.length)):
        # two tensors in one place: the first has it
        if tensor.offset >= at:
            taken.append(tensor)
            at = tensor.offset + tensor.length
    return taken


def _fits(tensor: Tensor, size: int) -> bool:
    if tensor.width < 1 or tensor.offset < 0 or tensor.offset + tensor.length > size or tensor.length % tensor.width:
        return False
    if not 1 <= tensor.channels <= MAX_CHANNELS or tensor.inner < 1:
        return False
    return tensor.length // tensor.width % (tensor.channels * tensor.inner) == 0


def _pairs(old: Sequence[Tensor], new: Sequence[Tensor]) -> Iterator[tuple[Tensor | None, Tensor]]:
    """Give each target tensor, in order of its place, its namesake; else the next unclaimed one of its shape."""
    named = {tensor.name: tensor for tensor in old}
    names = {tensor.name for tensor in new}
    claimed: set[int] = set()
    spare: dict[tuple[int, int, bool], deque[Tensor]] = {}
    for tensor in old:
        if tensor.name not in names:
            spare.setdefault(_kind(tensor), deque()).append(tensor)
    for tensor in new:
        match = named.get(tensor.name)
        if match is None and (alike := spare.get(_kind(tensor))):
            match = alike.popleft()
        if match is None or _kind(match) != _kind(tensor) or match.offset in claimed:
            yield None, tensor
            continue
        claimed.add(match.offset)
        yield match, tensor


def _joined(
    pairs: Sequence[tuple[Tensor | None, Tensor]], source: bytes, target: bytes
) -> list[tuple[Tensor | None, Tensor]]:
    """Join neighbours that did not change, and the same bytes between them, to one stretch to copy."""
    claimed = sorted(old.offset for old, _ in pairs if old is not None)
    joined: list[tuple[Tensor | None, Tensor]] = []
    copied = False  # whether the last of them did not change
    for old, new in pairs:
        before, after = joined[-1] if copied else (None, None)
        copied = old is not None and _same(source, old.offset, target, new.offset, new.length)
        if copied and old is not None and before is not None and after is not None:
            end, gap = before.offset + before.length, new.offset - after.offset - after.length
            # what lies between them in the source may be the namesake of another tensor
            near = old.offset - end == gap and bisect_left(claimed, end) == bisect_left(claimed, old.offset)
            if near and _same(source, end, target, new.offset - gap, gap):
                length = before.length + gap + old.length
                joined[-1] = (replace(before, length=length), replace(after, length=length))
                continue
        joined.append((old, new))
    return joined


def _same(source: bytes, at: int, target: bytes, there: int, length: int) -> bool:
    return source[at : at + length] == target[there : there + length]


def _kind(tensor: Tensor) -> tuple[int, int, bool]:
    return tensor.length, tensor.width, tensor.floating


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
        spans = [(first, min(MAX_PACKED_BYTES, new.length - first)) for first in range(0, new.length, MAX_PACKED_BYTES)]
        plain = [pack(wanted[first : first + length], written.effort) for first, length in spans]
        if sum(map(len, plain)) < best or not head:
            # the first part says where the source's tensor begins, the others go on from there
            follows = [moved, *([number(1) + signed(0)] if old is not None else [number(0)]) * (len(spans) - 1)]
            head = b"".join(
                number(Piece.PACKED) + number(length) + where for (_, length), where in zip(spans, follows, strict=True)
            )
            body = plain
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
    hints = None
    if op is Op.PREDICT and old is not None:
        grid, with_ratios = find_grid(base, target, old, new)
        head += write_grid(grid, with_ratios=with_ratios)
        base, hints = predicted(grid, base)
    blocks = [slice(first, first + BLOCK_ELEMENTS) for first in range(0, len(target), BLOCK_ELEMENTS)]
    if hints is None:
        hints = np.concatenate([hint_of(op, base[block]) for block in blocks])
    pieces = [split(op, residual_of(op, base[block], target[block])) for block in blocks]
    symbols = np.concatenate([part for part, _ in pieces])
    bounds, tables = _tables(hints, symbols)

    head += number(len(bounds)) + bytes(bounds.astype(np.uint8)) + b"".join(_table(table) for table in tables)
    body = []
    for block, (part, bits) in zip(blocks, pieces, strict=True):
        coded = rans.encode(part, np.searchsorted(bounds, hints[block], side="right"), tables)
        head += number(len(coded)) + number(len(bits))
        body += [coded, bits]
    return bytes(head), body


def _tables(hints: Array, symbols: Array) -> tuple[Array, Array]:
    """Group neighbouring hints while a table of their own costs more than it saves, or there are too many.

    Returns the hints (G-1,) at which groups 1 to G-1 begin, and the frequencies (G, 256) of each group.
    """
    seen = np.zeros(65536, dtype=np.int64)
    for first in range(0, len(hints), BLOCK_ELEMENTS):
        both = hints[first : first + BLOCK_ELEMENTS].astype(np.int64) * 256 + symbols[first : first + BLOCK_ELEMENTS]
        seen += np.bincount(both, minlength=65536)
    joint = seen.reshape(256, 256)
    most = 1 + len(hints) // ELEMENTS_PER_TABLE
    starts = [int(hint) for hint in np.flatnonzero(joint.sum(axis=1))]
    counts = [joint[hint] for hint in starts]
    costs = [rans.cost_bits(each) for each in counts]
    merged = [rans.cost_bits(one + other) for one, other in pairwise(counts)]
    while len(counts) > 1:
        gains = [costs[at] + costs[at + 1] - merged[at] for at in range(len(merged))]
        at = int(np.argmax(gains))
        if gains[at] < 0 and len(counts) <= most:
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
