"""The gate: measurements and budgets in, a verdict with its evidence out; pure.

A candidate passes when no check refuses it. The first passed candidate in the profile's order of precision is chosen.
Where the runtime of the profile cannot run, the verdict is "not run", which opens nothing.

    check              refuses when
    runs               the runtime refused the candidate, crashed or timed out
    agreement          fewer held-out rows than the budget's share keep the float model's label
    accuracy           the candidate loses more held-out accuracy than the budget allows
    size, memory       over budget
    smaller            it is quantised and not smaller than the float model: the quantisation did nothing
    latency            p99 over budget on the profile's architecture; measured elsewhere it is a proxy, never refused
    field              on labelled field windows it is worse than the version that runs there, by over the margin
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from skerry.wire.profile import Profile

PASSED, REFUSED, NOT_RUN, PROXY = "passed", "refused", "not run", "proxy"
FLOAT = "float32"


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one candidate did on the runtime of the profile. `ram_bytes` is the arena on TFLite Micro, else peak RSS.

    `agreement` is the share of held-out rows with the float model's label, `probability_error` the largest difference
    of a probability; `architecture` is that of the machine that measured.
    """

    size_bytes: int
    rows: int
    accuracy: float
    accuracy_by_group: Mapping[str, float]
    agreement: float
    probability_error: float
    ram_bytes: int
    latency_p50_us: int
    latency_p99_us: int
    architecture: str
    field_accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """What candidates are held against: the float network on the same rows, and the version that the field runs.

    `float_size_bytes` is the float32 file of the same format. Field accuracies are None without field windows.
    """

    accuracy: float
    float_size_bytes: int
    field_rows: int = 0
    field_accuracy: float | None = None
    previous_field_accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One condition: `outcome` is passed, refused or proxy; `expected` and `got` are texts with units."""

    name: str
    outcome: str
    expected: str
    got: str


@dataclass(frozen=True, slots=True)
class CandidateReport:
    """One candidate: its precision, its outcome, what was measured (None when it did not run) and every check."""

    precision: str
    outcome: str
    measurement: Measurement | None
    checks: tuple[Check, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the candidate was refused, a line for each check that it failed."""
        return tuple(f"{c.name}: expected {c.expected}, got {c.got}" for c in self.checks if c.outcome == REFUSED)

    def to_json(self) -> dict[str, Any]:
        """Return the candidate as a JSON tree."""
        figures = {} if self.measurement is None else asdict(self.measurement)
        return figures | {
            "name": self.precision,
            "outcome": self.outcome,
            "reasons": list(self.reasons),
            "checks": [asdict(check) for check in self.checks],
        }


@dataclass(frozen=True, slots=True)
class GateReport:
    """The verdict for one profile: passed, refused or "not run"; `chosen` is the precision that won, or empty."""

    profile: str
    runtime: str
    runtime_version: str
    verdict: str
    reason: str
    chosen: str
    reference: Reference | None
    candidates: tuple[CandidateReport, ...]

    @property
    def winner(self) -> Measurement | None:
        """The measurement of the chosen candidate."""
        return next((each.measurement for each in self.candidates if each.precision == self.chosen), None)

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON tree; a candidate's figures stand beside its name, outcome and reasons."""
        return {
            "profile": self.profile,
            "runtime": self.runtime,
            "runtime_version": self.runtime_version,
            "verdict": self.verdict,
            "reason": self.reason,
            "chosen": self.chosen,
            "reference": None if self.reference is None else asdict(self.reference),
            "candidates": [each.to_json() for each in self.candidates],
        }


def judge(
    candidates: Sequence[tuple[str, Measurement | str]],
    profile: Profile,
    *,
    reference: Reference,
    runtime_version: str,
    field_margin: float = 0.0,
) -> GateReport:
    """Judge candidates, each a precision with its measurement or the reason why it did not run on the runtime."""
    reports = {}
    for precision, measured in candidates:
        checks = (
            (Check("runs", REFUSED, "a run on the profile's runtime", measured),)
            if isinstance(measured, str)
            else _checks(precision, measured, profile, reference=reference, field_margin=field_margin)
        )
        reports[precision] = CandidateReport(
            precision=precision,
            outcome=REFUSED if any(check.outcome == REFUSED for check in checks) else PASSED,
            measurement=None if isinstance(measured, str) else measured,
            checks=checks,
        )
    passed = [each for each in profile.precision if each in reports and reports[each].outcome == PASSED]
    return GateReport(
        profile=profile.name,
        runtime=profile.runtime,
        runtime_version=runtime_version,
        verdict=PASSED if passed else REFUSED,
        reason="" if passed else _why(reports),
        chosen=passed[0] if passed else "",
        reference=reference,
        candidates=tuple(reports.values()),
    )


def not_run(profile: Profile, reason: str) -> GateReport:
    """Return the report of a profile whose runtime cannot run here."""
    return GateReport(
        profile=profile.name,
        runtime=profile.runtime,
        runtime_version="",
        verdict=NOT_RUN,
        reason=reason,
        chosen="",
        reference=None,
        candidates=(),
    )


def table(report: GateReport) -> str:
    """Return the report as lines to read in a terminal."""
    head = f"{report.profile} ({report.runtime} {report.runtime_version}): {report.verdict}"
    lines = [head + (f", {report.chosen}" if report.chosen else f": {report.reason}")]
    for candidate in report.candidates:
        lines.append(f"  {candidate.precision}: {candidate.outcome}")
        lines += [f"    {c.name:<10} {c.outcome:<8} {c.got}  (expected {c.expected})" for c in candidate.checks]
    return "\n".join(lines)


def _checks(
    precision: str, measured: Measurement, profile: Profile, *, reference: Reference, field_margin: float
) -> tuple[Check, ...]:
    budgets = profile.budgets
    floor = reference.accuracy - budgets.accuracy_drop
    memory = "of arena" if profile.runtime == "tflite-micro" else "resident"
    checks = [
        _at_least("agreement", measured.agreement, budgets.agreement, unit=f"of {measured.rows} labels"),
        _at_least("accuracy", measured.accuracy, floor, unit=f"(float: {reference.accuracy:.4f})"),
        _at_most("size", measured.size_bytes, budgets.size_bytes, unit="bytes"),
        _at_most("memory", measured.ram_bytes, budgets.ram_bytes, unit=f"bytes {memory}"),
    ]
    if precision != FLOAT:
        checks.append(_at_most("smaller", measured.size_bytes, reference.float_size_bytes - 1, unit="bytes"))
    latency = _at_most("latency", measured.latency_p99_us, round(budgets.latency_ms * 1000), unit="us at p99")
    if measured.architecture != profile.architecture:
        expected = f"{latency.expected} on {profile.architecture}"
        latency = Check("latency", PROXY, expected, f"{latency.got} on {measured.architecture}")
    checks.append(latency)
    if measured.field_accuracy is not None and reference.previous_field_accuracy is not None:
        floor = reference.previous_field_accuracy - field_margin
        unit = f"of {reference.field_rows} field labels (previous version: {reference.previous_field_accuracy:.4f})"
        checks.append(_at_least("field", measured.field_accuracy, floor, unit=unit))
    return tuple(checks)


def _at_least(name: str, got: float, floor: float, *, unit: str) -> Check:
    return Check(name, PASSED if got >= floor else REFUSED, f"at least {floor:.4f}", f"{got:.4f} {unit}")


def _at_most(name: str, got: int, ceiling: int, *, unit: str) -> Check:
    return Check(name, PASSED if got <= ceiling else REFUSED, f"at most {ceiling}", f"{got} {unit}")


def _why(reports: Mapping[str, CandidateReport]) -> str:
    reasons = [f"{precision}: {reason}" for precision, report in reports.items() for reason in report.reasons]
    return "; ".join(reasons) or "expected a candidate of the profile's precisions, got none"
