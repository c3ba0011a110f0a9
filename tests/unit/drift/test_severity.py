"""How large a change is, and accuracy without labels."""

import random
from collections import Counter as Tally

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.drift import CONFIDENCE, Counts, Monitor, build_monitor, expected_accuracy, severity


def _rng(seed: int) -> random.Random:
    return random.Random(seed)


COUNTS = st.lists(st.integers(0, 500), min_size=3, max_size=12).filter(any)


def _draw(rng: random.Random, n: int, weights: list[float]) -> list[int]:
    tally = Tally(rng.choices(range(len(weights)), weights, k=n))
    return [tally[index] for index in range(len(weights))]


def test_without_a_change_the_adjusted_index_is_about_zero_and_the_bound_holds() -> None:
    rng = _rng(1)
    found = [severity(_draw(rng, 2000, [1.0] * 10), _draw(rng, 300, [1.0] * 10)) for _ in range(200)]
    assert sum(one.psi_adj for one in found) / 200 == pytest.approx(0.0, abs=0.004)
    assert sum(one.psi for one in found) / 200 > 0.025
    assert sum(one.lower > 0 for one in found) / 200 < 0.1


def test_the_lower_bound_of_a_real_change_holds_and_is_not_idle() -> None:
    rng = _rng(2)
    before, after = [1.0] * 10, [1.0] * 5 + [1.6] * 5
    truth = severity([count * 1e6 for count in before], [count * 1e6 for count in after]).psi
    found = [severity(_draw(rng, 5000, before), _draw(rng, 2000, after)).lower for _ in range(200)]
    assert sum(lower > truth for lower in found) / 200 < 0.1
    assert sum(lower > truth / 3 for lower in found) / 200 > 0.9


def test_a_design_effect_lowers_the_bound() -> None:
    before, after = [100] * 10, [60] * 5 + [140] * 5
    assert severity(before, after, counts_effect=4.0).lower < severity(before, after).lower


def test_wasserstein_counts_bins_that_a_row_has_moved() -> None:
    assert severity([10_000, 0, 0], [0, 0, 10_000]).wasserstein == pytest.approx(2.0, rel=0.01)
    assert severity([10_000, 0, 0], [0, 0, 10_000]).jensen_shannon == pytest.approx(1.0, rel=0.01)


@given(COUNTS)
def test_nothing_has_moved_between_equal_counts(counts: list[int]) -> None:
    found = severity(counts, counts)
    assert found.psi == pytest.approx(0.0)
    assert found.wasserstein == pytest.approx(0.0)
    assert found.jensen_shannon == pytest.approx(0.0, abs=1e-12)
    assert found.lower <= 0.0


@given(st.integers(3, 10).flatmap(lambda k: st.tuples(*[st.lists(st.integers(0, 99), min_size=k, max_size=k)] * 2)))
def test_every_distance_is_finite_and_not_negative(both: tuple[list[int], list[int]]) -> None:
    found = severity(*both)
    assert 0.0 <= found.psi < 100
    assert 0.0 <= found.wasserstein <= len(both[0])
    assert 0.0 <= found.jensen_shannon <= 1.0
    assert found.lower <= found.psi


def _confident(n: int = 4000) -> tuple[Monitor, random.Random]:
    rng = _rng(3)
    confidence = [rng.uniform(0.5, 1.0) for _ in range(n)]
    correct = [rng.random() < value for value in confidence]
    return build_monitor({}, confidence=confidence, correct=correct, window_n=100), rng


def _confidence_counts(monitor: Monitor, values: list[float]) -> Counts:
    scalar = monitor.scalars[monitor.position(CONFIDENCE)]
    tally = Tally(scalar.bin_of(value) for value in values)
    return (tuple(tally[index] for index in range(scalar.bins)),)


def test_lower_confidence_means_lower_expected_accuracy() -> None:
    monitor, rng = _confident()
    high = expected_accuracy(
        monitor, _confidence_counts(monitor, [rng.uniform(0.8, 1) for _ in range(900)]), alarmed=False
    )
    low = expected_accuracy(
        monitor, _confidence_counts(monitor, [rng.uniform(0.5, 0.7) for _ in range(900)]), alarmed=False
    )
    assert high == pytest.approx(0.9, abs=0.03)
    assert low == pytest.approx(0.6, abs=0.04)


def test_expected_accuracy_is_withheld_in_alarm_and_out_of_range() -> None:
    monitor, _ = _confident()
    good = _confidence_counts(monitor, [0.9] * 100)
    assert expected_accuracy(monitor, good, alarmed=True) is None
    assert expected_accuracy(monitor, _confidence_counts(monitor, [0.9] * 80 + [0.1] * 20), alarmed=False) is None
    assert expected_accuracy(monitor, _confidence_counts(monitor, []), alarmed=False) is None
    without = build_monitor({}, confidence=[0.5, 0.9], window_n=10)
    assert expected_accuracy(without, _confidence_counts(without, [0.9]), alarmed=False) is None
