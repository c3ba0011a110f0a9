"""Fixtures of the power-cut matrix: a shore on a Mosquitto of its own, and a device on it whose agent is recorded."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skerry.runtimes.arrays import pack
from tests.conftest import Mosquitto
from tests.integration.agent.shore import LABELS
from tests.power.story import KeepingShore, Recorder, record
from tests.power.world import Recording


@dataclass(frozen=True, slots=True)
class Story:
    """A recording, and the shore on which it happened, which is still there."""

    recording: Recording
    shore: KeepingShore
    device: Recorder


@pytest.fixture
def tell(strace: str, make_mosquitto: Callable[..., Mosquitto], tmp_path: Path) -> Iterator[Callable[..., Story]]:
    """Return a function that records a story, with one call of the agent left out if it is named."""
    shores: list[KeepingShore] = []
    devices: list[Recorder] = []

    def tell(without: str = "") -> Story:
        shores.append(KeepingShore(make_mosquitto().port, tmp_path))
        inputs = tmp_path / "recording.npz"
        rng = np.random.default_rng(3)
        arrays: dict[str, Any] = {
            "X": rng.normal(size=(60, 100, 6)).astype(np.float32),
            "y": rng.integers(0, 3, size=60),
            "labels": np.array(LABELS),
        }
        inputs.write_bytes(pack(arrays))
        devices.append(Recorder(shores[-1], "watch-1", tmp_path / "watch-1", inputs))
        devices[-1].without = without
        return Story(record(shores[-1], devices[-1]), shores[-1], devices[-1])

    yield tell
    for device in devices:
        device.kill()
    for shore in shores:
        shore.close()
