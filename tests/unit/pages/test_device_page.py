"""What the page of one device shows, and that nothing which a device says can break it."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session

from control_plane import alarms, trust_status
from control_plane.pages.device_views import device_page
from control_plane.pages.routes import _templates
from control_plane.pages.views import fleet
from control_plane.schema.devices import Device, DeviceRequest

SAID: dict[str, Any] = {
    "agent": "0.2.0",
    "active": "b",
    "slots": {
        "a": {"mark": "good", "release": "watch-1", "manifest": "a" * 16, "revoked": True},
        "b": {"mark": "good", "release": "watch-2", "manifest": "b" * 16, "revoked": False},
    },
    "runs": {"word": "up", "since_s": 7300, "crashes": 1},
    "vitals": {
        "temperature_c": 61.5,
        "memory_available_bytes": 300 << 20,
        "memory_total_bytes": 2 << 30,
        "disk_free_bytes": 5 << 30,
    },
    "certificate_expires": "2026-04-01T00:00:00Z",
    "clock_ahead_s": -400.0,
    "uptime_s": 200_000,
    "restarts": 2,
    "desired_refused": "version 4: colour is not known to this agent",
    "desired_version": 3,
    "health": "degraded",
    "reasons": ["the clock is behind"],
}


def html(session: Session, name: str, now: datetime) -> str:
    view = device_page(session, name, now=now)
    assert view is not None
    return _templates.get_template("device.html").render(view=view, project="watch")


def add_request(session: Session, now: datetime, device: str, verb: str, **fields: Any) -> None:
    given = {"args": {}, "asked_by": "operator at 127.0.0.1", "result": {}, **fields}
    number = len(session.query(DeviceRequest).all()) + 1
    expires = given.pop("expires", now + timedelta(hours=1))
    row = DeviceRequest(id=f"{number:016x}", device=device, verb=verb, asked_at=now, expires=expires, **given)
    session.add(row)
    session.flush()


def test_a_device_shows_its_vitals_slots_and_health(
    session: Session, now: datetime, add_device: Callable[..., Device]
) -> None:
    add_device("gull", **SAID)

    view = device_page(session, "gull", now=now)

    assert view is not None
    shown = dict(view.vitals + view.facts)
    assert (view.tone, view.health, view.reasons) == ("watch", "degraded", ("the clock is behind",))
    assert shown["temperature"] == "61.5 °C"
    assert shown["memory"] == "300 MiB of 2.0 GiB available"
    assert (shown["disk"], shown["up"], shown["restarts"]) == ("5.0 GiB free", "2 d", "2")
    assert (shown["model"], shown["clock"]) == ("up for 2 h, 1 crashes", "400 s behind")
    assert shown["certificate"] == "until 2026-04-01"
    assert shown["configuration"] == "version 3, not followed: version 4: colour is not known to this agent"
    assert [(slot.name, slot.mark, slot.runs) for slot in view.slots] == [
        ("a", "good, revoked", False),
        ("b", "good", True),
    ]
    assert "the clock is behind" in html(session, "gull", now)


def test_what_an_older_agent_does_not_say_is_not_shown(
    session: Session, now: datetime, add_device: Callable[..., Device]
) -> None:
    add_device("gull")

    view = device_page(session, "gull", now=now)

    assert view is not None
    assert view.vitals == ()
    assert view.slots == ()
    assert {"temperature", "memory", "clock"}.isdisjoint(dict(view.facts))
    assert "It has not said what is in them" in html(session, "gull", now)
    assert device_page(session, "auk", now=now) is None


def test_components_are_shown_with_what_they_run(
    session: Session, now: datetime, add_device: Callable[..., Device]
) -> None:
    lamps = {"state": "rolling_back", "release": "lamps-1", "last_error": "too slow <b>", "runs": "up"}
    add_device("gull", components={"lamps": lamps, "agent": {"state": "idle"}, "odd": 3})

    view = device_page(session, "gull", now=now)
    page = html(session, "gull", now)

    assert view is not None
    shown = [(each.name, each.release, each.state, each.note) for each in view.components]
    assert shown == [("agent", "", "idle", ""), ("lamps", "lamps-1", "rolling back, up", "too slow <b>")]
    assert "too slow &lt;b&gt;" in page
    add_device("auk")
    assert 'id="components"' not in html(session, "auk", now)


def test_alarms_of_the_device_and_of_the_keys_come_first(
    session: Session, now: datetime, add_device: Callable[..., Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_device("gull")
    add_device("tern")
    alarms.sound(session, alarms.CLONE, "gull", "gull may be <cloned>", now=now)
    ended = trust_status.Alarm("director root", "2026-02-01", True, "director root has expired")
    soon = trust_status.Alarm("image root", "2026-04-01", False, "image root expires")
    monkeypatch.setattr(trust_status, "alarms", lambda _session, _now: [ended, soon])

    view = device_page(session, "gull", now=now)
    assert view is not None
    assert [(each.number, each.tone, each.text) for each in view.alarms] == [
        (1, "alarm", "gull may be <cloned>"),
        (0, "alarm", "director root has expired"),
        (0, "watch", "image root expires"),
    ]
    shown = html(session, "gull", now)
    assert "gull may be &lt;cloned&gt;" in shown
    assert shown.index("gull may be") < shown.index(">Health</h2>")
    assert shown.count("skerry alarm acknowledge 1") == shown.count("skerry alarm acknowledge") == 1
    assert "may be" not in html(session, "tern", now)

    (gull, tern) = fleet(session, now=now).devices
    assert (gull.health, gull.word) == ("failed", "it may be cloned: two outboxes speak in its name")
    assert tern.health == "good"
    alarms.clear_all(session, "gull", "seen to", now=now)
    assert fleet(session, now=now).devices[0].health == "good"


def test_requests_show_who_asked_and_what_came(
    session: Session, now: datetime, add_device: Callable[..., Device]
) -> None:
    add_device("gull")
    checks = [{"check": "disk", "ok": True, "detail": "5 MiB free"}, {"check": "golden", "ok": False, "detail": "off"}]
    add_request(session, now, "gull", "self-test", answered_at=now, ok=True, result={"checks": checks})
    add_request(session, now, "gull", "collect-logs", answered_at=now, ok=True, result={"text": "a <b> line"})
    add_request(session, now, "gull", "restart-model", answered_at=now, ok=False, result={"reason": "no model"})
    add_request(session, now, "gull", "self-test", expires=now - timedelta(seconds=1))

    view = device_page(session, "gull", now=now)
    page = html(session, "gull", now)

    assert view is not None
    assert [each.state for each in view.requests] == ["expired", "refused", "done", "done"]
    assert [each.check for each in view.requests[-1].checks] == ["disk", "golden"]
    assert "a &lt;b&gt; line" in page
    assert "operator at 127.0.0.1" in page
    assert "no model" in page


@pytest.mark.parametrize(
    "said",
    [
        {"vitals": 7, "slots": [], "runs": "up", "reasons": "none", "health": 9},
        {"slots": {"a": 1}, "vitals": {"temperature_c": "hot", "memory_available_bytes": None}, "active": 3},
        {"reasons": ["<script>alert(1)</script>"], "health": "failing"},
        {"clock_ahead_s": None, "uptime_s": "long", "health": "ok"},
    ],
)
def test_whatever_a_device_says_the_page_stands(
    session: Session, now: datetime, add_device: Callable[..., Device], said: dict[str, Any]
) -> None:
    add_device("gull", **said)

    assert "<script>alert" not in html(session, "gull", now)


def test_a_device_that_says_it_fails_is_shown_so_in_the_fleet(
    session: Session, now: datetime, add_device: Callable[..., Device]
) -> None:
    add_device("gull", health="failing", reasons=["the disk is full"])

    (view,) = fleet(session, now=now).devices

    assert (view.health, view.word) == ("failed", "the disk is full")
