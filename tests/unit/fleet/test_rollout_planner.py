"""The planner's decisions, without a database."""

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.rollout_planner import (
    Action,
    Assign,
    Attempt,
    Candidate,
    DeviceNow,
    EndRollout,
    EndWave,
    Settle,
    StartWave,
    Wave,
    WaveRequest,
    plan,
    spread,
)
from skerry.errors import Rejected

FLEET = [Candidate(f"d{number}", "gateway" if number % 2 else "board") for number in range(8)]


class World:
    """Rows as the adapter keeps them, to which actions are done."""

    def __init__(self, sizes: list[int]) -> None:
        self.state = "running"
        self.reason = ""
        self.waves = [Wave(number, "waiting") for number, _ in enumerate(sizes, start=1)]
        self.attempts = {
            f"{wave}-{index}": Attempt(f"{wave}-{index}", wave, f"d{wave}-{index}", "new", "waiting")
            for wave, size in enumerate(sizes, start=1)
            for index in range(size)
        }
        self.devices = {attempt.device: DeviceNow("old") for attempt in self.attempts.values()}

    def plan(self) -> tuple[Action, ...]:
        """Ask the planner."""
        return plan(self.state, self.waves, list(self.attempts.values()), self.devices)

    def step(self) -> bool:
        """Do what the planner says, once; say whether there was anything."""
        actions = self.plan()
        for action in actions:
            match action:
                case StartWave(number):
                    self._set_wave(number, "running")
                case EndWave(number, state):
                    self._set_wave(number, state)
                case Assign(attempt):
                    assert self.attempts[attempt].state == "waiting"
                    self._set(attempt, "assigned")
                case Settle(attempt, state, _):
                    self._set(attempt, state)
                case EndRollout(state, reason):
                    self.state, self.reason = state, reason
        return bool(actions)

    def settle(self) -> None:
        """Do what there is to do now; it must come to an end."""
        for _ in range(100):
            if not self.step():
                return
        pytest.fail("the planner never rests")

    def report(self, attempt: str, state: str, reason: str = "") -> None:
        """Let a device report."""
        self._set(attempt, state, reason)

    def _set(self, attempt: str, state: str, reason: str = "") -> None:
        self.attempts[attempt] = replace(self.attempts[attempt], state=state, reason=reason)

    def _set_wave(self, number: int, state: str) -> None:
        self.waves = [Wave(number, state) if wave.number == number else wave for wave in self.waves]


def test_a_wave_starts_only_when_the_one_before_it_is_committed() -> None:
    world = World([1, 2])
    world.settle()
    assert [attempt.state for attempt in world.attempts.values()] == ["assigned", "waiting", "waiting"]
    world.report("1-0", "trial")
    assert world.plan() == ()
    world.report("1-0", "committed")
    world.settle()
    assert [wave.state for wave in world.waves] == ["done", "running"]
    assert [attempt.state for attempt in world.attempts.values()] == ["committed", "assigned", "assigned"]


def test_a_failed_device_pauses_the_rollout_and_says_why() -> None:
    world = World([2, 1])
    world.settle()
    world.report("1-0", "committed")
    world.report("1-1", "failed", "golden replay differs")
    world.settle()
    assert (world.state, world.waves[0].state, world.waves[1].state) == ("paused", "failed", "waiting")
    assert world.reason == "d1-1 failed: golden replay differs"


def test_a_device_that_already_runs_it_is_not_assigned_again() -> None:
    world = World([1])
    world.devices["d1-0"] = DeviceNow("new")
    world.settle()
    assert (world.state, world.attempts["1-0"].state) == ("done", "committed")


def test_a_device_that_was_revoked_meanwhile_is_left_out() -> None:
    world = World([2])
    world.devices["d1-0"] = DeviceNow("old", enrolled=False)
    del world.devices["d1-1"]
    world.settle()
    assert (world.state, {attempt.state for attempt in world.attempts.values()}) == ("done", {"left-out"})


def test_an_empty_wave_is_done_at_once() -> None:
    world = World([0, 1, 0])
    world.settle()
    world.report("2-0", "committed")
    world.settle()
    assert (world.state, {wave.state for wave in world.waves}) == ("done", {"done"})


@pytest.mark.parametrize("state", ["paused", "done", "cancelled"])
def test_a_rollout_that_does_not_run_is_left_alone(state: str) -> None:
    world = World([2])
    world.state = state
    assert world.plan() == ()


@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    events=st.lists(st.tuples(st.integers(0, 15), st.sampled_from(["fetching", "trial", "committed", "failed"]))),
)
def test_whatever_devices_report_the_planner_rests_and_keeps_the_order_of_waves(
    sizes: list[int], events: list[tuple[int, str]]
) -> None:
    world = World(sizes)
    world.settle()
    for index, state in events:
        told = [attempt.id for attempt in world.attempts.values() if attempt.state not in ("waiting", "failed")]
        if told:
            world.report(told[index % len(told)], state)
        world.settle()
        assert world.plan() == ()
        running = [wave.number for wave in world.waves if wave.state == "running"]
        assert len(running) <= 1
        started = [attempt.wave for attempt in world.attempts.values() if attempt.state != "waiting"]
        done = {wave.number for wave in world.waves if wave.state == "done"}
        assert all(wave in done for number in started for wave in range(1, number))
    if all(attempt.state == "committed" for attempt in world.attempts.values()):
        assert world.state == "done"


def test_a_share_takes_the_profiles_in_turn_and_rest_takes_the_rest() -> None:
    canary, rest = spread([WaveRequest("canary", share=0.25), WaveRequest("rest", rest=True)], FLEET, seed="watch-1")
    assert {candidate.profile for candidate in canary} == {"gateway", "board"}
    assert len(canary) == 2
    assert {candidate.name for candidate in (*canary, *rest)} == {candidate.name for candidate in FLEET}


@given(
    share=st.floats(0.01, 1.0),
    obstacles=st.sets(st.integers(0, 7), max_size=7),
    named=st.sets(st.integers(0, 7), min_size=1, max_size=3),
)
def test_each_device_is_in_at_most_one_wave_and_the_same_in_any_order(
    share: float, obstacles: set[int], named: set[int]
) -> None:
    fleet = [
        replace(candidate, obstacle="busy") if number in obstacles else candidate
        for number, candidate in enumerate(FLEET)
    ]
    requests = [
        WaveRequest("named", devices=tuple(f"d{number}" for number in sorted(named))),
        WaveRequest("canary", share=share),
        WaveRequest("rest", rest=True),
    ]
    waves = spread(requests, fleet, seed="watch-1")
    placed = [candidate.name for wave in waves for candidate in wave]
    assert len(placed) == len(set(placed))
    assert set(placed) == {f"d{number}" for number in named} | {f"d{n}" for n in range(8) if n not in obstacles}
    assert waves == spread(requests, fleet[::-1], seed="watch-1")


@pytest.mark.parametrize(
    ("requests", "words"),
    [
        ([], "1 to 64"),
        ([WaveRequest("a")], "one of devices, share or rest"),
        ([WaveRequest("a", share=0.5, rest=True)], "one of devices, share or rest"),
        ([WaveRequest("a", share=1.5)], "at most 1"),
        ([WaveRequest("a", devices=("nobody",))], "nobody"),
        ([WaveRequest("a", devices=("d1", "d1"))], "twice"),
        ([WaveRequest("a", rest=True), WaveRequest("a", share=0.1)], "different names"),
    ],
)
def test_waves_that_cannot_be_made_are_refused(requests: list[WaveRequest], words: str) -> None:
    with pytest.raises(Rejected, match=words):
        spread(requests, FLEET, seed="watch-1")


def test_many_devices_by_name_are_no_more_work_than_that() -> None:
    fleet = [Candidate(f"gull-{number}", "x86-64-gateway") for number in range(20_000)]
    began = time.monotonic()
    (wave,) = spread([WaveRequest("all", devices=tuple(one.name for one in fleet))], fleet, seed="watch-1")
    assert len(wave) == 20_000
    assert time.monotonic() - began < 2


def test_a_rollout_to_nobody_is_refused_with_the_reasons() -> None:
    fleet = [replace(candidate, obstacle="no build for it") for candidate in FLEET]
    with pytest.raises(Rejected, match="no build for it"):
        spread([WaveRequest("all", rest=True)], fleet, seed="watch-1")
