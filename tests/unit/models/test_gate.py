"""The gate's verdict follows from measurements and budgets alone."""

import json
from dataclasses import replace

import pytest

from converters.gate import GateReport, Measurement, Reference, judge, not_run, table
from skerry.wire.profile import Budgets, Profile

PROFILE = Profile(
    name="board",
    description="a board",
    architecture="aarch64",
    runtime="litert",
    runtime_version="any",
    precision=("int8-hybrid", "float32"),
    budgets=Budgets(size_bytes=10_000, ram_bytes=1_000_000, latency_ms=2.0, agreement=0.975, accuracy_drop=0.02),
)
REFERENCE = Reference(accuracy=0.9, float_size_bytes=9_000)
GOOD = Measurement(
    size_bytes=4_000,
    rows=400,
    accuracy=0.89,
    accuracy_by_group={"6": 0.89},
    agreement=0.99,
    probability_error=0.1,
    ram_bytes=500_000,
    latency_p50_us=20,
    latency_p99_us=90,
    architecture="aarch64",
)


def _judge(*candidates: tuple[str, Measurement | str], reference: Reference = REFERENCE) -> GateReport:
    return judge(candidates, PROFILE, reference=reference, runtime_version="2.3.0")


def test_the_first_passed_precision_of_the_profile_is_chosen() -> None:
    report = _judge(("float32", replace(GOOD, size_bytes=9_000)), ("int8-hybrid", GOOD))
    assert (report.verdict, report.chosen) == ("passed", "int8-hybrid")


def test_a_refused_first_choice_leaves_the_next_precision() -> None:
    report = _judge(("float32", replace(GOOD, size_bytes=9_000)), ("int8-hybrid", replace(GOOD, agreement=0.9)))
    assert (report.verdict, report.chosen) == ("passed", "float32")


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"agreement": 0.9749}, "agreement"),
        ({"accuracy": 0.879}, "accuracy"),
        ({"size_bytes": 10_001}, "size"),
        ({"ram_bytes": 1_000_001}, "memory"),
        ({"size_bytes": 9_000}, "smaller"),
        ({"latency_p99_us": 2_001}, "latency"),
    ],
)
def test_each_budget_refuses_what_oversteps_it(change: dict[str, float], check: str) -> None:
    report = _judge(("int8-hybrid", replace(GOOD, **change)))  # type: ignore[arg-type] # named cases
    refused = [each.name for each in report.candidates[0].checks if each.outcome == "refused"]
    assert check in refused
    assert report.verdict == "refused"
    assert check in report.reason


def test_what_meets_every_budget_exactly_passes() -> None:
    edge = replace(GOOD, agreement=0.975, accuracy=0.88, size_bytes=8_999, ram_bytes=1_000_000, latency_p99_us=2_000)
    assert _judge(("int8-hybrid", edge)).verdict == "passed"


def test_latency_of_another_architecture_is_a_proxy_and_never_refuses() -> None:
    report = _judge(("int8-hybrid", replace(GOOD, architecture="x86_64", latency_p99_us=9_000_000)))
    latency = next(check for check in report.candidates[0].checks if check.name == "latency")
    assert (latency.outcome, report.verdict) == ("proxy", "passed")


def test_the_float_model_need_not_be_smaller_than_itself() -> None:
    report = _judge(("float32", replace(GOOD, size_bytes=9_000)))
    assert report.verdict == "passed"


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


def test_the_table_shows_every_check() -> None:
    text = table(_judge(("int8-hybrid", GOOD)))
    assert all(name in text for name in ("agreement", "accuracy", "size", "memory", "smaller", "latency"))
