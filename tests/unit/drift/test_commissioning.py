"""A device's own baseline, its design effects, and what they are for."""

import json
import random
from bisect import bisect_right
from dataclasses import replace
from statistics import NormalDist, mean

import pytest

from skerry.drift import Commissioned, Counts, Monitor, Rejected, Scalar, Status, build_monitor, commission, step
from skerry.drift.design import batch_effect, bounded, chi_square_quantile, design_effects


def _rng(seed: int) -> random.Random:
    return random.Random(seed)


RNG = _rng(11)
COLUMNS = {f"f{index}": [RNG.gauss(0, 1) for _ in range(1000)] for index in range(4)}
MONITOR: Monitor = build_monitor(COLUMNS, window_n=100, pairs=1)


def _window(rng: random.Random, *, shift: float = 0.0, n: int = 100) -> Counts:
    counts = [[0] * bins for bins in MONITOR.shape]
    for _ in range(n):
        row = [rng.gauss(shift if index == 0 else 0.0, 1.0) for index in range(4)]
        for index, (scalar, value) in enumerate(zip(MONITOR.scalars, row, strict=True)):
            counts[index][scalar.bin_of(value)] += 1
        pair = MONITOR.pairs[0]
        cell = pair.cell_of(row[MONITOR.position(pair.a)], row[MONITOR.position(pair.b)])
        counts[4][cell or 0] += 1
    return tuple(tuple(bins) for bins in counts)


def test_commissioning_waits_for_its_windows() -> None:
    rng = _rng(1)
    assert commission(MONITOR, [_window(rng) for _ in range(7)]) is None
    assert commission(MONITOR, []) is None


def test_the_baseline_is_the_sum_of_the_first_windows() -> None:
    rng = _rng(2)
    done = commission(MONITOR, [_window(rng) for _ in range(8)])
    assert done is not None
    assert [sum(bins) for bins in done.baseline] == [800] * 5
    assert done.monitor_digest == MONITOR.digest()
    assert done.unlike_training == ()
    assert done.begin(MONITOR).status is Status.QUIET


def test_a_device_with_an_offset_is_unlike_training_and_still_quiet() -> None:
    rng = _rng(3)
    done = commission(MONITOR, [_window(rng, shift=1.5) for _ in range(8)])
    assert done is not None
    assert done.unlike_training[0].name == "f0"
    state = done.begin(MONITOR)
    for _ in range(10):
        state = step(state, _window(rng, shift=1.5))
    assert state.status is Status.QUIET


def test_the_larger_design_effect_wins() -> None:
    document = MONITOR.to_json()
    document["scalars"][0]["design_effect"] = 50.0
    rng = _rng(4)
    done = commission(Monitor.from_json(document), [_window(rng) for _ in range(8)])
    assert done is not None
    assert done.design_effects[0] == 50.0
    assert max(done.design_effects[1:]) < 50.0


def test_days_that_differ_for_no_reason_raise_the_design_effect() -> None:
    rng = _rng(5)
    calm = design_effects([_window(rng) for _ in range(8)], pairs=1)
    wobbly = design_effects([_window(rng, shift=rng.gauss(0, 0.6)) for _ in range(8)], pairs=1)
    assert wobbly[0] > 8
    assert wobbly[0] > 3 * max(calm)


def test_independent_rows_keep_most_of_their_weight() -> None:
    medians = []
    for seed in range(20):
        rng = _rng(seed)
        medians.append(sorted(design_effects([_window(rng) for _ in range(8)]))[2])
    assert 1.0 <= mean(medians) < 2.6


def test_a_wild_scalar_is_judged_alone() -> None:
    effects = bounded([1.0] * 15 + [20.0], dof=7)
    assert effects[-1] == pytest.approx(20 * 7 / chi_square_quantile(0.2, 7))
    assert max(effects[:-1]) < 1.7


def test_a_scalar_that_says_nothing_gets_the_common_value() -> None:
    assert bounded([None, None], dof=7) == (1.0, 1.0)
    known, unknown = bounded([3.0, None], dof=7)
    assert known >= unknown >= 3.0


def test_the_batch_effect_of_identical_windows_is_zero_and_of_a_constant_unknown() -> None:
    assert batch_effect([(5, 5)] * 4, (20, 20), [0.0, 1.0]) == pytest.approx(0.0)
    assert batch_effect([(5, 0)] * 4, (20, 0), [0.0, 1.0]) is None
    assert batch_effect([(0, 0)] * 4, (0, 0), [0.0, 1.0]) is None


@pytest.mark.parametrize(("probability", "dof", "exact"), [(0.05, 7, 2.167), (0.95, 7, 14.067), (0.5, 30, 29.336)])
def test_the_chi_square_quantile_is_close(probability: float, dof: float, exact: float) -> None:
    assert chi_square_quantile(probability, dof) == pytest.approx(exact, rel=0.02)


def test_counts_of_another_monitor_are_rejected() -> None:
    with pytest.raises(Rejected, match="expected bins"):
        commission(MONITOR, [((1, 2, 3),)])


def test_a_device_that_saw_nothing_cannot_be_commissioned() -> None:
    empty = tuple((0,) * bins for bins in MONITOR.shape)
    with pytest.raises(Rejected, match="expected rows"):
        commission(MONITOR, [empty] * 8)


def test_one_window_has_no_design_effect() -> None:
    with pytest.raises(Rejected, match="two or more"):
        design_effects([((1, 2),)])


def test_a_benign_daily_wobble_raises_no_alarm() -> None:
    deciles = [NormalDist().inv_cdf(part / 10) for part in range(1, 10)]
    scalar = Scalar(name="x", kind="category", categories=tuple("abcdefgh"), reference=(100,) * 10)
    monitor = Monitor(scalars=(scalar,), window_n=300)
    for seed in range(4):
        rng = _rng(seed)
        windows = []
        for _ in range(38):
            counts, offset = [0] * 10, rng.gauss(0, 0.1)
            for _ in range(300):
                counts[bisect_right(deciles, rng.gauss(offset, 1))] += 1
            windows.append((tuple(counts),))
        done = commission(monitor, windows[:8])
        assert done is not None
        state = done.begin(monitor)
        for window in windows[8:]:
            state = step(state, window)
        assert state.status is not Status.ALARM


def test_a_commissioning_survives_a_restart_and_knows_its_monitor() -> None:
    rng = _rng(6)
    done = commission(MONITOR, [_window(rng, shift=2.0) for _ in range(8)])
    assert done is not None
    assert done.unlike_training
    again = Commissioned.from_json(json.loads(json.dumps(done.to_json())))
    assert again == done
    with pytest.raises(Rejected, match="expected the monitor"):
        again.begin(replace(MONITOR, window_n=7))
    for broken in (
        {},
        {**done.to_json(), "unlike_training": [3]},
        {**done.to_json(), "unlike_training": [{"name": "x"}]},
    ):
        with pytest.raises(Rejected, match="to_json"):
            Commissioned.from_json(broken)


def test_a_stricter_alpha_asks_for_more_evidence() -> None:
    strict = replace(MONITOR, alpha=1e-12)
    windows = [_window(_rng(7)) for _ in range(8)]
    usual, stricter = commission(MONITOR, windows), commission(strict, windows)
    assert usual is not None
    assert stricter is not None
    changed = _window(_rng(8), shift=1.0)
    assert step(usual.begin(MONITOR), changed).status is Status.ALARM
    assert step(stricter.begin(strict), changed).status is Status.WATCH
