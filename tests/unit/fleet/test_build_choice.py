"""Which of two builds the first devices choose: what the evidence says, in whatever order it comes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.build_choice import Witness, choose
from skerry.wire.evidence import BuildRun, Evidence, Race


def race(ratio: float, *, seed: int, noise: float = 0.02) -> Race:
    """Return a race in which the first build takes `ratio` times as long as the second."""
    rng = np.random.default_rng(seed)
    second = 100 * rng.lognormal(0, noise, 20)
    first = 100 * ratio * rng.lognormal(0, noise, 20)
    return Race(assigned_us=tuple(first.tolist()), other_us=tuple(second.tolist()))


def witness(name: str, *ratios: float, first: str = "passed", second: str = "passed", failed: str = "") -> Witness:
    """Return a device that timed both builds, one race for each ratio."""
    evidence = Evidence(
        device=name,
        deployment=f"d-{name}",
        release="moves-1",
        assigned=BuildRun("1" * 64, first, reason="" if first == "passed" else "golden replay differs"),
        other=BuildRun("2" * 64, second, reason="" if second == "passed" else "it crashed"),
        races=tuple(race(ratio, seed=number) for number, ratio in enumerate(ratios)),
        not_run="" if ratios else "no answer",
    )
    return Witness(device=name, evidence=evidence, failed=failed)


SILENT = Witness("silent")
CASES: dict[str, tuple[list[Witness], bool, str]] = {
    "nobody measured": ([SILENT], False, "no device has measured both"),
    "surely slower everywhere": ([witness("a", 2.0, 2.1), witness("b", 1.5)], True, "times as long"),
    "slower on one alone": ([witness("a", 2.0), witness("b", 1.0)], False, "not surely more"),
    "equal": ([witness("a", 1.0, 1.0)], False, "not surely more"),
    "faster": ([witness("a", 0.5)], False, "not surely more"),
    "who is silent takes no part": ([witness("a", 2.0), SILENT], True, "times as long"),
    "the first fails its replay": ([witness("a", first="failed")], True, "the first failed on a: golden replay"),
    "the first fails its trial": ([witness("a", 0.5, failed="too slow")], True, "the first failed on a: too slow"),
    "the second fails anywhere": ([witness("a", 2.0), witness("b", second="failed")], False, "it crashed"),
    "both fail": ([witness("a", first="failed", second="failed")], False, "the second failed on a"),
    "the first fails and the second did not run": (
        [witness("a", first="failed", second="not run")],
        False,
        "not timed",
    ),
    "the second could not be fetched": ([witness("a", second="not run")], False, "not timed: no answer"),
    "a failure without evidence says nothing": ([replace(SILENT, failed="disk full")], False, "no device"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_first_build_stays_unless_the_evidence_is_against_it(case: str) -> None:
    witnesses, second, words = CASES[case]
    choice = choose(witnesses)
    assert choice.second == second, choice
    assert words in choice.reason


def test_a_real_device_is_heard_before_a_simulated_one() -> None:
    simulated = witness("a", 2.0)
    assert simulated.evidence is not None
    simulated = replace(simulated, evidence=replace(simulated.evidence, simulated=True))
    assert choose([simulated]).second
    assert "simulated" in choose([simulated]).reason
    assert choose([simulated, witness("b", 0.5)]).devices == ("b",)
    assert not choose([simulated, witness("b", 0.5)]).second


def test_too_few_pairs_decide_nothing() -> None:
    few = witness("a", 5.0)
    assert few.evidence is not None
    short = Race(assigned_us=few.evidence.races[0].assigned_us[:3], other_us=few.evidence.races[0].other_us[:3])
    choice = choose([replace(few, evidence=replace(few.evidence, races=(short,)))])
    assert (choice.second, choice.ratio) == (False, None)


_witnesses = st.lists(
    st.builds(
        witness,
        st.sampled_from("abcdef"),
        st.floats(0.3, 3.0),
        first=st.sampled_from(["passed", "failed"]),
        second=st.sampled_from(["passed", "failed", "not run"]),
        failed=st.sampled_from(["", "too slow"]),
    ),
    max_size=3,
    unique_by=lambda each: each.device,
)


@given(_witnesses, st.randoms(use_true_random=False))
def test_the_order_of_the_witnesses_changes_nothing_and_a_failed_second_is_never_chosen(
    witnesses: list[Witness], random: object
) -> None:
    shuffled = list(witnesses)
    random.shuffle(shuffled)  # type: ignore[attr-defined] # hypothesis hands out a Random
    choice = choose(witnesses)
    assert choose(shuffled) == choice
    if any(each.evidence and each.evidence.other.golden == "failed" for each in witnesses):
        assert not choice.second
    if choice.second and choice.low is not None:
        assert choice.low > 1


@given(st.lists(st.floats(1.0, 4.0), min_size=1, max_size=3))
def test_a_device_on_which_the_first_is_faster_always_keeps_it(ratios: list[float]) -> None:
    others = [witness(f"slow-{number}", ratio) for number, ratio in enumerate(ratios)]
    assert not choose([*others, witness("fast", 0.8)]).second
