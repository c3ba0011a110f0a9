"""Invitations and claims."""

from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import enrolment
from control_plane.enrolment import Invitation
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Forbidden
from control_plane.schema.devices import ClaimToken, Device
from control_plane.schema.work import Event
from skerry.errors import Rejected
from skerry.wire.enrolment import EnrolRequest

PROFILE = "x86-64-gateway"


@pytest.fixture(scope="module")
def csr() -> str:
    """Return a device's signing request."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


def invite(plane: Plane, session: Session, **grants: Any) -> str:
    """Return the token of a fresh invitation."""
    join, _ = enrolment.invite(plane, session, Invitation(profile=PROFILE, **grants))
    session.flush()
    return join.token


def test_the_database_never_holds_the_token(founded: Plane, session: Session) -> None:
    token = invite(founded, session)

    (row,) = session.scalars(select(ClaimToken))
    assert token not in row.sha256
    assert not [event for event in session.scalars(select(Event)) if token in f"{event.text}{event.data}"]


def test_there_is_nothing_to_join_before_the_ceremony(plane: Plane) -> None:
    with plane.sessions() as session, pytest.raises(Conflict, match="skerry keys init"):
        enrolment.invite(plane, session, Invitation(profile=PROFILE))


def test_a_token_of_several_uses_names_each_device_anew(founded: Plane, session: Session, csr: str) -> None:
    token = invite(founded, session, uses=2, group="line-1")
    request = EnrolRequest(token=token, csr=csr, profile=PROFILE)

    names = {enrolment.claim(founded, session, request).device for _ in range(2)}

    assert len(names) == 2
    assert {row.group for row in session.scalars(select(Device))} == {"line-1"}
    with pytest.raises(Forbidden, match="used up"):
        enrolment.claim(founded, session, request)


def test_an_expired_token_is_refused(founded: Plane, session: Session, csr: str, clock: Any) -> None:
    token = invite(founded, session, ttl_s=60)
    clock.turn(timedelta(seconds=61))

    with pytest.raises(Forbidden, match="expired"):
        enrolment.claim(founded, session, EnrolRequest(token=token, csr=csr, profile=PROFILE))


def test_a_device_that_is_invited_again_keeps_its_name_and_counter(founded: Plane, session: Session, csr: str) -> None:
    for _ in range(2):
        token = invite(founded, session, name="wearer-8")
        enrolment.claim(founded, session, EnrolRequest(token=token, csr=csr, profile=PROFILE))
        session.get_one(Device, "wearer-8").assign_counter = 7

    (device,) = session.scalars(select(Device))
    assert (device.name, device.assign_counter, device.state) == ("wearer-8", 7, "enrolled")


@pytest.mark.parametrize(
    ("grants", "said"),
    [
        ({"name": "Wearer 8"}, "name: expected"),
        ({"group": ""}, "group: expected"),
        ({"uses": 0}, "uses: expected"),
        ({"uses": 2, "name": "wearer-8"}, "leave out its name"),
        ({"ttl_s": 0}, "ttl_s: expected"),
        ({"ttl_s": 10**9}, "ttl_s: expected"),
    ],
)
def test_an_invitation_that_cannot_be_meant_is_refused(grants: dict[str, Any], said: str) -> None:
    with pytest.raises(Rejected, match=said):
        Invitation(profile=PROFILE, **grants)


def test_a_name_that_no_certificate_can_hold_is_refused_before_a_token_is_given_out(
    founded: Plane, session: Session
) -> None:
    with pytest.raises(Rejected, match="at most 64"):
        invite(founded, session, name="a" * 63)
    assert not session.scalars(select(ClaimToken)).all()


def test_the_advertised_broker_is_what_devices_are_told(founded: Plane, session: Session, csr: str) -> None:
    from dataclasses import replace

    settings = replace(founded.settings, broker="mqtts://user:secret@10.0.0.1:8883")
    plane = replace(founded, settings=settings)
    token = invite(plane, session, uses=2)
    request = EnrolRequest(token=token, csr=csr, profile=PROFILE)

    assert enrolment.claim(plane, session, request).broker == "mqtts://10.0.0.1:8883"
    relayed = replace(founded, settings=replace(settings, broker_advertised="mqtts://10.0.0.2:8884"))
    assert enrolment.claim(relayed, session, request).broker == "mqtts://10.0.0.2:8884"
