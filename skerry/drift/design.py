"""Design effects: how much less a window's rows say than as many independent rows would.

Rows that follow each other are alike, and days differ for reasons that are nobody's drift, so the mean of a window
varies more than that of independent rows: by the design effect. Counts are divided by it before they are tested. It is
estimated from whole windows (batch means) of two scores per scalar, the linear and the quadratic one of the bin's rank.
Eight windows say little about one scalar, so scalars are judged together; `docs/adr/0201-design-effects.md` has the
reasons and the measurements.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist, median

from skerry.drift.counting import merge
from skerry.drift.monitor import Counts, Rejected

OUTLYING = 0.95  # a scalar beyond this quantile of the common estimate is judged on its own


def design_effects(windows: Sequence[Counts], *, pairs: int = 0) -> tuple[float, ...]:
    """Estimate a design effect of at least 1 for every scalar and pair from at least two windows' counts.

    `pairs` says how many of the last tuples are pair cells. The larger of the two scores' estimates wins.
    """
    if len(windows) < 2:
        raise Rejected(f"windows: expected two or more, got {len(windows)}")
    columns = list(zip(*windows, strict=True))
    totals = merge(windows)
    scalars = len(columns) - pairs
    linear: list[float | None] = []
    quadratic: list[float | None] = []
    for index, (bins, total) in enumerate(zip(columns, totals, strict=True)):
        first, second = scores(total, pair=index >= scalars)
        linear.append(batch_effect(bins, total, first))
        quadratic.append(batch_effect(bins, total, second))
    dof = len(windows) - 1
    return tuple(map(max, zip(bounded(linear, dof=dof), bounded(quadratic, dof=dof), strict=True)))


def scores(total: Sequence[float], *, pair: bool) -> tuple[list[float], list[float]]:
    """Give each bin a linear and a quadratic score of its rank (for a pair: the sum and the product of its two)."""
    if pair:
        ranks = [-1.5, -0.5, 0.5, 1.5]
        return [a + b for a in ranks for b in ranks], [a * b for a in ranks for b in ranks]
    rows = sum(total) or 1.0
    below = 0.0
    first: list[float] = []
    for count in total:
        first.append((below + count / 2) / rows - 0.5)
        below += count
    return first, [score * score for score in first]


def batch_effect(bins: Sequence[Sequence[int]], total: Sequence[int], score: Sequence[float]) -> float | None:
    """Divide the variance between windows of a mean score by that of independent rows; None if the score is constant.

    Weighted by rows: sum_w n_w (mean_w - mean)^2 / ((W - 1) sigma^2), the analysis of variance's F.
    """
    rows = sum(total)
    if rows == 0:
        return None
    mean = sum(map(_product, score, total)) / rows
    variance = sum(count * (value - mean) ** 2 for value, count in zip(score, total, strict=True)) / rows
    filled = [(sum(window), window) for window in bins if sum(window)]
    if variance < 1e-12 or len(filled) < 2:
        return None
    between = sum(n * (sum(map(_product, score, window)) / n - mean) ** 2 for n, window in filled)
    return between / (len(filled) - 1) / variance


def bounded(estimates: Sequence[float | None], *, dof: int) -> tuple[float, ...]:
    """Turn raw estimates, each with `dof` degrees of freedom, into upper bounds of at least 1.

    The common value is the median of all, with a 95 % bound at the degrees of freedom of all. A scalar that is too wild
    for the common value is judged by itself, with the 80 % bound dof / chi2_.20(dof): it was picked for being large.
    """
    known = [estimate for estimate in estimates if estimate is not None]
    if not known:
        return (1.0,) * len(estimates)
    # Scalars are correlated, so k of them hold less than k times the information; half is what we assume.
    together = dof * max(1.0, len(known) / 2)
    common = median(known) / (chi_square_quantile(0.5, dof) / dof)
    common = max(1.0, common * together / chi_square_quantile(0.05, together))
    wild = common * chi_square_quantile(OUTLYING, dof) / dof
    alone = dof / chi_square_quantile(0.20, dof)
    return tuple(common if raw is None or raw <= wild else max(common, raw * alone) for raw in estimates)


def chi_square_quantile(probability: float, dof: float) -> float:
    """Approximate a chi-square quantile after Wilson & Hilferty (1931); within 2 % for 7 degrees of freedom."""
    spread = 2.0 / (9.0 * dof)
    root = 1.0 - spread + NormalDist().inv_cdf(probability) * math.sqrt(spread)
    return dof * max(root, 1e-3) ** 3


def _product(a: float, b: float) -> float:
    return a * b
