"""Owns the image repository: what is a genuine release. Root and targets are signed offline and only checked here.

Files by name, as published: `N.root`, `N.targets`, `N.snapshot`, `N.automatic-MODEL` (`control_plane.delegated`),
`timestamp`. The newest targets and the one before are kept, so that a device which read the index a moment ago still
finds what it names.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from securesystemslib.signer import Signer
from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from control_plane import delegated, roots, tuf_rows
from control_plane.online_keys import OnlineSigners
from control_plane.refusals import Conflict, Unknown
from skerry.errors import Rejected
from skerry.wire.messages import Index

REPOSITORY = delegated.REPOSITORY
SNAPSHOT_LIFE = timedelta(days=7)
TIMESTAMP_LIFE = timedelta(days=1)
_TARGETS_FILE = f"{Targets.type}.json"


def found(session: Session, signers: OnlineSigners, *, root: bytes, targets: bytes, now: datetime) -> None:
    """Take the founding root and the first targets of the ceremony, and publish.

    Raises:
        Conflict: the repository is founded already.
        Rejected: what came is not signed as it must be, or not for this server's keys.
    """
    if tuf_rows.exists(session, REPOSITORY, "1.root"):
        raise Conflict("ceremony: expected none before, got one already; a root is changed by rotation, never replaced")
    roots.check_first(root, online=roots.IMAGE_ONLINE, signers=signers, now=now)
    tuf_rows.write(session, REPOSITORY, "1.root", root)
    publish_targets(session, signers, tuf_rows.parse(Targets, targets), now=now)


def follow_root(
    session: Session, signers: OnlineSigners, body: bytes, *, targets: bytes = b"", now: datetime
) -> Root | None:
    """Follow the next root: from the commit on, what it names signs. Return it, or None for the one we have already.

    `targets` are the published ones with further signatures: needed when the root names other targets keys. Snapshot
    and timestamp are signed by the old and the new key, once, so that it does not matter in which order a device sees
    the files.

    Raises:
        Conflict: it is not the next version, or other targets were published in between.
        Rejected: as `roots.check_next`, or the published targets do not hold under it.
    """
    before = root(session)
    if body == tuf_rows.newest_root_bytes(session, REPOSITORY):
        return None
    new = roots.check_next(body, before=before, online=roots.IMAGE_ONLINE, signers=signers, now=now)
    tuf_rows.write(session, REPOSITORY, f"{new.signed.version}.root", new.to_bytes())
    _keep_targets(session, before, new.signed, targets)
    old = [
        signers.named(before.roles[role], role)
        for role in roots.IMAGE_ONLINE
        if before.roles[role].keyids != new.signed.roles[role].keyids
    ]
    if old:
        _publish_snapshot(session, signers, _targets(session).signed, _versions(session), now=now, also=old)
    return new.signed


def publish_targets(session: Session, signers: OnlineSigners, targets: Metadata[Targets], *, now: datetime) -> None:
    """Publish the next targets metadata, with a snapshot and a timestamp for it.

    Raises:
        Conflict: it is not the version after the present one.
        Rejected: the threshold of the root's targets keys is not met, or it has expired.
    """
    tuf_rows.verify(root(session), targets)
    if targets.signed.is_expired(now):
        raise Rejected(
            f"targets: expected metadata that is alive, got one that expired {targets.signed.expires:%Y-%m-%d}"
        )
    present = _timestamp(session)
    expected = _snapshot(session).meta[_TARGETS_FILE].version + 1 if present else 1
    if targets.signed.version != expected:
        raise Conflict(f"targets: expected version {expected}, got {targets.signed.version}; stage the release again")
    tuf_rows.write(session, REPOSITORY, f"{expected}.targets", targets.to_bytes())
    tuf_rows.delete(session, REPOSITORY, f"{expected - 2}.targets")
    versions = delegated.follow(session, signers, targets.signed, _versions(session) if present else {}, now=now)
    _publish_snapshot(session, signers, targets.signed, versions, now=now)


def publish_automatic(
    session: Session, signers: OnlineSigners, model: str, targets: Mapping[str, TargetFile], *, now: datetime
) -> None:
    """Make `targets` (by path) all that the role granted to a model lists, signed online; on the broker by the caller.

    What is listed may be taken away at any time; something new needs a grant that has not ended.

    Raises:
        Conflict: nothing was granted to the model, or the grant has ended.
        Rejected: a path is not below `models/MODEL/`.
    """
    name = delegated.role_name(model)
    present = automatic_targets(session, name)
    end = granted(session, model)
    if end is None and not targets:
        return
    if end is None or (end <= now and not targets.keys() <= present.keys()):
        was = "none" if end is None else f"one that ended {end:%Y-%m-%d}"
        raise Conflict(
            f"model {model}: expected a grant to sign online, got {was}; grant it: skerry keys grant {model}"
        )
    top = _targets(session).signed
    role = delegated.roles(top)[name]
    foreign = [path for path in targets if not role.is_delegated_path(path)]
    if foreign:
        raise Rejected(f"model {model}: expected paths below models/{model}/, got {foreign[0]}")
    versions = _versions(session)
    versions[name] = delegated.write(session, signers, role, targets, version=versions[name] + 1, now=now)
    _publish_snapshot(session, signers, top, versions, now=now)


def granted(session: Session, model: str) -> datetime | None:
    """Return when the grant of a model to be signed online ends, None when there is none."""
    role = delegated.roles(_targets(session).signed).get(delegated.role_name(model))
    return delegated.until(role) if role else None


def renew(session: Session, signers: OnlineSigners, *, now: datetime) -> bool:
    """Sign anew what online keys sign and has less than half of its life left; say whether anything changed."""
    timestamp = _timestamp(session)
    if timestamp is None:
        return False
    snapshot, listed, versions = _snapshot(session), _targets(session).signed, _versions(session)
    renewed = delegated.renew(session, signers, listed, versions, now=now)
    if renewed != versions or tuf_rows.needs_renewal(snapshot, SNAPSHOT_LIFE, now):
        _publish_snapshot(session, signers, listed, renewed, now=now)
        return True
    if tuf_rows.needs_renewal(timestamp, TIMESTAMP_LIFE, now):
        _publish_timestamp(session, signers, snapshot, now=now)
        return True
    return False


def stamp(session: Session, signers: OnlineSigners, *, now: datetime) -> None:
    """Sign the timestamp anew under its next version, whatever is left of its life; raises `Unknown`."""
    index(session)
    _publish_timestamp(session, signers, _snapshot(session), now=now)


def root(session: Session) -> Root:
    """Return the newest root; raises `Unknown` before the ceremony."""
    return tuf_rows.newest_root(session, REPOSITORY)


def targets(session: Session) -> Targets:
    """Return the published targets, which offline keys signed; raises `Unknown` before the ceremony."""
    return _targets(session).signed


def automatic_targets(session: Session, role: str) -> dict[str, TargetFile]:
    """Return what a delegated role lists, by path: nothing where it is not granted (any more)."""
    if role not in delegated.roles(targets(session)):
        return {}
    metadata = delegated.read(session, role, _versions(session)[role])
    return dict(metadata.signed.targets) if metadata else {}


def release_targets(session: Session, role: str) -> dict[str, TargetFile]:
    """Return what a role lists, by path: `targets`, or a delegated one."""
    return dict(targets(session).targets) if role == Targets.type else automatic_targets(session, role)


def listed(session: Session) -> dict[str, TargetFile]:
    """Return all that is listed, by path: what offline keys signed comes before what a model was granted."""
    top = targets(session)
    found: dict[str, TargetFile] = {}
    for role in delegated.roles(top):
        found |= automatic_targets(session, role)
    return found | top.targets


def target(session: Session, path: str) -> TargetFile:
    """Return the entry of a target path; raises `Unknown` when nothing published lists it."""
    entry = listed(session).get(path)
    if entry is None:
        raise Unknown(f"image repository: expected the target {path}, got none; is its release live?")
    return entry


def index(session: Session) -> Index:
    """Return the versions of what is published; raises `Unknown` before the ceremony."""
    timestamp = _timestamp(session)
    if timestamp is None:
        raise Unknown("image repository: expected metadata, got none; hold the ceremony first: skerry keys init")
    snapshot = _snapshot(session)
    return Index(
        root=root(session).version,
        timestamp=timestamp.version,
        snapshot=snapshot.version,
        targets=snapshot.meta[_TARGETS_FILE].version,
    )


def files(session: Session) -> dict[str, bytes]:
    """Return the present metadata files by name, roots first and the timestamp last."""
    now = index(session)
    found = tuf_rows.roots(session, REPOSITORY)
    granted_now = delegated.roles(targets(session))
    names = [f"{version}.{name}" for name, version in _versions(session).items() if name in granted_now]
    for name in (f"{now.targets}.targets", *names, f"{now.snapshot}.snapshot", "timestamp"):
        found[name] = tuf_rows.read(session, REPOSITORY, name)
    return found


def file(session: Session, name: str) -> bytes:
    """Return one metadata file by name, also one that has just been superseded; raises `Unknown`."""
    return tuf_rows.read(session, REPOSITORY, name)


def superseded(session: Session) -> list[str]:
    """Return the names of files that nothing published names any more, so that a broker may forget them."""
    now = index(session)
    old = [f"{now.targets - 2}.targets", f"{now.snapshot - 2}.snapshot"]
    return [*old, *delegated.superseded(targets(session), _versions(session))]


def signed(session: Session) -> list[tuple[str, Metadata[Any]]]:
    """Return the present metadata of each role with its name, roots first; nothing before the ceremony."""
    timestamp = _timestamp(session)
    if timestamp is None:
        return []
    top = _targets(session)
    automatic = [(name, delegated.read(session, name, version)) for name, version in _versions(session).items()]
    return [
        (Root.type, tuf_rows.parse(Root, tuf_rows.newest_root_bytes(session, REPOSITORY))),
        (Targets.type, top),
        *((name, found) for name, found in automatic if found is not None and name in delegated.roles(top.signed)),
        (Snapshot.type, tuf_rows.read_as(Snapshot, session, REPOSITORY, f"{timestamp.snapshot_meta.version}.snapshot")),
        (Timestamp.type, tuf_rows.read_as(Timestamp, session, REPOSITORY, "timestamp")),
    ]


def _timestamp(session: Session) -> Timestamp | None:
    if not tuf_rows.exists(session, REPOSITORY, "timestamp"):
        return None
    return tuf_rows.read_as(Timestamp, session, REPOSITORY, "timestamp").signed


def _snapshot(session: Session) -> Snapshot:
    timestamp = tuf_rows.read_as(Timestamp, session, REPOSITORY, "timestamp").signed
    return tuf_rows.read_as(Snapshot, session, REPOSITORY, f"{timestamp.snapshot_meta.version}.snapshot").signed


def _targets(session: Session) -> Metadata[Targets]:
    version = index(session).targets
    return tuf_rows.read_as(Targets, session, REPOSITORY, f"{version}.targets")


def _versions(session: Session) -> dict[str, int]:
    """The versions of delegated roles, also of withdrawn ones, as the snapshot lists them."""
    meta = _snapshot(session).meta
    return {name.removesuffix(".json"): entry.version for name, entry in meta.items() if name != _TARGETS_FILE}


def _keep_targets(session: Session, before: Root, new: Root, signed_again: bytes) -> None:
    """Keep the published targets under a new root, with signatures of its keys beside those of the old ones."""
    present = _targets(session)
    if signed_again:
        again = tuf_rows.parse(Targets, signed_again)
        if again.signed_bytes != present.signed_bytes:
            raise Conflict(
                f"targets: expected version {present.signed.version} as published, signed by the new keys, got version "
                f"{again.signed.version}; begin the rotation again"
            )
        present.signatures |= again.signatures
    holds = new.get_verification_result(Targets.type, present.signed_bytes, present.signatures)
    if not holds:
        raise Rejected(
            f"root {new.version}: expected the published targets to be signed by {holds.threshold} of its targets "
            f"keys, got {len(holds.signed)}; sign the file further: skerry keys sign FILE --keys FOLDER"
        )
    # the old signatures stay: a device that has not seen the new root yet still verifies by the old one
    held = before.get_verification_result(Targets.type, present.signed_bytes, present.signatures)
    counted = holds.signed | held.signed
    present.signatures = {keyid: each for keyid, each in present.signatures.items() if keyid in counted}
    tuf_rows.write(session, REPOSITORY, f"{present.signed.version}.targets", present.to_bytes())


def _publish_snapshot(
    session: Session,
    signers: OnlineSigners,
    listed: Targets,
    versions: Mapping[str, int],
    *,
    now: datetime,
    also: Sequence[Signer] = (),
) -> None:
    version = _snapshot(session).version + 1 if _timestamp(session) else 1
    expires = tuf_rows.from_now(now, SNAPSHOT_LIFE)
    snapshot = tuf_rows.snapshot_of(listed, version=version, expires=expires, delegated=versions)
    signer = signers.named(root(session).roles[Snapshot.type], Snapshot.type)
    tuf_rows.write(session, REPOSITORY, f"{version}.snapshot", tuf_rows.sign(snapshot, signer, *also))
    tuf_rows.delete(session, REPOSITORY, f"{version - 2}.snapshot")
    _publish_timestamp(session, signers, snapshot, now=now, also=also)


def _publish_timestamp(
    session: Session, signers: OnlineSigners, snapshot: Snapshot, *, now: datetime, also: Sequence[Signer] = ()
) -> None:
    present = _timestamp(session)
    version = present.version + 1 if present else 1
    timestamp = tuf_rows.timestamp_of(snapshot, version=version, expires=tuf_rows.from_now(now, TIMESTAMP_LIFE))
    signer = signers.named(root(session).roles[Timestamp.type], Timestamp.type)
    tuf_rows.write(session, REPOSITORY, "timestamp", tuf_rows.sign(timestamp, signer, *also))
