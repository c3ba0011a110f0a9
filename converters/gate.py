"""The gate: measurements and budgets in, a verdict with its evidence out; pure.

A candidate passes when no check refuses it; where the profile's runtime cannot run, the verdict is "not run", which
opens nothing.

    check              refuses when
    runs               the runtime refused the candidate, crashed or timed out
    runtime            the runtime that measured is not of the profile's version range
    operators, opset   it uses an operator or an opset that the profile's runtime does not have
    agreement          fewer held-out rows than the budget's share keep the float model's label
    accuracy           it loses more held-out accuracy than the budget allows
    slices             its worst slice (a wearer, a machine) loses more than the budget allows
    outputs            of no classifier: an output departs from the float model's by more than the budget
    size, memory       over budget
    compression        it is quantised or pruned and not smaller than the float model: the quantisation did nothing;
                       without a float model, as of integers that were brought along, it is "not run"
    determinism        two runs on equal rows gave unequal bytes
    latency            p99 over budget on the profile's architecture; measured elsewhere it is a proxy, never refused;
                       of emitted C, which nothing here can time, it is "not run"
    speed              never: slower than the float build is the choice's business, below
    emulator           the emulated device gave other outputs; without an emulator it is "not run", never "passed"
    field              on labelled field windows (of an import without any: on its own held-out samples) it is worse
                       than the version that runs there, by over the margin

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
from skerry.wire.profile import Profile, accepts_version

__all__ = [
    "FLOAT", "NOT_RUN", "PASSED", "PROXY", "REFUSED", "SLOWER", "CandidateReport", "Check", "Choice", "Evidence",
    "GateReport", "Measurement", "Reference", "choose", "judge", "native", "not_run", "replay", "table",
]  # fmt: skip

DECISIVE_FEATURES = {"x86_64": frozenset({"vnni"}), "aarch64": frozenset({"dotprod"})}
"""What decides the speed of int8 kernels: without an equal set, a latency is another machine's."""
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
            else (
                _runtime(profile, runtime_version),
                *_checks(precision, measured, profile, reference=reference, field_margin=field_margin),
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


def native(measured: Measurement, profile: Profile) -> bool:
    """Say whether a latency was measured on the profile's own architecture, as far as int8 kernels tell them apart."""
    if measured.architecture != profile.architecture:
        return False
    decisive = DECISIVE_FEATURES.get(profile.architecture, frozenset())
    return measured.features is None or decisive & set(measured.features) == decisive & set(profile.features)


def _checks(
    precision: str, measured: Measurement, profile: Profile, *, reference: Reference, field_margin: float
) -> tuple[Check, ...]:
    budgets = profile.budgets
    memory = "of arena" if profile.runtime == "tflite-micro" else "over the bare runtime"
    checks = [*_support(measured, profile), *_fidelity(measured, profile, reference=reference)]
    checks.append(_at_most("size", measured.size_bytes, budgets.size_bytes, unit="bytes"))
    checks.append(_at_most("memory", measured.ram_bytes, budgets.ram_bytes, unit=f"bytes {memory}"))
    if precision != FLOAT:
        checks.append(_compression(measured, reference, least=budgets.compression))
    if measured.deterministic is not None:
        outcome, got = (PASSED, "equal") if measured.deterministic else (REFUSED, "unequal")
        checks.append(Check("determinism", outcome, "equal bytes from two runs", f"{got} bytes"))
    checks += _latency(precision, measured, profile)
    checks += _emulated(measured, profile)
    if measured.field_accuracy is not None and reference.previous_field_accuracy is not None:
        floor = reference.previous_field_accuracy - field_margin
        rows = f"of {reference.field_rows} labels of {reference.field_of}"
        unit = f"{rows} (previous version: {reference.previous_field_accuracy:.4f})"
        checks.append(_at_least("field", measured.field_accuracy, floor, unit=unit))
    elif reference.ungated:
        checks.append(Check("field", NOT_RUN, "no worse than the previous version", reference.ungated))
    return tuple(checks)


def _runtime(profile: Profile, version: str) -> Check:
    right = accepts_version(profile.runtime_version, version)
    expected = f"{profile.runtime} {profile.runtime_version}"
    return Check("runtime", PASSED if right else REFUSED, expected, f"{profile.runtime} {version}")


def _support(measured: Measurement, profile: Profile) -> list[Check]:
    checks = []
    if profile.operators and measured.operators:
        unknown = sorted(set(measured.operators) - set(profile.operators))
        got = f"{', '.join(unknown)} beside them" if unknown else f"{len(measured.operators)} of them"
        expected = f"the {len(profile.operators)} operators of the profile"
        checks.append(Check("operators", REFUSED if unknown else PASSED, expected, got))
    if measured.opset:
        checks.append(_at_most("opset", measured.opset, profile.opset, unit="as ONNX opset"))
    return checks


def _fidelity(measured: Measurement, profile: Profile, *, reference: Reference) -> list[Check]:
    budgets, checks = profile.budgets, []
    if measured.agreement is not None:
        unit = f"of {measured.rows} labels"
        checks.append(_at_least("agreement", measured.agreement, budgets.agreement, unit=unit))
    elif measured.output_error is not None:
        right = measured.output_error <= budgets.output_error
        worst = max(measured.output_errors, key=lambda name: measured.output_errors[name], default="")
        got = f"{measured.output_error:.4f} in {worst or 'an output'}"
        expected = f"an error of at most {budgets.output_error:.4f} of the float output's spread"
        checks.append(Check("outputs", PASSED if right else REFUSED, expected, got))
    if measured.accuracy is not None and reference.accuracy is not None:
        floor = reference.accuracy - budgets.accuracy_drop
        unit = f"(float: {reference.accuracy:.4f})"
        checks.append(_at_least("accuracy", measured.accuracy, floor, unit=unit))
    drops = {
        group: accuracy - measured.accuracy_by_group[group]
        for group, accuracy in reference.accuracy_by_group.items()
        if group in measured.accuracy_by_group and measured.rows_by_group.get(group, 0) >= budgets.slice_rows
    }
    if drops:
        worst = min(drops, key=lambda group: (-drops[group], group))
        # a hair above the budget is the rounding of a difference of shares
        outcome = PASSED if drops[worst] <= budgets.slice_drop + 1e-9 else REFUSED
        got = f"{drops[worst]:.4f} in slice {worst} ({measured.rows_by_group[worst]} rows)"
        checks.append(Check("slices", outcome, f"a loss of at most {budgets.slice_drop:.4f} in any slice", got))
    return checks


def _compression(measured: Measurement, reference: Reference, *, least: float) -> Check:
    if not reference.float_size_bytes:
        expected = f"at least {least:.4f} times smaller than the float build"
        return Check("compression", NOT_RUN, expected, "no float build to be smaller than")
    # pruning leaves zeros in place: the file keeps its length, and is smaller where it matters, on its way
    ratio = reference.float_size_bytes / max(measured.size_bytes, 1)
    if measured.deflated_bytes and reference.float_deflated_bytes:
        ratio = max(ratio, reference.float_deflated_bytes / measured.deflated_bytes)
    return _at_least("compression", ratio, least, unit="times smaller than the float build, stored or deflated")


def _latency(precision: str, measured: Measurement, profile: Profile) -> list[Check]:
    here = native(measured, profile)
    with_features = ", ".join((profile.architecture, *sorted(profile.features)))
    budget_us = round(profile.budgets.latency_ms * 1000)
    if measured.latency_p99_us is None:
        expected = f"at most {budget_us} us at p99 on {with_features}"
        return [Check("latency", NOT_RUN, expected, "no time: this form is measured on a device alone")]
    latency = _at_most("latency", measured.latency_p99_us, budget_us, unit="us at p99")
    if not here:
        expected = f"{latency.expected} on {with_features}"
        on = ", ".join((measured.architecture, *sorted(measured.features or ())))
        latency = Check("latency", PROXY, expected, f"{latency.got} on {on}")
    checks = [latency]
    if precision != FLOAT and FLOAT in profile.precision and measured.latency_ratio_low is not None:
        outcome = SLOWER if measured.latency_ratio_low > 1 else PASSED
        expected = f"a ratio to {FLOAT} that is not surely above 1"
        checks.append(Check("speed", outcome if here else PROXY, expected, _interval(measured)))
    return checks


def _emulated(measured: Measurement, profile: Profile) -> list[Check]:
    expected = f"the outputs of here on an emulated {profile.emulator or 'device'}"
    checks = []
    for each in measured.evidence:
        compared = f"{each.rows} rows, at most {each.max_abs_diff or 0:.3g} apart"
        got = each.reason or compared
        checks.append(Check("emulator", each.outcome, f"the outputs of here on an emulated {each.emulator}", got))
    seen = {each.emulator for each in measured.evidence}
    if profile.emulator and profile.emulator not in seen and measured.architecture != profile.architecture:
        checks.append(Check("emulator", NOT_RUN, expected, f"no run: skerry emulator prepare {profile.emulator}"))
    return checks


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
    return "no ratio" if candidate.measurement is None else _interval(candidate.measurement)


def _interval(measured: Measurement) -> str:
    if measured.latency_ratio is None or measured.latency_ratio_low is None or measured.latency_ratio_high is None:
        return f"1 of {FLOAT}'s median"
    span = f"{measured.latency_ratio_low:.3f} to {measured.latency_ratio_high:.3f}"
    return f"{measured.latency_ratio:.3f} of {FLOAT}'s median ({span})"


def _at_least(name: str, got: float, floor: float, *, unit: str) -> Check:
    return Check(name, PASSED if got >= floor else REFUSED, f"at least {floor:.4f}", f"{got:.4f} {unit}")


def _at_most(name: str, got: int, ceiling: int, *, unit: str) -> Check:
    return Check(name, PASSED if got <= ceiling else REFUSED, f"at most {ceiling}", f"{got} {unit}")


def _why(reports: Sequence[CandidateReport], choice: Choice) -> str:
    reasons = [f"{report.precision}: {reason}" for report in reports for reason in report.reasons]
    reasons += [f"{precision}: {reason}" for precision, reason in choice.lost.items()]
    return "; ".join(reasons) or "expected a candidate of the profile's precisions, got none"


def _plain(tree: Any) -> Any:
    """Return a tree as JSON would give it back: lists where the dataclasses have tuples."""
    if isinstance(tree, Mapping):
        return {key: _plain(value) for key, value in tree.items()}
    return [_plain(each) for each in tree] if isinstance(tree, list | tuple) else tree
