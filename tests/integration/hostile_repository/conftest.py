"""Fixtures of the hostile repositories: artifacts made once, and a world for each test (`world` says what that is)."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Mosquitto
from tests.integration.agent.shore import LABELS, make_artifact
from tests.integration.hostile_repository.world import Sea, World
from tests.recordings import write_recording

MakeWorld = Callable[[str], World]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, bytes]]:
    """Three versions of an artifact."""
    folder = tmp_path_factory.mktemp("artifacts")
    return {version: make_artifact(folder, version=version) for version in (1, 2, 3)}


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Inputs for a whole agent."""
    return write_recording(tmp_path / "recording.npz", LABELS)


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
