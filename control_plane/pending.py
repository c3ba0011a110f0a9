"""Owns the inbox of claims: a device with a good token waits, with a ticket, until an operator accepts or rejects it.

The token is spent when the claim arrives, so what waits is bounded by what was granted. An accepted device collects its
certificate with its ticket, as often as it must until it has it on its disk; the row goes when its time is over.
"""

import hashlib
import hmac
import secrets
from datetime import datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from control_plane import authority, enrolment, events
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Forbidden, Unknown
from control_plane.schema.devices import Device, PendingClaim
from firmware_profiles.loader import load_profile
from skerry.wire.enrolment import Enrolled, TicketRequest

LIFE = timedelta(days=14)


def keep(session: Session, device: str, *, profile: str, group: str, csr: str, now: datetime) -> str:
    """Keep a claim for `device` and return its ticket; one that waited under the name gives way."""
    session.execute(delete(PendingClaim).where((PendingClaim.device == device) | (PendingClaim.expires <= now)))
    ticket = secrets.token_urlsafe(24)
    session.add(
        PendingClaim(
            device=device,
            profile=profile,
            group=group,
            csr=csr,
            ticket_sha256=_digest(ticket),
            state="pending",
            certificate="",
            asked_at=now,
            expires=now + LIFE,
        )
    )
    events.record(session, "pending", device, f"{device} asks to join as {profile}: skerry device accept {device}")
    return ticket


def forget(session: Session, device: str) -> None:
    """Forget a claim under the name: it gave way to another."""
    session.execute(delete(PendingClaim).where(PendingClaim.device == device))


def listed(session: Session, *, now: datetime) -> list[PendingClaim]:
    """Return the claims that wait for an operator, the oldest first."""
    query = select(PendingClaim).where(PendingClaim.state == "pending", PendingClaim.expires > now)
    return list(session.scalars(query.order_by(PendingClaim.asked_at, PendingClaim.device)))


def accept(plane: Plane, session: Session, name: str) -> Device:
    """Enrol a device that waits; it collects its certificate when it asks again. Raises `Unknown` or `Conflict`."""
    claim = _waiting(session, name, now=plane.clock())
    device = session.get_one(Device, name)
    csr = authority.read_csr(claim.csr)
    claim.certificate = enrolment.admit(plane, session, device, profile=claim.profile, group=claim.group, csr=csr)
    claim.state = "accepted"
    return device


def reject(plane: Plane, session: Session, name: str) -> None:
    """Turn a device that waits away; a device that was enrolled under the name stays. Raises `Unknown`, `Conflict`."""
    claim = _waiting(session, name, now=plane.clock())
    claim.state = "rejected"
    device = session.get_one(Device, name)
    if device.state == "pending":
        session.delete(device)
    events.record(session, "reject", name, f"{name} was rejected")


def collect(plane: Plane, session: Session, request: TicketRequest) -> Enrolled:
    """Answer a device that asks again; raises `Forbidden` when it was rejected or has no ticket of ours."""
    claim = session.get(PendingClaim, request.device)
    known = claim is not None and hmac.compare_digest(claim.ticket_sha256, _digest(request.ticket))
    if claim is None or not known or claim.expires <= plane.clock():
        raise Forbidden(
            "ticket: expected one that this server gave out and that is alive, got another; ask for a join string"
        )
    if claim.state == "rejected":
        raise Forbidden(
            f"{request.device}: expected to be accepted, got rejected by an operator; ask for a join string"
        )
    device = session.get_one(Device, request.device)
    ticket = "" if claim.state == "accepted" else request.ticket
    return enrolment.answer(
        plane, session, device, load_profile(claim.profile), certificate=claim.certificate, ticket=ticket
    )


def _waiting(session: Session, name: str, *, now: datetime) -> PendingClaim:
    claim = session.get(PendingClaim, name, with_for_update=True)
    if claim is None or claim.expires <= now:
        raise Unknown(f"device: expected one that waits, got {name!r:.80}; look: skerry device pending")
    if claim.state != "pending":
        raise Conflict(f"{name}: expected a device that waits, got one that was {claim.state} before")
    return claim


def _digest(ticket: str) -> str:
    return hashlib.sha256(ticket.encode(errors="backslashreplace")).hexdigest()
