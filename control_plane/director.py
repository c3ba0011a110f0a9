"""Owns the director: what each device shall run, signed online, as a set of TUF metadata of the device's own.

Each assignment takes the device's next counter, which is the version of its targets, snapshot and timestamp alike; so
an older one is a rollback, which the device's updater refuses. All of a device's set expires together, and is signed
anew under the next counter when less than half of its life is left, or when the root names another key.

The targets list one target for each component of the device: the unnamed one, which every device has, and those that
were added beside it (`control_plane.components`). Assigning one signs all of them anew.
"""

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from control_plane import image_repository, roots, sealing, tuf_rows
from control_plane.online_keys import OnlineSigners
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Unknown
from control_plane.schema.devices import Device
from skerry.wire.codec import from_tree
from skerry.wire.messages import Assign, Terms

ROOT_REPOSITORY = "director"
LIFE = timedelta(days=7)
# the one target that the image repository does not list: it makes nothing run
DECOMMISSION = "decommission"
Assignment = tuple[Terms, TargetFile]
"""What one component of a device shall run, and by which terms."""


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

    It takes the place of what `terms.component` was assigned; what the device's other components were, stays.
    `terms.device`, `terms.counter` and `terms.issued` are filled in here: the device, its next counter, and now; and
    `terms.content`: the content key, sealed to the device; and that of the build that it shall measure, if any.
    `offline` says that it goes with a bundle, which carries the files themselves.

    Raises:
        Unknown: there is no such device, or the image repository does not list the target.
        Conflict: the device has no public key to seal to.
    """
    row = _device(session, device)
    made = _sealed(plane, session, row, terms, image_repository.target(session, target), offline=offline)
    others = [each for name, each in _without_order(session, device).items() if name != terms.component]
    return _assign(plane, session, row, [*others, made])


def decommission(plane: Plane, session: Session, device: str) -> Assign:
    """Tell a device to wipe itself, by a target of its own; publish it after the commit.

    Raises:
        Unknown: there is no such device.
    """
    row = _device(session, device)
    # whoever has kept the order must not be able to wipe the next device of that name with it
    key = hashlib.sha256(row.public_key.encode()).hexdigest() if row.public_key else ""
    terms = Terms(device=device, counter=0, issued="", deployment="", release="", key_sha256=key)
    return _assign(
        plane, session, row, [(terms, TargetFile(0, {"sha256": hashlib.sha256().hexdigest()}, DECOMMISSION))]
    )


def unassign(plane: Plane, session: Session, device: str, component: str) -> Assign | None:
    """Take away what a component was assigned, which ends it on the device; None when it was assigned nothing."""
    present = _without_order(session, device)
    if component not in present:
        return None
    del present[component]
    return _assign(plane, session, _device(session, device), present.values())


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


def assignments(session: Session, device: str) -> dict[str, Assignment]:
    """Return what each component of a device is assigned, by its name; nothing for a device without an assignment."""
    if not _has(session, device):
        return {}
    return dict(_read(tuf_rows.read(session, _repository(device), "targets")))


def terms_of(session: Session, device: str, component: str = "") -> Assignment:
    """Return the present terms of a component and their target; raises `Unknown` when it has none."""
    found = assignments(session, device).get(component)
    if found is None:
        what = f"{device}'s {component}" if component else device
        raise Unknown(f"director: expected an assignment of {what}, got none")
    return found


def blobs_of(session: Session, device: str) -> frozenset[str]:
    """Return the SHA-256 of all sealed blobs that the present terms of a device name; none when it has no terms."""
    if not _has(session, device):
        return frozenset()
    return _named_in(tuf_rows.read(session, _repository(device), "targets"))


@functools.lru_cache(256)
def _named_in(body: bytes) -> frozenset[str]:
    # asked for with each range of bytes that a device fetches
    return frozenset(sha256 for terms, _ in _read(body).values() for sha256 in blobs_in(terms))


def blobs_in(terms: Terms) -> frozenset[str]:
    """Return the SHA-256 of all sealed blobs that terms name."""
    contents = [each for each in (terms.content, terms.measure_content) if each is not None]
    files = [sha256 for each in contents for sha256 in each.files.values()]
    return frozenset([*files, *(delta.sealed for each in contents for delta in each.deltas)])


@functools.lru_cache(256)
def _read(body: bytes) -> dict[str, Assignment]:
    targets = tuf_rows.parse(Targets, body).signed.targets.values()
    return {terms.component: (terms, target) for target in targets for terms in [from_tree(Terms, target.custom)]}


def due(session: Session, now: datetime) -> list[str]:
    """Return the devices whose assignment has less than half of its life left, or another key than the root names.

    An assignment of nothing that is still listed (its releases are revoked) is left to expire.
    """
    devices = assigned(session)
    if not devices:
        return []
    named = root(session).roles[Timestamp.type].keyids
    ripe = [name for name in devices if _is_due(session, name, named=named, now=now)]
    kept = {*image_repository.listed(session), DECOMMISSION} if ripe else set()
    return [name for name in ripe if any(each.path in kept for _, each in assignments(session, name).values())]


def renew(plane: Plane, session: Session, device: str) -> Assign:
    """Sign the present assignment of a device anew, under its next counter; raises `Unknown` when it has none."""
    present = assignments(session, device)
    if not present:
        raise Unknown(f"director: expected an assignment of {device}, got none")
    if any(target.path == DECOMMISSION for _, target in present.values()):
        return decommission(plane, session, device)
    row = _device(session, device)
    listed = image_repository.listed(session)
    if not any(target.path in listed for _, target in present.values()):
        image_repository.target(session, next(iter(present.values()))[1].path)
    return _assign(
        plane,
        session,
        row,
        # what is revoked is refused by the device, and is no reason to keep the other components from their renewal
        [
            _sealed(plane, session, row, terms, listed[target.path]) if target.path in listed else (terms, target)
            for terms, target in present.values()
        ],
    )


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


def _sealed(
    plane: Plane, session: Session, row: Device, terms: Terms, listed: TargetFile, *, offline: bool = False
) -> Assignment:
    """Return the terms with the content keys of what they name, sealed to the device."""
    component = terms.component
    content = sealing.content_for(plane, session, row, listed.path, deployment=terms.deployment, component=component)
    content = sealing.for_a_file(content) if offline else content
    other = sealing.content_for(plane, session, row, terms.measure, component=component) if terms.measure else None
    return replace(terms, content=content, measure_content=other), listed


def _without_order(session: Session, device: str) -> dict[str, Assignment]:
    """What is assigned, but for an order to wipe: that gives way to whatever is assigned after it."""
    return {name: each for name, each in assignments(session, device).items() if each[1].path != DECOMMISSION}


def _assign(plane: Plane, session: Session, row: Device, assigned: Iterable[Assignment]) -> Assign:
    now = plane.clock()
    row.assign_counter += 1
    issued = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    listed = [
        (replace(terms, device=row.name, counter=row.assign_counter, issued=issued), target)
        for terms, target in assigned
    ]
    _write(session, plane.signers, row, listed, now=now)
    return current(session, row.name)


def _write(
    session: Session, signers: OnlineSigners, row: Device, assigned: Iterable[Assignment], *, now: datetime
) -> None:
    named = root(session).roles
    version, expires = row.assign_counter, tuf_rows.from_now(now, LIFE)
    listed = {
        target.path: TargetFile(target.length, target.hashes, target.path, {"custom": asdict(terms)})
        for terms, target in assigned
    }
    targets = Targets(version=version, expires=expires, targets=listed)
    snapshot = tuf_rows.snapshot_of(targets, version=version, expires=expires)
    timestamp = tuf_rows.timestamp_of(snapshot, version=version, expires=expires)
    made: dict[str, Targets | Snapshot | Timestamp] = {"targets": targets, "snapshot": snapshot, "timestamp": timestamp}
    for name, signed in made.items():
        body = tuf_rows.sign(signed, signers.named(named[name], "director"))
        tuf_rows.write(session, _repository(row.name), name, body)


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
