"""Which of a profile's two builds a fleet runs, decided by what the first devices measured: values in, a value out.

The first build stays unless

- it failed on a device, in its golden replay or on trial, where the second one gave its golden vectors; or
- it is surely slower: the lower 95 % bound of the ratio of medians, first by second, is above 1 in every race on every
  device. That is the gate's own rule (docs/adr/0701), with the races of several devices in place of several children.

A second build that failed on any device is never chosen. What simulated devices say counts where no real one spoke.
No database, no broker, no clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from skerry.wire.evidence import FAILED, PASSED, Evidence, Race

LEAST_PAIRS = 8


@dataclass(frozen=True, slots=True)
class Witness:
    """A device that was assigned the first build and asked to measure both.

    `failed` says why the deployment of the first build failed there; it is empty where that was committed. `evidence`
    is None where none came, or none that its signature vouched for.
    """

    device: str
    evidence: Evidence | None = None
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """Whether the second build is chosen, why, and by which devices; the ratio and its bounds where it was timed."""

    second: bool
    reason: str
    devices: tuple[str, ...] = ()
    ratio: float | None = None
    low: float | None = None
    high: float | None = None


def choose(witnesses: Sequence[Witness]) -> Choice:
    """Return the choice; in whatever order the witnesses come, it is the same."""
    heard = sorted((each for each in witnesses if each.evidence is not None), key=lambda each: each.device)
    real = [each for each in heard if each.evidence is not None and not each.evidence.simulated]
    heard, note = (real, "") if real else (heard, " (simulated devices)")
    said = [(each, each.evidence) for each in heard if each.evidence is not None]
    if not said:
        return Choice(second=False, reason="the first build stays: no device has measured both")

    devices = tuple(each.device for each in heard)
    for witness, evidence in said:
        if evidence.other.golden == FAILED:
            why = f"the second failed on {witness.device}: {evidence.other.reason}"
            return Choice(second=False, reason=f"the first build stays: {why}{note}", devices=devices)
    for witness, evidence in said:
        failed = evidence.assigned.reason if evidence.assigned.golden == FAILED else witness.failed
        if failed and evidence.other.golden == PASSED:
            why = f"the first failed on {witness.device}: {failed}"
            return Choice(second=True, reason=f"the second build is chosen: {why}{note}", devices=devices)

    races = [race for _, evidence in said for race in evidence.races if len(race.assigned_us) >= LEAST_PAIRS]
    if not races:
        why = next((evidence.not_run for _, evidence in said if evidence.not_run), "too few inferences")
        return Choice(second=False, reason=f"the first build stays: not timed: {why}{note}", devices=devices)
    ratio, low, high = _ratio(races)
    interval = f"{ratio:.3g} ({low:.3g} to {high:.3g})"
    if low > 1:
        text = f"the second build is chosen: the first takes {interval} times as long{note}"
    else:
        text = f"the first build stays: it takes {interval} times as long as the second, which is not surely more{note}"
    return Choice(second=low > 1, reason=text, devices=devices, ratio=ratio, low=low, high=high)


def _ratio(races: Sequence[Race]) -> tuple[float, float, float]:
    """Return the mean ratio of medians, first by second, and the widest bounds of any race."""
    import numpy as np

    from converters.measure import interval

    pairs = [(np.asarray(race.assigned_us), np.asarray(race.other_us)) for race in races]
    bounds = [interval(first, second) for first, second in pairs]
    ratio = float(np.mean([np.median(first) / np.median(second) for first, second in pairs]))
    return round(ratio, 4), min(low for low, _ in bounds), max(high for _, high in bounds)
