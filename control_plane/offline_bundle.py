"""Owns offline bundles: a release for one device as a file, and the certificate of a device that has no network yet.

Making one is assigning: the deployment is in a rollout of its own with one wave, `offline`, so that it is seen like any
other, and settles when the device comes home and says what it did. What the bundle carries is what the broker retains,
with one difference: its timestamp, snapshot and director's metadata are signed for longer, since a stick travels for
days. Whoever has the stick can hold its device on that release for as long, which they can by keeping the stick too.
"""

import hashlib
from dataclasses import replace
from datetime import datetime, timedelta
from typing import BinaryIO

from securesystemslib.signer import Signer
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from tuf.api.metadata import Snapshot, Timestamp

from control_plane import (
    authority,
    components,
    director,
    enrolment,
    image_repository,
    publisher,
    revocation,
    rollouts,
    tuf_rows,
)
from control_plane.events import record
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Unknown
from control_plane.rollout_planner import WaveRequest
from control_plane.schema.devices import Device
from control_plane.schema.releases import Deployment, Release, Rollout, Wave
from firmware_profiles.loader import load_profile
from skerry.delivery import bundle
from skerry.errors import Rejected
from skerry.wire import codec
from skerry.wire.enrolment import Enrolled, EnrolRequest
from skerry.wire.messages import AGENT, Assign

WAVE = "offline"
MAX_DAYS = 90


def create(plane: Plane, file: BinaryIO, *, device: str, release: str, request: bytes, days: int) -> None:
    """Write the bundle that installs `release` on `device` to `file`; it is good for `days` days.

    `request` is what `skerry-agent request` wrote on a device that was named for offline installs; it is empty for one
    that has a certificate.

    Raises:
        Unknown: there is no such device or release.
        Conflict: the device has no key to seal to, or another one than the request's; or the release is not live, or a
            version of the agent.
        Rejected: the request is none, or does not fit the device; or the device cannot take the release.
    """
    if not 1 <= days <= MAX_DAYS:
        raise Rejected(f"days: expected 1 to {MAX_DAYS}, got {days}")
    began = plane.clock()
    with plane.sessions.begin() as session:
        row = _device(session, device)
        enrolled = codec.encode(_admit(plane, session, row, codec.decode(EnrolRequest, request))) if request else b""
        if row.state != "enrolled" or not row.public_key:
            raise Conflict(
                f"device {device}: expected one with a certificate, got one that is {row.state}; on the device: "
                "skerry-agent request, then give its file with --request"
            )
        image_repository.stamp(session, plane.signers, now=began)
    if request:
        revocation.spread(plane, device, since=began)
    component = _roll_out(plane, device=device, release=release)
    members = _sign(plane, device, component, release=release, enrolled=enrolled, days=days)
    publisher.publish_metadata(plane)
    publisher.publish_assignment(plane, device)
    bundle.write_bundle(file, members)


def _device(session: Session, name: str) -> Device:
    row = session.get(Device, name, with_for_update=True)
    if row is None:
        raise Unknown(
            f"device: expected one of `skerry device list`, got {name!r:.80}; name a new one: "
            f"skerry device create {name:.63} --profile PROFILE"
        )
    return row


def _admit(plane: Plane, session: Session, row: Device, request: EnrolRequest) -> Enrolled:
    """Certify the key of a request: the operator who made the bundle vouches for it, so it needs no claim token."""
    profile = load_profile(row.profile)
    enrolment.check_machine(request, profile)
    csr = authority.read_csr(request.csr)
    again = row.state == "enrolled" and row.public_key == authority.public_key(csr)
    if row.state != "offline" and not again:
        raise Conflict(
            f"device {row.name}: expected one that was named for offline installs, or the request that it came with, "
            f"got one that is {row.state}; leave out --request, or name another: skerry device create NAME"
        )
    certificate = enrolment.admit(plane, session, row, profile=row.profile, group=row.group, csr=csr)
    return enrolment.answer(plane, session, row, profile, certificate=certificate)


def _roll_out(plane: Plane, *, device: str, release: str) -> str:
    """Assign the release, unless it is assigned already by a rollout that the operator made; return its component."""
    now = plane.clock()
    with plane.sessions.begin() as session:
        row = session.get(Release, release)
        if row is not None and row.model == AGENT:
            raise Conflict(
                f"{release}: expected a release of a model, got one of the agent, which is tried where it reaches "
                "the server; install the agent itself by pip or its package"
            )
        component = components.component_for(session, device, row.model) if row is not None else ""
        for number in _open_offline(session, device, component):
            rollouts.cancel(session, number, now=now)
        if _is_assigned(session, device, release):
            return component
        wave = WaveRequest(name=WAVE, devices=(device,))
        number = rollouts.create(session, release=release, waves=[wave], now=now).id
    # the bundle carries the files themselves: it waits for no deltas
    rollouts.reconcile(plane, now, at_once=number)
    return component


def _open_offline(session: Session, device: str, component: str) -> list[int]:
    """The open rollouts that earlier bundles for the component made: of one device in one wave of that name."""
    alone = select(Deployment.rollout).group_by(Deployment.rollout).having(func.count() == 1)
    rows = (
        select(Rollout.id)
        .join(Wave, Wave.rollout == Rollout.id)
        .join(Deployment, Deployment.rollout == Rollout.id)
        .where(Rollout.state.in_(rollouts.OPEN), Wave.name == WAVE)
        .where(Deployment.device == device, Deployment.component == component)
        .where(Rollout.id.in_(alone))
    )
    return list(session.scalars(rows))


def _is_assigned(session: Session, device: str, release: str) -> bool:
    rows = (
        select(Deployment.id)
        .join(Rollout, Rollout.id == Deployment.rollout)
        .where(Rollout.state.in_(rollouts.OPEN), Rollout.release == release, Deployment.device == device)
        .where(Deployment.state.not_in(("waiting", "left-out", "failed", "committed")))
    )
    return session.scalars(rows).first() is not None


def _sign(plane: Plane, device: str, component: str, *, release: str, enrolled: bytes, days: int) -> dict[str, bytes]:
    """Sign what the bundle carries, and return its members."""
    now = plane.clock()
    with plane.sessions.begin() as session:
        terms, target = director.terms_of(session, device, component)
        if terms.release != release:
            raise Conflict(
                f"{release}: expected it to be assigned to {device}, got {terms.release}; it runs it already"
            )
        until = _end(session, now + timedelta(days=days))
        header = codec.encode(_header(plane, device, component, release=release, now=now, until=until))
        proof = hashlib.sha256(header + enrolled).hexdigest() if enrolled else ""
        bound = replace(terms, enrolled=proof)
        director.assign(plane, session, device=device, terms=bound, target=target.path, offline=True)

        members = _image(plane, session, until=until)
        members[bundle.ASSIGN] = codec.encode(_director(plane, session, device, until=until))
        content = director.terms_of(session, device, component)[0].content
        text = f"{device}: {release} was written to an offline bundle, good until {until:%Y-%m-%d}"
        told = {"deployment": terms.deployment, "release": release, "component": component}
        record(session, "deployment", device, text, **told)
    assert content is not None  # noqa: S101 -- the director has just filled it in
    members |= {f"blob/{sha256}": plane.blobs.get(sha256) for sha256 in content.files.values()}
    members |= {bundle.HEADER: header, bundle.ANCHOR: plane.home.anchor.read_bytes()}
    return members | ({bundle.ENROLLED: enrolled} if enrolled else {})


def _end(session: Session, wanted: datetime) -> datetime:
    """Until when a bundle can be good: what the offline keys signed is not signed for longer."""
    offline = (image_repository.targets(session), image_repository.root(session), director.root(session))
    return min(wanted, *(signed.expires for signed in offline)).replace(microsecond=0)


def _header(
    plane: Plane, device: str, component: str, *, release: str, now: datetime, until: datetime
) -> bundle.Header:
    return bundle.Header(
        project=plane.settings.project,
        device=device,
        release=release,
        created=f"{now:%Y-%m-%dT%H:%M:%SZ}",
        expires=f"{until:%Y-%m-%dT%H:%M:%SZ}",
        server=plane.settings.url,
        component=component,
    )


def _image(plane: Plane, session: Session, *, until: datetime) -> dict[str, bytes]:
    """The image repository's files as members, and the index; what is signed online is signed until then."""
    files = image_repository.files(session)
    roles = image_repository.root(session).roles
    for name in files:
        role = name.rpartition(".")[2]
        if role in (Snapshot.type, Timestamp.type):
            files[name] = _lasting(files[name], plane.signers.named(roles[role], role), until=until)
    members = {f"tuf/{name}": body for name, body in files.items()}
    return members | {"tuf/index": codec.encode(image_repository.index(session))}


def _director(plane: Plane, session: Session, device: str, *, until: datetime) -> Assign:
    """The device's assignment, signed until then."""
    signer = plane.signers.named(director.root(session).roles[Timestamp.type], "director")
    metadata = director.current(session, device).metadata
    lasting = {
        name: _lasting(text.encode(), signer, until=until).decode()
        for name, text in metadata.items()
        if not name.endswith(".root")
    }
    return Assign(metadata=metadata | lasting)


def _lasting(body: bytes, signer: Signer, *, until: datetime) -> bytes:
    metadata = tuf_rows.read_any(body)
    metadata.signed.expires = max(metadata.signed.expires, until)
    return tuf_rows.sign(metadata.signed, signer)
