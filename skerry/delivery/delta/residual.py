"""Tensors against tensors: what is expected of each element from the source, and how far the target is from that.

An element is predicted as the source's own bits (`SUBTRACT`, `XOR`), or, for int8 weights, as the source's real value
on the target's grid plus a product of two thin matrices (`PREDICT`): what training adds to a layer is nearly of low
rank, and a layer whose scales changed has moved as a whole. That is computed in whole numbers and single roundings, so
that every processor predicts the same. How far off the target is likely to be depends on what the
source says: a step of training is of one size, so a float with a small exponent moves by many units in its last place.
`hint_of` gives that knowledge as one byte per element; elements with like hints share a table of the entropy coder.

A residual of `w` bytes becomes one symbol, its magnitude class, and the bits below that, which are as good as random.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}
_SUB_BITS = {1: 7, 2: 4, 4: 2}
_EXPONENTS = {2: (10, 0x1F), 4: (23, 0xFF)}
_BITS_BLOCK = 1 << 16


class Op(IntEnum):
    """How an element is predicted, and what its hint is."""

    SUBTRACT = 0  # integers: the source's bits; hint: their magnitude
    SUBTRACT_FLOAT = 1  # floats: the source's bits in the order of the values; hint: the exponent
    XOR_FLOAT = 2  # floats: the source's bits, compared bit by bit; hint: the exponent
    PREDICT = 3  # int8: what a `Grid` expects; hint: its channel's group, and how far between two steps it fell
    FRESH_FLOAT = 4  # floats on their own: predicted as nothing; hint: none
    FRESH = 5  # 8-bit integers on their own: predicted as nothing; hint: none


WIDTHS = {
    Op.SUBTRACT: (1, 2, 4),
    Op.SUBTRACT_FLOAT: (2, 4),
    Op.XOR_FLOAT: (2, 4),
    Op.PREDICT: (1,),
    Op.FRESH_FLOAT: (2, 4),
    Op.FRESH: (1,),
}
"""The widths of elements, in bytes, that each operation knows."""
ALONE = frozenset({Op.FRESH_FLOAT, Op.FRESH})
"""The operations that look at no source."""


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """What is expected of an int8 tensor of `channels`; element i belongs to the channel `i // inner % channels`.

    `ratios` (channels,) float64 are old by new scales, `groups` (channels,) uint8 below 16 say which channels move
    alike; `left` (channels, rank) and `right` (rank, elements by channels) are whole numbers, whose product counts in
    steps of 2 ** -`shift`.
    """

    channels: int
    inner: int
    ratios: Array
    groups: Array
    left: Array
    right: Array
    shift: int

    def expected(self, source: Array, first: int) -> tuple[Array, Array]:
        """Return (expected values float64, groups) of the elements from `first` on, given the source's int8 there."""
        at = np.arange(first, first + len(source))
        channel = at // self.inner % self.channels
        place = at // (self.inner * self.channels) * self.inner + at % self.inner
        # at most 64 products of two signed bytes: exact in any order. A matrix may be as long as the head of a delta,
        # so only what this block needs of it becomes wider
        added = np.zeros(len(source), dtype=np.int32)
        for left, right in zip(self.left.T, self.right, strict=True):
            added += left[channel].astype(np.int32) * right[place]
        return source.view(np.int8) * self.ratios[channel] + np.ldexp(added, -self.shift), self.groups[channel]


def hint_of(op: Op, source: Array) -> Array:
    """Return the hint (n,) uint8 of each unsigned source element (n,), for any operation but `PREDICT`."""
    width = source.dtype.itemsize
    if op in ALONE:
        return np.zeros(len(source), dtype=np.uint8)
    if op in (Op.SUBTRACT_FLOAT, Op.XOR_FLOAT):
        shift, mask = _EXPONENTS[width]
        exponents: Array = (source >> shift & mask).astype(np.uint8)
        return exponents
    magnitudes: Array = np.frexp(np.abs(source.view(f"i{width}").astype(np.float64)))[1]
    hints: Array = np.minimum(magnitudes * 4, 255).astype(np.uint8)
    return hints


def prediction(grid: Grid, source: Array, first: int) -> tuple[Array, Array]:
    """Return (prediction, hint), both (n,) uint8, of the int8 elements from `first` on."""
    exact, groups = grid.expected(source, first)
    whole = np.rint(exact)
    between = np.clip(np.floor((exact - whole + 0.5) * 16), 0, 15).astype(np.uint8)
    return np.clip(whole, -128, 127).astype(np.int8).view(np.uint8), groups * np.uint8(16) + between


def residual_of(op: Op, base: Array, target: Array) -> Array:
    """Return how far `target` (n,) is from `base`, as unsigned integers that are small when it is near.

    `base` is the source, or for `PREDICT` its prediction.
    """
    if op is Op.FRESH_FLOAT:
        return _rotated(target)
    if op is Op.FRESH:
        return target
    if op is Op.XOR_FLOAT:
        return target ^ base
    if op is Op.SUBTRACT_FLOAT:
        return _zigzag(_ordered(target) - _ordered(base))
    return _zigzag(target - base)


def restore(op: Op, base: Array, residual: Array) -> Array:
    """Return the target elements: the inverse of `residual_of`."""
    if op is Op.FRESH_FLOAT:
        return _unrotated(residual)
    if op is Op.FRESH:
        return residual
    if op is Op.XOR_FLOAT:
        return residual ^ base
    if op is Op.SUBTRACT_FLOAT:
        return _disordered(_unzigzag(residual) + _ordered(base))
    return _unzigzag(residual) + base


def split(op: Op, residual: Array) -> tuple[Array, bytes]:
    """Return (symbols (n,) uint8, the bits below them) of unsigned residuals (n,).

    As in a histogram of high dynamic range, a symbol says the place of the highest set bit and a few bits after it;
    of a fresh float it is the first byte, its exponent.
    """
    width = residual.dtype.itemsize
    sub = _SUB_BITS[width]
    wide = residual.astype(np.int64)
    if op is Op.FRESH_FLOAT:
        below = 8 * (width - 1)
        symbols = (wide >> below).astype(np.uint8)
        return symbols, _bits(wide & (1 << below) - 1, np.full(len(wide), below, dtype=np.int64))
    extra = np.maximum(np.frexp(wide.astype(np.float64))[1] - (sub + 1), 0).astype(np.int64)
    symbols = ((extra << sub) + (wide >> extra)).astype(np.uint8)
    return symbols, _bits(wide & (1 << extra) - 1, extra)


def join(op: Op, symbols: Array, bits: bytes, width: int) -> Array:
    """Return the residuals (n,) of `width` bytes; raises `ValueError` when there are too few or too many bits."""
    sub = _SUB_BITS[width]
    wide = symbols.astype(np.int64)
    if op is Op.FRESH_FLOAT:
        below = np.full(len(wide), 8 * (width - 1), dtype=np.int64)
        fresh: Array = (wide << below | _unbits(bits, below)).astype(_UNSIGNED[width])
        return fresh
    extra = np.maximum((wide >> sub) - 1, 0)
    high = np.where(wide < 2 << sub, wide, (wide & (1 << sub) - 1 | 1 << sub))
    extra[wide < 2 << sub] = 0
    # the first test keeps the second from overflowing
    if int(extra.max(initial=0)) > 8 * width or int((high << extra).max(initial=0)) >> 8 * width:
        raise ValueError(f"expected residuals of {width} bytes, got longer ones")
    residual: Array = (high << extra | _unbits(bits, extra)).astype(_UNSIGNED[width])
    return residual


def unsigned(data: bytes, width: int) -> Array:
    """Return the little-endian elements of `width` bytes in `data`."""
    return np.frombuffer(data, dtype=f"<u{width}").astype(_UNSIGNED[width], copy=False)


def _zigzag(difference: Array) -> Array:
    """Fold a difference modulo 2^w: 0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    sign = -(difference >> (8 * difference.dtype.itemsize - 1))
    folded: Array = (difference << 1) ^ sign
    return folded


def _unzigzag(folded: Array) -> Array:
    difference: Array = (folded >> 1) ^ -(folded & 1)
    return difference


def _ordered(bits: Array) -> Array:
    """Map the bits of floats to unsigned integers in the order of the values."""
    top = bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))
    return np.where(bits & top, ~bits, bits | top)


def _disordered(ordered: Array) -> Array:
    top = ordered.dtype.type(1 << (8 * ordered.dtype.itemsize - 1))
    return np.where(ordered & top, ordered ^ top, ~ordered)


def _rotated(bits: Array) -> Array:
    """Bring the sign to the end, and let the exponents of small values be small numbers."""
    top = 8 * bits.dtype.itemsize - 1
    return (bits << 1) | (bits >> top)


def _unrotated(rotated: Array) -> Array:
    top = 8 * rotated.dtype.itemsize - 1
    return (rotated >> 1) | (rotated << top)


def _bits(values: Array, lengths: Array) -> bytes:
    """Write the lowest `lengths` bits of each of `values`, block by block, each block from a byte's start."""
    blocks = []
    for first in range(0, len(values), _BITS_BLOCK):
        value, length = values[first : first + _BITS_BLOCK], lengths[first : first + _BITS_BLOCK]
        ends = np.cumsum(length)
        out = np.zeros(int(ends[-1]), dtype=np.uint8)
        for bit in range(int(length.max(initial=0))):
            longer = length > bit
            out[(ends - length)[longer] + bit] = value[longer] >> bit & 1
        blocks.append(np.packbits(out, bitorder="little").tobytes())
    return b"".join(blocks)


def _unbits(data: bytes, lengths: Array) -> Array:
    values = np.zeros(len(lengths), dtype=np.int64)
    at = 0
    for first in range(0, len(lengths), _BITS_BLOCK):
        length = lengths[first : first + _BITS_BLOCK]
        ends = np.cumsum(length)
        count = -(-int(ends[-1]) // 8)
        block = np.frombuffer(data[at : at + count], dtype=np.uint8)
        if len(block) != count:
            raise ValueError(f"expected {count} bytes of bits, got {len(block)}")
        bits = np.unpackbits(block, bitorder="little")
        value = values[first : first + _BITS_BLOCK]
        for bit in range(int(length.max(initial=0))):
            longer = length > bit
            value[longer] |= bits[(ends - length)[longer] + bit].astype(np.int64) << bit
        at += count
    if at != len(data):
        raise ValueError(f"expected {at} bytes of bits, got {len(data)}")
    return values
