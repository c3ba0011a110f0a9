"""Whose drift it is: one device's, or the world's."""

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import NormalDist

import pytest

from skerry.drift import ALARM, Counts, DeviceWindows, Route, decide, merge
from skerry.drift.fleet import e_bh

DECILES = [NormalDist().inv_cdf(part / 10) for part in range(1, 10)]
N = 100


def _rng(seed: int) -> random.Random:
    return random.Random(seed)


def _window(rng: random.Random, means: Sequence[float], n: int = N) -> Counts:
    counts = [[0] * 10 for _ in means]
    for bins, mean in zip(counts, means, strict=True):
        for _ in range(n):
            bins[bisect_right(DECILES, rng.gauss(mean, 1.0))] += 1
    return tuple(tuple(bins) for bins in counts)


def _device(
    rng: random.Random, name: str, change: Sequence[float], quiet: int = 3, changed: int = 2, n: int = N
) -> DeviceWindows:
    """Make a device with a benign offset of its own, some quiet windows, and some windows after a change."""
    offset = [rng.gauss(0, 0.3) for _ in change]
    after = [mean + more for mean, more in zip(offset, change, strict=True)]
    return DeviceWindows(
        device=name,
        baseline=merge([_window(rng, offset, n) for _ in range(8)]),
        windows=tuple(_window(rng, offset, n) for _ in range(quiet))
        + tuple(_window(rng, after, n) for _ in range(changed)),
        design_effects=(1.3,) * len(change),
    )


def _fleet(seed: int, changes: Sequence[Sequence[float]], *, changed: int = 2) -> list[DeviceWindows]:
    rng = _rng(seed)
    return [_device(rng, f"d{index}", change, changed=changed) for index, change in enumerate(changes)]


def _still(count: int) -> list[list[float]]:
    return [[0.0, 0.0, 0.0] for _ in range(count)]


def _own_way(rng: random.Random, count: int) -> list[list[float]]:
    """One cause, to which every device responds in its own way."""
    return [[rng.gauss(2.0, 1.0), rng.gauss(-1.5, 1.0), rng.gauss(0, 1.0)] for _ in range(count)]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_a_quiet_fleet_says_nothing(size: int) -> None:
    for seed in range(3):
        verdict = decide(_fleet(seed, _still(size)))
        assert verdict.local_flags == ()
        assert not verdict.world_changed
        assert verdict.route is None


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_one_device_that_changed_is_one_local_flag_and_no_changed_world(size: int) -> None:
    for seed in range(3):
        verdict = decide(_fleet(seed, [[2.0, 0.0, -1.0], *_still(size - 1)]))
        assert verdict.local_flags == ("d0",)
        assert not verdict.world_changed


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_when_every_device_changes_in_its_own_way_the_world_has_changed(size: int) -> None:
    for seed in range(4):
        verdict = decide(_fleet(seed, _own_way(_rng(seed), size), changed=1))
        assert verdict.world_changed
        assert verdict.severity_lower > 0.02
        assert verdict.log_e_world >= ALARM


def test_when_every_device_changes_alike_the_world_has_changed_and_nobody_is_flagged() -> None:
    verdict = decide(_fleet(5, [[1.0, 0.0, 0.0]] * 8))
    assert verdict.world_changed
    assert verdict.local_flags == ()


def test_devices_that_change_one_by_one_are_flags_until_they_are_the_majority() -> None:
    changes = _own_way(_rng(6), 8)
    for moved in range(9):
        verdict = decide(_fleet(6, [*changes[:moved], *_still(8 - moved)]))
        if moved <= 4:
            assert set(verdict.local_flags) == {f"d{index}" for index in range(moved)}
            assert not verdict.world_changed
        else:
            assert verdict.world_changed
            assert {device.device for device in verdict.devices if not device.changed} == {
                f"d{index}" for index in range(moved, 8)
            }


def test_who_stays_the_same_while_the_world_moves_gets_no_ticket() -> None:
    verdict = decide(_fleet(7, [*[[1.0, 0.0, 0.0]] * 7, [0.0, 0.0, 0.0]]))
    assert verdict.world_changed
    assert "d7" not in verdict.local_flags


def test_a_broken_sensor_in_a_changed_world_is_still_flagged() -> None:
    verdict = decide(_fleet(8, [*[[1.0, 0.0, 0.0]] * 7, [1.0, 0.0, 3.0]]))
    assert verdict.world_changed
    assert verdict.local_flags == ("d7",)


def test_a_small_change_that_no_device_can_see_is_found_in_the_pool() -> None:
    rng = _rng(9)
    fleet = [_device(rng, f"d{index}", [0.25, 0.0], quiet=0, changed=4) for index in range(40)]
    verdict = decide(fleet)
    assert sum(device.changed for device in verdict.devices) < 10
    assert verdict.world_changed
    assert verdict.route is Route.POOLED
    assert verdict.local_flags == ()


def test_a_change_too_small_to_matter_is_not_a_changed_world() -> None:
    rng = _rng(10)
    fleet = [_device(rng, f"d{index}", [0.1], quiet=0, changed=8) for index in range(80)]
    verdict = decide(fleet)
    assert verdict.log_e_world >= ALARM
    assert not verdict.world_changed


def test_a_twentieth_of_bad_sensors_is_not_a_changed_world() -> None:
    rng = _rng(11)
    bad = [_device(rng, f"bad{index}", [rng.choice([-2.5, 2.5]), 0.0]) for index in range(10)]
    good = [_device(rng, f"good{index}", [0.0, 0.0]) for index in range(190)]
    verdict = decide([*bad, *good])
    assert set(verdict.local_flags) == {device.device for device in bad}
    assert not verdict.world_changed


def test_a_group_that_goes_offline_is_not_a_changed_world() -> None:
    rng = _rng(12)
    sites = [_device(rng, f"site{index}", [0.0, 0.0]) for index in range(50)]
    # A type of site with another level altogether, which reports nothing any more.
    level = [1.5, -1.5]
    others = [
        DeviceWindows(
            device=f"other{index}",
            baseline=merge([_window(rng, level) for _ in range(8)]),
            windows=(),
            design_effects=(1.3, 1.3),
        )
        for index in range(10)
    ]
    verdict = decide([*sites, *others])
    assert not verdict.world_changed
    assert verdict.local_flags == ()
    assert len(verdict.excluded) == 10


def test_a_group_that_talks_more_than_before_is_not_a_changed_world() -> None:
    rng = _rng(13)
    usual = [_device(rng, f"usual{index}", [0.0]) for index in range(20)]
    level = [2.0]
    loud = [
        DeviceWindows(
            device=f"loud{index}",
            baseline=merge([_window(rng, level, 100) for _ in range(8)]),
            windows=tuple(_window(rng, level, 500) for _ in range(4)),
            design_effects=(1.3,),
        )
        for index in range(5)
    ]
    verdict = decide([*usual, *loud])
    assert not verdict.world_changed
    assert verdict.local_flags == ()


def test_devices_that_cannot_be_compared_are_excluded_with_a_reason() -> None:
    good, other, empty, silent, wrong = _fleet(14, _still(5))
    fleet = [
        good,
        replace(other, windows=(((1, 2),),)),
        replace(empty, baseline=tuple((0,) * 10 for _ in range(3))),
        replace(silent, windows=()),
        replace(wrong, design_effects=(1.0,)),
    ]
    verdict = decide(fleet)
    assert [name for name, _ in verdict.excluded] == ["d1", "d2", "d3", "d4"]
    assert [device.device for device in verdict.devices] == ["d0"]
    reasons = [reason for _, reason in verdict.excluded]
    assert reasons[0] == "counts of another monitor"
    assert reasons[1] == "not commissioned"


def test_a_scalar_that_no_device_has_seen_and_one_that_some_lack_are_no_trouble() -> None:
    fleet = _fleet(17, [*[[1.5, 0.0, 0.0]] * 4, *_still(1)])
    nothing = (0,) * 10

    def without(counts: Counts, scalar: int) -> Counts:
        return tuple(nothing if index == scalar else bins for index, bins in enumerate(counts))

    def blind(device: DeviceWindows, scalar: int) -> DeviceWindows:
        return replace(
            device,
            baseline=without(device.baseline, scalar),
            windows=tuple(without(window, scalar) for window in device.windows),
        )

    blinded = [blind(device, 2) for device in fleet]
    blinded[0] = blind(blinded[0], 1)
    verdict = decide(blinded)
    assert verdict.world_changed
    assert verdict.local_flags == ()


def test_devices_of_different_ages_are_decided_together() -> None:
    rng = _rng(18)
    old = [_device(rng, f"old{index}", [1.0], quiet=12, changed=4) for index in range(4)]
    new = [_device(rng, f"new{index}", [1.0], quiet=0, changed=1) for index in range(4)]
    assert decide([*old, *new]).world_changed
    still = [_device(rng, f"still{index}", [0.0], quiet=1, changed=0) for index in range(8)]
    verdict = decide([old[0], *still])
    assert verdict.local_flags == ("old0",)
    assert not verdict.world_changed


def test_no_devices_are_no_verdict() -> None:
    verdict = decide([])
    assert not verdict.world_changed
    assert verdict.devices == ()


def test_the_order_of_devices_does_not_matter() -> None:
    fleet = _fleet(15, [*_own_way(_rng(15), 5), *_still(3)])
    forward, backward = decide(fleet), decide(fleet[::-1])
    assert set(forward.local_flags) == set(backward.local_flags)
    assert forward.world_changed == backward.world_changed
    assert forward.log_e_world == pytest.approx(backward.log_e_world)


def test_only_the_last_sixteen_windows_matter() -> None:
    fleet = _fleet(16, _still(3))
    longer = [replace(device, windows=device.windows * 8, seen=40) for device in fleet]
    shorter = [replace(device, windows=(device.windows * 8)[-16:], seen=40) for device in fleet]
    assert decide(longer) == decide(shorter)


_log: Callable[[float], float] = math.log


@pytest.mark.parametrize(
    ("log_e", "rejected"),
    [
        ([], set()),
        ([_log(99)], set()),  # below a device's own alarm
        ([_log(101)], {0}),
        ([_log(150), *[0.0] * 9], set()),  # one of ten needs 200
        ([_log(250), *[0.0] * 9], {0}),
        ([_log(150), _log(150), *[0.0] * 8], {0, 1}),  # two of ten need 100 each
    ],
)
def test_e_bh_rejects_the_k_largest_that_reach_m_over_q_k(log_e: list[float], rejected: set[int]) -> None:
    assert e_bh(log_e, q=0.05) == rejected
