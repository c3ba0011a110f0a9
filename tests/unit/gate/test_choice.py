"""The choice among what passed is a decision list over measurements, and a report makes it again."""

import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.gate import CandidateReport, Check, GateReport, Measurement, Reference, judge, replay, table
from skerry.errors import Rejected
from skerry.wire.profile import Budgets, Profile

ORDER = ("float32", "int8-qdq", "int8-dynamic", "fp16")
PROFILE = Profile(
    name="gateway",
    description="a gateway",
    architecture="x86_64",
    runtime="onnxruntime",
    runtime_version=">=1.20",
    precision=ORDER,
    prefer="faster",
    budgets=Budgets(size_bytes=10_000, ram_bytes=1_000_000, latency_ms=2.0),
)
REFERENCE = Reference(accuracy=0.9, float_size_bytes=9_000)
FLOAT = Measurement(
    size_bytes=9_000,
    rows=400,
    accuracy=0.9,
    accuracy_by_group={},
    agreement=1.0,
    probability_error=0.0,
    ram_bytes=500_000,
    latency_p50_us=100,
    latency_p99_us=120,
    architecture="x86_64",
)


def _int8(low: float, high: float, **change: object) -> Measurement:
    ratio = {"latency_ratio": (low + high) / 2, "latency_ratio_low": low, "latency_ratio_high": high}
    return replace(FLOAT, **({"size_bytes": 4_000} | ratio | change))  # type: ignore[arg-type] # named figures


FASTER, EQUAL, SLOWER = _int8(0.5, 0.6), _int8(0.98, 1.02), _int8(1.2, 1.3)


def _judge(profile: Profile = PROFILE, **candidates: Measurement | str) -> GateReport:
    named = [(name.replace("_", "-"), measured) for name, measured in candidates.items()]
    return judge(named, profile, reference=REFERENCE, runtime_version="1.23.0")


@pytest.mark.parametrize(
    ("prefer", "candidates", "chosen"),
    [
        ("faster", {"float32": FLOAT, "int8_qdq": FASTER}, "int8-qdq"),
        ("faster", {"float32": FLOAT, "int8_qdq": EQUAL}, "float32"),
        ("faster", {"float32": FLOAT, "int8_qdq": _int8(0.97, 0.99)}, "float32"),  # less than a step of 5 %
        ("faster", {"float32": FLOAT, "int8_qdq": FASTER, "int8_dynamic": _int8(0.3, 0.4)}, "int8-dynamic"),
        ("faster", {"float32": FLOAT, "int8_qdq": _int8(0.5, 0.99), "int8_dynamic": FASTER}, "int8-dynamic"),
        ("faster", {"float32": FLOAT, "int8_qdq": FASTER, "int8_dynamic": _int8(0.56, 0.58)}, "int8-qdq"),
        ("smaller", {"float32": FLOAT, "int8_qdq": EQUAL}, "int8-qdq"),
        ("smaller", {"float32": FLOAT, "int8_qdq": SLOWER}, "float32"),
        ("smaller", {"float32": FLOAT, "int8_qdq": SLOWER, "fp16": replace(EQUAL, size_bytes=5_000)}, "fp16"),
        ("order", {"float32": FLOAT, "int8_qdq": FASTER}, "float32"),
        ("order", {"float32": replace(FLOAT, ram_bytes=2_000_000), "int8_qdq": EQUAL}, "int8-qdq"),
        ("order", {"float32": "crashed", "int8_qdq": FASTER}, "int8-qdq"),
        ("smaller", {"pruned_50": FASTER, "float32": FLOAT}, "float32"),  # not a precision of the profile
    ],
)
def test_named_cases(prefer: str, candidates: dict[str, Measurement | str], chosen: str) -> None:
    report = _judge(replace(PROFILE, prefer=prefer), **candidates)
    assert (report.chosen, report.forced, report.slower) == (chosen, "", False)
    assert report.kept == (chosen,)


@pytest.mark.parametrize(
    ("change", "forced"),
    [
        ({"size_bytes": 10_001}, "size"),
        ({"ram_bytes": 1_000_001}, "ram"),
        ({"size_bytes": 10_001, "ram_bytes": 1_000_001}, "size and ram"),
    ],
)
def test_a_slower_build_is_chosen_only_where_size_or_ram_forces_it(change: dict[str, int], forced: str) -> None:
    too_much = replace(FLOAT, **change)  # type: ignore[arg-type] # named figures
    report = _judge(float32=too_much, int8_qdq=SLOWER)
    assert (report.chosen, report.forced, report.slower) == ("int8-qdq", forced, True)
    assert f"forced by {forced}" in table(report)
    not_slower = _judge(float32=too_much, int8_qdq=SLOWER, fp16=EQUAL)
    assert (not_slower.chosen, not_slower.forced) == ("fp16", "")


def test_a_float_build_refused_for_anything_else_forces_nothing() -> None:
    report = _judge(float32=replace(FLOAT, latency_p99_us=9_000), int8_qdq=SLOWER)
    assert (report.verdict, report.chosen) == ("refused", "")
    assert "slower than float32" in report.reason


def test_a_profile_without_a_float_build_has_nothing_to_be_slower_than() -> None:
    report = _judge(replace(PROFILE, precision=("int8-qdq",)), float32=FLOAT, int8_qdq=SLOWER)
    assert (report.chosen, report.forced, report.slower) == ("int8-qdq", "", False)


def test_where_latency_is_a_proxy_the_float_build_is_kept_beside_the_chosen_one() -> None:
    elsewhere = replace(PROFILE, architecture="aarch64", prefer="smaller")
    report = _judge(elsewhere, float32=FLOAT, int8_qdq=EQUAL, int8_dynamic=replace(FASTER, size_bytes=5_000))
    assert (report.chosen, report.kept, report.forced) == ("int8-qdq", ("int8-qdq", "float32"), "")
    assert "kept: int8-qdq and float32" in table(report)


@pytest.mark.parametrize(
    ("architecture", "low", "kept"),
    [
        ("aarch64", 1.2, ("float32", "int8-qdq")),  # it goes behind, and stays for the first devices to measure
        ("aarch64", 1.04, ("int8-qdq", "float32")),  # less than a step
        ("none", 1.2, ("int8-qdq", "float32")),  # a microcontroller has other kernels
        ("x86_64", 1.04, ("float32",)),  # no proxy
    ],
)
def test_what_a_proxy_calls_slow_goes_behind_and_is_not_refused(
    architecture: str, low: float, kept: tuple[str, ...]
) -> None:
    profile = replace(PROFILE, architecture=architecture, prefer="smaller")
    report = _judge(profile, float32=FLOAT, int8_qdq=_int8(low, low + 0.1))
    assert report.kept == kept
    assert [each.outcome for each in report.candidates] == ["passed", "passed"]


def test_where_the_float_build_does_not_fit_a_slow_proxy_is_no_reason() -> None:
    profile = replace(PROFILE, architecture="aarch64", prefer="smaller")
    report = _judge(profile, float32=replace(FLOAT, size_bytes=20_000), int8_qdq=SLOWER)
    assert (report.chosen, report.kept, report.forced) == ("int8-qdq", ("int8-qdq",), "")


def test_where_float_itself_is_chosen_by_a_proxy_the_next_best_is_kept() -> None:
    elsewhere = replace(PROFILE, architecture="aarch64", prefer="order")
    report = _judge(elsewhere, float32=FLOAT, int8_qdq=FASTER, int8_dynamic=FASTER)
    assert report.kept == ("float32", "int8-qdq")


def test_every_loser_says_why() -> None:
    report = _judge(float32=FLOAT, int8_qdq=FASTER, int8_dynamic=SLOWER, fp16=replace(FASTER, agreement=0.1))
    why = {each.precision: "; ".join(each.to_json()["reasons"]) for each in report.candidates}
    assert why["int8-qdq"] == ""
    assert "slower than int8-qdq" in why["float32"]
    assert "slower than float32: 1.250 of float32's median (1.200 to 1.300)" in why["int8-dynamic"]
    assert "agreement" in why["fp16"]


figures = st.builds(
    _int8,
    st.floats(0.2, 1.5),
    st.floats(1.5, 3),
    size_bytes=st.sampled_from([2_000, 4_000, 9_500, 12_000]),
    ram_bytes=st.sampled_from([400_000, 2_000_000]),
    agreement=st.sampled_from([0.9, 1.0]),
    latency_p99_us=st.sampled_from([100, 5_000]),
    architecture=st.sampled_from(["x86_64", "aarch64"]),
) | st.sampled_from([FASTER, EQUAL, SLOWER, _int8(1.0, 1.1), _int8(1.0001, 1.1)])
candidates = st.fixed_dictionaries(
    {"float32": st.sampled_from([FLOAT, replace(FLOAT, size_bytes=20_000), replace(FLOAT, ram_bytes=2_000_000)])},
    optional={"int8_qdq": figures, "int8_dynamic": figures, "fp16": figures | st.just("crashed"), "odd": figures},
)
profiles = st.builds(
    lambda prefer, architecture, precision: replace(
        PROFILE, prefer=prefer, architecture=architecture, precision=precision
    ),
    st.sampled_from(["order", "smaller", "faster"]),
    st.sampled_from(["x86_64", "aarch64"]),
    st.permutations(ORDER).flatmap(lambda each: st.integers(1, 4).map(lambda n: tuple(each[:n]))),
)


@given(profiles, candidates)
def test_only_what_passed_and_is_listed_is_ever_chosen_or_kept(
    profile: Profile, measured: dict[str, Measurement | str]
) -> None:
    report = _judge(profile, **measured)
    outcomes = {each.precision: each.outcome for each in report.candidates}
    assert (report.verdict == "passed") == bool(report.chosen)
    assert report.kept[:1] == ((report.chosen,) if report.chosen else ())
    assert len(report.kept) <= 2
    assert len(set(report.kept)) == len(report.kept)
    assert all(outcomes[each] == "passed" and each in profile.precision for each in report.kept)


@given(profiles, candidates)
def test_the_order_of_the_candidates_does_not_matter(profile: Profile, measured: dict[str, Measurement | str]) -> None:
    answers = {
        (report.chosen, report.kept, report.forced, report.verdict)
        for order in itertools.islice(itertools.permutations(measured), 12)
        for report in [_judge(profile, **{name: measured[name] for name in order})]
    }
    assert len(answers) == 1


@given(profiles, candidates)
def test_a_slower_build_is_chosen_if_and_only_if_it_is_forced(
    profile: Profile, measured: dict[str, Measurement | str]
) -> None:
    report = _judge(profile, **measured)
    assert report.slower == bool(report.forced)
    if report.forced:
        rivals = [each for each in report.candidates if each.outcome == "passed" and each.precision in ORDER]
        assert "float32" not in {each.precision for each in rivals}
        for each in rivals:
            slow = each.measurement is not None and (each.measurement.latency_ratio_low or 0) > 1
            assert slow or each.precision not in profile.precision


@given(profiles, candidates)
def test_a_report_replays_to_the_same_report_from_its_json(
    profile: Profile, measured: dict[str, Measurement | str]
) -> None:
    report = _judge(profile, **measured)
    tree = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert replay(tree) == report


def test_what_the_budget_did_not_reach_is_still_not_run_in_the_replay() -> None:
    report = _judge(float32=FLOAT, int8_qdq=FASTER)
    missed = CandidateReport("fp16", "not run", None, (Check("search", "not run", "an attempt", "none"),))
    report = replace(report, candidates=(*report.candidates, missed))
    assert replay(json.loads(json.dumps(report.to_json()))) == report


def test_the_replay_judges_anew_and_believes_no_verdict() -> None:
    tree = _judge(float32=FLOAT, int8_qdq=FASTER).to_json()
    tree["chosen"], tree["verdict"] = "float32", "passed"
    tree["candidates"][1]["agreement"] = 0.5
    again = replay(tree)
    assert (again.chosen, again.candidates[1].outcome) == ("float32", "refused")


@pytest.mark.parametrize("tree", [{}, {"rules": {}, "verdict": "passed"}, {"rules": None}])
def test_what_is_no_report_does_not_replay(tree: dict[str, object]) -> None:
    with pytest.raises(Rejected):
        replay(tree)
