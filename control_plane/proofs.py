"""Owns proofs: a device shows that it holds its key, and gets its next certificate or a short token for HTTPS.

A nonce is random and carries its end and a mark (HMAC-SHA256, a secret of this server) that makes it this server's,
for this device. So asking for one costs no memory, and nobody can use up a device's; what is kept is only the nonces
that served, in the transaction in which they did. The proof is verified against the key that the device enrolled with,
so it also serves a device that slept past the end of its certificate; and no revoked one.
"""

import base64
import binascii
import hashlib
import hmac
import os
import secrets
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from control_plane import authority, enrolment, events, revocation
from control_plane.plane import Plane
from control_plane.refusals import Forbidden, TooMany
from control_plane.schema.devices import Device, DeviceToken, SpentNonce
from firmware_profiles.loader import load_profile
from skerry.errors import Broken, Rejected
from skerry.wire.enrolment import Enrolled, Nonce, RenewRequest, Token, TokenRequest
from skerry.wire.proof import RENEW, TOKEN, proof_text
from skerry.wire.topics import check_name, identity

NONCE_LIFE = timedelta(minutes=5)
TOKEN_LIFE = timedelta(minutes=15)
MAX_PROOFS = 30  # of one device in the life of a nonce
MAX_CERTIFICATES = 16  # of one device, alive
MAX_TOKENS = 8  # of one device; the oldest gives way
MAX_SIGNATURE = 200
SECRET_BYTES = 32


def make_nonce(plane: Plane, device: str) -> Nonce:
    """Return a nonce for `device`, whether there is one of that name or not; raises `Rejected` where none can be."""
    check_name(device, "device")
    ends = int((plane.clock() + NONCE_LIFE).timestamp())
    body = f"{ends}.{secrets.token_urlsafe(18)}"
    return Nonce(nonce=f"{body}.{_mark(plane, device, body)}", expires_s=int(NONCE_LIFE.total_seconds()))


def renew(plane: Plane, session: Session, request: RenewRequest) -> Enrolled:
    """Issue the next certificate for the same key.

    Raises:
        Forbidden: the proof does not hold, or the device has ended.
        Rejected: the signing request is bad, or for another key.
        TooMany: the device has proven itself, or been certified, too often of late.
    """
    text = proof_text(RENEW, device=request.device, nonce=request.nonce, csr=request.csr)
    device = _prove(plane, session, request, text, certificate=request.certificate)
    csr = authority.read_csr(request.csr)
    if authority.public_key(csr) != device.public_key:
        raise Rejected("csr: expected the key that the device enrolled with, got another; enrol again for a new key")
    now = plane.clock()
    if len(revocation.alive(session, device.name, now=now)) >= MAX_CERTIFICATES:
        raise TooMany(f"{device.name}: expected at most {MAX_CERTIFICATES} certificates alive, got as many; wait")

    name = identity(plane.settings.project, device.name)
    device_ca = authority.load_authority(plane.home.ca, "device")
    issued = authority.issue(
        device_ca,
        csr,
        name=name,
        now=now,
        life=timedelta(seconds=plane.settings.certificate_life_s),
        crl_url=plane.settings.crl_url,
    )
    revocation.note_issued(session, device, issued, now=now)
    events.record(session, "renew", device.name, f"{device.name} renewed its certificate")
    return enrolment.answer(plane, session, device, load_profile(device.profile), certificate=issued.pem)


def buy_token(plane: Plane, session: Session, request: TokenRequest) -> Token:
    """Make a bearer token for HTTPS; raises `Forbidden` or `TooMany` as `renew` does."""
    text = proof_text(TOKEN, device=request.device, nonce=request.nonce)
    device = _prove(plane, session, request, text)
    token = secrets.token_urlsafe(32)
    now = plane.clock()
    session.execute(delete(DeviceToken).where(DeviceToken.expires <= now))
    held = select(DeviceToken).where(DeviceToken.device == device.name).order_by(DeviceToken.expires.desc())
    for oldest in list(session.scalars(held))[MAX_TOKENS - 1 :]:
        session.delete(oldest)
    session.add(DeviceToken(sha256=_digest(token), device=device.name, expires=now + TOKEN_LIFE))
    return Token(token=token, expires_s=int(TOKEN_LIFE.total_seconds()))


def holder_of(session: Session, token: str, *, now: datetime) -> str:
    """Return the name of the device that a bearer token belongs to, empty when it is nobody's (any more)."""
    # found by its hash, so the comparison's time says nothing about the token
    row = session.get(DeviceToken, _digest(token))
    if row is None or row.expires <= now:
        return ""
    device = session.get(Device, row.device)
    return device.name if device is not None and _may_prove(device) else ""


def _prove(
    plane: Plane, session: Session, request: RenewRequest | TokenRequest, text: bytes, *, certificate: str = ""
) -> Device:
    """Return the device whose key signed `text`; the nonce is spent, in this transaction."""
    ends = _check_nonce(plane, request.device, request.nonce)
    device = session.get(Device, request.device, with_for_update=True)
    if device is not None and not device.public_key and certificate:
        # enrolled before its key was kept: the CA's own signature says which it is
        device.public_key = _key_shown(plane, device, certificate)
    if device is None or not device.public_key or not _signed(device.public_key, request.signature, text):
        raise Forbidden(
            f"proof: expected a signature by the key that {request.device} enrolled with, got another; "
            "invite the device again if its key is lost"
        )
    # only now: whoever does not hold the key learns nothing about the device
    if not _may_prove(device):
        raise Forbidden(f"{device.name}: expected an enrolled device, got one that is {device.state}")
    _spend(session, device.name, request.nonce, ends=ends, now=plane.clock())
    return device


def _may_prove(device: Device) -> bool:
    # one that is being decommissioned must still be able to hear so
    return device.state in ("enrolled", "decommissioning")


def _check_nonce(plane: Plane, device: str, nonce: str) -> datetime:
    body, _, mark = nonce.rpartition(".")
    ends, _, _ = body.partition(".")
    if not (nonce.isascii() and hmac.compare_digest(mark, _mark(plane, device, body)) and ends.isdecimal()):
        raise Forbidden("nonce: expected one that this server made for this device, got another; ask for one")
    expires = datetime.fromtimestamp(int(ends), UTC)
    if expires <= plane.clock():
        raise Forbidden("nonce: expected one that is alive, got one that has ended; ask for another")
    return expires


def _spend(session: Session, device: str, nonce: str, *, ends: datetime, now: datetime) -> None:
    session.execute(delete(SpentNonce).where(SpentNonce.expires <= now))
    if session.get(SpentNonce, _digest(nonce)) is not None:
        raise Forbidden("nonce: expected one that has not served, got one that has; ask for another")
    served = session.scalar(select(func.count()).select_from(SpentNonce).where(SpentNonce.device == device)) or 0
    if served >= MAX_PROOFS:
        raise TooMany(f"{device}: expected at most {MAX_PROOFS} proofs in {NONCE_LIFE}, got more; wait")
    session.add(SpentNonce(sha256=_digest(nonce), device=device, expires=ends))


def _key_shown(plane: Plane, device: Device, certificate: str) -> str:
    ca = authority.load_authority(plane.home.ca, "device")
    name = identity(plane.settings.project, device.name)
    return authority.key_of_certificate(ca, certificate, name=name, serial=device.certificate_serial)


def _signed(public_key: str, signature: str, text: bytes) -> bool:
    try:
        raw = base64.b64decode(signature[:MAX_SIGNATURE].encode("ascii", "replace"), validate=True)
    except binascii.Error:
        return False
    return authority.signed_by(public_key, raw, text)


def _mark(plane: Plane, device: str, body: str) -> str:
    text = f"skerry-nonce-1\n{device}\n{body}".encode(errors="backslashreplace")
    return hmac.new(_secret(plane), text, hashlib.sha256).hexdigest()


def _secret(plane: Plane) -> bytes:
    """Return the secret of the home folder, made where it is missing: then nonces of before are worth nothing."""
    path = plane.home.path / "proof.key"
    try:
        held = path.read_bytes()
        if len(held) != SECRET_BYTES:
            raise Broken(f"{path}: expected {SECRET_BYTES} bytes, got {len(held)}; delete it, it is made anew")
    except FileNotFoundError:
        made = path.with_name(f".proof.key.{secrets.token_hex(4)}")
        descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
        try:
            # fails where another thread was first, and never shows half a file
            os.link(made, path)
        except FileExistsError:
            pass
        finally:
            made.unlink()
        return path.read_bytes()
    except OSError as error:
        raise Broken(f"{path}: expected the secret of nonces, got: {error.strerror}; check its permissions") from error
    return held


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
