"""Owns the image repository: what is a genuine release. Root and targets are signed offline and only checked here.

Files by name, as published: `N.root`, `N.targets`, `N.snapshot`, `timestamp`. The newest targets and the one before
are kept, so that a device which read the index a moment ago still finds what it names.
"""

from datetime import datetime, timedelta

from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from control_plane import tuf_rows
from control_plane.keys import OnlineSigners
from control_plane.refusals import Conflict, Unknown
from skerry.errors import Rejected
from skerry.wire.messages import Index

REPOSITORY = "image"
SNAPSHOT_LIFE = timedelta(days=7)
TIMESTAMP_LIFE = timedelta(days=1)


def found(session: Session, signers: OnlineSigners, *, root: bytes, targets: bytes, now: datetime) -> None:
    """Take the founding root and the first targets of the ceremony, and publish.

    Raises:
        Conflict: the repository is founded already.
        Rejected: what came is not signed as it must be, or not for this server's keys.
    """
    if tuf_rows.exists(session, REPOSITORY, "1.root"):
        raise Conflict("ceremony: expected none before, got one already; a root is changed by rotation, never replaced")
    online = {"snapshot": signers.snapshot.public_key.keyid, "timestamp": signers.timestamp.public_key.keyid}
    tuf_rows.check_root(root, online=online, now=now)
    tuf_rows.write(session, REPOSITORY, "1.root", root)
    publish_targets(session, signers, tuf_rows.parse(Targets, targets), now=now)


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
    expected = _snapshot(session).meta["targets.json"].version + 1 if present else 1
    if targets.signed.version != expected:
        raise Conflict(f"targets: expected version {expected}, got {targets.signed.version}; stage the release again")
    tuf_rows.write(session, REPOSITORY, f"{expected}.targets", targets.to_bytes())
    tuf_rows.delete(session, REPOSITORY, f"{expected - 2}.targets")
    _publish_snapshot(session, signers, targets.signed, now=now)


def renew(session: Session, signers: OnlineSigners, *, now: datetime) -> bool:
    """Sign snapshot and timestamp anew where less than half of their life is left; say whether anything changed."""
    timestamp = _timestamp(session)
    if timestamp is None:
        return False
    snapshot = _snapshot(session)
    if tuf_rows.needs_renewal(snapshot, SNAPSHOT_LIFE, now):
        _publish_snapshot(session, signers, targets(session), now=now)
        return True
    if tuf_rows.needs_renewal(timestamp, TIMESTAMP_LIFE, now):
        _publish_timestamp(session, signers, snapshot, now=now)
        return True
    return False


def root(session: Session) -> Root:
    """Return the newest root; raises `Unknown` before the ceremony."""
    return tuf_rows.newest_root(session, REPOSITORY)


def targets(session: Session) -> Targets:
    """Return the published targets; raises `Unknown` before the ceremony."""
    version = index(session).targets
    return tuf_rows.read_as(Targets, session, REPOSITORY, f"{version}.targets").signed


def target(session: Session, path: str) -> TargetFile:
    """Return the entry of a target path; raises `Unknown` when the published targets do not list it."""
    listed = targets(session).targets.get(path)
    if listed is None:
        raise Unknown(f"image repository: expected the target {path}, got none; is its release live?")
    return listed


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
        targets=snapshot.meta["targets.json"].version,
    )


def files(session: Session) -> dict[str, bytes]:
    """Return the present metadata files by name, roots first and the timestamp last."""
    now = index(session)
    found = tuf_rows.roots(session, REPOSITORY)
    for name in (f"{now.targets}.targets", f"{now.snapshot}.snapshot", "timestamp"):
        found[name] = tuf_rows.read(session, REPOSITORY, name)
    return found


def superseded(session: Session) -> list[str]:
    """Return the names of files that nothing published names any more, so that a broker may forget them."""
    now = index(session)
    return [f"{now.targets - 2}.targets", f"{now.snapshot - 2}.snapshot"]


def status(session: Session) -> list[dict[str, str | int]]:
    """Return version and expiry of each role, for people."""
    if _timestamp(session) is None:
        return []
    roles: list[Root | Targets | Snapshot | Timestamp] = [root(session), targets(session), _snapshot(session)]
    timestamp = _timestamp(session)
    if timestamp is not None:
        roles.append(timestamp)
    return [
        {"repository": REPOSITORY, "role": role.type, "version": role.version, "expires": role.expires.isoformat()}
        for role in roles
    ]


def _timestamp(session: Session) -> Timestamp | None:
    if not tuf_rows.exists(session, REPOSITORY, "timestamp"):
        return None
    return tuf_rows.read_as(Timestamp, session, REPOSITORY, "timestamp").signed


def _snapshot(session: Session) -> Snapshot:
    timestamp = tuf_rows.read_as(Timestamp, session, REPOSITORY, "timestamp").signed
    return tuf_rows.read_as(Snapshot, session, REPOSITORY, f"{timestamp.snapshot_meta.version}.snapshot").signed


def _publish_snapshot(session: Session, signers: OnlineSigners, listed: Targets, *, now: datetime) -> None:
    version = _snapshot(session).version + 1 if _timestamp(session) else 1
    snapshot = tuf_rows.snapshot_of(listed, version=version, expires=tuf_rows.from_now(now, SNAPSHOT_LIFE))
    tuf_rows.write(session, REPOSITORY, f"{version}.snapshot", tuf_rows.sign(snapshot, signers.snapshot))
    tuf_rows.delete(session, REPOSITORY, f"{version - 2}.snapshot")
    _publish_timestamp(session, signers, snapshot, now=now)


def _publish_timestamp(session: Session, signers: OnlineSigners, snapshot: Snapshot, *, now: datetime) -> None:
    present = _timestamp(session)
    version = present.version + 1 if present else 1
    timestamp = tuf_rows.timestamp_of(snapshot, version=version, expires=tuf_rows.from_now(now, TIMESTAMP_LIFE))
    tuf_rows.write(session, REPOSITORY, "timestamp", tuf_rows.sign(timestamp, signers.timestamp))
