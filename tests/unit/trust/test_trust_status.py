"""What people are told of trust, and the alarms before something ends."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import grants, image_repository, staging, trust_status
from control_plane.keys import sign_payload
from control_plane.plane import Plane
from control_plane.schema.models import ModelVersion
from control_plane.schema.work import Event

DAY = timedelta(days=1)


def subjects(session: Session, clock: Any) -> dict[str, bool]:
    """Return what is alarmed on, and whether it has expired."""
    return {alarm.subject: alarm.expired for alarm in trust_status.alarms(session, clock())}


def test_a_server_before_the_ceremony_has_no_roles_and_no_alarms(plane: Plane) -> None:
    with plane.readers() as session:
        assert trust_status.roles(session) == []
        assert trust_status.alarms(session, plane.clock()) == []
        assert trust_status.online_keys(plane, session) == {}
    assert trust_status.sound(plane) == []


def test_what_the_offline_keys_sign_is_alarmed_on_a_month_before_its_end_and_after(
    founded: Plane, session: Session, clock: Any
) -> None:
    clock.turn(149 * DAY)
    image_repository.renew(session, founded.signers, now=clock())
    assert subjects(session, clock) == {}
    clock.turn(2 * DAY)
    image_repository.renew(session, founded.signers, now=clock())
    assert subjects(session, clock) == {"image targets": False}
    clock.turn(30 * DAY)
    image_repository.renew(session, founded.signers, now=clock())
    assert subjects(session, clock) == {"image targets": True}
    clock.turn(160 * DAY)
    image_repository.renew(session, founded.signers, now=clock())
    assert subjects(session, clock) == {"image targets": True, "image root": False, "director root": False}


def test_what_the_server_signs_is_alarmed_on_when_it_was_not_renewed(
    founded: Plane, session: Session, clock: Any
) -> None:
    clock.turn(timedelta(hours=13))
    assert subjects(session, clock) == {}
    clock.turn(timedelta(hours=6))
    assert subjects(session, clock) == {"image timestamp": False}
    clock.turn(5 * DAY)
    assert subjects(session, clock) == {"image timestamp": True, "image snapshot": False}
    image_repository.renew(session, founded.signers, now=clock())
    assert subjects(session, clock) == {}


def test_a_grant_is_alarmed_on_a_week_before_its_end(founded: Plane, session: Session, keys: Path, clock: Any) -> None:
    session.add(ModelVersion(model="gestures", version=1, dataset="d", bundle="0" * 64, trained_at=clock()))
    session.flush()
    payload = grants.grant(founded, session, "gestures", days=30)
    for each in sign_payload(keys, payload):
        staging.add_signature(founded, session, grants.GRANT, "gestures", keyid=each["keyid"], sig=each["sig"])
    clock.turn(22 * DAY)
    image_repository.renew(session, founded.signers, now=clock())
    assert subjects(session, clock) == {}
    clock.turn(2 * DAY)
    image_repository.renew(session, founded.signers, now=clock())
    assert subjects(session, clock) == {"grant of gestures": False}
    (alarm,) = trust_status.alarms(session, clock())
    assert "in 6 days; skerry keys grant gestures" in alarm.text
    row = next(row for row in trust_status.roles(session) if row["role"] == "automatic-gestures")
    assert row["granted_until"][:10] == f"{clock() + 6 * DAY:%Y-%m-%d}"


def test_an_alarm_is_in_the_timeline_and_the_log_once_a_day(
    founded: Plane, clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clock.turn(timedelta(hours=20))
    assert [alarm.subject for alarm in trust_status.sound(founded)] == ["image timestamp"]
    assert trust_status.sound(founded) == []
    clock.turn(DAY)
    assert [alarm.expired for alarm in trust_status.sound(founded)] == [True]

    with founded.readers() as session:
        told = list(session.scalars(select(Event).where(Event.kind == "alarm").order_by(Event.id)))
    assert [event.subject for event in told] == ["image timestamp"] * 2
    assert [record.message for record in caplog.records] == [event.text for event in told]
    assert trust_status.summary(founded) == [told[-1].text]


def test_the_roles_say_who_signs_and_who_has_signed(founded: Plane, session: Session) -> None:
    rows = {(row["repository"], row["role"]): row for row in trust_status.roles(session)}

    assert rows["image", "targets"]["threshold"] == 2
    assert len(rows["image", "targets"]["keys"]) == 3
    assert {key["scheme"] for key in rows["director", "root"]["keys"]} == {"ed25519"}
    assert set(rows["image", "timestamp"]["signed_by"]) == {rows["image", "timestamp"]["keys"][0]["keyid"]}
    ready = founded.signers.make_next("timestamp", named=[rows["image", "timestamp"]["keys"][0]["keyid"]])
    assert trust_status.online_keys(founded, session)["timestamp"]["next"] == ready.keyid
    assert trust_status.online_keys(founded, session)["director"]["next"] == ""
