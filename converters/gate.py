"""The gate: measurements and budgets in, a verdict with its evidence out; pure.

A candidate passes when no check of `converters.gate_checks` refuses it; where the profile's runtime cannot run, the
verdict is "not run", which opens nothing.

The choice is a decision list; `replay` makes it again from a report's recorded measurements.

    1. Only what passed, of the precisions that the profile lists.
    2. Nothing that is slower than a float build that the profile allows: the lower 95 % bound of the ratio of median
       latencies, measured on the profile's own architecture, is above 1. It comes back when nothing else is left and
       size or RAM is what refused the float build, and the report says "forced by size" or "forced by ram".
    3. The best by what the profile prefers: `order`, the first that it lists; `smaller`, the fewest bytes; `faster`,
       the lowest ratio to the float build that the measurement vouches for, in steps of 5 %. Ties: first listed.
       Where latency is only a proxy, what is surely a step slower than the float build by it comes after the rest;
       not on a bare microcontroller, whose kernels are not those that were timed.
    4. Where latency is only a proxy, a second build is kept beside the chosen one, for the first devices to measure:
       the float build, because whether the chosen one is slower than it is what the proxy leaves open, else the next
       best.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from converters.gate_checks import checks_of, interval, native
from converters.gate_report import (
    FLOAT,
    NOT_RUN,
    PASSED,
    PROXY,
    REFUSED,
    SLOWER,
    CandidateReport,
    Check,
    Evidence,
    GateReport,
    Measurement,
    Reference,
    figures_of,
    table,
)
from skerry.errors import Rejected
from skerry.wire import codec
from skerry.wire.profile import Profile

__all__ = [
    "FLOAT", "NOT_RUN", "PASSED", "PROXY", "REFUSED", "SLOWER", "CandidateReport", "Check", "Choice", "Evidence",
    "GateReport", "Measurement", "Reference", "choose", "judge", "native", "not_run", "replay", "table",
]  # fmt: skip
SPEED_STEPS = 20
"""Two ratios within a step of 1/20 are equally fast: the next measurement may well turn them round."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What the decision list came to: see `GateReport` for `chosen`, `kept` and `forced`; `lost` by precision."""

    chosen: str
    kept: tuple[str, ...]
    forced: str
    lost: Mapping[str, str]


def judge(
    candidates: Sequence[tuple[str, Measurement | str]],
    profile: Profile,
    *,
    reference: Reference,
    runtime_version: str,
    field_margin: float = 0.0,
) -> GateReport:
    """Judge candidates, each a precision with its measurement or the reason why it did not run on the runtime."""
    reports = []
    for precision, measured in candidates:
        checks = (
            (Check("runs", REFUSED, "a run on the profile's runtime", measured),)
            if isinstance(measured, str)
            else checks_of(
                precision,
                measured,
                profile,
                reference=reference,
                runtime_version=runtime_version,
                field_margin=field_margin,
            )
        )
        reports.append(
            CandidateReport(
                precision=precision,
                outcome=REFUSED if any(check.outcome == REFUSED for check in checks) else PASSED,
                measurement=None if isinstance(measured, str) else measured,
                checks=checks,
            )
        )
    choice = choose(reports, profile)
    return GateReport(
        profile=profile.name,
        runtime=profile.runtime,
        runtime_version=runtime_version,
        verdict=PASSED if choice.chosen else REFUSED,
        reason="" if choice.chosen else _why(reports, choice),
        chosen=choice.chosen,
        reference=reference,
        candidates=tuple(replace(each, lost=choice.lost.get(each.precision, "")) for each in reports),
        kept=choice.kept,
        forced=choice.forced,
        field_margin=field_margin,
        rules=profile,
    )


def choose(candidates: Sequence[CandidateReport], profile: Profile) -> Choice:
    """Choose among judged candidates by the decision list above; their order does not matter."""
    passed = {each.precision: each for each in candidates if each.outcome == PASSED}
    lost = {name: "not a precision of the profile" for name in passed if name not in profile.precision}
    allowed = [passed[name] for name in profile.precision if name in passed]
    slower = [each for each in allowed if any(check.outcome == SLOWER for check in each.checks)]
    race, forced = [each for each in allowed if each not in slower], ""
    if not race and slower:
        over = next((_over(each) for each in candidates if each.precision == FLOAT), "")
        race, forced = (slower, over) if over else ([], "")
    for each in slower if not forced else ():
        lost[each.precision] = f"slower than {FLOAT}: {_ratio(each)}, and it needs neither its size nor its RAM"
    if not race:
        return Choice(chosen="", kept=(), forced="", lost=lost)

    ranked = sorted(race, key=lambda each: _rank(each, profile))
    best = ranked[0]
    kept = [best.precision]
    if not _measured(best, profile):
        others = [each.precision for each in ranked[1:]]
        kept += [FLOAT] if FLOAT in others else others[:1]
    lost |= {each.precision: _behind(each, best, profile) for each in ranked[1:]}
    return Choice(chosen=best.precision, kept=tuple(kept), forced=forced, lost=lost)


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
        rules=profile,
    )


def replay(tree: Mapping[str, Any]) -> GateReport:
    """Judge again from the JSON tree of a report, by its recorded measurements and rules alone.

    Raises:
        Rejected: the tree is no report of a gate.
    """
    try:
        profile = codec.from_tree(Profile, _plain(tree["rules"]))
        if tree["verdict"] == NOT_RUN:
            return not_run(profile, str(tree["reason"]))
        candidates = [
            (
                str(each["name"]),
                codec.from_tree(Measurement, _plain(figures_of(each)))
                if "size_bytes" in each
                else str(each["checks"][0]["got"]),
            )
            for each in tree["candidates"]
            if each["outcome"] != NOT_RUN
        ]
        # nothing was tried: there is nothing to judge, and it stays what it was
        untried = [
            CandidateReport(str(each["name"]), NOT_RUN, None, tuple(Check(**check) for check in each["checks"]))
            for each in tree["candidates"]
            if each["outcome"] == NOT_RUN
        ]
        report = judge(
            candidates,
            profile,
            reference=codec.from_tree(Reference, _plain(tree["reference"])),
            runtime_version=str(tree["runtime_version"]),
            field_margin=float(tree["field_margin"]),
        )
        return replace(report, candidates=(*report.candidates, *untried))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise Rejected(f"gate report: expected one with its rules and measurements, got {error!r}") from error


def _over(candidate: CandidateReport) -> str:
    """Return the budgets of bytes that a candidate oversteps: `size`, `ram`, both, or empty."""
    refused = {check.name for check in candidate.checks if check.outcome == REFUSED}
    return " and ".join(word for name, word in (("size", "size"), ("memory", "ram")) if name in refused)


def _measured(candidate: CandidateReport, profile: Profile) -> bool:
    return candidate.measurement is not None and native(candidate.measurement, profile)


def _rank(candidate: CandidateReport, profile: Profile) -> tuple[bool, int, int]:
    place = profile.precision.index(candidate.precision)
    measured = candidate.measurement
    if measured is None:
        return (False, 0, place)
    preferred = {
        "order": 0,
        "smaller": measured.size_bytes,
        "faster": _speed(candidate.precision, measured),
    }
    return (_seems_slow(candidate, profile), preferred[profile.prefer], place)


def _seems_slow(candidate: CandidateReport, profile: Profile) -> bool:
    measured = candidate.measurement
    if measured is None or FLOAT not in profile.precision or profile.architecture == "none":
        return False
    return not native(measured, profile) and _speed(candidate.precision, measured) > SPEED_STEPS


def _speed(precision: str, measured: Measurement) -> int:
    """Return the ratio to float that the interval vouches for, in steps: its end that is nearer to 1, or 1 within."""
    low, high = measured.latency_ratio_low, measured.latency_ratio_high
    if precision == FLOAT or low is None or high is None or low <= 1 <= high:
        return SPEED_STEPS
    return math.ceil(high * SPEED_STEPS) if high < 1 else math.floor(low * SPEED_STEPS)


def _behind(candidate: CandidateReport, best: CandidateReport, profile: Profile) -> str:
    one, other = candidate.measurement, best.measurement
    if one is not None and other is not None:
        if _seems_slow(candidate, profile) and not _seems_slow(best, profile):
            return f"slower than {FLOAT} by a proxy: {_ratio(candidate)}"
        if profile.prefer == "smaller" and one.size_bytes != other.size_bytes:
            return f"larger than {best.precision}: {one.size_bytes} bytes, not {other.size_bytes}"
        if profile.prefer == "faster" and _speed(candidate.precision, one) != _speed(best.precision, other):
            return f"slower than {best.precision}: {_ratio(candidate)}, not {_ratio(best)}"
    return f"listed after {best.precision}, and no better by what the profile prefers ({profile.prefer})"


def _ratio(candidate: CandidateReport) -> str:
    return "no ratio" if candidate.measurement is None else interval(candidate.measurement)


def _why(reports: Sequence[CandidateReport], choice: Choice) -> str:
    reasons = [f"{report.precision}: {reason}" for report in reports for reason in report.reasons]
    reasons += [f"{precision}: {reason}" for precision, reason in choice.lost.items()]
    return "; ".join(reasons) or "expected a candidate of the profile's precisions, got none"


def _plain(tree: Any) -> Any:
    """Return a tree as JSON would give it back: lists where the dataclasses have tuples."""
    if isinstance(tree, Mapping):
        return {key: _plain(value) for key, value in tree.items()}
    return [_plain(each) for each in tree] if isinstance(tree, list | tuple) else tree
