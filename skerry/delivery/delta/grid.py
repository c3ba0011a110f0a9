"""Finding what to expect of an int8 tensor: the grid it stands on now, which channels move alike, the thin product.

Fine-tuning adds to a layer what is nearly of low rank (E. Hu et al., "LoRA", arXiv:2106.09685, build upon the same);
the product is found by a randomised range finder (Halko, Martinsson & Tropp 2011), and kept only as far as it saves
more bytes than its two matrices take.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from skerry.delivery.delta import rans
from skerry.delivery.delta.form import number
from skerry.delivery.delta.head import BLOCK_ELEMENTS, GROUPS, MAX_RANK, MAX_SHIFT
from skerry.delivery.delta.residual import Grid, Op, prediction, residual_of

Array = np.ndarray[Any, np.dtype[Any]]

_RANKS = (4, 8, 16, 32, MAX_RANK)
_SEED = 1
_LEAST_ACROSS = 64
_LOUDEST = 127
_MOST_FACTORED = 1 << 23


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """Where a tensor's values stand in a file: `length` bytes from `offset`, elements of `width` bytes.

    Element i belongs to the channel `i // inner % channels`; `scales` (float32, one per channel or one for all) are
    those of quantised integers.
    """

    name: str
    offset: int
    length: int
    width: int
    floating: bool
    channels: int = 1
    inner: int = 1
    scales: Array | None = None


def find_grid(source: Array, target: Array, old: Tensor, new: Tensor) -> tuple[Grid, bool]:
    """Return the grid by which `target` (n,) costs least after `source`, both unsigned bytes; and if it has ratios."""
    ratios = _ratios(old, new)
    plain = Grid(
        channels=new.channels,
        inner=new.inner,
        ratios=np.ones(new.channels) if ratios is None else ratios.astype(np.float64),
        groups=np.zeros(new.channels, dtype=np.uint8),
        left=np.zeros((new.channels, 0), dtype=np.int8),
        right=np.zeros((0, len(target) // new.channels), dtype=np.int8),
        shift=0,
    )
    tried = [_grouped(plain, source, target)]
    left, right = _factors(plain, source, target)
    for rank in (each for each in _RANKS if each <= left.shape[1]):
        tried.append(_grouped(_with_product(plain, left[:, :rank], right[:rank]), source, target))
        if tried[-1][0] > tried[-2][0]:
            break
    _, grid = min(tried, key=lambda each: each[0])
    return grid, ratios is not None


def predicted(grid: Grid, source: Array) -> tuple[Array, Array]:
    """Return (prediction, hint), both (n,) uint8, of a whole tensor, made block by block as a decoder does."""
    blocks = [
        prediction(grid, source[first : first + BLOCK_ELEMENTS], first)
        for first in range(0, len(source), BLOCK_ELEMENTS)
    ]
    return np.concatenate([base for base, _ in blocks]), np.concatenate([hints for _, hints in blocks])


def write_grid(grid: Grid, *, with_ratios: bool) -> bytes:
    """Return the grid as it stands in a delta's head."""
    parts = [number(grid.channels), number(grid.inner), number(with_ratios)]
    if with_ratios:
        parts.append(grid.ratios.astype("<f4").tobytes())
    parts += [grid.groups.tobytes(), number(grid.left.shape[1]), number(grid.shift)]
    return b"".join([*parts, np.ascontiguousarray(grid.left.T).tobytes(), grid.right.tobytes()])


def _ratios(old: Tensor, new: Tensor) -> Array | None:
    """Return old by new scale (channels,) as float32; None when the grids are the same, or there are none."""
    if old.scales is None or new.scales is None or old.scales.shape != new.scales.shape:
        return None
    if len(new.scales) not in (1, new.channels) or (old.scales == new.scales).all():
        return None
    with np.errstate(all="ignore"):
        ratios = (old.scales.astype(np.float64) / new.scales.astype(np.float64)).astype("<f4")
    return np.broadcast_to(np.where(np.isfinite(ratios), ratios, np.float32(1)), new.channels)


def _grouped(grid: Grid, source: Array, target: Array) -> tuple[float, Grid]:
    """Return the grid with its channels grouped by how much they move beyond it, and about how many bits it takes."""
    base, _ = predicted(grid, source)
    symbols = residual_of(Op.PREDICT, base, target)
    by_channel = _matrix(symbols, grid)
    loud = np.abs((by_channel.astype(np.int64) + 1) // 2).mean(axis=1)
    bounds = np.quantile(loud, np.linspace(0, 1, GROUPS + 1)[1:-1])
    groups = np.searchsorted(bounds, loud, side="right").astype(np.uint8)
    bits = 8.0 * (grid.left.size + grid.right.size) * 0.75 + 4 * grid.channels
    for group in range(GROUPS):
        bits += rans.cost_bits(np.bincount(by_channel[groups == group].reshape(-1), minlength=256))
    made = Grid(
        grid.channels, grid.inner, grid.ratios, groups=groups, left=grid.left, right=grid.right, shift=grid.shift
    )
    return bits, made


def _factors(grid: Grid, source: Array, target: Array) -> tuple[Array, Array]:
    """Return (left (channels, rank), right (rank, across)) float64, whose product is nearest to what was added."""
    across = len(target) // grid.channels
    most = min(MAX_RANK, grid.channels // 4, across // 4)
    # the decomposition takes 24 bytes of the server's memory for each element
    if min(grid.channels, across) < _LEAST_ACROSS or len(target) > _MOST_FACTORED:
        return np.zeros((grid.channels, 0)), np.zeros((0, across))
    exact, _ = grid.expected(source, 0)
    added = _matrix(target.view(np.int8) - exact, grid)
    random = np.random.default_rng(_SEED)
    basis = added @ random.normal(size=(across, most + 8))
    for _ in range(2):
        basis = added @ (added.T @ np.linalg.qr(basis)[0])
    basis = np.linalg.qr(basis)[0]
    left, sizes, right = np.linalg.svd(basis.T @ added, full_matrices=False)
    half = np.sqrt(sizes)
    return (basis @ left * half)[:, :most], (half[:, None] * right)[:most]


def _with_product(grid: Grid, left: Array, right: Array) -> Grid:
    """Return the grid with the product in whole numbers: each side as fine as a signed byte holds."""
    fine = [int(np.floor(np.log2(_LOUDEST / max(float(np.abs(side).max()), 1e-9)))) for side in (left, right)]
    if not 0 <= sum(fine) <= MAX_SHIFT:
        return grid
    whole = [np.rint(np.ldexp(side, bits)).astype(np.int8) for side, bits in zip((left, right), fine, strict=True)]
    return Grid(grid.channels, grid.inner, grid.ratios, grid.groups, left=whole[0], right=whole[1], shift=sum(fine))


def _matrix(values: Array, grid: Grid) -> Array:
    """Return elements (n,) as (channels, elements by channels)."""
    return values.reshape(-1, grid.channels, grid.inner).transpose(1, 0, 2).reshape(grid.channels, -1)
