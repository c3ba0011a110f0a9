"""A storm of `kill -9`: a real agent dies at sixty random moments, while good versions and a bad one are assigned.

Processes that are killed leave what they wrote, so this says nothing of disks (the matrix does that); it says that no
moment of the whole agent, with its threads, workers and broker, is one after which it does not come back.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.deployment.lifecycle import State, settled
from agent.deployment.runner import read_state
from agent.telling.outbox import look
from skerry.delivery.slots import Mark, Slots
from skerry.runtimes.arrays import pack
from tests.conftest import Mosquitto
from tests.integration.agent.shore import LABELS, MODEL, Device, Shore, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.long, pytest.mark.timeout(400)]
KILLS = 60
SEED = 6
BAD = 4
TURN = (1, 2, BAD, 3)
# a machine that is busy may take long to come so far; then it is killed on its way there
COMES_UP_S = 4.0


@pytest.fixture
def shore(make_mosquitto: Callable[..., Mosquitto], tmp_path: Path) -> Iterator[Shore]:
    shore = Shore(make_mosquitto().port, tmp_path)
    for version in (1, 2, 3):
        shore.release(version)
    shore.release(BAD, latency_budget_ms=0.0001)
    yield shore
    shore.close()


@pytest.fixture
def device(shore: Shore, tmp_path: Path) -> Iterator[Device]:
    rng = np.random.default_rng(3)
    arrays: dict[str, Any] = {
        "X": rng.normal(size=(60, 100, 6)).astype(np.float32),
        "y": rng.integers(0, 3, size=60),
        "labels": np.array(LABELS),
    }
    recording = tmp_path / "recording.npz"
    recording.write_bytes(pack(arrays))
    device = Device(shore, "watch-1", tmp_path / "watch-1", recording)
    yield device
    device.kill()


def test_sixty_kills_leave_a_device_that_runs_the_last_good_release(shore: Shore, device: Device) -> None:
    rng = random.Random(SEED)
    assigned: list[tuple[str, int]] = []
    killed_in: Counter[str] = Counter()
    heard: set[str] = set()  # what was replaced before the device could hear of it has no end to tell
    began = time.monotonic()

    for number in range(KILLS):
        if not assigned or _ended(shore, device, assigned[-1][0]) or rng.random() < 0.05:
            version = TURN[len(assigned) % len(TURN)]
            assigned.append((shore.assign(device.name, version, rollback=True), version))
        device.start()
        if number % 3:
            _wait_until_it_is_up(device, at_most_s=COMES_UP_S)
        _pass(rng.uniform(0.0, 1.5))
        device.kill()
        killed_in[device.state() or "idle"] += 1
        heard |= {grant.deployment for grant in [_state(device).grant] if grant is not None}
    took_s = time.monotonic() - began

    # left alone, it comes to rest on what the last deployment that went well has brought
    device.start()
    wait_for(lambda: _rests(shore, device, assigned[-1][0]), why="rest after the storm", timeout_s=60)
    wait_for(lambda: _agrees(shore, device), why="a twin that agrees", timeout_s=30)
    committed = [(name, version) for name, version in assigned if "committed" in _said(shore, device, name)]
    _check_running(device, committed[-1][1])
    # what it heard of was said to have ended: the bad ones never well, the good ones failed for the storm alone
    heard |= {assigned[-1][0], *(name for name, _ in assigned if _said(shore, device, name))}
    for name, version in [each for each in assigned if each[0] in heard]:
        ends = [each for each in shore.states(device.name, name) if each.state in ("committed", "failed")]
        assert ends, name
        if version == BAD:
            assert {each.state for each in ends} == {"failed"}
        for each in ends:
            storm = ("restarted while", "replaced by")
            assert each.state == "committed" or version == BAD or any(why in each.reason for why in storm), each

    # and it does what it always did: the bad one is rolled back, the good one runs
    last = (BAD, 2 if committed[-1][1] != 2 else 3)
    ends_now = [shore.ends(device.name, shore.assign(device.name, version, rollback=True)).state for version in last]
    assert ends_now == ["failed", "committed"]
    wait_for(lambda: _agrees(shore, device), why="a twin that agrees", timeout_s=30)
    _check_running(device, last[-1])

    # every number of the outbox was counted once: none is missing, none stood for two things
    wait_for(lambda: sum(look(device.folder / "outbox.db").rows.values()) <= 2, why="an empty outbox")
    assert device.stop() == 0
    epochs = {epoch for _, epoch, _ in shore.entries}
    numbers = sorted(sequence for _, _, sequence in shore.entries)
    assert len(epochs) == 1
    assert numbers == list(range(1, numbers[-1] + 1))
    assert shore.conflicts == 0
    shown = ", ".join(f"{count} while {phase}" for phase, count in killed_in.most_common())
    print(
        f"\n{KILLS} kills in {took_s:.0f} s ({shown}); {len(assigned)} deployments, {len(heard)} heard of,"
        f" {len(committed)} committed;"
        f" {len(numbers)} outbox numbers, {shore.repeats} repeated"
    )
    assert len(committed) >= 3


def _pass(seconds: float) -> None:
    """Let time pass: what is waited for is a moment that means nothing to the agent."""
    until = time.monotonic() + seconds
    wait_for(lambda: time.monotonic() >= until, why="a moment", timeout_s=seconds + 10)


def _wait_until_it_is_up(device: Device, *, at_most_s: float) -> None:
    """Wait until it has counted its start, or for as long as may be."""
    starts, until = _starts(device), time.monotonic() + at_most_s
    wait_for(lambda: _starts(device) > starts or time.monotonic() > until, why="a start", timeout_s=at_most_s + 10)


def _starts(device: Device) -> int:
    file = device.folder / "starts"
    return int(file.read_text()) if file.exists() else 0


def _state(device: Device) -> State:
    return read_state(device.folder / "lifecycle.json")


def _said(shore: Shore, device: Device, deployment: str) -> list[str]:
    return [event.state for event in shore.states(device.name, deployment)]


def _ended(shore: Shore, device: Device, deployment: str) -> bool:
    return bool({"committed", "failed"} & set(_said(shore, device, deployment)))


def _rests(shore: Shore, device: Device, deployment: str) -> bool:
    state = _state(device)
    named = state.grant is not None and state.grant.deployment == deployment
    return named and settled(state) and _ended(shore, device, deployment)


def _agrees(shore: Shore, device: Device) -> bool:
    said, state = shore.reported[device.name], _state(device)
    known = (state.phase, state.good.release, state.good.manifest, state.grant.deployment if state.grant else "")
    return said.online and (said.state, said.release, said.manifest, said.deployment) == known


def _check_running(device: Device, version: int) -> None:
    """What the lifecycle names is what the pointer names, good, and whole to the byte."""
    good, slots = _state(device).good, Slots(device.folder / "slots")
    slot = slots.pointer.slot(slots.active)
    assert slots.active
    assert (good.release, slot.manifest, slot.mark) == (f"{MODEL}-{version}", good.manifest, Mark.GOOD.value)
    assert slots.read(slots.active).version == version
