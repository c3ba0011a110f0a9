"""Measures the drift test: false alarms and power beside the PSI rule, the fleet's verdicts, and the cost of counting.

    python -m bench.drift [--quick]

A device-month has 16 standard normal features, a baseline of the device's own eight commissioning windows, and 30 daily
windows of n rows; where something changes, the mean of one feature moves before the first of the 30. The months are
tested with a vectorised copy of `skerry.drift.evidence`, which is first checked against the original. The last line is
one JSON object. Nothing here is a timed test: the cost of counting is a ratio against the bare work in the same run.
"""

import argparse
import json
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from statistics import NormalDist, median

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from skerry.drift import ALARM, Counter, DeviceWindows, Monitor, build_monitor, decide, evidence, merge
from skerry.drift.design import design_effects
from skerry.drift.evidence import KAPPAS, SPANS

SEED = 20260
FEATURES, COMMISSIONING, HORIZON = 16, 8, 30
EDGES = np.array([NormalDist().inv_cdf(part / 10) for part in range(1, 10)])

Floats = npt.NDArray[np.float64]
Windows = npt.NDArray[np.int64]
_cdf: Callable[[Floats], Floats] = np.vectorize(NormalDist().cdf, otypes=[float])


def month(rng: np.random.Generator, n: int, *, shift: float = 0.0, wobble: float = 0.0, wobbling: int = 0) -> Windows:
    """Draw counts of a device-month, shape (commissioning + horizon, features, 13 bins)."""
    means = np.zeros((COMMISSIONING + HORIZON, FEATURES))
    means[COMMISSIONING:, 0] += shift
    if wobbling:
        means[:, -wobbling:] += rng.normal(0.0, wobble, (len(means), wobbling))
    return rng.multinomial(n, shares_of(means))


def shares_of(means: Floats) -> Floats:
    """Return the shares of a numeric scalar's 13 bins for each mean: nothing out of range, nothing missing."""
    levels, where = np.unique(means, return_inverse=True)
    deciles = np.zeros((len(levels), 13))
    deciles[:, 1:11] = np.diff(_cdf(EDGES[None, :] - levels[:, None]), axis=1, prepend=0.0, append=1.0)
    return np.asarray(deciles[where.reshape(means.shape)])


def own_effects(windows: Windows) -> Floats:
    """Estimate the design effects as a device does when it is commissioned."""
    return np.array(design_effects([as_counts(window) for window in windows[:COMMISSIONING]]))


def log_evidence(windows: Windows, effects: Floats) -> Floats:
    """Return ln E after each window of the month, vectorised over windows and features."""
    daily = windows[COMMISSIONING:]
    a = windows[:COMMISSIONING].sum(axis=0) / effects[:, None] + 0.5
    p = a / a.sum(axis=-1, keepdims=True)
    sums = np.concatenate([np.zeros((1, *daily.shape[1:])), np.cumsum(daily, axis=0)])
    parts = [np.log(np.maximum(HORIZON - np.arange(1.0, HORIZON + 1), 1e-300))[:, None] + np.zeros(FEATURES)]
    for span in SPANS:
        counts = (sums[span:] - sums[:-span]) / effects[None, :, None]
        moved = np.logaddexp.reduce([_log_dm(kappa * p, counts) for kappa in KAPPAS]) - math.log(len(KAPPAS))
        started = np.full((HORIZON, FEATURES), -np.inf)
        started[span - 1 :] = moved - _log_dm(a, counts)
        parts.append(started)
    per_scalar = np.logaddexp.reduce(parts) - math.log(HORIZON)
    return np.asarray(np.logaddexp.reduce(per_scalar, axis=1) - math.log(FEATURES))


def _log_dm(alpha: Floats, counts: Floats) -> Floats:
    total = alpha.sum(axis=-1)
    occupied = (gammaln(alpha + counts) - gammaln(alpha)).sum(axis=-1)
    return np.asarray(gammaln(total) - gammaln(total + counts.sum(axis=-1)) + occupied)


def psi_alarms(windows: Windows, threshold: float = 0.2) -> bool:
    """Say whether the customary rule, any feature's PSI above .2 in any window, alarms in the month."""
    before = windows[:COMMISSIONING].sum(axis=0) + 0.5
    now = windows[COMMISSIONING:] + 0.5
    q = before / before.sum(axis=-1, keepdims=True)
    p = now / now.sum(axis=-1, keepdims=True)
    return bool((((p - q) * np.log(p / q)).sum(axis=-1) > threshold).any())


def as_counts(window: Windows) -> tuple[tuple[int, ...], ...]:
    """Turn an array (features, bins) into counts."""
    return tuple(tuple(bins) for bins in window.tolist())


def check_copy(rng: np.random.Generator) -> float:
    """Return the largest difference between the vectorised copy and the original, in ln E."""
    windows = month(rng, 100, shift=0.2)
    effects = own_effects(windows)
    ours = log_evidence(windows, effects)
    baseline = merge([as_counts(window) for window in windows[:COMMISSIONING]])
    worst = 0.0
    for day in (1, 7, 16, HORIZON):
        latest = [as_counts(window) for window in windows[COMMISSIONING : COMMISSIONING + day]][-SPANS[-1] :]
        original = evidence(baseline, latest, effects.tolist(), HORIZON, seen=day).log_e
        worst = max(worst, abs(original - float(ours[day - 1])))
    return worst


def share_alarmed(rng: np.random.Generator, months: int, n: int, **change: float) -> tuple[float, float]:
    """Return the share of months with an alarm: the test's, and the PSI rule's."""
    wobbling = int(change.pop("wobbling", 0))
    ours = psi = 0
    for _ in range(months):
        windows = month(rng, n, wobbling=wobbling, **change)
        ours += bool(log_evidence(windows, own_effects(windows)).max() >= ALARM)
        psi += psi_alarms(windows)
    return ours / months, psi / months


def counting_cost(rng: np.random.Generator, rounds: int) -> dict[str, float]:
    """Time counting a row of 16 features, prediction and confidence (and four pairs), beside the bare work."""
    table = rng.normal(size=(2000, FEATURES))
    table[:, 1:5] += table[:, :1]
    columns = {f"f{index}": table[:, index].tolist() for index in range(FEATURES)}
    predictions = rng.choice(["a", "b", "c"], 2000).tolist()
    confidence = rng.random(2000).tolist()

    def monitor(pairs: int) -> Monitor:
        return build_monitor(
            columns, categories={"prediction": predictions}, confidence=confidence, window_n=1000, pairs=pairs
        )

    without, with_pairs = monitor(0), monitor(4)
    rows = list(zip(*columns.values(), predictions, confidence, strict=True))
    floor = [(scalar.edges, [0] * scalar.bins) for scalar in without.scalars if scalar.kind == "numeric"]
    numeric = [(*row[:FEATURES], row[-1]) for row in rows]
    arrays = [np.array(edges) for edges, _ in floor]

    def bare_bisect() -> None:
        for row in numeric:
            for (edges, bins), value in zip(floor, row, strict=True):
                bins[bisect_right(edges, value)] += 1

    def bare_numpy() -> None:
        for row in numeric[:200]:
            for edges, value in zip(arrays, row, strict=True):
                edges.searchsorted(value, side="right")

    def count(watched: Monitor) -> Callable[[], None]:
        counter = Counter(watched)

        def run() -> None:
            for row in rows:
                counter.add(row)

        return run

    def microseconds(work: Callable[[], None], per: int) -> float:
        return median(_timed(work) for _ in range(rounds)) / per * 1e6

    ours = microseconds(count(without), len(rows))
    paired = microseconds(count(with_pairs), len(rows))
    bisect_us = microseconds(bare_bisect, len(numeric))
    numpy_us = microseconds(bare_numpy, 200)
    return {
        "counting_us": round(ours, 2),
        "counting_with_4_pairs_us": round(paired, 2),
        "bare_bisect_us": round(bisect_us, 2),
        "bare_numpy_us": round(numpy_us, 2),
        "counting_over_bare_bisect": round(ours / bisect_us, 2),
        "counting_over_bare_numpy": round(ours / numpy_us, 2),
    }


def _timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def reporting_devices(
    rng: np.random.Generator, changes: Sequence[Sequence[float]], *, n: int = 100, features: int = 4
) -> list[DeviceWindows]:
    """Draw devices with benign offsets of .3 sd and four windows, whose last one holds each device's own change."""
    devices: list[DeviceWindows] = []
    for index, change in enumerate(changes):
        means = np.tile(rng.normal(0.0, 0.3, features), (COMMISSIONING + 4, 1))
        means[-1] += change
        drawn = [as_counts(window) for window in rng.multinomial(n, shares_of(means))]
        devices.append(
            DeviceWindows(
                device=f"d{index}",
                baseline=merge(drawn[:COMMISSIONING]),
                windows=tuple(drawn[COMMISSIONING:]),
                design_effects=design_effects(drawn[:COMMISSIONING]),
            )
        )
    return devices


def fleet_figures(rng: np.random.Generator, rounds: int, large: int) -> dict[str, float]:
    """Return how often fleets of eight get the right verdict, and how long a large fleet takes."""
    quiet = one = everybody = 0
    still = [[0.0] * 4 for _ in range(8)]
    for _ in range(rounds):
        verdict = decide(reporting_devices(rng, still))
        quiet += bool(verdict.local_flags) or verdict.world_changed
        verdict = decide(reporting_devices(rng, [[2.0, 0.0, -2.0, 0.0], *still[1:]]))
        one += verdict.local_flags == ("d0",) and not verdict.world_changed
        everyone = rng.normal([3.0, -3.0, 0.0, 0.0], 1.0, (8, 4)).tolist()
        everybody += decide(reporting_devices(rng, everyone)).world_changed
    bad = [rng.normal(0.0, 3.0, 4).tolist() if index < large // 20 else [0.0] * 4 for index in range(large)]
    fleet = reporting_devices(rng, bad, n=300)
    start = time.perf_counter()
    verdict = decide(fleet)
    return {
        "fleet_of_8_quiet_false_verdicts": quiet / rounds,
        "fleet_of_8_one_changed_right": one / rounds,
        "fleet_of_8_all_changed_own_way_right": everybody / rounds,
        "fleet_5_percent_bad_devices": float(large),
        "fleet_5_percent_bad_flagged": float(len(verdict.local_flags)),
        "fleet_5_percent_bad_called_world": float(verdict.world_changed),
        "fleet_5_percent_bad_seconds": round(time.perf_counter() - start, 2),
    }


def main() -> None:
    """Measure, print for people, and end with one line for programs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer device-months; ends within 50 s on two cores")
    quick: bool = parser.parse_args().quick
    months = 500 if quick else 2000
    rng = np.random.default_rng(SEED)
    figures: dict[str, float] = {"seed": SEED, "months": months}

    difference = check_copy(rng)
    assert difference < 1e-6, f"the vectorised copy differs from skerry.drift.evidence by {difference}"
    print(f"seed {SEED}, {months} device-months a figure, {FEATURES} features, own baselines, {HORIZON} windows")

    print("\nshare of device-months with an alarm     n   E >= 100   PSI > .2")
    cases: list[tuple[str, str, int, dict[str, float]]] = [
        *(("nothing changes", "false_alarms", n, {}) for n in (100, 300, 1000)),
        *(
            ("benign wobble of .1 sd in one feature", "wobble_alarms", n, {"wobble": 0.1, "wobbling": 1})
            for n in (300, 1000)
        ),
        *((f"the mean of one moves by {sd} sd", f"power_{sd}", 300, {"shift": sd}) for sd in (0.1, 0.25, 0.5)),
    ]
    for title, key, n, change in cases:
        ours, psi = share_alarmed(rng, months, n, **change)
        figures[f"{key}_n{n}"], figures[f"psi_{key}_n{n}"] = ours, psi
        print(f"{title:38s} {n:5d}   {ours:8.4f}   {psi:8.4f}", flush=True)

    fleet = fleet_figures(rng, 20 if quick else 200, 200 if quick else 1000)
    counting = counting_cost(rng, 9 if quick else 25)
    for name, value in {**fleet, **counting}.items():
        print(f"{name:38s} {value:g}")
    print(json.dumps({"bench": "drift", "quick": quick, "figures": {**figures, **fleet, **counting}}))


if __name__ == "__main__":
    main()
