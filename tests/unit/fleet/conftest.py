"""The parts of a control plane that ingest and rollouts need, in a temporary folder and without a network."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from control_plane.link import Outgoing
from control_plane.plane import Plane
from control_plane.server import make_home, open_plane
from control_plane.settings import Settings
from tests.device_rows import enrolled


class Said(Outgoing):
    """Keeps what is published."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[tuple[str, bytes]] = []

    def publish(self, topic: str, payload: bytes, *, retain: bool, qos: int = 1, expiry_s: int = 0) -> bool:  # noqa: ARG002
        self.messages.append((topic, payload))
        return True


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Plane]:
    """Return a control plane with the devices gull (enrolled) and auk (revoked)."""
    home = make_home(tmp_path / "home", Settings(project="watch"))
    opened = replace(open_plane(home.path), outgoing=Said())
    now = opened.clock()
    with opened.sessions.begin() as session:
        for name, state in (("gull", "enrolled"), ("auk", "revoked")):
            session.add(enrolled(name, now, state=state))
    yield opened
    opened.sessions.kw["bind"].dispose()
