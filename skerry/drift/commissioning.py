"""A device's own baseline: what its first windows held, how much they varied, and whether they look like training data.

A device is compared with itself, since benign offsets between devices are the rule: unseen wearers of a watch "drift"
from the training data in their first window, and never from their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from skerry.drift.counting import merge
from skerry.drift.design import design_effects
from skerry.drift.evidence import Evidence
from skerry.drift.monitor import Counts, Monitor, Rejected, as_counts
from skerry.drift.severity import Severity, severity

UNLIKE = 0.25  # PSI's customary "major change" (Siddiqi 2006); shown, never alarmed on


@dataclass(frozen=True, slots=True)
class Finding:
    """A scalar that never looked like the training data on this device."""

    name: str
    severity: Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class Commissioned:
    """The result of commissioning, valid for every artifact with the same monitor digest."""

    monitor_digest: str
    baseline: Counts
    design_effects: tuple[float, ...]
    unlike_training: tuple[Finding, ...]

    def begin(self, monitor: Monitor) -> Evidence:
        """Begin the test against this baseline; raises `Rejected` for a monitor that it was not made with."""
        if monitor.digest() != self.monitor_digest:
            raise Rejected(f"commissioning: expected the monitor {self.monitor_digest}, got {monitor.digest()}")
        return Evidence.begin(self.baseline, self.design_effects, horizon=monitor.horizon_windows, alpha=monitor.alpha)

    def to_json(self) -> dict[str, Any]:
        """Write it for the device's disk and for the report to the server."""
        return {
            "monitor_digest": self.monitor_digest,
            "baseline": [list(bins) for bins in self.baseline],
            "design_effects": list(self.design_effects),
            "unlike_training": [{"name": one.name, **asdict(one.severity)} for one in self.unlike_training],
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "Commissioned":
        """Read what `to_json` wrote; raises `Rejected` for anything else."""
        try:
            return Commissioned(
                monitor_digest=str(document["monitor_digest"]),
                baseline=as_counts(document["baseline"]),
                design_effects=tuple(float(effect) for effect in document["design_effects"]),
                unlike_training=tuple(
                    Finding(str(name), Severity(**{key: float(value) for key, value in numbers.items()}))
                    for name, numbers in (_split(entry) for entry in document["unlike_training"])
                ),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise Rejected(f"commissioning: expected what to_json wrote, got {error!r}") from error


def commission(monitor: Monitor, windows: Sequence[Counts]) -> Commissioned | None:
    """Turn a device's first windows into its baseline; None while there are fewer than the monitor asks for.

    The larger of the manifest's and the device's own design effect wins: training rows are usually shuffled, which
    hides what time does. Raises `Rejected` when the counts are another monitor's.
    """
    for window in windows:
        monitor.check(window)
    if len(windows) < monitor.commissioning_windows:
        return None
    baseline = merge(windows)
    if sum(baseline[0]) == 0:
        raise Rejected("commissioning: expected rows in the first windows, got none")
    own = design_effects(windows, pairs=len(monitor.pairs))
    return Commissioned(
        monitor_digest=monitor.digest(),
        baseline=baseline,
        design_effects=tuple(map(max, own, monitor.design_effects)),
        unlike_training=_unlike_training(monitor, baseline, own),
    )


def _split(entry: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    numbers = dict(entry)
    return numbers.pop("name"), numbers


def _unlike_training(monitor: Monitor, baseline: Counts, effects: Sequence[float]) -> tuple[Finding, ...]:
    findings: list[Finding] = []
    share = 1.0 - 0.05 / len(baseline)  # Bonferroni: 95 % over all scalars together
    scalars = zip(monitor.names, monitor.reference, baseline, effects, monitor.design_effects, strict=True)
    for name, reference, counts, own, manifest in scalars:
        if sum(reference) and sum(counts):
            found = severity(reference, counts, reference_effect=manifest, counts_effect=own, confidence=share)
            if found.lower > UNLIKE:
                findings.append(Finding(name, found))
    return tuple(sorted(findings, key=lambda finding: -finding.severity.psi_adj))
