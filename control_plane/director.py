"""Owns the director: what each device shall run, signed online, as a set of TUF metadata of the device's own.

Each assignment takes the device's next counter, which is the version of its targets, snapshot and timestamp alike; so
an older one is a rollback, which the device's updater refuses. All of a device's set expires together, and is signed
anew under the next counter when less than half of its life is left.
"""

from dataclasses import asdict, replace
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session
from tuf.api.metadata import Snapshot, TargetFile, Targets, Timestamp

from control_plane import image_repository, tuf_rows
from control_plane.keys import OnlineSigners
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Unknown
from control_plane.schema import Device
from skerry.wire.codec import from_tree
from skerry.wire.messages import Assign, Terms

ROOT_REPOSITORY = "director"
LIFE = timedelta(days=7)


def found(session: Session, signers: OnlineSigners, *, root: bytes, now: datetime) -> None:
    """Take the founding root of the ceremony; raises `Conflict` or `Rejected` as the image repository does."""
    if tuf_rows.exists(session, ROOT_REPOSITORY, "1.root"):
        raise Conflict("ceremony: expected none before, got one already")
    keyid = signers.director.public_key.keyid
    tuf_rows.check_root(root, online=dict.fromkeys(("targets", "snapshot", "timestamp"), keyid), now=now)
    tuf_rows.write(session, ROOT_REPOSITORY, "1.root", root)


def assign(plane: Plane, session: Session, *, device: str, terms: Terms, target: str) -> Assign:
    """Assign `target` (a path that the image repository lists) to `device` and sign it; publish it after the commit.

    `terms.device`, `terms.counter` and `terms.issued` are filled in here: the device, its next counter, and now.

    Raises:
        Unknown: there is no such device, or the image repository does not list the target.
    """
    row = session.get(Device, device, with_for_update=True)
    if row is None:
        raise Unknown(f"device: expected one that is enrolled, got {device!r}")
    listed = image_repository.target(session, target)
    now = plane.clock()
    row.assign_counter += 1
    issued = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    terms = replace(terms, device=device, counter=row.assign_counter, issued=issued)
    _write(session, plane.signers, terms, listed, now=now)
    return current(session, device)


def current(session: Session, device: str) -> Assign:
    """Return the present assignment of a device; raises `Unknown` when it has none."""
    repository = _repository(device)
    names = ("timestamp", "snapshot", "targets")
    metadata = {name: tuf_rows.read(session, repository, name).decode() for name in names}
    # the first root is in the device's anchor; later ones travel with the assignment
    later = {name: body.decode() for name, body in tuf_rows.roots(session, ROOT_REPOSITORY).items() if name != "1.root"}
    return Assign(metadata=metadata | later)


def assigned(session: Session) -> list[str]:
    """Return the names of the devices that have an assignment."""
    return [
        name for name in session.scalars(select(Device.name).where(Device.assign_counter > 0)) if _has(session, name)
    ]


def terms_of(session: Session, device: str) -> tuple[Terms, TargetFile]:
    """Return the present terms of a device and their target; raises `Unknown` when it has none."""
    targets = tuf_rows.read_as(Targets, session, _repository(device), "targets").signed
    (target,) = targets.targets.values()
    return from_tree(Terms, target.custom), target


def due(session: Session, now: datetime) -> list[str]:
    """Return the devices whose assignment has less than half of its life left.

    An assignment whose target is no longer listed (its release is revoked) is left to expire.
    """
    devices = assigned(session)
    if not devices:
        return []
    listed = image_repository.targets(session).targets
    return [name for name in devices if _is_due(session, name, now=now) and terms_of(session, name)[1].path in listed]


def renew(plane: Plane, session: Session, device: str) -> Assign:
    """Sign the present assignment of a device anew, under its next counter; raises `Unknown` when it has none."""
    terms, target = terms_of(session, device)
    return assign(plane, session, device=device, terms=terms, target=target.path)


def status(session: Session) -> list[dict[str, str | int]]:
    """Return version and expiry of the root, for people."""
    if not tuf_rows.exists(session, ROOT_REPOSITORY, "1.root"):
        return []
    root = tuf_rows.newest_root(session, ROOT_REPOSITORY)
    return [
        {"repository": ROOT_REPOSITORY, "role": root.type, "version": root.version, "expires": root.expires.isoformat()}
    ]


def _write(session: Session, signers: OnlineSigners, terms: Terms, listed: TargetFile, *, now: datetime) -> None:
    expires = tuf_rows.from_now(now, LIFE)
    target = TargetFile(listed.length, listed.hashes, listed.path, {"custom": asdict(terms)})
    targets = Targets(version=terms.counter, expires=expires, targets={listed.path: target})
    snapshot = tuf_rows.snapshot_of(targets, version=terms.counter, expires=expires)
    timestamp = tuf_rows.timestamp_of(snapshot, version=terms.counter, expires=expires)
    made: dict[str, Targets | Snapshot | Timestamp] = {"targets": targets, "snapshot": snapshot, "timestamp": timestamp}
    for name, signed in made.items():
        tuf_rows.write(session, _repository(terms.device), name, tuf_rows.sign(signed, signers.director))


def _repository(device: str) -> str:
    return f"{ROOT_REPOSITORY}/{device}"


def _is_due(session: Session, device: str, *, now: datetime) -> bool:
    timestamp = tuf_rows.read_as(Timestamp, session, _repository(device), "timestamp").signed
    return tuf_rows.needs_renewal(timestamp, LIFE, now)


def _has(session: Session, device: str) -> bool:
    return tuf_rows.exists(session, _repository(device), "timestamp")
