"""Both shores of an outbox: a device's file and a control plane's database, with what is between them in the test."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from control_plane.link import Outgoing
from control_plane.plane import Plane
from control_plane.server import make_home, open_plane
from control_plane.settings import Settings
from tests.device_rows import enrolled


@pytest.fixture
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """Return a control plane with the device gull, enrolled."""
    home = make_home(tmp_path_factory.mktemp("plane") / "home", Settings(project="watch"))
    opened = replace(open_plane(home.path), outgoing=Outgoing())
    with opened.sessions.begin() as session:
        session.add(enrolled("gull", opened.clock()))
    yield opened
    opened.sessions.kw["bind"].dispose()
