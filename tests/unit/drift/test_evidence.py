"""The anytime-valid test, its running state, and what it sees."""

import json
import math
import random
from bisect import bisect_right
from itertools import pairwise
from statistics import NormalDist

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.drift import ALARM, WATCH, Counts, Evidence, Rejected, Status, blind_below, evidence, step
from skerry.drift.evidence import KAPPAS, SPANS, log_bayes_factor, totals_by_span


def _rng(seed: int) -> random.Random:
    return random.Random(seed)


DECILES = [NormalDist().inv_cdf(part / 10) for part in range(1, 10)]


def _window(rng: random.Random, n: int = 300, *, shift: float = 0.0, scalars: int = 3) -> Counts:
    counts = [[0] * 10 for _ in range(scalars)]
    for index, bins in enumerate(counts):
        for _ in range(n):
            bins[bisect_right(DECILES, rng.gauss(shift if index == 0 else 0.0, 1.0))] += 1
    return tuple(tuple(bins) for bins in counts)


def _run(rng: random.Random, shifts: list[float]) -> list[Evidence]:
    windows = [_window(rng) for _ in range(8)]
    baseline = tuple(tuple(map(sum, zip(*bins, strict=True))) for bins in zip(*windows, strict=True))
    states = [Evidence.begin(baseline, (1.0,) * 3)]
    for shift in shifts:
        states.append(step(states[-1], _window(rng, shift=shift)))
    return states


def test_it_is_the_formula_of_the_design() -> None:
    def dm(alpha: list[float], counts: list[int]) -> float:
        total, n = sum(alpha), sum(counts)
        bins = sum(math.lgamma(a + c) - math.lgamma(a) for a, c in zip(alpha, counts, strict=True))
        return math.lgamma(total) - math.lgamma(total + n) + bins

    reference, counts = [30, 40, 0], [3, 9, 1]
    a = [count + 0.5 for count in reference]
    p = [value / sum(a) for value in a]
    factors = [math.exp(dm([kappa * share for share in p], counts) - dm(a, counts)) for kappa in KAPPAS]
    one = sum(factors) / 3
    assert math.exp(log_bayes_factor(reference, counts, 1.0)) == pytest.approx(one)

    result = evidence((tuple(reference),), [(tuple(counts),)], [1.0], 30)
    assert math.exp(result.log_e) == pytest.approx((one + 29) / 30)


def test_before_anything_is_seen_the_evidence_is_one() -> None:
    state = Evidence.begin(((5, 5),), (1.0,))
    assert state.log_e == 0.0
    assert state.status is Status.QUIET
    assert evidence(((5, 5),), [((0, 0),)], [1.0], 30).log_e == pytest.approx(0.0)


def test_a_device_that_does_not_change_raises_no_alarm() -> None:
    for seed in range(3):
        states = _run(_rng(seed), [0.0] * 30)
        assert all(state.status is not Status.ALARM for state in states)


def test_half_a_standard_deviation_is_found_within_days_and_its_scalar_is_named() -> None:
    states = _run(_rng(4), [0.0] * 5 + [0.5] * 4)
    assert states[5].status is Status.QUIET
    assert states[-1].status is Status.ALARM
    assert states[-1].alarmed_at in (6, 7, 8, 9)
    assert max(range(3), key=states[-1].result.per_scalar.__getitem__) == 0


def test_a_quarter_of_a_standard_deviation_is_found_within_the_horizon() -> None:
    assert _run(_rng(5), [0.25] * 16)[-1].status is Status.ALARM


def test_an_alarm_stays_when_the_device_returns() -> None:
    states = _run(_rng(6), [1.0, 1.0] + [0.0] * 20)
    assert states[2].status is Status.ALARM
    assert states[-1].log_e < WATCH
    assert states[-1].status is Status.ALARM
    assert states[-1].alarmed_at in (1, 2)


def test_evidence_of_a_thousand_digits_does_not_overflow() -> None:
    result = evidence(((10_000, 0),), [((0, 10_000),)], [1.0], 30)
    assert result.log_e > 1000 * math.log(10)
    assert math.isfinite(result.log_e)


def test_a_design_effect_makes_rows_count_for_less() -> None:
    baseline, windows = ((500, 500),), [((100, 50),)]
    assert evidence(baseline, windows, [4.0], 30).log_e < evidence(baseline, windows, [1.0], 30).log_e


def test_the_running_state_says_what_all_its_windows_say() -> None:
    rng = _rng(7)
    state = _run(rng, [0.1] * 20)[-1]
    again = evidence(state.baseline, state.windows, state.design_effects, state.horizon, seen=20)
    assert again == state.result
    assert len(state.windows) == SPANS[-1]


def test_after_the_horizon_the_evidence_still_works() -> None:
    states = _run(_rng(8), [0.0] * 34 + [1.0, 1.0])
    assert states[34].status is Status.QUIET
    assert states[-1].status is Status.ALARM


@settings(max_examples=30)
@given(st.integers(0, 20), st.floats(0, 1), st.integers(0, 1000))
def test_a_state_survives_a_restart(windows: int, shift: float, seed: int) -> None:
    rng = _rng(seed)
    state = Evidence.begin(_window(rng, 100), (1.0, 1.5, 2.0))
    for _ in range(windows):
        state = step(state, _window(rng, 20, shift=shift))
    restarted = Evidence.from_json(json.loads(json.dumps(state.to_json())))
    assert restarted == state
    assert step(restarted, state.baseline) == step(state, state.baseline)


@pytest.mark.parametrize("document", [{}, {"baseline": 3}, {**Evidence.begin(((1,),), (1.0,)).to_json(), "seen": "x"}])
def test_a_broken_state_is_rejected(document: dict[str, object]) -> None:
    with pytest.raises(Rejected, match="written by to_json"):
        Evidence.from_json(document)


def test_design_effects_must_match_the_baseline() -> None:
    with pytest.raises(Rejected, match="expected 2, got 1"):
        Evidence.begin(((1, 1), (2, 2)), (1.0,))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20))
def test_the_total_of_a_span_is_the_sum_of_its_windows(windows: list[tuple[int, int]]) -> None:
    totals = totals_by_span([(window,) for window in windows])
    started = [span for span in SPANS if span <= len(windows)]
    assert len(totals) == len(started)
    for span, total in zip(started, totals, strict=True):
        assert total[0] == tuple(map(sum, zip(*windows[-span:], strict=True)))


def test_a_larger_baseline_sees_smaller_shifts() -> None:
    seen = [blind_below(baseline_rows=rows, window_n=300, scalars=16) for rows in (200, 1000, 10_000)]
    assert all(shift is not None for shift in seen)
    assert all(larger > smaller for larger, smaller in pairwise([shift or 0.0 for shift in seen]))
    assert blind_below(baseline_rows=3, window_n=2, scalars=16) is None


def test_what_is_twice_the_blind_limit_raises_an_alarm() -> None:
    limit = blind_below(baseline_rows=2400, window_n=300, scalars=3)
    assert limit is not None
    states = _run(_rng(9), [2 * limit] * 16)
    assert states[-1].result.log_e >= ALARM
