"""Fixtures of the hostile repositories: artifacts made once, and a world for each test (`world` says what that is)."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skerry.runtimes.arrays import pack
from tests.conftest import Mosquitto
from tests.integration.agent.shore import LABELS, make_artifact
from tests.integration.hostile_repository.world import Sea, World

MakeWorld = Callable[[str], World]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, bytes]]:
    """Three versions of an artifact."""
    folder = tmp_path_factory.mktemp("artifacts")
    return {version: make_artifact(folder, version=version) for version in (1, 2, 3)}


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Inputs for a whole agent."""
    rng = np.random.default_rng(3)
    path = tmp_path / "recording.npz"
    arrays: dict[str, Any] = {
        "X": rng.normal(size=(60, 100, 6)).astype(np.float32),
        "y": rng.integers(0, 3, size=60),
        "labels": np.array(LABELS),
    }
    path.write_bytes(pack(arrays))
    return path


@pytest.fixture
def make_world(
    mosquitto: Mosquitto, made: dict[int, dict[str, bytes]], tmp_path: Path, recording: Path
) -> Iterator[MakeWorld]:
    """Return a function that makes a world whose metadata takes a given road."""
    worlds: list[World] = []

    def make(road: str) -> World:
        sea = Sea(mosquitto.port, tmp_path)
        worlds.append(World(sea, tmp_path, made, road=road, recording=recording))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()
        world.sea.close()
        if world.device.log.exists():
            os.write(2, world.device.log.read_bytes())


@pytest.fixture(params=["mqtt", "https"])
def world(request: pytest.FixtureRequest, make_world: MakeWorld) -> World:
    """A device that runs version 1 and has trusted both repositories, over either road."""
    return make_world(request.param).wake()
