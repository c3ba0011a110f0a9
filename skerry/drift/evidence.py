"""The anytime-valid test: how strongly the windows since commissioning speak against "nothing has changed".

For counts c and a baseline r of one scalar, both divided by the design effect, with a = r + 1/2, p = a / sum(a):

    log DM(alpha) = lgamma(sum alpha) - lgamma(sum alpha + n) + sum_k [lgamma(alpha_k + c_k) - lgamma(alpha_k)]
    E(f, L)       = mean over kappa in {30, 300, 3000} of DM(kappa p) / DM(a)        on the last L windows
    E(f)          = [sum over started L in {1, 2, 4, 8, 16} of E(f, L) + max(T - t, 0)] / T
    E             = mean over f of E(f)

DM(a) predicts the counts of a device that has not changed; DM(kappa p) those of one whose proportions have moved away
from p, the further the smaller kappa. Each E(f, L) is a Bayes factor (Lindon & Malek 2022), a start that has not come
yet is worth 1, and the starts that are no longer looked at are worth nothing, so E stays below a martingale that begins
at 1: by Ville's inequality it reaches 100 in at most one in a hundred horizons of T windows, looked at after every
window. (The sum over starts is Shin, Ramdas & Rinaldo's e-detector; past T windows it bounds the run length.)
All numbers are natural logarithms: E reaches 10^1000 after a watch changes wrist.

    state = Evidence.begin(baseline, design_effects, horizon=30)
    state = step(state, counts)          # after each window
    state.status                         # quiet, watch or alarm
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from typing import Any

from skerry.drift.counting import merge
from skerry.drift.monitor import Counts, Rejected, as_counts

SPANS = (1, 2, 4, 8, 16)
KAPPAS = (30.0, 300.0, 3000.0)
WATCH = math.log(5.0)
ALARM = math.log(100.0)  # 1 / alpha for the customary alpha of .01


class Status(StrEnum):
    """What the evidence says."""

    QUIET = "quiet"  # nothing speaks for a change
    WATCH = "watch"  # E >= 5: worth a look, no claim
    ALARM = "alarm"  # E >= 1 / alpha, now or earlier: latched until the next commissioning


@dataclass(frozen=True, slots=True)
class Result:
    """Evidence against "nothing has changed", as natural logarithms.

    `per_scalar` follows the order of counts. `span` is the number of latest windows that speak loudest.
    """

    log_e: float
    per_scalar: tuple[float, ...]
    span: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A device's running test: its baseline, its last 16 windows and what they said. Constant memory."""

    baseline: Counts
    design_effects: tuple[float, ...]
    horizon: int
    alpha: float = 0.01
    windows: tuple[Counts, ...] = ()
    seen: int = 0
    result: Result
    alarmed_at: int | None = None

    @staticmethod
    def begin(
        baseline: Counts, design_effects: Sequence[float], *, horizon: int = 30, alpha: float = 0.01
    ) -> "Evidence":
        """Begin after commissioning, before the first window."""
        if len(design_effects) != len(baseline):
            raise Rejected(f"design effects: expected {len(baseline)}, got {len(design_effects)}")
        quiet = Result(0.0, (0.0,) * len(baseline))
        return Evidence(
            baseline=baseline, design_effects=tuple(design_effects), horizon=horizon, alpha=alpha, result=quiet
        )

    @property
    def log_e(self) -> float:
        """The evidence after the last window, as a natural logarithm."""
        return self.result.log_e

    @property
    def status(self) -> Status:
        """Quiet, watch or alarm; an alarm stays."""
        if self.alarmed_at is not None:
            return Status.ALARM
        return Status.WATCH if self.result.log_e >= WATCH else Status.QUIET

    def to_json(self) -> dict[str, Any]:
        """Write the state, so that a device continues after a restart."""
        return {
            "baseline": [list(bins) for bins in self.baseline],
            "design_effects": list(self.design_effects),
            "horizon": self.horizon,
            "alpha": self.alpha,
            "windows": [[list(bins) for bins in window] for window in self.windows],
            "seen": self.seen,
            "log_e": self.result.log_e,
            "per_scalar": list(self.result.per_scalar),
            "span": self.result.span,
            "alarmed_at": self.alarmed_at,
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "Evidence":
        """Read a state that `to_json` wrote; raises `Rejected` for anything else."""
        try:
            return Evidence(
                baseline=as_counts(document["baseline"]),
                design_effects=tuple(float(effect) for effect in document["design_effects"]),
                horizon=int(document["horizon"]),
                alpha=float(document["alpha"]),
                windows=tuple(as_counts(window) for window in document["windows"]),
                seen=int(document["seen"]),
                result=Result(
                    float(document["log_e"]), tuple(map(float, document["per_scalar"])), int(document["span"])
                ),
                alarmed_at=None if document["alarmed_at"] is None else int(document["alarmed_at"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise Rejected(f"evidence: expected a state written by to_json, got {error!r}") from error


def step(state: Evidence, counts: Counts) -> Evidence:
    """Take in one closed window."""
    windows = (*state.windows, counts)[-SPANS[-1] :]
    seen = state.seen + 1
    result = evidence(state.baseline, windows, state.design_effects, state.horizon, seen=seen)
    alarmed_at = seen if state.alarmed_at is None and result.log_e >= -math.log(state.alpha) else state.alarmed_at
    return replace(state, windows=windows, seen=seen, result=result, alarmed_at=alarmed_at)


def evidence(
    baseline: Counts,
    windows: Sequence[Counts],
    design_effects: Sequence[float],
    horizon: int,
    *,
    seen: int | None = None,
) -> Result:
    """Test the latest windows, oldest first, against a baseline; the same on the device and on the server.

    `seen` is the number of windows since commissioning, when only the last of them are given.
    """
    totals = totals_by_span(windows)
    references = [baseline] * len(totals)
    effects = [design_effects] * len(totals)
    return evidence_by_span(references, totals, effects, horizon=horizon, seen=len(windows) if seen is None else seen)


def totals_by_span(windows: Sequence[Counts]) -> list[Counts]:
    """Add up the last 1, 2, 4, 8 and 16 windows, as far as there are that many."""
    totals: list[Counts] = []
    for previous, span in pairwise((0, *SPANS)):
        if span > len(windows):
            break
        fresh = list(windows[len(windows) - span : len(windows) - previous])
        totals.append(merge([*totals[-1:], *fresh]))
    return totals


def evidence_by_span(
    references: Sequence[Sequence[Sequence[float]]],
    totals: Sequence[Sequence[Sequence[float]]],
    design_effects: Sequence[Sequence[float]],
    *,
    horizon: int,
    seen: int,
) -> Result:
    """Combine spans and scalars, each span with its own reference and design effects (the fleet shifts them)."""
    waiting = max(horizon - seen, 0)
    unstarted = [math.log(waiting)] if waiting else []
    spans = [
        [log_bayes_factor(*scalar) for scalar in zip(reference, total, effects, strict=True)]
        for reference, total, effects in zip(references, totals, design_effects, strict=True)
    ]
    scalars = range(len(spans[0]) if spans else 0)
    per_scalar = tuple(
        _log_sum_exp([span[scalar] for span in spans] + unstarted) - math.log(horizon) for scalar in scalars
    )
    if not per_scalar:
        return Result(0.0, ())
    loudest = max(range(len(spans)), key=lambda index: _log_sum_exp(spans[index]))
    return Result(_log_sum_exp(per_scalar) - math.log(len(per_scalar)), per_scalar, SPANS[loudest])


def log_bayes_factor(reference: Sequence[float], counts: Sequence[float], design_effect: float) -> float:
    """Return ln E(f, L): a moved scalar against an unmoved one, for one scalar's counts over one span."""
    current = [count / design_effect for count in counts]
    n = sum(current)
    if n == 0.0:
        return 0.0
    unmoved = [count / design_effect + 0.5 for count in reference]
    total = sum(unmoved)
    stay = _log_dm(unmoved, total, current, n)
    moves = [_log_dm([kappa * a / total for a in unmoved], kappa, current, n) for kappa in KAPPAS]
    return _log_sum_exp(moves) - math.log(len(KAPPAS)) - stay


def _log_dm(alpha: Sequence[float], total: float, counts: Sequence[float], n: float) -> float:
    lgamma = math.lgamma
    occupied = sum([lgamma(a + c) - lgamma(a) for a, c in zip(alpha, counts, strict=True) if c])
    return lgamma(total) - lgamma(total + n) + occupied


def _log_sum_exp(logs: Sequence[float]) -> float:
    top = max(logs, default=-math.inf)
    if top == -math.inf:
        return top
    return top + math.log(sum(math.exp(value - top) for value in logs))


def log_mean_exp(logs: Sequence[float]) -> float:
    """Average numbers given as natural logarithms."""
    return _log_sum_exp(logs) - math.log(len(logs))
