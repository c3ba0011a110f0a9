"""The head of a delta: the instructions that make the target, read whole, checked, and costed before anything is made.

    REST length                       the next bytes of what is not tensors
    COPY length, source               a stretch of the source as it is
    TENSOR length, op, width, whether it has a source, [source], [grid], bounds, tables, lengths of streams
    PACKED length, whether it has a source, [source]     one packed stream
    END

A place in the source is said relative to the end of the last one. What a tensor's models are is checked with the rest,
and thrown away: a head of a few kilobytes may describe more tables than fit into memory, so each is read again when its
turn comes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from skerry.delivery.delta import rans
from skerry.delivery.delta.form import Cursor, Header
from skerry.delivery.delta.residual import ALONE, WIDTHS, Grid, Op
from skerry.errors import Rejected

Array = np.ndarray[Any, np.dtype[Any]]

BLOCK_ELEMENTS = 1 << 17
MAX_PIECES = 1 << 14
MAX_PACKED_BYTES = 4 << 20
MAX_REST_BYTES = 16 << 20
MAX_CHANNELS = 1 << 20
MAX_RANK = 64
MAX_SHIFT = 30
GROUPS = 16
ELEMENTS_PER_TABLE = 64
"""A tensor has one table, and one more for so many elements: tables cost time in proportion to what they make."""
_MAX_TABLES = 256
_WINDOWS_BYTES = 24 << 20
_TENSOR_BYTES = 24 << 20
_ALWAYS_BYTES = 8 << 20


class Piece(IntEnum):
    """What an instruction makes."""

    END = 0  # nothing more
    REST = 1  # bytes beside the tensors
    COPY = 2  # a stretch of the source
    TENSOR = 3  # elements by prediction and residual
    PACKED = 4  # bytes without the source


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """How a tensor's residuals are coded: `bounds` (G-1,) of the hints, `tables` (G, 256), stream lengths."""

    op: Op
    width: int
    grid: Grid | None
    bounds: Array
    tables: Array
    blocks: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction; `source` is where its stretch of the source begins, -1 without one; `model_at` in the head."""

    piece: Piece
    length: int
    source: int = -1
    op: Op | None = None
    width: int = 0
    model_at: int = 0


def read_steps(data: bytes, header: Header) -> list[Step]:
    """Return the instructions of a head, each of them checked; raises `Rejected`."""
    head = Cursor(data)
    steps: list[Step] = []
    made = at = 0
    while (piece := _piece(head.number(255))) is not Piece.END:
        most = MAX_PACKED_BYTES if piece is Piece.PACKED else header.target_length
        length = head.number(min(most, header.target_length - made))
        source, op, width = -1, None, 0
        if piece is Piece.TENSOR:
            op, width = _operation(head, length)
        named = piece is Piece.COPY or (piece in (Piece.TENSOR, Piece.PACKED) and head.number(1) == 1)
        if named:
            source = at + head.signed(header.source_length)
            at = source + length
            if not 0 <= source <= at <= header.source_length:
                raise Rejected(f"delta: expected a place within the source, got {source} and {length} bytes")
        step = Step(piece=piece, length=length, source=source, op=op, width=width, model_at=head.at)
        if op is not None:
            if source < 0 and op not in ALONE:
                raise Rejected(f"delta: expected a place in the source for {op.name}, got none")
            _model(head, step)
        steps.append(step)
        made += length
        if len(steps) > MAX_PIECES:
            raise Rejected(f"delta: expected at most {MAX_PIECES} instructions, got more")
    if made != header.target_length or head.left:
        raise Rejected(f"delta: expected instructions for {header.target_length} bytes, got them for {made}")
    return steps


def read_model(data: bytes, step: Step) -> Model:
    """Return the model of a tensor's step, which `read_steps` has checked."""
    return _model(Cursor(data, step.model_at), step)


def unnamed(steps: Sequence[Step], header: Header) -> list[tuple[int, int]]:
    """Return (place, length) of each stretch of the source that no step names; raises `Rejected` when two overlap."""
    named = sorted((step.source, step.length) for step in steps if step.source >= 0)
    outside: list[tuple[int, int]] = []
    at = 0
    for start, length in [*named, (header.source_length, 0)]:
        if start < at:
            raise Rejected("delta: expected each place of the source once, got one twice")
        if start > at:
            outside.append((at, start - at))
        at = start + length
    return outside


def memory_of(steps: Sequence[Step], *, kept: int, rest: int) -> int:
    """Return the bytes that a decoder needs at most, beside the delta itself and what its libraries take when loaded.

    First come the `kept` bytes of the source beside the tensors and the `rest` made from them, each of them twice
    while it moves from one library to another; then the pieces, one at a time.
    """
    piece = max((_piece_memory(step) for step in steps), default=0)
    needed = _ALWAYS_BYTES + max(_WINDOWS_BYTES + 2 * kept + 2 * rest, rest + piece)
    return -(-needed >> 10) << 10  # as a header says it


def _piece_memory(step: Step) -> int:
    match step.piece:
        case Piece.TENSOR:
            return _TENSOR_BYTES
        case Piece.PACKED:
            return _WINDOWS_BYTES + 2 * step.length
        case _:
            return 0


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


def _model(head: Cursor, step: Step) -> Model:
    assert step.op is not None  # noqa: S101 -- only tensors come here
    count = step.length // step.width
    grid = _grid(head, count) if step.op is Op.PREDICT else None
    bounds = np.frombuffer(head.take(head.number(min(_MAX_TABLES - 1, count // ELEMENTS_PER_TABLE))), dtype=np.uint8)
    if (np.diff(bounds.astype(np.int64)) <= 0).any():
        raise Rejected("delta: expected bounds in order, got others")
    tables = np.stack([_table(head) for _ in range(len(bounds) + 1)])
    # a symbol takes a word at most, and fewer bits than its element has
    sizes = [min(BLOCK_ELEMENTS, count - first) for first in range(0, count, BLOCK_ELEMENTS)]
    blocks = tuple((head.number(rans.most_bytes(size)), head.number(size * step.width)) for size in sizes)
    return Model(op=step.op, width=step.width, grid=grid, bounds=bounds, tables=tables, blocks=blocks)


def _grid(head: Cursor, count: int) -> Grid:
    """Read channels, inner, whether there are ratios, ratios, groups, rank, shift, and the two thin matrices."""
    channels, inner = head.number(min(count, MAX_CHANNELS)), head.number(count)
    if not channels or not inner or count % (channels * inner):
        raise Rejected(f"delta: expected channels that divide {count} elements, got {channels} of {inner}")
    ratios = np.ones(channels)
    if head.number(1):
        narrow = np.frombuffer(head.take(4 * channels), dtype="<f4")
        if not np.isfinite(narrow).all():
            raise Rejected("delta: expected finite ratios of scales, got others")
        ratios = narrow.astype(np.float64)
    groups = np.frombuffer(head.take(channels), dtype=np.uint8)
    rank, shift = head.number(MAX_RANK), head.number(MAX_SHIFT)
    if (groups >= GROUPS).any():
        raise Rejected(f"delta: expected groups below {GROUPS}, got others")
    across = count // channels
    left = np.frombuffer(head.take(channels * rank), dtype=np.int8).reshape(rank, channels).T
    right = np.frombuffer(head.take(across * rank), dtype=np.int8).reshape(rank, across)
    return Grid(channels, inner, ratios=ratios, groups=groups, left=left, right=right, shift=shift)


def _table(head: Cursor) -> Array:
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
