"""The gate's verdict follows from measurements and budgets alone."""

import json
from dataclasses import replace

import pytest

from converters.gate import Evidence, GateReport, Measurement, Reference, judge, not_run, table
from skerry.wire.profile import Budgets, Profile

PROFILE = Profile(
    name="board",
    description="a board",
    architecture="aarch64",
    runtime="litert",
    runtime_version=">=2.1,<2.4",
    precision=("int8-hybrid", "float32"),
    budgets=Budgets(size_bytes=10_000, ram_bytes=1_000_000, latency_ms=2.0, agreement=0.975, accuracy_drop=0.02),
    operators=("ADD", "CONV_2D"),
    emulator="arm64",
)
REFERENCE = Reference(
    accuracy=0.9,
    float_size_bytes=9_000,
    float_deflated_bytes=8_000,
    accuracy_by_group={"6": 0.9, "7": 0.9},
)
GOOD = Measurement(
    size_bytes=4_000,
    rows=400,
    accuracy=0.89,
    accuracy_by_group={"6": 0.89, "7": 0.89},
    rows_by_group={"6": 380, "7": 20},
    agreement=0.99,
    probability_error=0.1,
    ram_bytes=500_000,
    latency_p50_us=20,
    latency_p99_us=90,
    architecture="aarch64",
    operators=("ADD",),
    deterministic=True,
    deflated_bytes=3_000,
)
REGRESSION = replace(GOOD, accuracy=None, agreement=None, probability_error=None, accuracy_by_group={})


def _judge(*candidates: tuple[str, Measurement | str], reference: Reference = REFERENCE) -> GateReport:
    return judge(candidates, PROFILE, reference=reference, runtime_version="2.3.0")


def _outcome(report: GateReport, check: str) -> str:
    return next(each.outcome for each in report.candidates[0].checks if each.name == check)


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"agreement": 0.9749}, "agreement"),
        ({"accuracy": 0.879}, "accuracy"),
        ({"accuracy_by_group": {"6": 0.9, "7": 0.849}}, "slices"),
        ({"size_bytes": 10_001}, "size"),
        ({"ram_bytes": 1_000_001}, "memory"),
        ({"size_bytes": 9_000, "deflated_bytes": 8_000}, "compression"),
        ({"latency_p99_us": 2_001}, "latency"),
        ({"deterministic": False}, "determinism"),
        ({"operators": ("ADD", "SVDF")}, "operators"),
        ({"opset": 18}, "opset"),
        ({"evidence": (Evidence("arm64", "refused", "2 apart"),)}, "emulator"),
    ],
)
def test_each_budget_refuses_what_oversteps_it(change: dict[str, float], check: str) -> None:
    report = _judge(("int8-hybrid", replace(GOOD, **change)))  # type: ignore[arg-type] # named cases
    refused = [each.name for each in report.candidates[0].checks if each.outcome == "refused"]
    assert refused == [check]
    assert report.verdict == "refused"
    assert check in report.reason


def test_what_meets_every_budget_exactly_passes() -> None:
    edge = replace(
        GOOD,
        agreement=0.975,
        accuracy=0.88,
        accuracy_by_group={"6": 0.85, "7": 0.85},
        size_bytes=8_823,
        ram_bytes=1_000_000,
        latency_p99_us=2_000,
    )
    report = _judge(("int8-hybrid", edge))
    assert report.verdict == "passed", report.reason


def test_a_slice_of_few_rows_is_no_evidence() -> None:
    few = replace(GOOD, accuracy_by_group={"6": 0.9, "7": 0.5}, rows_by_group={"6": 390, "7": 19})
    assert _judge(("int8-hybrid", few)).verdict == "passed"


def test_the_worst_slice_is_named() -> None:
    report = _judge(("int8-hybrid", replace(GOOD, accuracy_by_group={"6": 0.84, "7": 0.5})))
    assert "slice 7" in report.reason


def test_latency_of_another_architecture_is_a_proxy_and_never_refuses() -> None:
    report = _judge(("int8-hybrid", replace(GOOD, architecture="x86_64", latency_p99_us=9_000_000)))
    assert (_outcome(report, "latency"), report.verdict) == ("proxy", "passed")


def test_what_nothing_here_can_time_has_a_latency_that_is_not_run_and_never_refused() -> None:
    report = _judge(("float32", replace(GOOD, architecture="x86_64", latency_p50_us=None, latency_p99_us=None)))
    assert (_outcome(report, "latency"), report.verdict) == ("not run", "passed")
    assert "latency: not run" in table(report)


@pytest.mark.parametrize(
    ("host", "device", "outcome"),
    [
        (("avx2", "vnni"), ("avx2", "vnni"), "refused"),
        (("avx2", "vnni"), ("vnni",), "refused"),
        (("avx2", "vnni"), ("avx2",), "proxy"),
        (("avx2",), ("avx2", "vnni"), "proxy"),
        (None, ("vnni",), "refused"),
    ],
)
def test_a_processor_with_other_int8_kernels_measures_a_proxy(
    host: tuple[str, ...] | None, device: tuple[str, ...], outcome: str
) -> None:
    profile = replace(PROFILE, architecture="x86_64", features=device)
    slow = replace(GOOD, architecture="x86_64", features=host, latency_p99_us=9_000_000)
    report = judge([("int8-hybrid", slow)], profile, reference=REFERENCE, runtime_version="2.3.0")
    assert _outcome(report, "latency") == outcome


def test_integers_without_a_float_build_have_nothing_to_be_smaller_than() -> None:
    alone = replace(REFERENCE, float_size_bytes=0, float_deflated_bytes=0)
    report = _judge(("int8-hybrid", GOOD), reference=alone)
    assert (_outcome(report, "compression"), report.verdict) == ("not run", "passed")


def test_the_float_model_need_not_be_smaller_than_itself() -> None:
    report = _judge(("float32", replace(GOOD, size_bytes=9_000, deflated_bytes=8_000)))
    assert report.verdict == "passed"


def test_zeros_that_vanish_on_the_way_are_compression() -> None:
    pruned = replace(GOOD, size_bytes=9_000, deflated_bytes=4_000)
    assert _outcome(_judge(("int8-hybrid", pruned)), "compression") == "passed"


@pytest.mark.parametrize(("version", "outcome"), [("2.1", "passed"), ("2.4.0", "refused"), ("unknown", "refused")])
def test_a_runtime_out_of_range_measured_nothing_that_counts(version: str, outcome: str) -> None:
    report = judge([("int8-hybrid", GOOD)], PROFILE, reference=REFERENCE, runtime_version=version)
    assert _outcome(report, "runtime") == report.verdict == outcome


@pytest.mark.parametrize(("error", "verdict"), [(0.1, "passed"), (0.101, "refused")])
def test_what_is_no_classifier_is_judged_by_the_error_of_its_outputs(error: float, verdict: str) -> None:
    report = _judge(("int8-hybrid", replace(REGRESSION, output_error=error, output_errors={"angle": error})))
    assert report.verdict == verdict
    assert _outcome(report, "outputs") == verdict
    assert verdict == "passed" or "angle" in report.reason


def test_a_classifier_is_not_judged_by_the_error_of_its_outputs() -> None:
    assert _judge(("int8-hybrid", replace(GOOD, output_error=3.0, output_errors={"a": 3.0}))).verdict == "passed"


def test_without_an_emulator_the_check_is_not_run_and_never_passed() -> None:
    there = replace(GOOD, architecture="x86_64")
    for evidence in ((), (Evidence("arm64", "not run", "no binfmt_misc"),)):
        report = _judge(("int8-hybrid", replace(there, evidence=evidence)))
        assert (_outcome(report, "emulator"), report.verdict) == ("not run", "passed")
        assert "int8-hybrid: emulator: not run" in table(report)


def test_an_emulated_run_that_agrees_is_passed_with_its_difference() -> None:
    seen = replace(GOOD, architecture="x86_64", evidence=(Evidence("arm64", "passed", rows=16, max_abs_diff=2e-6),))
    check = next(each for each in _judge(("int8-hybrid", seen)).candidates[0].checks if each.name == "emulator")
    assert (check.outcome, check.got) == ("passed", "16 rows, at most 2e-06 apart")


def test_on_the_device_itself_no_emulator_is_asked_for() -> None:
    assert all(check.name != "emulator" for check in _judge(("int8-hybrid", GOOD)).candidates[0].checks)


def test_a_candidate_that_did_not_run_is_refused_with_the_reason() -> None:
    report = _judge(("int8-hybrid", "got a crash by SIGSEGV"))
    assert report.verdict == "refused"
    assert "SIGSEGV" in report.reason


@pytest.mark.parametrize(("candidate", "verdict"), [(0.7, "passed"), (0.699, "refused")])
def test_a_version_worse_in_the_field_than_the_previous_one_is_refused(candidate: float, verdict: str) -> None:
    reference = replace(REFERENCE, field_rows=80, field_accuracy=0.7, previous_field_accuracy=0.7)
    report = _judge(("int8-hybrid", replace(GOOD, field_accuracy=candidate)), reference=reference)
    assert report.verdict == verdict


def test_a_declared_margin_lets_a_slightly_worse_version_pass() -> None:
    reference = replace(REFERENCE, field_rows=80, previous_field_accuracy=0.7)
    candidates = [("int8-hybrid", replace(GOOD, field_accuracy=0.69))]
    report = judge(candidates, PROFILE, reference=reference, runtime_version="2.3.0", field_margin=0.02)
    assert report.verdict == "passed"


def test_a_missing_runtime_is_not_run_and_chooses_nothing() -> None:
    report = not_run(PROFILE, "pip install 'skerry[litert]'")
    assert (report.verdict, report.chosen, report.winner) == ("not run", "", None)
    assert "skerry[litert]" in table(report)


def test_the_report_is_json_with_figures_beside_each_name() -> None:
    report = _judge(("int8-hybrid", GOOD))
    candidate = json.loads(json.dumps(report.to_json(), allow_nan=False))["candidates"][0]
    assert (candidate["name"], candidate["size_bytes"], candidate["reasons"]) == ("int8-hybrid", 4_000, [])


def test_the_table_has_a_line_for_each_candidate_and_says_why_each_lost() -> None:
    lines = table(
        _judge(
            ("int8-hybrid", replace(GOOD, agreement=0.9)),
            ("float32", replace(GOOD, size_bytes=9_000)),
            ("int8", "a crash by SIGSEGV"),
            ("fp16", GOOD),
        )
    ).splitlines()
    assert lines[0] == "board (litert 2.3.0): passed, float32"
    assert lines[1].split()[:3] == ["candidate", "size", "ram"]
    assert [line.split()[0] for line in lines[2:6]] == ["int8-hybrid", "float32", "int8", "fp16"]
    assert [line.split()[-1] for line in lines[2:6]] == ["refused", "chosen", "refused", "passed"]
    assert lines[6].startswith("  ! refused")
    assert lines[7:] == [
        "  int8-hybrid: agreement: expected at least 0.9750, got 0.9000 of 400 labels",
        "  int8: runs: expected a run on the profile's runtime, got a crash by SIGSEGV",
        "  fp16: not a precision of the profile",
    ]
