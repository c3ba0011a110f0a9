"""The planner where a release has two builds: three devices measure, the others wait, and all end on the chosen one."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.rollout_planner import (
    MAX_WITNESSES,
    Action,
    Assign,
    Attempt,
    Choose,
    Contest,
    DeviceNow,
    EndRollout,
    EndWave,
    Replace,
    Settle,
    StartWave,
    Wave,
    plan,
)

FIRST, SECOND = "first", "second"


class World:
    """Rows as the adapter keeps them, and a choice that was settled beforehand."""

    def __init__(self, sizes: list[int], *, chosen: str, profiles: tuple[str, ...] = ("arm",)) -> None:
        self.state, self.reason, self.will_choose = "running", "", chosen
        self.waves = [Wave(number, "waiting") for number, _ in enumerate(sizes, start=1)]
        self.attempts = {
            f"{wave}-{index}": Attempt(
                f"{wave}-{index}",
                wave,
                f"d{wave}-{index}",
                FIRST if profiles[index % len(profiles)] == "arm" else "other",
                "waiting",
                profile=profiles[index % len(profiles)],
            )
            for wave, size in enumerate(sizes, start=1)
            for index in range(size)
        }
        self.devices = {attempt.device: DeviceNow("old") for attempt in self.attempts.values()}
        self.contests = {"arm": Contest(FIRST, SECOND)}

    def plan(self) -> tuple[Action, ...]:
        """Ask the planner."""
        return plan(self.state, self.waves, list(self.attempts.values()), self.devices, self.contests)

    def settle(self) -> None:
        """Do what there is to do now; it must come to an end."""
        for _ in range(100):
            actions = self.plan()
            if not actions:
                return
            for action in actions:
                self.do(action)
        pytest.fail("the planner never rests")

    def do(self, action: Action) -> None:
        """Do one action, as the adapter does."""
        match action:
            case StartWave(number):
                self.waves = [Wave(number, "running") if each.number == number else each for each in self.waves]
            case EndWave(number, state):
                self.waves = [Wave(number, state) if each.number == number else each for each in self.waves]
            case Assign(attempt, measure):
                assert self.attempts[attempt].state == "waiting"
                self.change(attempt, state="assigned", measures=measure)
            case Settle(attempt, state, _):
                self.change(attempt, state=state)
            case Choose(profile):
                assert self.contests[profile].chosen == ""
                self.contests[profile] = replace(self.contests[profile], chosen=self.will_choose)
                for each in list(self.attempts.values()):
                    if (each.profile, each.state) == (profile, "waiting"):
                        self.change(each.id, manifest=self.will_choose)
            case Replace(attempt):
                of, chosen = self.attempts[attempt], self.contests[self.attempts[attempt].profile].chosen
                new = replace(of, id=f"{of.id}-chosen", manifest=chosen, state="waiting", measures=False, reason="")
                assert new.id not in self.attempts
                self.attempts[new.id] = new
            case EndRollout(state, reason):
                self.state, self.reason = state, reason

    def change(self, attempt: str, **values: object) -> None:
        """Change an attempt."""
        self.attempts[attempt] = replace(self.attempts[attempt], **values)  # type: ignore[arg-type]

    def report(self, attempt: str, state: str, reason: str = "") -> None:
        """Let a device report; what it commits, it runs."""
        self.change(attempt, state=state, reason=reason)
        if state == "committed":
            of = self.attempts[attempt]
            self.devices[of.device] = DeviceNow(of.manifest)

    def assigned(self) -> list[str]:
        """Return the attempts that are under way."""
        return [each.id for each in self.attempts.values() if each.state == "assigned"]

    def commit_all(self) -> None:
        """Let every device commit what it is assigned, until there is nothing more."""
        self.settle()
        while self.assigned():
            for attempt in self.assigned():
                self.report(attempt, "committed")
            self.settle()


def test_three_devices_of_a_profile_measure_and_the_others_wait_for_the_choice() -> None:
    world = World([5, 2], chosen=FIRST)
    world.settle()
    assert world.assigned() == ["1-0", "1-1", "1-2"]
    assert [each.id for each in world.attempts.values() if each.measures] == world.assigned()
    for attempt in ("1-0", "1-1"):
        world.report(attempt, "committed")
    world.settle()
    assert world.contests["arm"].chosen == ""
    world.report("1-2", "committed")
    world.settle()
    assert world.contests["arm"].chosen == FIRST
    assert world.assigned() == ["1-3", "1-4"]
    world.commit_all()
    assert world.state == "done"
    assert not any(each.measures for each in world.attempts.values() if each.id not in ("1-0", "1-1", "1-2"))


def test_canaries_on_the_build_that_lost_get_the_other_one_before_the_next_wave() -> None:
    world = World([2, 3], chosen=SECOND)
    world.settle()
    for attempt in world.assigned():
        world.report(attempt, "committed")
    world.settle()
    assert world.assigned() == ["1-0-chosen", "1-1-chosen"]
    assert world.waves[1].state == "waiting"
    world.commit_all()
    assert world.state == "done"
    assert {device.manifest for device in world.devices.values()} == {SECOND}


def test_profiles_with_one_build_measure_nothing_and_wait_for_nothing() -> None:
    world = World([8], chosen=SECOND, profiles=("arm", "x86"))
    world.settle()
    measured = {attempt for attempt in world.attempts if world.attempts[attempt].measures}
    assert measured == {"1-0", "1-2", "1-4"}
    assert set(world.assigned()) == measured | {"1-1", "1-3", "1-5", "1-7"}
    world.commit_all()
    assert {world.attempts[each].manifest for each in ("1-1", "1-3")} == {"other"}


def test_a_failed_first_build_fails_no_wave_where_the_second_is_chosen() -> None:
    world = World([2, 1], chosen=SECOND)
    world.settle()
    world.report("1-0", "failed", "golden replay differs")
    world.settle()
    assert world.state == "running"
    world.report("1-1", "failed", "golden replay differs")
    world.settle()
    assert world.assigned() == ["1-0-chosen", "1-1-chosen"]
    world.commit_all()
    assert world.state == "done"


def test_a_failed_first_build_pauses_the_rollout_where_it_stays() -> None:
    world = World([2], chosen=FIRST)
    world.settle()
    world.report("1-0", "failed", "golden replay differs")
    world.report("1-1", "committed")
    world.settle()
    assert (world.state, world.reason) == ("paused", "d1-0 failed: golden replay differs")


def test_a_chosen_build_that_fails_pauses_the_rollout() -> None:
    world = World([1], chosen=SECOND)
    world.settle()
    world.report("1-0", "committed")
    world.settle()
    world.report("1-0-chosen", "failed", "too slow")
    world.settle()
    assert (world.state, world.reason) == ("paused", "d1-0 failed: too slow")


def test_a_profile_that_first_comes_in_a_later_wave_measures_there() -> None:
    world = World([1, 2], chosen=SECOND, profiles=("x86", "arm"))
    world.settle()
    world.report("1-0", "committed")
    world.settle()
    assert world.attempts["2-1"].measures
    assert world.contests["arm"].chosen == ""
    world.commit_all()
    assert (world.state, world.devices["d2-1"].manifest) == ("done", SECOND)


def test_a_choice_that_was_made_before_is_not_made_again() -> None:
    world = World([5], chosen=SECOND)
    world.contests["arm"] = Contest(FIRST, SECOND, chosen=FIRST)
    world.settle()
    assert len(world.assigned()) == 5
    assert not any(each.measures for each in world.attempts.values())


@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    chosen=st.sampled_from([FIRST, SECOND]),
    events=st.lists(st.tuples(st.integers(0, 15), st.sampled_from(["trial", "committed", "failed"])), max_size=30),
    gone=st.sets(st.integers(0, 4)),
)
def test_whatever_devices_report_the_planner_rests_and_at_most_three_measure(
    sizes: list[int], chosen: str, events: list[tuple[int, str]], gone: set[int]
) -> None:
    world = World(sizes, chosen=chosen, profiles=("arm", "arm", "x86"))
    for number in gone:
        if f"d1-{number}" in world.devices:
            world.devices[f"d1-{number}"] = DeviceNow("old", enrolled=False)
    world.settle()
    for index, state in events:
        told = [each.id for each in world.attempts.values() if each.state in ("assigned", "trial")]
        if told:
            world.report(told[index % len(told)], state)
        world.settle()
        assert world.plan() == ()
        assert sum(each.measures for each in world.attempts.values()) <= MAX_WITNESSES
        started = [each.wave for each in world.attempts.values() if each.state != "waiting"]
        done = {wave.number for wave in world.waves if wave.state == "done"}
        assert all(wave in done for number in started for wave in range(1, number))
    if world.state == "running":
        world.commit_all()
    if world.state == "done" and world.contests["arm"].chosen:
        ran = {world.devices[each.device].manifest for each in world.attempts.values() if each.profile == "arm"}
        assert ran <= {chosen, "old"}
