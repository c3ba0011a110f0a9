"""Applying a delta: untrusted instructions over a source file, in bounded memory, to the byte or not at all.

    header, head (`head` lists the instructions) -> the rest, from what of the source no step names -> piece by piece

The bytes in a delta stand in that order: the packed head, the rest, the streams of the pieces. Nothing is made before
the whole head has been checked and has been found to need no more memory than the header says.
"""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO

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
from skerry.delivery.delta.head import (
    BLOCK_ELEMENTS,
    MAX_REST_BYTES,
    Model,
    Piece,
    Step,
    memory_of,
    read_model,
    read_steps,
    unnamed,
)
from skerry.delivery.delta.residual import ALONE, hint_of, join, prediction, restore, unsigned
from skerry.delivery.delta.rest import read_rest
from skerry.errors import Rejected

_COPY_BYTES = 1 << 20


def apply_delta(
    delta: bytes | memoryview,
    source: Path | None,
    out: IO[bytes],
    *,
    length: int | None = None,
    memory_bytes: int = DELTA_MEMORY_BYTES,
) -> str:
    """Write the target of `delta` over the file `source` to `out`; return its SHA-256 in hex.

    The caller compares that with the signed one: the hash in the delta says no more than that nothing went wrong.
    `source` is None for a file that was packed by itself; `length` is what the signed manifest says of the target, so
    that a few bytes cannot fill a disk before they are found out. `delta` may be a memory map.

    Raises:
        Rejected: the delta is damaged, hostile, wants more memory than `memory_bytes`, or is for another source or of
            another length.
    """
    if source is None:
        return _apply(delta, io.BytesIO(), out, length=length, memory_bytes=memory_bytes)
    with source.open("rb") as old:
        return _apply(delta, old, out, length=length, memory_bytes=memory_bytes)


def gives(delta: bytes, source: bytes, target: bytes) -> bool:
    """Say whether a device that has `source` would get `target` by `delta`."""
    try:
        made = _apply(delta, io.BytesIO(source), _Nothing(), length=len(target), memory_bytes=DELTA_MEMORY_BYTES)
    except Rejected:
        return False
    return made == hashlib.sha256(target).hexdigest()


class _Nothing(io.RawIOBase):
    """Keeps nothing of what is written to it."""

    def write(self, data: object, /) -> int:
        return len(data)  # type: ignore[arg-type]


def _apply(
    delta: bytes | memoryview, old: IO[bytes], out: IO[bytes] | _Nothing, *, length: int | None, memory_bytes: int
) -> str:
    cursor = Cursor(delta)
    header = read_header(cursor, memory_bytes=memory_bytes)
    if length is not None and header.target_length != length:
        raise Rejected(f"delta: expected one for a file of {length} bytes, got {header.target_length}")
    _check_source(header, old)
    head = unpack(cursor, most=MAX_HEAD_BYTES)
    steps = read_steps(head, header)
    digest = hashlib.sha256()
    rest = Cursor(_read_rest(cursor, old, steps, header))
    for piece in _pieces(cursor, old, rest, head, steps):
        digest.update(piece)
        out.write(piece)
    if digest.digest()[:HASH_BYTES] != header.target_hash:
        raise Rejected("delta: expected to make its target, got other bytes; fetch the whole file instead")
    return digest.hexdigest()


def _check_source(header: Header, old: IO[bytes]) -> None:
    length = 0
    digest = hashlib.sha256()
    while length <= header.source_length and (block := old.read(_COPY_BYTES)):
        length += len(block)
        digest.update(block)
    if (length, digest.digest()[:HASH_BYTES]) != (header.source_length, header.source_hash):
        raise Rejected(f"delta: expected a source of {header.source_length} bytes, got another file; fetch the whole")


def _read_rest(cursor: Cursor, old: IO[bytes], steps: list[Step], header: Header) -> bytes | bytearray:
    """Gather the stretches of the source that no step names, and make the target's rest from them."""
    outside = unnamed(steps, header)
    wanted = sum(step.length for step in steps if step.piece is Piece.REST)
    kept = sum(length for _, length in outside)
    if max(wanted, kept) > MAX_REST_BYTES:
        raise Rejected(f"delta: expected at most {MAX_REST_BYTES} bytes beside the tensors, got more")
    needed = memory_of(steps, kept=kept, rest=wanted)
    if needed > header.memory_bytes:
        raise Rejected(f"delta: expected its header to say {needed} bytes of memory or more, got {header.memory_bytes}")
    gathered, at = bytearray(kept), 0
    for start, length in outside:
        gathered[at : at + length] = _read_at(old, start, length)
        at += length
    return read_rest(cursor, gathered, wanted)


def _pieces(cursor: Cursor, old: IO[bytes], rest: Cursor, head: bytes, steps: list[Step]) -> Iterator[bytes]:
    for step in steps:
        match step.piece:
            case Piece.REST:
                yield rest.take(step.length)
            case Piece.COPY:
                for first in range(0, step.length, _COPY_BYTES):
                    yield _read_at(old, step.source + first, min(_COPY_BYTES, step.length - first))
            case Piece.PACKED:
                yield _exactly(unpack(cursor, most=step.length), step.length)
            case _:
                yield from _blocks(cursor, old, step, read_model(head, step))
    if cursor.left:
        raise Rejected(f"delta: expected its end, got {cursor.left} more bytes")


def _blocks(cursor: Cursor, old: IO[bytes], step: Step, model: Model) -> Iterator[bytes]:
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
