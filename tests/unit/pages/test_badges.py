"""What the page says of the broker."""

from types import SimpleNamespace
from typing import cast

from control_plane.link import Outgoing
from control_plane.pages.routes import badges
from control_plane.plane import Plane
from control_plane.settings import Settings


def test_the_badge_of_an_external_broker_has_no_password() -> None:
    settings = Settings(project="watch", broker="mqtts://user:secret@broker.example:8883")

    shown = badges(cast("Plane", SimpleNamespace(settings=settings, outgoing=Outgoing())))

    assert any("mqtts://broker.example:8883" in text for _, text in shown)
    assert "secret" not in str(shown)
