"""Applying a delta: untrusted instructions over a source file, in bounded memory, to the byte or not at all.

    REST length                       the next bytes of what is not tensors
    COPY length, source               a stretch of the source as it is
    TENSOR length, op, width, whether it has a source, [source], [grid], bounds, tables, lengths of streams
    PACKED length, whether it has a source, [source]     one packed stream
    END

A place in the source is said relative to the end of the last one. The packed head is followed by the rest (which needs
the stretches of the source that no piece named), then by the streams of the pieces in their order.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import IO, Any

import numpy as np

from skerry.delivery.delta import rans
from skerry.delivery.delta.form import (
    DELTA_MEMORY_BYTES,
    HASH_BYTES,
    MAX_HEAD_BYTES,
    Cursor,
    Header,
    read_header,
    unpack,
)
from skerry.delivery.delta.residual import ALONE, WIDTHS, Grid, Op, hint_of, join, prediction, restore, unsigned
from skerry.delivery.delta.rest import MAX_REST_BYTES, read_rest
from skerry.errors import Rejected

Array = np.ndarray[Any, np.dtype[Any]]

BLOCK_ELEMENTS = 1 << 17
TENSOR_MEMORY_BYTES = 24 << 20
MAX_PIECES = 1 << 16
MAX_CHANNELS = 1 << 20
MAX_RANK = 64
MAX_SHIFT = 30
GROUPS = 16
_MAX_GROUPS = 256
_COPY_BYTES = 1 << 20


class Piece(IntEnum):
    """What an instruction makes."""

    END = 0  # nothing more
    REST = 1  # bytes beside the tensors
    COPY = 2  # a stretch of the source
    TENSOR = 3  # elements by prediction and residual
    PACKED = 4  # bytes without the source


@dataclass(frozen=True, slots=True, eq=False)
class _Model:
    """How a tensor's residuals are coded: `bounds` (G-1,) of the hints, `tables` (G, 256), stream lengths."""

    op: Op
    width: int
    grid: Grid | None
    bounds: Array
    tables: Array
    blocks: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """One instruction; `source` is where its stretch of the source begins, -1 without one."""

    piece: Piece
    length: int
    source: int = -1
    model: _Model | None = None


def apply_delta(
    delta: bytes | memoryview, source: Path, out: IO[bytes], *, memory_bytes: int = DELTA_MEMORY_BYTES
) -> str:
    """Write the target of `delta` over the file `source` to `out`; return its SHA-256 in hex.

    The caller compares that with the signed one: the hash in the delta says no more than that nothing went wrong.

    Raises:
        Rejected: the delta is damaged, hostile, wants more memory than `memory_bytes`, or is for another source.
    """
    cursor = Cursor(delta)
    header = read_header(cursor, memory_bytes=memory_bytes)
    _check_source(header, source)
    steps = _read_steps(Cursor(unpack(cursor, most=MAX_HEAD_BYTES)), header)
    digest = hashlib.sha256()
    with source.open("rb") as old:
        rest = Cursor(_read_rest(cursor, old, steps, header))
        for piece in _pieces(cursor, old, rest, steps):
            digest.update(piece)
            out.write(piece)
    if digest.digest()[:HASH_BYTES] != header.target_hash:
        raise Rejected("delta: expected to make its target, got other bytes; fetch the whole file instead")
    return digest.hexdigest()


def _check_source(header: Header, source: Path) -> None:
    length = source.stat().st_size
    digest = hashlib.sha256()
    with source.open("rb") as old:
        while block := old.read(_COPY_BYTES):
            digest.update(block)
    if (length, digest.digest()[:HASH_BYTES]) != (header.source_length, header.source_hash):
        raise Rejected(f"delta: expected a source of {header.source_length} bytes, got another file; fetch the whole")


def _read_steps(head: Cursor, header: Header) -> list[_Step]:
    steps: list[_Step] = []
    made = at = 0
    while (piece := _piece(head.number(255))) is not Piece.END:
        length = head.number(header.target_length - made)
        model = None
        source = -1
        if piece is Piece.TENSOR:
            op, width = _operation(head, length)
        named = piece is Piece.COPY or (piece in (Piece.TENSOR, Piece.PACKED) and head.number(1) == 1)
        if named:
            source = at + head.signed(header.source_length)
            at = source + length
            if not 0 <= source <= at <= header.source_length:
                raise Rejected(f"delta: expected a place within the source, got {source} and {length} bytes")
        if piece is Piece.TENSOR:
            if source < 0 and op not in ALONE:
                raise Rejected(f"delta: expected a place in the source for {op.name}, got none")
            model = _read_model(head, op, width, length)
        steps.append(_Step(piece=piece, length=length, source=source, model=model))
        made += length
        if len(steps) > MAX_PIECES:
            raise Rejected(f"delta: expected at most {MAX_PIECES} instructions, got more")
    if made != header.target_length or head.left:
        raise Rejected(f"delta: expected instructions for {header.target_length} bytes, got them for {made}")
    return steps


def _piece(code: int) -> Piece:
    try:
        return Piece(code)
    except ValueError as error:
        raise Rejected(f"delta: expected an instruction of 0 to {max(Piece)}, got {code}") from error


def _operation(head: Cursor, length: int) -> tuple[Op, int]:
    code, width = head.number(255), head.number(8)
    if code not in tuple(Op) or width not in WIDTHS[Op(code)] or not length or length % width:
        raise Rejected(f"delta: expected a known operation, got {code} on {length} bytes in elements of {width}")
    return Op(code), width


def _read_model(head: Cursor, op: Op, width: int, length: int) -> _Model:
    count = length // width
    grid = _read_grid(head, count) if op is Op.PREDICT else None
    bounds = np.frombuffer(head.take(head.number(_MAX_GROUPS - 1)), dtype=np.uint8)
    if (np.diff(bounds.astype(np.int64)) <= 0).any():
        raise Rejected("delta: expected bounds in order, got others")
    tables = np.stack([_read_table(head) for _ in range(len(bounds) + 1)])
    blocks = tuple((head.number(8 * length + 65536), head.number(length)) for _ in range(-(-count // BLOCK_ELEMENTS)))
    return _Model(op=op, width=width, grid=grid, bounds=bounds, tables=tables, blocks=blocks)


def _read_grid(head: Cursor, count: int) -> Grid:
    """Read channels, inner, whether there are ratios, ratios, groups, rank, shift, and the two thin matrices."""
    channels, inner = head.number(min(count, MAX_CHANNELS)), head.number(count)
    if not channels or not inner or count % (channels * inner):
        raise Rejected(f"delta: expected channels that divide {count} elements, got {channels} of {inner}")
    ratios = np.ones(channels)
    if head.number(1):
        ratios = np.frombuffer(head.take(4 * channels), dtype="<f4").astype(np.float64)
        if not np.isfinite(ratios).all():
            raise Rejected("delta: expected finite ratios of scales, got others")
    groups = np.frombuffer(head.take(channels), dtype=np.uint8)
    rank, shift = head.number(MAX_RANK), head.number(MAX_SHIFT)
    if (groups >= GROUPS).any():
        raise Rejected(f"delta: expected groups below {GROUPS}, got others")
    across = count // channels
    left = np.frombuffer(head.take(channels * rank), dtype=np.int8).reshape(rank, channels).T
    right = np.frombuffer(head.take(across * rank), dtype=np.int8).reshape(rank, across)
    return Grid(channels, inner, ratios=ratios, groups=groups, left=left, right=right, shift=shift)


def _read_table(head: Cursor) -> Array:
    table = np.zeros(256, dtype=np.int64)
    symbol = 0
    for index in range(head.number(256)):
        step = head.number(255)
        symbol += step
        if symbol > 255 or (index and not step):
            raise Rejected("delta: expected symbols of a table in order, got others")
        table[symbol] = head.number(rans.TOTAL)
    if table.sum() != rans.TOTAL:
        raise Rejected(f"delta: expected a table that sums to {rans.TOTAL}, got {table.sum()}")
    return table


def _read_rest(cursor: Cursor, old: IO[bytes], steps: list[_Step], header: Header) -> bytes:
    """Gather the stretches of the source that no step names, and make the target's rest from them."""
    named = sorted((step.source, step.length) for step in steps if step.source >= 0)
    outside: list[tuple[int, int]] = []
    at = 0
    for start, length in [*named, (header.source_length, 0)]:
        if start < at:
            raise Rejected("delta: expected each place of the source once, got one twice")
        outside.append((at, start - at))
        at = start + length
    wanted = sum(step.length for step in steps if step.piece is Piece.REST)
    kept = sum(length for _, length in outside)
    if max(wanted, kept) > MAX_REST_BYTES:
        raise Rejected(f"delta: expected at most {MAX_REST_BYTES} bytes beside the tensors, got more")
    return read_rest(cursor, b"".join(_read_at(old, start, length) for start, length in outside), wanted)


def _pieces(cursor: Cursor, old: IO[bytes], rest: Cursor, steps: list[_Step]) -> Iterator[bytes]:
    for step in steps:
        match step.piece:
            case Piece.REST:
                yield rest.take(step.length)
            case Piece.COPY:
                for first in range(0, step.length, _COPY_BYTES):
                    yield _read_at(old, step.source + first, min(_COPY_BYTES, step.length - first))
            case Piece.PACKED:
                yield _exactly(unpack(cursor, most=step.length), step.length)
            case _ if step.model is not None:
                yield from _blocks(cursor, old, step, step.model)
    if cursor.left:
        raise Rejected(f"delta: expected its end, got {cursor.left} more bytes")


def _blocks(cursor: Cursor, old: IO[bytes], step: _Step, model: _Model) -> Iterator[bytes]:
    count = step.length // model.width
    for index, (coded, bits) in enumerate(model.blocks):
        first = index * BLOCK_ELEMENTS
        size = min(BLOCK_ELEMENTS, count - first)
        if model.op in ALONE:
            source = np.zeros(size, dtype=f"u{model.width}")  # nothing is looked at
        else:
            source = unsigned(_read_at(old, step.source + first * model.width, size * model.width), model.width)
        if model.grid is not None:
            base, hints = prediction(model.grid, source, first)
        else:
            base, hints = source, hint_of(model.op, source)
        contexts = np.searchsorted(model.bounds, hints, side="right")
        symbols = rans.decode(cursor.take(coded), contexts, model.tables)
        try:
            residual = join(model.op, symbols, cursor.take(bits), model.width)
        except ValueError as error:
            raise Rejected(f"delta: {error}; it is damaged") from error
        yield restore(model.op, base, residual).astype(f"<u{model.width}").tobytes()


def _read_at(old: IO[bytes], start: int, length: int) -> bytes:
    old.seek(start)
    return _exactly(old.read(length), length)


def _exactly(data: bytes, length: int) -> bytes:
    if len(data) != length:
        raise Rejected(f"delta: expected {length} bytes, got {len(data)}")
    return data
