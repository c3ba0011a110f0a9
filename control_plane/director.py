"""Owns the director: what each device shall run, signed online, as a set of TUF metadata of the device's own.

Each assignment takes the device's next counter, which is the version of its targets, snapshot and timestamp alike; so
an older one is a rollback, which the device's updater refuses. All of a device's set expires together, and is signed
anew under the next counter when less than half of its life is left, or when the root names another key.
"""

import functools
import hashlib
from dataclasses import asdict, replace
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from control_plane import image_repository, roots, sealing, tuf_rows
from control_plane.online_keys import OnlineSigners
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Unknown
from control_plane.schema import Device
from skerry.wire.codec import from_tree
from skerry.wire.messages import Assign, Terms

ROOT_REPOSITORY = "director"
LIFE = timedelta(days=7)
# the one target that the image repository does not list: it makes nothing run
DECOMMISSION = "decommission"


def found(session: Session, signers: OnlineSigners, *, root: bytes, now: datetime) -> None:
    """Take the founding root of the ceremony; raises `Conflict` or `Rejected` as the image repository does."""
    if tuf_rows.exists(session, ROOT_REPOSITORY, "1.root"):
        raise Conflict("ceremony: expected none before, got one already")
    roots.check_first(root, online=roots.DIRECTOR_ONLINE, signers=signers, now=now)
    tuf_rows.write(session, ROOT_REPOSITORY, "1.root", root)


def follow_root(session: Session, signers: OnlineSigners, body: bytes, *, now: datetime) -> Root | None:
    """Follow the next root. Return it, or None for the one we have already.

    From the commit on, what it names signs; what another key has signed is `due`. Until it is signed anew, a device is
    served the roots that its assignment holds under, and no later ones.

    Raises:
        Conflict: it is not the next version.
        Rejected: as `roots.check_next`.
    """
    if body == tuf_rows.newest_root_bytes(session, ROOT_REPOSITORY):
        return None
    before = root(session)
    new = roots.check_next(body, before=before, online=roots.DIRECTOR_ONLINE, signers=signers, now=now)
    tuf_rows.write(session, ROOT_REPOSITORY, f"{new.signed.version}.root", new.to_bytes())
    return new.signed


def root(session: Session) -> Root:
    """Return the newest root; raises `Unknown` before the ceremony."""
    return tuf_rows.newest_root(session, ROOT_REPOSITORY)


def assign(plane: Plane, session: Session, *, device: str, terms: Terms, target: str, offline: bool = False) -> Assign:
    """Assign `target` (a path that the image repository lists) to `device` and sign it; publish it after the commit.

    `terms.device`, `terms.counter` and `terms.issued` are filled in here: the device, its next counter, and now; and
    `terms.content`: the content key, sealed to the device; and that of the build that it shall measure, if any.
    `offline` says that it goes with a bundle, which carries the files themselves.

    Raises:
        Unknown: there is no such device, or the image repository does not list the target.
        Conflict: the device has no public key to seal to.
    """
    row = _device(session, device)
    listed = image_repository.target(session, target)
    content = sealing.content_for(plane, session, row, target, deployment=terms.deployment)
    content = sealing.for_a_file(content) if offline else content
    other = sealing.content_for(plane, session, row, terms.measure) if terms.measure else None
    return _assign(plane, session, row, replace(terms, content=content, measure_content=other), listed)


def decommission(plane: Plane, session: Session, device: str) -> Assign:
    """Tell a device to wipe itself, by a target of its own; publish it after the commit.

    Raises:
        Unknown: there is no such device.
    """
    row = _device(session, device)
    # whoever has kept the order must not be able to wipe the next device of that name with it
    key = hashlib.sha256(row.public_key.encode()).hexdigest() if row.public_key else ""
    terms = Terms(device=device, counter=0, issued="", deployment="", release="", key_sha256=key)
    return _assign(plane, session, row, terms, TargetFile(0, {"sha256": hashlib.sha256().hexdigest()}, DECOMMISSION))


def current(session: Session, device: str) -> Assign:
    """Return the present assignment of a device; raises `Unknown` when it has none."""
    repository = _repository(device)
    names = ("timestamp", "snapshot", "targets")
    metadata = {name: tuf_rows.read(session, repository, name).decode() for name in names}
    # the first root is in the device's anchor; later ones travel with the assignment
    later = {name: body.decode() for name, body in _roots(session, device).items() if name != "1.root"}
    return Assign(metadata=metadata | later)


def file(session: Session, device: str, name: str) -> bytes:
    """Return one metadata file of a device by the name that TUF's client asks for, such as `3.targets`.

    Raises:
        Unknown: there is none of that name and version.
    """
    version, dot, role = name.rpartition(".")
    if role == Root.type and dot:
        found = _roots(session, device).get(name)
    elif (not dot and name == Timestamp.type) or (dot and role in (Snapshot.type, Targets.type)):
        found = tuf_rows.read(session, _repository(device), role)
        if dot and str(tuf_rows.read_any(found).signed.version) != version:
            found = None
    else:
        found = None
    if found is None:
        raise Unknown(f"director: expected a metadata file of {device}, got {name!r:.80}")
    return found


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


def blobs_of(session: Session, device: str) -> frozenset[str]:
    """Return the SHA-256 of all sealed blobs that the present terms of a device name; none when it has no terms."""
    if not _has(session, device):
        return frozenset()
    return _named_in(tuf_rows.read(session, _repository(device), "targets"))


@functools.lru_cache(256)
def _named_in(body: bytes) -> frozenset[str]:
    # asked for with each range of bytes that a device fetches
    (target,) = tuf_rows.parse(Targets, body).signed.targets.values()
    terms = from_tree(Terms, target.custom)
    contents = [each for each in (terms.content, terms.measure_content) if each is not None]
    files = [sha256 for each in contents for sha256 in each.files.values()]
    return frozenset([*files, *(delta.sealed for each in contents for delta in each.deltas)])


def due(session: Session, now: datetime) -> list[str]:
    """Return the devices whose assignment has less than half of its life left, or another key than the root names.

    An assignment whose target is no longer listed (its release is revoked) is left to expire.
    """
    devices = assigned(session)
    if not devices:
        return []
    named = root(session).roles[Timestamp.type].keyids
    ripe = [name for name in devices if _is_due(session, name, named=named, now=now)]
    kept = {*image_repository.listed(session), DECOMMISSION} if ripe else set()
    return [name for name in ripe if terms_of(session, name)[1].path in kept]


def renew(plane: Plane, session: Session, device: str) -> Assign:
    """Sign the present assignment of a device anew, under its next counter; raises `Unknown` when it has none."""
    terms, target = terms_of(session, device)
    if target.path == DECOMMISSION:
        return decommission(plane, session, device)
    return assign(plane, session, device=device, terms=terms, target=target.path)


def withdraw(session: Session, device: str) -> None:
    """Forget the present assignment of a device, if it has one: its key or its identity has ended."""
    if _has(session, device):
        for name in ("timestamp", "snapshot", "targets"):
            tuf_rows.delete(session, _repository(device), name)


def signed_root(session: Session) -> Metadata[Root]:
    """Return the newest root with its signatures; raises `Unknown` before the ceremony."""
    return tuf_rows.parse(Root, tuf_rows.newest_root_bytes(session, ROOT_REPOSITORY))


def _device(session: Session, name: str) -> Device:
    row = session.get(Device, name, with_for_update=True)
    if row is None:
        raise Unknown(f"device: expected one that is enrolled, got {name!r:.80}")
    if row.state in ("revoked", "decommissioned"):
        raise Conflict(f"{name}: expected a device that has not ended, got one that is {row.state}; invite it again")
    return row


def _assign(plane: Plane, session: Session, row: Device, terms: Terms, listed: TargetFile) -> Assign:
    now = plane.clock()
    row.assign_counter += 1
    issued = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    terms = replace(terms, device=row.name, counter=row.assign_counter, issued=issued)
    _write(session, plane.signers, terms, listed, now=now)
    return current(session, row.name)


def _write(session: Session, signers: OnlineSigners, terms: Terms, listed: TargetFile, *, now: datetime) -> None:
    named = root(session).roles
    expires = tuf_rows.from_now(now, LIFE)
    target = TargetFile(listed.length, listed.hashes, listed.path, {"custom": asdict(terms)})
    targets = Targets(version=terms.counter, expires=expires, targets={listed.path: target})
    snapshot = tuf_rows.snapshot_of(targets, version=terms.counter, expires=expires)
    timestamp = tuf_rows.timestamp_of(snapshot, version=terms.counter, expires=expires)
    made: dict[str, Targets | Snapshot | Timestamp] = {"targets": targets, "snapshot": snapshot, "timestamp": timestamp}
    for name, signed in made.items():
        body = tuf_rows.sign(signed, signers.named(named[name], "director"))
        tuf_rows.write(session, _repository(terms.device), name, body)


def _repository(device: str) -> str:
    return f"{ROOT_REPOSITORY}/{device}"


def _roots(session: Session, device: str) -> dict[str, bytes]:
    """The roots up to the newest one that the device's assignment holds under: a later one would make it a forgery."""
    found = dict(sorted(tuf_rows.roots(session, ROOT_REPOSITORY).items(), key=lambda each: int(each[0].split(".")[0])))
    if len(found) == 1 or not _has(session, device):
        return found
    signed_by = set(tuf_rows.read_as(Timestamp, session, _repository(device), Timestamp.type).signatures)
    while len(found) > 1:
        newest = tuf_rows.parse(Root, list(found.values())[-1]).signed
        if signed_by & set(newest.roles[Timestamp.type].keyids):
            break
        found.popitem()
    return found


def _is_due(session: Session, device: str, *, named: list[str], now: datetime) -> bool:
    timestamp = tuf_rows.read_as(Timestamp, session, _repository(device), "timestamp")
    return not set(timestamp.signatures) & set(named) or tuf_rows.needs_renewal(timestamp.signed, LIFE, now)


def _has(session: Session, device: str) -> bool:
    return tuf_rows.exists(session, _repository(device), "timestamp")
