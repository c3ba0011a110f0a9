"""A clock that jumps by years while a model is on trial: the trial goes by the monotonic clock alone."""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.deployment.lifecycle import Phase
from agent.inference import engine
from tests.integration.agent.spoilt import Stranded

YEARS = 50 * 365.25 * 86400
GRACE_S = 3600


class Clock:
    """What the engine takes for time: two clocks that can be set."""

    def __init__(self) -> None:
        self.steps = {"time": 0.0, "monotonic": 0.0}

    def time(self) -> float:
        return time.time() + self.steps["time"]

    def monotonic(self) -> float:
        return time.monotonic() + self.steps["monotonic"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(engine, "time", SimpleNamespace(time=clock.time, monotonic=clock.monotonic))
    return clock


@pytest.fixture
def device(tmp_path: Path, clock: Clock) -> Iterator[Stranded]:
    del clock
    device = Stranded(tmp_path)
    device.commit(1)
    yield device
    device.close()


def on_trial(device: Stranded) -> Stranded:
    device.wake()
    device.stage(2)
    device.drive(lambda: device.phase == Phase.TRIAL.value and device.engine._trial is not None)
    return device


def turn(device: Stranded, times: int = 5) -> None:
    """Let the engine look at the trial so many times."""
    seen = device.engine.beats
    device.engine._news.set()

    def looked() -> bool:
        device.engine._news.set()
        return device.engine.beats > seen + times

    device.drive(looked)


@pytest.mark.parametrize("years", [YEARS, -YEARS], ids=["ahead", "back"])
def test_a_clock_that_jumps_ends_no_trial_and_the_grace_does(device: Stranded, clock: Clock, years: float) -> None:
    on_trial(device)

    clock.steps["time"] = years
    turn(device)
    assert device.phase == Phase.TRIAL.value

    clock.steps["monotonic"] = GRACE_S - 600
    turn(device)
    assert device.phase == Phase.TRIAL.value

    clock.steps["monotonic"] = GRACE_S + 1
    device.drive(lambda: device.phase == Phase.COMMITTED.value)
    assert "golden replay alone" in device.runner.state.reason


@pytest.mark.parametrize("years", [YEARS, -YEARS], ids=["ahead", "back"])
def test_a_clock_that_jumps_spoils_no_evidence_of_a_trial(device: Stranded, clock: Clock, years: float) -> None:
    on_trial(device)
    for number in range(3):
        clock.steps["time"] = years * (number % 2)
        assert device.infer(1.0).status == 200
    device.drive(lambda: device.phase == Phase.COMMITTED.value)
    assert device.runner.state.reason == ""
    assert device.runner.state.good.release == "strokes-2"
