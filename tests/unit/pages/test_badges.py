"""What the page says of the broker."""

from datetime import datetime
from types import SimpleNamespace
from typing import cast

import pytest
from sqlalchemy.orm import Session

from control_plane import alarms, trust_status
from control_plane.link import Outgoing
from control_plane.pages.routes import badges
from control_plane.plane import Plane
from control_plane.settings import Settings


def test_the_badge_of_an_external_broker_has_no_password(session: Session, now: datetime) -> None:
    settings = Settings(project="watch", broker="mqtts://user:secret@broker.example:8883")

    shown = badges(cast("Plane", SimpleNamespace(settings=settings, outgoing=Outgoing())), session, now)

    assert any("mqtts://broker.example:8883" in text for _, text in shown)
    assert "secret" not in str(shown)


@pytest.mark.parametrize(
    ("devices", "keys", "text"),
    [
        ((), 0, ""),
        (("gull",), 0, "1 alarm: gull"),
        ((), 1, "1 alarm: keys"),
        (("gull", "auk", "tern"), 2, "5 alarms: tern, auk, others, keys"),
    ],
)
def test_the_badge_counts_alarms_and_says_whose_they_are(
    session: Session, now: datetime, monkeypatch: pytest.MonkeyPatch, devices: tuple[str, ...], keys: int, text: str
) -> None:
    for device in devices:
        alarms.sound(session, alarms.CLONE, device, "cloned", now=now)
    key = trust_status.Alarm("image root", "2026-04-01", False, "image root expires")
    monkeypatch.setattr(trust_status, "alarms", lambda _session, _now: [key] * keys)
    plane = cast("Plane", SimpleNamespace(settings=Settings(project="watch"), outgoing=Outgoing()))

    assert [shown for _, shown in badges(plane, session, now) if "alarm" in shown] == ([text] if text else [])
