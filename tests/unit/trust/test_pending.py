"""The inbox of claims, the rules of groups, and devices that are named before they enrol."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import enrolment, groups, pending, revocation
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Forbidden, Unknown
from control_plane.schema.devices import Device, PendingClaim
from control_plane.schema.work import Event
from skerry.errors import Rejected
from skerry.wire.enrolment import TicketRequest
from tests.unit.trust.devices import PROFILE, Key, claim

NAME = "wearer-8"


def test_a_device_that_waits_gets_a_ticket_and_nothing_else(founded: Plane, session: Session) -> None:
    answer = claim(founded, session, Key(), name=NAME, approve="pending")

    assert (answer.state, answer.certificate, answer.device) == ("pending", "", NAME)
    (row,) = pending.listed(session, now=founded.clock())
    assert answer.ticket not in row.ticket_sha256
    assert not [event for event in session.scalars(select(Event)) if answer.ticket in f"{event.text}{event.data}"]
    device = session.get_one(Device, NAME)
    assert (device.state, device.certificate_serial, device.public_key) == ("pending", "", "")


def test_an_accepted_device_collects_its_certificate_as_often_as_it_must(founded: Plane, session: Session) -> None:
    key = Key()
    ticket = TicketRequest(
        device=NAME, ticket=claim(founded, session, key, name=NAME, group="line-1", approve="pending").ticket
    )
    assert pending.collect(founded, session, ticket).state == "pending"

    pending.accept(founded, session, NAME)

    answers = {pending.collect(founded, session, ticket).certificate for _ in range(2)}
    assert len(answers) == 1
    assert answers.pop().startswith("-----BEGIN CERTIFICATE")
    device = session.get_one(Device, NAME)
    assert (device.state, device.group, device.public_key) == ("enrolled", "line-1", key.public_pem())
    assert not pending.listed(session, now=founded.clock())
    with pytest.raises(Conflict, match="accepted before"):
        pending.accept(founded, session, NAME)


def test_a_rejected_device_is_told_so_and_its_name_is_free(founded: Plane, session: Session) -> None:
    ticket = claim(founded, session, Key(), name=NAME, approve="pending").ticket

    pending.reject(founded, session, NAME)

    with pytest.raises(Forbidden, match="rejected by an operator"):
        pending.collect(founded, session, TicketRequest(device=NAME, ticket=ticket))
    assert session.get(Device, NAME) is None
    with pytest.raises(Conflict, match="rejected before"):
        pending.accept(founded, session, NAME)


@pytest.mark.parametrize("wrong", [{"ticket": "another"}, {"device": "wearer-9"}, {"ticket": ""}, {"ticket": "\ud800"}])
def test_only_the_ticket_collects(founded: Plane, session: Session, wrong: dict[str, Any]) -> None:
    ticket = claim(founded, session, Key(), name=NAME, approve="pending").ticket
    pending.accept(founded, session, NAME)

    with pytest.raises(Forbidden, match="ticket: expected"):
        pending.collect(founded, session, replace(TicketRequest(device=NAME, ticket=ticket), **wrong))


def test_a_claim_that_nobody_decided_on_ends(founded: Plane, session: Session, clock: Any) -> None:
    ticket = claim(founded, session, Key(), name=NAME, approve="pending").ticket
    clock.turn(pending.LIFE + timedelta(seconds=1))

    with pytest.raises(Forbidden, match="alive"):
        pending.collect(founded, session, TicketRequest(device=NAME, ticket=ticket))
    with pytest.raises(Unknown, match="skerry device pending"):
        pending.accept(founded, session, NAME)


def test_an_enrolled_device_stays_while_another_asks_for_its_name(founded: Plane, session: Session, clock: Any) -> None:
    first, second = Key(), Key()
    claim(founded, session, first, name=NAME)
    claim(founded, session, second, name=NAME, approve="pending")
    device = session.get_one(Device, NAME)
    assert (device.state, device.public_key) == ("enrolled", first.public_pem())

    pending.accept(founded, session, NAME)

    assert device.public_key == second.public_pem()
    (alive,) = revocation.alive(session, NAME, now=clock.now)
    assert alive.serial == device.certificate_serial


def test_the_rule_of_the_group_decides_where_the_invitation_does_not(founded: Plane, session: Session) -> None:
    groups.set_rule(session, "lab", approve="pending")

    assert claim(founded, session, Key(), group="lab").state == "pending"
    assert claim(founded, session, Key(), group="lab", approve="automatic").state == "enrolled"
    assert claim(founded, session, Key(), group="field").state == "enrolled"


def test_the_refusals_of_a_group_travel_with_the_enrolment(founded: Plane, session: Session) -> None:
    groups.set_rule(session, "lab", refuse_automatic=True)

    assert claim(founded, session, Key(), group="lab").refuse_automatic
    assert not claim(founded, session, Key()).refuse_automatic
    groups.set_rule(session, "lab", approve="pending")
    session.flush()
    rows = [(row.name, row.approve, row.refuse_automatic, count) for row, count in groups.listed(session)]
    assert rows == [("default", "automatic", False, 1), ("lab", "pending", True, 1)]


@pytest.mark.parametrize("rule", [{"group": "Lab 1"}, {"approve": "perhaps"}])
def test_a_rule_that_cannot_be_meant_is_refused(founded: Plane, session: Session, rule: dict[str, Any]) -> None:
    with pytest.raises(Rejected, match="expected"):
        groups.set_rule(session, **{"group": "lab", **rule})
    with pytest.raises(Rejected, match="approve: expected automatic or pending"):
        enrolment.Invitation(profile=PROFILE, approve="perhaps")


def test_a_device_named_for_offline_installs_enrols_by_an_invitation_of_its_name(
    founded: Plane, session: Session
) -> None:
    enrolment.name_offline(founded, session, NAME, profile=PROFILE, group="line-1")
    device = session.get_one(Device, NAME)
    device.assign_counter = 3

    claim(founded, session, Key(), name=NAME, group="line-1")

    assert (device.state, device.assign_counter) == ("enrolled", 3)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"name": "Wearer"}, "name: expected"),
        ({"profile": "cortex-m"}, "runs|run an agent"),
        ({"profile": "toaster"}, "x86-64-gateway"),
        ({"group": ""}, "group: expected"),
        ({"name": "a" * 63}, "at most 64"),
    ],
)
def test_what_cannot_be_a_device_is_not_named(
    founded: Plane, session: Session, named: dict[str, str], said: str
) -> None:
    with pytest.raises(Rejected, match=said):
        enrolment.name_offline(founded, session, **{"name": NAME, "profile": PROFILE, "group": "default", **named})
    assert not session.scalars(select(Device)).all()


def test_a_name_is_given_once(founded: Plane, session: Session) -> None:
    claim(founded, session, Key(), name=NAME)

    with pytest.raises(Conflict, match="expected a new name"):
        enrolment.name_offline(founded, session, NAME, profile=PROFILE, group="default")


def test_a_claim_under_a_name_replaces_the_one_that_waited(founded: Plane, session: Session) -> None:
    first = claim(founded, session, Key(), name=NAME, approve="pending").ticket
    claim(founded, session, Key(), name=NAME)

    assert not session.scalars(select(PendingClaim)).all()
    with pytest.raises(Forbidden):
        pending.collect(founded, session, TicketRequest(device=NAME, ticket=first))
