"""The end of identities: what is revoked, what an order to wipe does, and how a name begins again."""

import hashlib
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from control_plane import alarms, authority, director, enrolment, proofs, revocation
from control_plane.ingest import handle
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Forbidden, Unknown
from control_plane.schema.devices import Device, DeviceToken, RevokedCertificate
from skerry.delivery.sealed import open_key
from skerry.errors import Rejected
from skerry.wire import codec
from skerry.wire.messages import Reported, Terms
from tests.unit.trust.devices import Key, claim, renew
from tests.unit.trust.releasing import release

NAME = "wearer-8"
REPORTED = "skerry/1/d/watch.wearer-8/up/reported"


@pytest.fixture
def key(founded: Plane) -> Key:
    """Return the key of an enrolled device."""
    key = Key()
    with founded.sessions.begin() as session:
        claim(founded, session, key, name=NAME)
    return key


@pytest.fixture
def told(founded: Plane, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes]]:
    """Return what is published, by topic."""
    said: list[tuple[str, bytes]] = []

    def publish(topic: str, payload: bytes, *, retain: bool, qos: int = 1) -> bool:
        assert retain
        assert qos == 1
        said.append((topic, payload))
        return True

    monkeypatch.setattr(founded.outgoing, "publish", publish)
    return said


def state(plane: Plane) -> str:
    """Return the state of the device."""
    with plane.readers() as session:
        return session.get_one(Device, NAME).state


def serials(plane: Plane) -> set[str]:
    """Return the certificates that are revoked."""
    with plane.readers() as session:
        return set(session.scalars(select(RevokedCertificate.serial)))


def reported(**said: Any) -> bytes:
    """Return a report."""
    known = {"version": 1, "online": True, "state": "idle", "agent": "0", "profile": "p", "runtime": "r"}
    return codec.encode(codec.from_tree(Reported, {**known, "architecture": "a", **said}))


def test_all_certificates_of_a_device_end_with_it(founded: Plane, key: Key, told: Any, clock: Any) -> None:
    with founded.sessions.begin() as session:
        first = session.get_one(Device, NAME).certificate_serial
        clock.turn(timedelta(days=20))
        renew(founded, session, key, NAME)
        proofs.buy_token(founded, session, key.token_request(NAME, proofs.make_nonce(founded, NAME).nonce))
        second = session.get_one(Device, NAME).certificate_serial

    said = revocation.revoke(founded, NAME)

    assert "2 certificates" in said
    assert "\n" not in said
    assert serials(founded) == {first, second}
    assert state(founded) == "revoked"
    assert ("skerry/1/d/watch.wearer-8/down/assign", b"") in told
    with founded.sessions.begin() as session:
        assert not session.scalars(select(DeviceToken)).all()
        with pytest.raises(Forbidden, match="got one that is revoked"):
            renew(founded, session, key, NAME)
        with pytest.raises(Conflict, match="has not ended"):
            director.decommission(founded, session, NAME)


def test_a_certificate_that_has_ended_is_on_no_list(founded: Plane, key: Key, told: Any, clock: Any) -> None:
    clock.turn(timedelta(days=31))
    revocation.revoke(founded, NAME)

    assert serials(founded) == set()


def test_a_clones_alarm_ends_with_a_new_key_and_not_with_another_certificate_of_the_same(
    founded: Plane, key: Key
) -> None:
    with founded.sessions.begin() as session:
        alarms.sound(session, alarms.CLONE, NAME, "cloned", now=founded.clock())
    stands = []
    for asking in (key, Key()):
        with founded.sessions.begin() as session:
            row = session.get_one(Device, NAME)
            csr = authority.read_csr(asking.csr())
            enrolment.admit(founded, session, row, profile=row.profile, group=row.group, csr=csr)
            stands.append(alarms.standing(session, alarms.CLONE, NAME))
    assert stands == [True, False]


def test_revoking_again_tells_the_broker_again(founded: Plane, key: Key, told: Any) -> None:
    revocation.revoke(founded, NAME)
    told.clear()

    assert "0 certificates" in revocation.revoke(founded, NAME)
    assert told


def test_who_does_not_exist_is_not_revoked(founded: Plane, told: Any) -> None:
    for end in (revocation.revoke, lambda plane, name: revocation.decommission(plane, name, now=True)):
        with pytest.raises(Unknown, match="expected one that is enrolled"):
            end(founded, "nobody")


def test_a_decommissioned_device_is_told_and_ends_when_it_says_so(founded: Plane, key: Key, told: Any) -> None:
    revocation.decommission(founded, NAME, now=False)

    assert state(founded) == "decommissioning"
    ((topic, payload),) = told
    assert topic == "skerry/1/d/watch.wearer-8/down/assign"
    targets = json.loads(json.loads(payload)["metadata"]["targets"])
    (order,) = targets["signed"]["targets"].items()
    assert order[0] == "decommission"
    with founded.readers() as session:
        enrolled = session.get_one(Device, NAME).public_key
    assert order[1]["custom"]["key_sha256"] == hashlib.sha256(enrolled.encode()).hexdigest()
    # until then it can still come back, and be told
    with founded.sessions.begin() as session:
        renew(founded, session, key, NAME)
    assert serials(founded) == set()

    (cleared,) = handle(founded, REPORTED, reported(online=False, state="decommissioned"))

    assert (cleared.topic, cleared.payload, cleared.retain) == (topic, b"", True)
    assert state(founded) == "decommissioned"
    assert len(serials(founded)) == 2
    with founded.readers() as session:
        assert NAME not in director.assigned(session)


def test_a_device_that_was_not_told_to_leave_cannot_say_that_it_did(founded: Plane, key: Key, told: Any) -> None:
    handle(founded, REPORTED, reported(state="decommissioned"))

    assert state(founded) == "enrolled"


def test_a_lost_device_is_decommissioned_without_its_word(founded: Plane, key: Key, told: Any) -> None:
    said = revocation.decommission(founded, NAME, now=True)

    assert "still there" in said
    assert state(founded) == "decommissioned"
    assert len(serials(founded)) == 1
    for again in (True, False):
        with pytest.raises(Conflict, match="decommissioned"):
            revocation.decommission(founded, NAME, now=again)


def test_a_decommissioned_name_begins_again_without_the_order_to_wipe(founded: Plane, key: Key, told: Any) -> None:
    revocation.decommission(founded, NAME, now=False)
    began = founded.clock()
    told.clear()

    with founded.sessions.begin() as session:
        claim(founded, session, Key(), name=NAME)
    revocation.spread(founded, NAME, since=began)

    assert state(founded) == "enrolled"
    assert told == [("skerry/1/d/watch.wearer-8/down/assign", b"")]
    assert len(serials(founded)) == 1


def test_what_a_device_shall_run_follows_it_to_its_new_key(founded: Plane, keys: Path, told: Any) -> None:
    first, second = Key(), Key()
    with founded.sessions.begin() as session:
        claim(founded, session, first, name=NAME)
        terms = Terms(device="", counter=0, issued="", deployment="d1", release="gestures-1")
        director.assign(founded, session, device=NAME, terms=terms, target=release(founded, session, keys, 1))
        claim(founded, session, second, name=NAME)
        content = director.terms_of(session, NAME)[0].content

    assert content is not None
    assert open_key(content.key, second.private_pem(), who=f"watch.{NAME}")
    with pytest.raises(Rejected):
        open_key(content.key, first.private_pem(), who=f"watch.{NAME}")
    revocation.spread(founded, NAME, since=founded.clock())
    assert [topic for topic, payload in told if payload] == [f"skerry/1/d/watch.{NAME}/down/assign"]
