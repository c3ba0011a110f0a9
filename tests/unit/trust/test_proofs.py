"""Proofs of a device's key: who gets the next certificate or a token, and who does not."""

import stat
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from control_plane import authority, proofs, revocation
from control_plane.plane import Plane
from control_plane.refusals import Forbidden, TooMany
from control_plane.schema.devices import Device, DeviceToken, SpentNonce
from skerry.errors import Broken, Rejected
from skerry.wire.enrolment import TokenRequest
from tests.unit.trust.devices import Key, claim, renew

NAME = "wearer-8"


@pytest.fixture
def key() -> Key:
    """Return a device's key."""
    return Key()


@pytest.fixture
def enrolled(founded: Plane, session: Session, key: Key) -> Device:
    """Return a device that is enrolled with the key."""
    claim(founded, session, key, name=NAME)
    return session.get_one(Device, NAME)


def test_the_key_that_a_device_enrolled_with_is_kept(enrolled: Device, key: Key) -> None:
    assert enrolled.public_key == key.public_pem()


def test_a_device_renews_with_its_key(founded: Plane, session: Session, enrolled: Device, key: Key, clock: Any) -> None:
    before = enrolled.certificate_serial
    clock.turn(timedelta(days=20))

    answer = renew(founded, session, key, NAME)

    certificate = x509.load_pem_x509_certificate(answer.certificate.encode())
    assert f"{certificate.serial_number:x}" == enrolled.certificate_serial != before
    assert enrolled.certificate_expires == clock.now + authority.DEVICE_LIFE
    assert (answer.device, answer.state) == (NAME, "enrolled")


def test_a_device_that_slept_past_the_end_of_its_certificate_renews(
    founded: Plane, session: Session, enrolled: Device, key: Key, clock: Any
) -> None:
    clock.turn(timedelta(days=400))

    renew(founded, session, key, NAME)

    assert enrolled.certificate_expires > clock.now


def test_another_key_is_refused(founded: Plane, session: Session, enrolled: Device) -> None:
    with pytest.raises(Forbidden, match="signature by the key that wearer-8 enrolled with"):
        renew(founded, session, Key(), NAME)


def test_an_unknown_device_is_refused_in_the_same_words(
    founded: Plane, session: Session, enrolled: Device, key: Key
) -> None:
    said = []
    for name, other in ((NAME, Key()), ("wearer-9", key)):
        with pytest.raises(Forbidden) as refusal:
            renew(founded, session, other, name)
        said.append(str(refusal.value).replace(name, "DEVICE"))
    assert said[0] == said[1]


def test_a_renewal_keeps_the_key(founded: Plane, session: Session, enrolled: Device, key: Key) -> None:
    with pytest.raises(Rejected, match="csr: expected the key that the device enrolled with"):
        renew(founded, session, key, NAME, csr=Key().csr())


def test_a_nonce_serves_once(founded: Plane, session: Session, enrolled: Device, key: Key) -> None:
    nonce = proofs.make_nonce(founded, NAME).nonce
    proofs.renew(founded, session, key.renewal(NAME, nonce))

    with pytest.raises(Forbidden, match="has not served"):
        proofs.renew(founded, session, key.renewal(NAME, nonce))
    with pytest.raises(Forbidden, match="has not served"):
        proofs.buy_token(founded, session, key.token_request(NAME, nonce))


def test_a_nonce_of_another_device_is_refused(founded: Plane, session: Session, enrolled: Device, key: Key) -> None:
    claim(founded, session, Key(), name="wearer-9")
    nonce = proofs.make_nonce(founded, "wearer-9").nonce

    with pytest.raises(Forbidden, match="made for this device"):
        proofs.renew(founded, session, key.renewal(NAME, nonce))


def test_a_nonce_ends(founded: Plane, session: Session, enrolled: Device, key: Key, clock: Any) -> None:
    nonce = proofs.make_nonce(founded, NAME).nonce
    clock.turn(proofs.NONCE_LIFE)

    with pytest.raises(Forbidden, match="nonce: expected one that is alive"):
        proofs.renew(founded, session, key.renewal(NAME, nonce))


@pytest.mark.parametrize("damage", ["", "9" * 10 + ".x.y", "²", "later"])
def test_a_nonce_that_this_server_did_not_make_is_refused(
    founded: Plane, session: Session, enrolled: Device, key: Key, damage: str
) -> None:
    made = proofs.make_nonce(founded, NAME).nonce
    ends, _, rest = made.partition(".")
    nonce = f"{int(ends) + 3600}.{rest}" if damage == "later" else damage
    request = replace(key.renewal(NAME, made), nonce=nonce)

    with pytest.raises(Forbidden, match="nonce: expected one that this server made"):
        proofs.renew(founded, session, request)


@pytest.mark.parametrize("signature", ["", "no base64", "AAAA", "ü", "A" * 10_000])
def test_what_is_no_signature_is_refused(founded: Plane, session: Session, enrolled: Device, signature: str) -> None:
    nonce = proofs.make_nonce(founded, NAME).nonce

    with pytest.raises(Forbidden, match="signature by the key"):
        proofs.buy_token(founded, session, TokenRequest(device=NAME, nonce=nonce, signature=signature))


def test_a_proof_for_a_token_buys_no_certificate(founded: Plane, session: Session, enrolled: Device, key: Key) -> None:
    nonce = proofs.make_nonce(founded, NAME).nonce
    stolen = key.token_request(NAME, nonce).signature

    with pytest.raises(Forbidden, match="signature by the key"):
        proofs.renew(founded, session, key.renewal(NAME, nonce, signature=stolen))


def test_a_refused_proof_leaves_nothing_behind(founded: Plane, session: Session, enrolled: Device, key: Key) -> None:
    for _ in range(100):
        proofs.make_nonce(founded, NAME)
        with pytest.raises(Forbidden):
            renew(founded, session, Key(), NAME)

    assert session.scalar(select(func.count()).select_from(SpentNonce)) == 0
    # and nobody has used up what the device itself needs
    assert renew(founded, session, key, NAME).certificate


@pytest.mark.parametrize("state", ["revoked", "decommissioned", "pending", "offline"])
def test_who_is_not_enrolled_gets_neither_certificate_nor_token(
    founded: Plane, session: Session, enrolled: Device, key: Key, state: str
) -> None:
    enrolled.state = state

    with pytest.raises(Forbidden, match=f"got one that is {state}"):
        renew(founded, session, key, NAME)
    with pytest.raises(Forbidden, match=f"got one that is {state}"):
        proofs.buy_token(founded, session, key.token_request(NAME, proofs.make_nonce(founded, NAME).nonce))


def test_a_token_names_its_device_until_it_ends(
    founded: Plane, session: Session, enrolled: Device, key: Key, clock: Any
) -> None:
    nonce = proofs.make_nonce(founded, NAME).nonce
    token = proofs.buy_token(founded, session, key.token_request(NAME, nonce)).token

    assert proofs.holder_of(session, token, now=clock.now) == NAME
    assert proofs.holder_of(session, token + "x", now=clock.now) == ""
    assert proofs.holder_of(session, token, now=clock.now + proofs.TOKEN_LIFE) == ""
    (row,) = session.scalars(select(DeviceToken))
    assert token not in row.sha256
    enrolled.state = "revoked"
    assert proofs.holder_of(session, token, now=clock.now) == ""


def test_what_a_device_may_ask_for_is_bounded(
    founded: Plane, session: Session, enrolled: Device, key: Key, clock: Any
) -> None:
    for _ in range(proofs.MAX_PROOFS):
        clock.turn(timedelta(seconds=1))
        proofs.buy_token(founded, session, key.token_request(NAME, proofs.make_nonce(founded, NAME).nonce))
    assert session.scalar(select(func.count()).select_from(DeviceToken)) == proofs.MAX_TOKENS

    with pytest.raises(TooMany, match="30 proofs"):
        renew(founded, session, key, NAME)
    clock.turn(proofs.NONCE_LIFE)
    while len(revocation.alive(session, NAME, now=clock.now)) < proofs.MAX_CERTIFICATES:
        renew(founded, session, key, NAME)
    with pytest.raises(TooMany, match="16 certificates"):
        renew(founded, session, key, NAME)


def test_a_device_whose_key_was_not_kept_shows_its_certificate_once(
    founded: Plane, session: Session, enrolled: Device, key: Key
) -> None:
    certificate = renew(founded, session, key, NAME).certificate
    enrolled.public_key = ""
    other = claim(founded, session, Key(), name="wearer-9").certificate

    for wrong in ("", "no certificate", other):
        with pytest.raises(Rejected):
            renew(founded, session, key, NAME, certificate=wrong)
        enrolled.public_key = ""
    # whoever only saw the certificate, which is no secret, has no key for it
    with pytest.raises(Forbidden):
        renew(founded, session, Key(), NAME, certificate=certificate)
    enrolled.public_key = ""

    renew(founded, session, key, NAME, certificate=certificate)
    assert enrolled.public_key == key.public_pem()


def test_the_secret_of_nonces_is_this_users_alone_and_damage_is_named(founded: Plane) -> None:
    first = proofs.make_nonce(founded, NAME)
    secret = founded.home.path / "proof.key"

    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert [path.name for path in founded.home.path.glob(".proof*")] == []
    assert proofs.make_nonce(founded, NAME).nonce != first.nonce
    secret.write_bytes(b"short")
    with pytest.raises(Broken, match="delete it"):
        proofs.make_nonce(founded, NAME)
