"""The checks of the gate: what is expected of a candidate, what was got, and what that comes to; pure.

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
speed              never: slower than the float build is the choice's business (`converters.gate`)
emulator           the emulated device gave other outputs; without an emulator it is "not run", never "passed"
field              on labelled field windows (of an import without any: on its own held-out samples) it is worse
                   than the version that runs there, by over the margin
"""

from converters.gate_report import (
    FLOAT,
    NOT_RUN,
    PASSED,
    PROXY,
    REFUSED,
    SLOWER,
    Check,
    Measurement,
    Reference,
)
from skerry.wire.profile import Profile, accepts_version

DECISIVE_FEATURES = {"x86_64": frozenset({"vnni"}), "aarch64": frozenset({"dotprod"})}
"""What decides the speed of int8 kernels: without an equal set, a latency is another machine's."""


def native(measured: Measurement, profile: Profile) -> bool:
    """Say whether a latency was measured on the profile's own architecture, as far as int8 kernels tell them apart."""
    if measured.architecture != profile.architecture:
        return False
    decisive = DECISIVE_FEATURES.get(profile.architecture, frozenset())
    return measured.features is None or decisive & set(measured.features) == decisive & set(profile.features)


def checks_of(
    precision: str,
    measured: Measurement,
    profile: Profile,
    *,
    reference: Reference,
    runtime_version: str,
    field_margin: float,
) -> tuple[Check, ...]:
    """Return every check of a candidate that ran, in the order of the table above."""
    budgets = profile.budgets
    memory = "of arena" if profile.runtime == "tflite-micro" else "over the bare runtime"
    checks = [_runtime(profile, runtime_version), *_support(measured, profile)]
    checks += _fidelity(measured, profile, reference=reference)
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
        checks.append(Check("speed", outcome if here else PROXY, expected, interval(measured)))
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


def interval(measured: Measurement) -> str:
    """Return a ratio of latencies in words, with its bounds."""
    if measured.latency_ratio is None or measured.latency_ratio_low is None or measured.latency_ratio_high is None:
        return f"1 of {FLOAT}'s median"
    span = f"{measured.latency_ratio_low:.3f} to {measured.latency_ratio_high:.3f}"
    return f"{measured.latency_ratio:.3f} of {FLOAT}'s median ({span})"


def _at_least(name: str, got: float, floor: float, *, unit: str) -> Check:
    return Check(name, PASSED if got >= floor else REFUSED, f"at least {floor:.4f}", f"{got:.4f} {unit}")


def _at_most(name: str, got: int, ceiling: int, *, unit: str) -> Check:
    return Check(name, PASSED if got <= ceiling else REFUSED, f"at most {ceiling}", f"{got} {unit}")
