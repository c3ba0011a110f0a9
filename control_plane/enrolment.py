"""Owns enrolment: invitations that operators make, and the claims of devices that turn into certificates.

A claim token is shown once, in a join string; the database keeps its SHA-256. It is bound to a profile and a group and,
where given, to one device name, and is good for one use unless more were granted. Where the invitation, or else the
rule of its group, says `pending`, a claim waits for an operator (`control_plane.pending`).
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from sqlalchemy.orm import Session

from control_plane import authority, events, groups, pending, revocation
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Forbidden
from control_plane.schema.devices import ClaimToken, Device
from firmware_profiles.loader import load_profile
from skerry.errors import Broken, Rejected
from skerry.wire.enrolment import Enrolled, EnrolRequest
from skerry.wire.join import Join
from skerry.wire.profile import Profile
from skerry.wire.topics import check_name, identity

MAX_USES = 10_000
MAX_TTL = timedelta(days=90)


@dataclass(frozen=True, slots=True)
class Invitation:
    """What an operator grants: who may join, as what, how often and how long; `approve` empty: as the group's rule."""

    profile: str
    name: str = ""
    group: str = "default"
    uses: int = 1
    ttl_s: int = 86400
    approve: str = ""

    def __post_init__(self) -> None:
        check_name(self.group, "group")
        if self.approve:
            groups.check_approve(self.approve)
        if self.name:
            check_name(self.name, "name")
        if not 1 <= self.uses <= MAX_USES:
            raise Rejected(f"uses: expected 1 to {MAX_USES}, got {self.uses}")
        if self.name and self.uses != 1:
            raise Rejected(f"uses: expected 1 for an invitation of one device, got {self.uses}; leave out its name")
        if not 1 <= self.ttl_s <= MAX_TTL.total_seconds():
            raise Rejected(f"ttl_s: expected 1 to {MAX_TTL.total_seconds():.0f} seconds, got {self.ttl_s}")


def invite(plane: Plane, session: Session, invitation: Invitation) -> tuple[Join, datetime]:
    """Make a claim token; return the join string that carries it and when it expires.

    Raises:
        Rejected: the profile is unknown, or is one that runs no agent, or the name is too long for a certificate.
        Conflict: the ceremony was not held yet, so there is nothing for a device to trust.
    """
    profile = load_profile(invitation.profile)
    if not profile.agent:
        raise Rejected(
            f"profile: expected one whose devices run an agent, got {profile.name}; flash its builds instead"
        )
    if invitation.name:
        authority.check_common_name(identity(plane.settings.project, invitation.name))
    token = secrets.token_urlsafe(24)
    expires = plane.clock() + timedelta(seconds=invitation.ttl_s)
    join = Join(url=plane.settings.url, token=token, anchor_sha256=anchor_sha256(plane))
    session.add(
        ClaimToken(
            sha256=_digest(token),
            profile=profile.name,
            group=invitation.group,
            device=invitation.name,
            uses_left=invitation.uses,
            expires=expires,
            approve=invitation.approve,
        )
    )
    who = invitation.name or f"{invitation.uses} of {profile.name}"
    events.record(session, "invite", invitation.name or invitation.group, f"invited {who}", uses=invitation.uses)
    return join, expires


def claim(plane: Plane, session: Session, request: EnrolRequest) -> Enrolled:
    """Turn a claim token and a signing request into a certificate, or a ticket; a refused request spends nothing.

    Raises:
        Forbidden: the token is unknown, used up or expired.
        Rejected: the device is not of the profile that the token is for, or its signing request is bad.
    """
    now = plane.clock()
    token = _find_token(session, request.token, now=now)
    profile = load_profile(token.profile)
    check_machine(request, profile)
    csr = authority.read_csr(request.csr)

    name = token.device or _new_name(session, token.profile, project=plane.settings.project)
    token.uses_left -= 1
    device = session.get(Device, name)
    if (token.approve or groups.rule(session, token.group).approve) == groups.PENDING:
        device = device or add_device(session, name, profile=token.profile, group=token.group, state="pending", now=now)
        ticket = pending.keep(session, name, profile=token.profile, group=token.group, csr=request.csr, now=now)
        return answer(plane, session, device, profile, ticket=ticket)

    pending.forget(session, name)
    device = device or add_device(session, name, profile=token.profile, group=token.group, state="enrolled", now=now)
    certificate = admit(plane, session, device, profile=token.profile, group=token.group, csr=csr)
    return answer(plane, session, device, profile, certificate=certificate)


def admit(
    plane: Plane,
    session: Session,
    device: Device,
    *,
    profile: str,
    group: str,
    csr: x509.CertificateSigningRequest,
) -> str:
    """Enrol a device with the key of `csr`; return its certificate (PEM). What an earlier key of it had, ends."""
    now = plane.clock()
    who = identity(plane.settings.project, device.name)
    device_ca = authority.load_authority(plane.home.ca, "device")
    issued = authority.issue(
        device_ca,
        csr,
        name=who,
        now=now,
        life=timedelta(seconds=plane.settings.certificate_life_s),
        crl_url=plane.settings.crl_url,
    )
    device.profile, device.group, device.state = profile, group, "enrolled"
    revocation.make_way(plane, session, device, issued)
    events.record(session, "enrol", device.name, f"{device.name} enrolled as {profile}", profile=profile)
    return issued.pem


def answer(
    plane: Plane, session: Session, device: Device, profile: Profile, *, certificate: str = "", ticket: str = ""
) -> Enrolled:
    """Return what a device is told: its certificate, or the ticket with which it asks again."""
    return Enrolled(
        project=plane.settings.project,
        device=device.name,
        certificate=certificate,
        broker=plane.settings.device_broker_url,
        broker_ca=_broker_ca(plane),
        architecture=profile.architecture,
        runtime=profile.runtime,
        state="pending" if ticket else "enrolled",
        ticket=ticket,
        refuse_automatic=groups.rule(session, device.group).refuse_automatic,
    )


def name_offline(plane: Plane, session: Session, name: str, *, profile: str, group: str) -> Device:
    """Name a device for installs from a file; it may enrol later, by an invitation of its name.

    Raises:
        Rejected: the profile is unknown or runs no agent, or the name cannot be one.
        Conflict: there is a device of that name.
    """
    check_name(name, "name")
    check_name(group, "group")
    authority.check_common_name(identity(plane.settings.project, name))
    known = load_profile(profile)
    if not known.agent:
        raise Rejected(f"profile: expected one whose devices run an agent, got {known.name}; flash its builds instead")
    if session.get(Device, name) is not None:
        raise Conflict(
            f"device: expected a new name, got {name}, which there is already; look: skerry device show {name}"
        )
    events.record(session, "device", name, f"{name} was named for offline installs", profile=known.name)
    return add_device(session, name, profile=known.name, group=group, state="offline", now=plane.clock())


def add_device(session: Session, name: str, *, profile: str, group: str, state: str, now: datetime) -> Device:
    """Add a device without a certificate."""
    device = Device(
        name=name,
        profile=profile,
        group=group,
        state=state,
        certificate_serial="",
        certificate_expires=now,
        enrolled_at=now,
        public_key="",
        assign_counter=0,
        online=False,
        reported={},
    )
    session.add(device)
    return device


def anchor_sha256(plane: Plane) -> str:
    """Return what join strings pin; raises `Conflict` before the ceremony."""
    try:
        return hashlib.sha256(plane.home.anchor.read_bytes()).hexdigest()
    except FileNotFoundError as error:
        raise Conflict("anchor: expected the key ceremony first, got none; hold it: skerry keys init") from error


def _find_token(session: Session, shown: str, *, now: datetime) -> ClaimToken:
    # found by its hash, so the comparison's time says nothing about the token
    token = session.get(ClaimToken, _digest(shown), with_for_update=True)
    if token is None:
        raise Forbidden("token: expected one that this server gave out, got another; copy the join string whole")
    if token.uses_left < 1:
        raise Forbidden("token: expected one with a use left, got one that is used up; ask for a new join string")
    if token.expires <= now:
        raise Forbidden(f"token: expected one that is alive, got one that expired {token.expires:%Y-%m-%d %H:%M} UTC")
    return token


def check_machine(request: EnrolRequest, profile: Profile) -> None:
    """Raise `Rejected` unless what a device says of itself fits a profile."""
    if request.profile != profile.name:
        raise Rejected(f"profile: expected {profile.name}, which this token is for, got {request.profile!r:.80}")
    foreign = request.architecture and request.architecture != profile.architecture and not request.simulated
    if foreign:
        raise Rejected(
            f"architecture: expected {profile.architecture} for {profile.name}, got {request.architecture!r:.80}"
        )
    if request.runtimes and profile.runtime not in request.runtimes:
        found = ", ".join(request.runtimes)
        raise Rejected(f"runtime: expected {profile.runtime} for {profile.name}, got {found:.80}; install it first")


def _new_name(session: Session, profile: str, *, project: str) -> str:
    room = max(authority.MAX_NAME - len(project) - 10, 1)
    while True:
        name = f"{profile[:room]}-{secrets.token_hex(4)}"
        if session.get(Device, name) is None:
            return name


def _broker_ca(plane: Plane) -> str:
    if not plane.settings.device_broker_url.startswith("mqtts:") or not plane.settings.broker_ca:
        return ""
    try:
        return Path(plane.settings.broker_ca).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise Broken(f"broker_ca: expected CA certificates in {plane.settings.broker_ca}, got: {error}") from error


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
