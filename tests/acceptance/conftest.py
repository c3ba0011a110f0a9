"""A control plane of the real programs, founded once for these tests."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo.__main__ import found_control_plane
from demo.programs import Programs
from skerry.client import Client


@dataclass(frozen=True, slots=True)
class Plane:
    """A running control plane: its programs, its client, its broker's port."""

    programs: Programs
    client: Client
    broker_port: int
    keys: Path


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """Found a control plane with an embedded broker, and end it afterwards."""
    folder = tmp_path_factory.mktemp("plane")
    home = folder / "server"
    with Programs(home=home, logs=folder / "logs") as programs:
        broker, pages = found_control_plane(programs, folder / "keys")
        with Client(pages, (home / "operator.token").read_text().strip()) as client:
            yield Plane(programs=programs, client=client, broker_port=broker, keys=folder / "keys")
