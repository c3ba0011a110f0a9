"""What is left of two files when their tensors are taken out: diffed as plain bytes, by whichever way is smallest.

Three ways are tried: packed without the source, zstd with the source as its prefix (patch-from), and matches with small
differences, as bsdiff finds them, whose three streams are packed apart. Source: C. Percival, "Naive differences of
executable code" (2003).
"""

from enum import IntEnum

import numpy as np

from skerry.delivery.delta.form import (
    LEAST_PREFIX_BYTES,
    Cursor,
    Effort,
    number,
    pack,
    signed,
    unpack,
    unzstd_from,
    zstd_from,
)
from skerry.errors import Rejected

_MAX_SUFFIX_SORTED = 8 << 20
_MAX_MATCHES = 1 << 19
_MAX_CONTROL_BYTES = 2 << 20
_FRAME_BYTES = 64


class Way(IntEnum):
    """How the rest is written."""

    PACKED = 0  # without the source
    PREFIX = 1  # one zstd frame that refers to the source
    MATCHES = 2  # copies with differences, and what is new between them


def write_rest(source: bytes, target: bytes, effort: Effort) -> bytes:
    """Return `target` in terms of `source`: the way, and its streams."""
    ways = [bytes([Way.PACKED]) + pack(target, effort)]
    if len(source) >= LEAST_PREFIX_BYTES and target:
        frame = zstd_from(source, target)
        ways.append(bytes([Way.PREFIX]) + number(len(target)) + number(len(frame)) + frame)
        if max(len(source), len(target)) <= _MAX_SUFFIX_SORTED:
            matches = _matches(source, target, effort)
            ways += [bytes([Way.MATCHES]) + matches] if matches else []
    return min(ways, key=len)


def read_rest(cursor: Cursor, source: bytes | bytearray, length: int) -> bytes | bytearray:
    """Return the `length` bytes of target that `write_rest` wrote; raises `Rejected`."""
    target: bytes | bytearray
    code = cursor.take(1)[0]
    if code not in tuple(Way):
        raise Rejected(f"delta: expected a way of 0 to {max(Way)}, got {code}")
    match Way(code):
        case Way.PACKED:
            target = unpack(cursor, most=length)
        case Way.PREFIX if len(source) >= LEAST_PREFIX_BYTES:
            count = cursor.number(length)
            # a frame is a little longer than what it holds at worst
            target = unzstd_from(source, cursor.take(cursor.number(count + _FRAME_BYTES)), count)
        case Way.MATCHES:
            target = _follow(cursor, source, length)
        case _:
            raise Rejected(f"delta: expected a source of {LEAST_PREFIX_BYTES} bytes or more, got {len(source)}")
    if len(target) != length:
        raise Rejected(f"delta: expected {length} bytes beside the tensors, got {len(target)}")
    return target


def _matches(source: bytes, target: bytes, effort: Effort) -> bytes:
    """Return the three streams; nothing when they would be longer than a decoder reads."""
    import bsdiff4.core

    control, difference, extra = bsdiff4.core.diff(source, target)
    # bsdiff's whole numbers: eight bytes, the sign in the highest bit
    words = np.frombuffer(control, dtype="<u8")
    values = (words & np.uint64((1 << 63) - 1)).astype(np.int64) * np.where(words >> np.uint64(63), -1, 1)
    steps = values.reshape(-1, 3).tolist()
    controls = (
        b"".join(number(copied) for copied, _, _ in steps),
        b"".join(number(new) for _, new, _ in steps),
        b"".join(signed(skipped) for _, _, skipped in steps),
    )
    if len(steps) > _MAX_MATCHES or max(map(len, controls)) > _MAX_CONTROL_BYTES:
        return b""
    streams = (*controls, difference, extra)
    return number(len(steps)) + b"".join(pack(stream, effort) for stream in streams)


def _follow(cursor: Cursor, source: bytes | bytearray, length: int) -> bytearray:
    count = cursor.number(_MAX_MATCHES)
    copies, news, skips = (Cursor(unpack(cursor, most=_MAX_CONTROL_BYTES)) for _ in range(3))
    difference = unpack(cursor, most=length)
    extra = unpack(cursor, most=length - len(difference))
    if len(difference) + len(extra) != length:
        raise Rejected(f"delta: expected copies and news of {length} bytes, got {len(difference) + len(extra)}")
    old, near = (np.frombuffer(each, dtype=np.uint8) for each in (source, difference))
    out = bytearray(length)
    made = np.frombuffer(out, dtype=np.uint8)
    at = differed = taken = 0
    for _ in range(count):
        copied = copies.number(len(difference) - differed)
        new = news.number(len(extra) - taken)
        skipped = skips.signed(len(source) + length)
        # stricter than bspatch, which takes what is outside of the source for nothing: bsdiff writes no such copy
        if not 0 <= at <= at + copied <= len(old):
            raise Rejected("delta: expected copies within the source, got one beyond it")
        first = differed + taken
        np.add(old[at : at + copied], near[differed : differed + copied], out=made[first : first + copied])
        out[first + copied : first + copied + new] = extra[taken : taken + new]
        at, differed, taken = at + copied + skipped, differed + copied, taken + new
    if differed + taken != length:
        raise Rejected(f"delta: expected copies and news of {length} bytes, got {differed + taken}")
    return out
