"""Arithmetic over devices: the median change of a fleet, how unlike its devices respond, and pooled counts.

`fleet` decides; this module only computes. Spans are indexes into `evidence.SPANS`; a device takes part in the spans
that it has enough windows for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from skerry.drift.design import bounded, chi_square_quantile, scores
from skerry.drift.evidence import SPANS, Result, evidence_by_span
from skerry.drift.monitor import Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """A device that takes part in the decision, with its last windows added up over each started span."""

    device: str
    baseline: Counts
    windows: tuple[Counts, ...]
    totals: tuple[Counts, ...]
    design_effects: tuple[float, ...]
    seen: int


@dataclass(frozen=True, slots=True)
class Shifts:
    """The fleet's usual change over one span: log-odds per bin of each scalar, and how unlike the devices are in it.

    `spread` is a design effect per scalar: the upper quartile of the devices' chi-square distances from the usual
    change, over what independent rows would give.
    """

    log_odds: tuple[tuple[float, ...], ...]
    spread: tuple[float, ...]

    @property
    def is_neutral(self) -> bool:
        """No change, and no more spread than rows explain: then the shifted test is the device's own."""
        return all(effect == 1.0 for effect in self.spread) and not any(any(bins) for bins in self.log_odds)


@dataclass(frozen=True, slots=True)
class Pool:
    """Pooled counts of one span, the same devices' pooled baseline, and the design effect between devices."""

    reference: tuple[tuple[float, ...], ...]
    counts: tuple[tuple[float, ...], ...]
    design_effects: tuple[float, ...]


def median_shifts(peers: Sequence[Reported]) -> list[Shifts]:
    """Return the median change and spread of `peers` for each span, a neutral one where no peer has started it.

    A median counts only where it is three of its standard errors from zero (1.2533 sigma / sqrt(m), sigma from the
    median absolute deviation): otherwise its noise would be added to every healthy device's baseline.
    """
    shifts: list[Shifts] = []
    for span in range(len(SPANS)):
        started = [device for device in peers if len(device.totals) > span]
        if not started:
            shifts.append(Shifts((), ()))
            continue
        scalars = range(len(started[0].baseline))
        log_odds = tuple(_median_change([(d.baseline[f], d.totals[span][f]) for d in started]) for f in scalars)
        spread = tuple(_spread(started, span, f, log_odds[f]) for f in scalars)
        shifts.append(Shifts(log_odds, spread))
    return shifts


def shifted_evidence(device: Reported, shifts: Sequence[Shifts], *, horizon: int) -> Result:
    """Test a device against its own baseline with the fleet's usual change in it."""
    references: list[Sequence[Sequence[float]]] = []
    effects: list[Sequence[float]] = []
    for _, shift in zip(device.totals, shifts, strict=False):
        if shift.log_odds:
            pairs = zip(device.baseline, shift.log_odds, strict=True)
            references.append([shifted(bins, log_odds) for bins, log_odds in pairs])
            effects.append([own * more for own, more in zip(device.design_effects, shift.spread, strict=True)])
        else:
            references.append(device.baseline)
            effects.append(device.design_effects)
    return evidence_by_span(references, device.totals, effects, horizon=horizon, seen=device.seen)


def shifted(baseline: Sequence[float], log_odds: Sequence[float]) -> list[float]:
    """Shift a baseline's proportions by log-odds per bin; the number of rows stays."""
    if not any(log_odds):
        return list(baseline)
    moved: list[float] = []
    for share, change in zip(_shares(baseline), log_odds, strict=True):
        odds = share / (1.0 - share) * math.exp(min(change, 50.0))
        moved.append(odds / (1.0 + odds))
    rows = sum(baseline) / sum(moved)
    return [share * rows for share in moved]


def pool(members: Sequence[Reported], span: int, *, pairs: int) -> Pool:
    """Add up the devices' counts over a span, beside the baseline that the *same* devices would have with as many rows.

    Weighting each baseline by its device's current rows keeps a group that went offline, or one that talks more than
    before, from looking like a change. The baseline's total is that of the mixture's variance: N^2 / sum(n_i^2 / m_i).
    """
    scalars = range(len(members[0].baseline))
    pooled = [_pool_scalar([(d.baseline[f], d.totals[span][f]) for d in members]) for f in scalars]
    first: list[float | None] = []
    second: list[float | None] = []
    for f in scalars:
        linear, quadratic = scores(pooled[f][0], pair=f >= len(scalars) - pairs)
        both = [(d.baseline[f], d.totals[span][f]) for d in members]
        first.append(_between_devices(both, linear))
        second.append(_between_devices(both, quadratic))
    dof = len(members) - 1
    between = map(max, zip(bounded(first, dof=dof), bounded(second, dof=dof), strict=True))
    # The devices' own design effects are a floor: with few devices, chance can hide what each knows of itself.
    own = [sum(d.design_effects[f] for d in members) / len(members) for f in scalars]
    return Pool(
        reference=tuple(tuple(reference) for reference, _ in pooled),
        counts=tuple(tuple(counts) for _, counts in pooled),
        design_effects=tuple(map(max, own, between)),
    )


def _pool_scalar(both: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[list[float], list[float]]:
    both = [(r, c) for r, c in both if sum(r) and sum(c)]
    if not both:
        return [0.0], [0.0]
    total = sum(sum(c) for _, c in both)
    effective = total * total / sum(sum(c) ** 2 / sum(r) for r, c in both)
    bins = range(len(both[0][0]))
    reference = [sum(r[k] / sum(r) * sum(c) for r, c in both) * effective / total for k in bins]
    return reference, [float(sum(c[k] for _, c in both)) for k in bins]


def _between_devices(both: Sequence[tuple[Sequence[int], Sequence[int]]], score: Sequence[float]) -> float | None:
    """Divide the variance between devices of the change of a mean score by that of independent rows."""
    changes: list[tuple[float, float, float]] = []
    for reference, counts in both:
        n, m = sum(counts), sum(reference)
        if n and m:
            before = sum(s * r for s, r in zip(score, reference, strict=True)) / m
            now = sum(s * c for s, c in zip(score, counts, strict=True)) / n
            variance = sum(r * (s - before) ** 2 for s, r in zip(score, reference, strict=True)) / m
            changes.append((n, now - before, variance * (1.0 / n + 1.0 / m)))
    rows = sum(n for n, _, _ in changes)
    expected = sum((n / rows) ** 2 * variance for n, _, variance in changes) if rows else 0.0
    if len(changes) < 2 or expected < 1e-15:
        return None
    mean = sum(n / rows * change for n, change, _ in changes)
    found = sum((n / rows * (change - mean)) ** 2 for n, change, _ in changes)
    return found * len(changes) / (len(changes) - 1) / expected


def _median_change(both: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[float, ...]:
    both = [(r, c) for r, c in both if sum(r) and sum(c)]
    if len(both) < 2:
        return (0.0,) * (len(both[0][0]) if both else 0) or (0.0,)
    changes = [
        [_logit(now) - _logit(before) for now, before in zip(_shares(c), _shares(r), strict=True)] for r, c in both
    ]
    return tuple(_clear_median(column) for column in zip(*changes, strict=True))


def _clear_median(values: Sequence[float]) -> float:
    middle = median(values)
    sigma = 1.4826 * median(abs(value - middle) for value in values)
    return middle if abs(middle) > 3.0 * 1.2533 * sigma / math.sqrt(len(values)) else 0.0


def _spread(started: Sequence[Reported], span: int, scalar: int, log_odds: Sequence[float]) -> float:
    ratios: list[float] = []
    for device in started:
        reference, counts = device.baseline[scalar], device.totals[span][scalar]
        if not sum(reference) or not sum(counts):
            continue
        ratios.append(_chi_square_ratio(shifted(reference, log_odds), counts, device.design_effects[scalar]))
    if len(ratios) < 2:
        return 1.0
    return max(1.0, sorted(ratios)[math.ceil(0.75 * len(ratios)) - 1])


def _chi_square_ratio(reference: Sequence[float], counts: Sequence[float], effect: float) -> float:
    """Divide Pearson's two-sample chi-square by its upper quartile under no difference."""
    n, m = sum(counts), sum(reference)
    distance, occupied = 0.0, 0
    for r, c in zip(reference, counts, strict=True):
        if r + c > 0:
            occupied += 1
            distance += (c / n - r / m) ** 2 / ((r + c) / (n + m) * (1.0 / n + 1.0 / m))
    if occupied < 2:
        return 0.0
    return distance / effect / chi_square_quantile(0.75, occupied - 1)


def _shares(counts: Sequence[float]) -> list[float]:
    total = sum(counts) + 0.5 * len(counts)
    return [(count + 0.5) / total for count in counts]


def _logit(share: float) -> float:
    return math.log(share / (1.0 - share))
