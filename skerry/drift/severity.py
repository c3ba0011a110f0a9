"""How large a change is, apart from how sure we are of it: shown and used to hold a claim back, never alarmed on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True, kw_only=True)
class Severity:
    """The distance between two sets of counts of one scalar.

    `psi_adj` is the population stability index without its expectation under no change, so it is 0 on average when
    nothing has changed (and may be negative); `lower` its one-sided lower bound. `wasserstein` is in bins: the average
    number of bins that a row has moved. `jensen_shannon` is in bits, between 0 and 1.
    """

    psi: float
    psi_adj: float
    lower: float
    wasserstein: float
    jensen_shannon: float


def severity(
    reference: Sequence[float],
    counts: Sequence[float],
    *,
    reference_effect: float = 1.0,
    counts_effect: float = 1.0,
    confidence: float = 0.95,
) -> Severity:
    """Measure how far counts have moved from a reference with the same bins.

    PSI_adj = PSI - (K-1)(1/n + 1/m), with K the bins that hold a row on either side and n, m effective rows. The bound
    is normal, with the delta method's variance plus that of PSI around no change, 2 (K-1) (1/n + 1/m)^2, where the
    delta method's vanishes (Yurdakul & Naranjo 2020, "Statistical properties of the population stability index").
    """
    # here: a device imports this module with its package and judges nothing
    from statistics import NormalDist

    if not any(counts) or not any(reference):
        return Severity(psi=0.0, psi_adj=0.0, lower=-math.inf, wasserstein=0.0, jensen_shannon=0.0)
    occupied = [index for index in range(len(counts)) if counts[index] or reference[index]]
    n = sum(counts) / counts_effect
    m = sum(reference) / reference_effect
    p = _shares([counts[index] / counts_effect for index in occupied])
    q = _shares([reference[index] / reference_effect for index in occupied])
    free = len(occupied) - 1

    psi = sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))
    noise = 1.0 / n + 1.0 / m
    psi_adj = psi - free * noise
    by_p = [math.log(a / b) + 1.0 - b / a for a, b in zip(p, q, strict=True)]
    by_q = [math.log(b / a) + 1.0 - a / b for a, b in zip(p, q, strict=True)]
    variance = _variance(by_p, p) / n + _variance(by_q, q) / m + 2.0 * free * noise * noise
    lower = psi_adj - NormalDist().inv_cdf(confidence) * math.sqrt(variance)

    steps = [c / sum(counts) - r / sum(reference) for c, r in zip(counts, reference, strict=True)]
    moved = sum(map(abs, accumulate(steps)))
    return Severity(psi=psi, psi_adj=psi_adj, lower=lower, wasserstein=moved, jensen_shannon=_jensen_shannon(p, q))


def _shares(counts: Sequence[float]) -> list[float]:
    # Half a row in each bin keeps the logarithms finite, as in the test.
    total = sum(counts) + 0.5 * len(counts)
    return [(count + 0.5) / total for count in counts]


def _variance(values: Sequence[float], weights: Sequence[float]) -> float:
    mean = sum(value * weight for value, weight in zip(values, weights, strict=True))
    return sum(weight * (value - mean) ** 2 for value, weight in zip(values, weights, strict=True))


def _jensen_shannon(p: Sequence[float], q: Sequence[float]) -> float:
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    halves = [sum(a * math.log2(a / c) for a, c in zip(side, middle, strict=True)) for side in (p, q)]
    return max(0.0, sum(halves) / 2)
