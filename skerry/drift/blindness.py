"""The smallest shift that a device can find with its baseline: what a quiet monitor does not rule out."""

import math
from itertools import pairwise
from statistics import NormalDist

from skerry.drift.evidence import ALARM, SPANS, log_bayes_factor

DECILES = [NormalDist().inv_cdf(part / 10) for part in range(1, 10)]
LARGEST = 3.0


def blind_below(
    *, baseline_rows: int, window_n: int, scalars: int, design_effect: float = 1.0, horizon: int = 30
) -> float | None:
    """Return the smallest shift of one scalar's mean, in standard deviations, that is found within 16 windows.

    It is the shift at which the *expected* counts of a normal scalar in decile bins just raise an alarm, so about every
    second such shift is found. None if the baseline is too small to find even three standard deviations.
    """
    rows = window_n * min(SPANS[-1], horizon)
    needed = ALARM + math.log(horizon) + math.log(scalars)
    reference = [baseline_rows / 10] * 10

    def speaks(shift: float) -> bool:
        return log_bayes_factor(reference, [rows * share for share in _moved(shift)], design_effect) >= needed

    if not speaks(LARGEST):
        return None
    low, high = 0.0, LARGEST
    while high - low > 0.005:
        middle = (low + high) / 2
        low, high = (low, middle) if speaks(middle) else (middle, high)
    return high


def _moved(shift: float) -> list[float]:
    normal = NormalDist(mu=shift)
    below = [0.0, *(normal.cdf(edge) for edge in DECILES), 1.0]
    return [high - low for low, high in pairwise(below)]
