"""The desired configuration and the pace that it sets: rate, quiet hours, metered links, jitter."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.fetching.desired import DesiredFile
from agent.fetching.pace import Bucket, OwnersPace, Wishes, held_back, is_quiet, offset_s
from skerry.errors import Broken
from skerry.wire import codec
from skerry.wire.messages import Desired

HOUR = 3600.0


@dataclass
class Time:
    """A clock that goes on when somebody sleeps."""

    now: float = 1000.0
    slept: int = 0

    def sleep(self, seconds: float) -> None:
        """Go on."""
        assert seconds > 0
        self.now += seconds
        self.slept += 1


def make_pace(wishes: Wishes, time: Time, *, metered: bool = False, clock: float = 12 * HOUR) -> OwnersPace:
    """Return the pace of a device at noon."""
    return OwnersPace(
        "watch.gull-1",
        wishes=lambda: wishes,
        metered=lambda: metered,
        clock=lambda: clock,
        now=lambda: time.now,
        sleep=time.sleep,
    )


@pytest.mark.parametrize(
    ("hours", "at", "quiet"),
    [
        ("22:00-06:00", 21.99, False),
        ("22:00-06:00", 22.0, True),
        ("22:00-06:00", 0.0, True),
        ("22:00-06:00", 5.99, True),
        ("22:00-06:00", 6.0, False),
        ("08:30-09:00", 8.49, False),
        ("08:30-09:00", 8.5, True),
        ("08:30-09:00", 9.0, False),
        ("08:00-08:00", 8.0, False),
        ("", 3.0, False),
    ],
)
def test_quiet_hours_may_go_over_midnight(hours: str, at: float, quiet: bool) -> None:
    assert is_quiet(hours, 86400 * 19000 + at * HOUR) is quiet


@given(st.integers(1, 1 << 24), st.lists(st.integers(0, 1 << 20), min_size=1, max_size=40), st.floats(0, 5))
def test_the_mean_rate_stays_within_the_limit_and_one_window(rate: int, sizes: list[int], idle_s: float) -> None:
    bucket, now = Bucket(rate, at=0.0), 0.0
    for size in sizes:
        now += bucket.wait_s(now=now)
        bucket = bucket.after(size, now=now)
        now += idle_s if size % 3 == 0 else 0.0

    took = now
    # what idles earns a second at most, and the last window may be in debt
    assert sum(sizes[:-1]) <= rate * (took + 1) * (1 + 1e-9) + max(sizes) + 1
    assert bucket.wait_s(now=now) <= sizes[-1] / rate + 1e-6


def test_a_limited_fetch_waits_and_asks_for_little_at_once() -> None:
    time = Time()
    pace = make_pace(Wishes(rate_limit_bytes_s=100_000), time)
    pace.begin("d1", urgent=False, begun=False)
    assert pace.most_chunks == 3

    began = time.now
    for _ in range(10):
        assert pace.admit(lambda: False)
        pace.spent(200_000)

    assert time.now - began == pytest.approx(18.0, abs=0.01)


def test_a_wait_ends_when_another_assignment_comes() -> None:
    time = Time()
    pace = make_pace(Wishes(rate_limit_bytes_s=1000), time)
    assert pace.admit(lambda: False)
    pace.spent(1 << 20)

    assert not pace.admit(lambda: time.slept >= 3)
    assert time.slept == 3
    assert time.now < 1002


def test_a_new_limit_counts_at_once() -> None:
    time = Time()
    wishes = [Wishes(rate_limit_bytes_s=10)]
    pace = OwnersPace("w.g", wishes=lambda: wishes[-1], clock=lambda: 0.0, now=lambda: time.now, sleep=time.sleep)
    assert pace.admit(lambda: False)
    pace.spent(1 << 20)

    def change() -> bool:
        wishes.append(Wishes())
        return False

    assert pace.admit(change)
    assert time.now < 1002
    assert pace.most_chunks == 8


def test_quiet_hours_and_metered_links_end_the_fetch_and_say_so() -> None:
    quiet = Wishes(quiet_hours="11:00-13:00")
    pace = make_pace(quiet, Time())
    assert not pace.admit(lambda: False)
    assert pace.waiting == "quiet hours (11:00-13:00 UTC)"
    pace.begin("d1", urgent=True, begun=False)
    assert pace.waiting == ""
    assert pace.admit(lambda: False)

    assert held_back(Wishes(metered="pause"), clock=0, metered=True, urgent=True) == "a metered link"
    assert held_back(Wishes(metered="pause"), clock=0, metered=False) == ""
    assert held_back(Wishes(), clock=0, metered=True) == ""


def test_a_site_begins_spread_over_the_jitter_and_goes_on_at_once() -> None:
    wishes = Wishes(start_jitter_s=600)
    time = Time()
    pace = make_pace(wishes, time)
    own = offset_s(600, "watch.gull-1 d1")
    assert 0 < own < 600

    pace.begin("d1", urgent=False, begun=False)
    assert not pace.admit(lambda: False)
    assert pace.waiting == "its turn"
    time.now += own + 0.001
    pace.begin("d1", urgent=False, begun=False)
    assert pace.admit(lambda: False)

    for urgent, begun in ((True, False), (False, True)):
        other = make_pace(wishes, Time())
        other.begin("d2", urgent=urgent, begun=begun)
        assert other.admit(lambda: False)
    offsets = sorted(offset_s(600, f"watch.gull-{number} d1") for number in range(100))
    assert offsets[0] < 60
    assert offsets[-1] > 540


def desired(version: int, **config: object) -> bytes:
    """Return a desired configuration as it comes."""
    return codec.encode(Desired(version=version, config=config))


def test_a_desired_configuration_is_obeyed_and_survives_a_restart(tmp_path: Path) -> None:
    file = DesiredFile(tmp_path)
    assert (file.version, file.wishes) == (0, Wishes())

    assert file.offer(desired(3, rate_limit_bytes_s=5000, quiet_hours="22:00-06:00", of_tomorrow=True))
    assert not file.offer(desired(3, rate_limit_bytes_s=5000))
    assert not file.offer(desired(2))
    assert not file.offer(b"")

    again = DesiredFile(tmp_path)
    assert (again.version, again.problem) == (3, "")
    assert again.wishes == file.wishes == Wishes(rate_limit_bytes_s=5000, quiet_hours="22:00-06:00")


@pytest.mark.parametrize(
    "config",
    [
        {"rate_limit_bytes_s": -1},
        {"rate_limit_bytes_s": "fast"},
        {"quiet_hours": "24:00-06:00"},
        {"quiet_hours": "at night"},
        {"metered": "maybe"},
        {"start_jitter_s": -0.5},
        {"start_jitter_s": 1e9},
    ],
)
def test_one_that_cannot_be_obeyed_is_refused_whole_and_the_last_stays(
    tmp_path: Path, config: dict[str, object]
) -> None:
    file = DesiredFile(tmp_path)
    file.offer(desired(1, rate_limit_bytes_s=7))

    assert not file.offer(desired(2, **{"metered": "pause", **config}))
    assert (file.version, file.wishes) == (1, Wishes(rate_limit_bytes_s=7))
    assert file.problem.startswith("desired configuration: Wishes")
    assert "\n" not in file.problem

    assert file.offer(desired(3))
    assert (file.problem, file.wishes) == ("", Wishes())


def test_garbage_is_refused(tmp_path: Path) -> None:
    file = DesiredFile(tmp_path)

    assert not file.offer(b"[1, 2")
    assert file.problem


def test_a_disk_that_refuses_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = DesiredFile(tmp_path)

    def refuse(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(Broken, match="No space left"):
        file.offer(desired(1, rate_limit_bytes_s=7))
    assert (file.version, file.wishes) == (0, Wishes())
