"""Owns the end of identities: which certificates are good, revocation, and decommissioning.

Every certificate that the device CA signs is noted here, so that all of a device's end with it: also the one that was
renewed last week and has weeks to live. Rows go when their certificate would have ended by itself.
"""

import logging
from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from control_plane import alarms, clones, crl, director, events
from control_plane.authority import Issued
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Unknown
from control_plane.schema.devices import Device, DeviceToken, IssuedCertificate, PendingClaim, RevokedCertificate
from skerry.errors import SkerryError
from skerry.wire import codec, topics

log = logging.getLogger(__name__)


def note_issued(session: Session, device: Device, issued: Issued, *, now: datetime) -> None:
    """Note a certificate as the present one of `device`."""
    session.execute(delete(IssuedCertificate).where(IssuedCertificate.expires <= now))
    session.add(IssuedCertificate(serial=issued.serial, device=device.name, issued_at=now, expires=issued.expires))
    device.certificate_serial, device.certificate_expires = issued.serial, issued.expires
    device.public_key = issued.public_key


def alive(session: Session, device: str, *, now: datetime) -> list[IssuedCertificate]:
    """Return the certificates of a device that have not ended and are not revoked."""
    revoked = select(RevokedCertificate.serial).where(RevokedCertificate.device == device)
    query = select(IssuedCertificate).where(
        IssuedCertificate.device == device, IssuedCertificate.expires > now, IssuedCertificate.serial.not_in(revoked)
    )
    return list(session.scalars(query))


def end_credentials(session: Session, device: str, *, now: datetime) -> int:
    """Revoke all certificates of a device and forget its tokens; return how many certificates there were."""
    session.execute(delete(RevokedCertificate).where(RevokedCertificate.expires <= now))
    session.execute(delete(DeviceToken).where(DeviceToken.device == device))
    ended = alive(session, device, now=now)
    for each in ended:
        session.add(RevokedCertificate(serial=each.serial, device=device, expires=each.expires, revoked_at=now))
    return len(ended)


def revoke(plane: Plane, name: str) -> str:
    """End a device's identity at once; return what was done, on one line. An invitation by name would begin a new one.

    Raises:
        Unknown: there is no such device.
        Conflict: it is decommissioned.
        Unavailable, Broken: it is revoked, but the broker could not be told; asking again tells it again.
    """
    with plane.sessions.begin() as session:
        device = find(session, name)
        if device.state == "decommissioned":
            raise Conflict(f"{name}: expected a device that has not ended, got one that is {device.state}")
        # once more where it is revoked already: the broker may not have heard of it the first time
        count = _end(session, device, state="revoked", now=plane.clock())
        events.record(session, "revoke", name, f"{name} revoked: {_counted(count)}", certificates=count)
    return f"{name} revoked: {_counted(count)}; {cut_off(plane, name)}"


def decommission(plane: Plane, name: str, *, now: bool) -> str:
    """Order a device to wipe itself; with `now`, end its identity without waiting for it. Return what was done.

    Raises:
        Unknown: there is no such device.
        Conflict: it has ended already, or was never enrolled and so could not be told.
    """
    if now:
        with plane.sessions.begin() as session:
            device = find(session, name)
            if device.state == "decommissioned":
                raise Conflict(f"{name}: expected a device that has not ended, got one that is {device.state}")
            _end(session, device, state="decommissioned", now=plane.clock())
            events.record(session, "decommission", name, f"{name} decommissioned, without waiting for it to say so")
        return f"{name} decommissioned; {cut_off(plane, name)}; what is on its disk is still there"

    with plane.sessions.begin() as session:
        device = find(session, name)
        if device.state not in ("enrolled", "decommissioning"):
            raise Conflict(f"{name}: expected an enrolled device, got one that is {device.state}; add --now")
        device.state = "decommissioning"
        order = director.decommission(plane, session, name)
        events.record(session, "decommission", name, f"{name} was told to wipe itself")
    plane.outgoing.publish(assign_topic(plane, name), codec.encode(order), retain=True)
    return f"{name} was told to wipe itself; its certificate is revoked when it has said that it did"


def take_farewell(session: Session, device: Device, *, now: datetime) -> None:
    """Take a device's word that it wipes itself, as it was told to; `crl.keep` tells the broker at its next turn."""
    _end(session, device, state="decommissioned", now=now)
    events.record(session, "decommission", device.name, f"{device.name} has wiped itself and is decommissioned")


def cut_off(plane: Plane, name: str) -> str:
    """Make the broker end a device's session and refuse its certificates; return what was done. After the commit."""
    plane.outgoing.publish(assign_topic(plane, name), b"", retain=True)
    return crl.revoke_now(plane, name)


def make_way(plane: Plane, session: Session, device: Device, issued: Issued) -> None:
    """Let a certificate, of a new key or of the same, take the place of all that a device had: those end.

    Call `spread` after the commit.
    """
    now = plane.clock()
    end_credentials(session, device.name, now=now)
    before = device.public_key
    note_issued(session, device, issued, now=now)
    if device.public_key != before:
        # whoever has a copy of the same key can go on
        alarms.clear_all(session, device.name, "the device has a new key, and no other certificate is good", now=now)
        clones.begin_anew(session, device.name)
    try:
        present = director.assignments(session, device.name).values()
        if present and all(target.path != director.DECOMMISSION for _, target in present):
            # what it shall run stays, sealed to the new key
            director.renew(plane, session, device.name)
            return
    except SkerryError as error:
        # a release that can no longer be handed out is no reason to keep a device out
        log.error("%s: %s", device.name, error)
    director.withdraw(session, device.name)


def spread(plane: Plane, name: str, *, since: datetime) -> None:
    """Publish what a device that was enrolled anew shall run, and tell the broker which certificates ended since then.

    Nobody waits for it, so what goes wrong is logged; the next turn of `crl.keep` comes to the same end.
    """
    with plane.readers() as session:
        query = select(RevokedCertificate.serial).where(
            RevokedCertificate.device == name, RevokedCertificate.revoked_at >= since
        )
        ended = session.scalars(query).first() is not None
        try:
            assigned = codec.encode(director.current(session, name))
        except Unknown:
            assigned = b""
    # an empty retained message deletes what was retained: an order to wipe must not reach the next device of the name
    plane.outgoing.publish(assign_topic(plane, name), assigned, retain=True)
    if not ended:
        return
    try:
        crl.revoke_now(plane, name)
    except SkerryError as error:
        log.error("%s: %s", name, error)


def find(session: Session, name: str) -> Device:
    """Return a device by its name, locked for this transaction; raises `Unknown`."""
    device = session.get(Device, name, with_for_update=True)
    if device is None:
        raise Unknown(f"device: expected one that is enrolled, got {name!r:.80}")
    return device


def _end(session: Session, device: Device, *, state: str, now: datetime) -> int:
    count = end_credentials(session, device.name, now=now)
    session.execute(delete(PendingClaim).where(PendingClaim.device == device.name))
    director.withdraw(session, device.name)
    alarms.clear_all(session, device.name, f"the device is {state}", now=now)
    device.state, device.online = state, False
    return count


def assign_topic(plane: Plane, device: str) -> str:
    """Return the topic of a device's assignment."""
    return topics.down(topics.identity(plane.settings.project, device), "assign")


def _counted(count: int) -> str:
    return "1 certificate" if count == 1 else f"{count} certificates"
