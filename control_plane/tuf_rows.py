"""Owns the rows of signed TUF metadata: reading, writing, and the few shapes that both repositories share."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, TypeVar

from securesystemslib.signer import Signer
from sqlalchemy import select
from sqlalchemy.orm import Session
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from control_plane.refusals import Unknown
from control_plane.schema.releases import TufMetadata
from skerry.errors import Rejected

S = TypeVar("S", Root, Timestamp, Snapshot, Targets)
MAX_METADATA_BYTES = 1 << 20


def read(session: Session, repository: str, name: str) -> bytes:
    """Return the bytes of a metadata file; raises `Unknown`."""
    row = session.get(TufMetadata, (repository, name))
    if row is None:
        raise Unknown(f"{repository} repository: expected {name}, got none; hold the ceremony first: skerry keys init")
    return row.body


def read_as(kind: type[S], session: Session, repository: str, name: str) -> Metadata[S]:
    """Return a parsed metadata file of our own."""
    return parse(kind, read(session, repository, name))


def write(session: Session, repository: str, name: str, body: bytes) -> None:
    """Write a metadata file, replacing what is there."""
    session.merge(TufMetadata(repository=repository, name=name, body=body))


def delete(session: Session, repository: str, name: str) -> None:
    """Delete a metadata file, if there."""
    row = session.get(TufMetadata, (repository, name))
    if row is not None:
        session.delete(row)


def exists(session: Session, repository: str, name: str) -> bool:
    """Say whether there is such a file."""
    return session.get(TufMetadata, (repository, name)) is not None


def roots(session: Session, repository: str) -> dict[str, bytes]:
    """Return all versions of the root by file name."""
    rows = select(TufMetadata).where(TufMetadata.repository == repository, TufMetadata.name.endswith(".root"))
    return {row.name: row.body for row in session.scalars(rows)}


def newest_root(session: Session, repository: str) -> Root:
    """Return the newest root; raises `Unknown` before the ceremony."""
    return parse(Root, newest_root_bytes(session, repository)).signed


def newest_root_bytes(session: Session, repository: str) -> bytes:
    """Return the newest root as published; raises `Unknown` before the ceremony."""
    bodies = roots(session, repository)
    if not bodies:
        raise Unknown(f"{repository} repository: expected a root, got none; hold the ceremony first: skerry keys init")
    return bodies[max(bodies, key=lambda name: int(name.partition(".")[0]))]


def parse(kind: type[S], body: bytes) -> Metadata[S]:
    """Parse metadata of the wanted type; raises `Rejected`."""
    if len(body) > MAX_METADATA_BYTES:
        raise Rejected(f"{kind.type}: expected at most {MAX_METADATA_BYTES} bytes, got {len(body)}")
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(body)
    except (DeserializationError, RepositoryError) as error:
        raise Rejected(f"{kind.type}: expected TUF metadata, got {body[:40]!r}") from error
    if not isinstance(metadata.signed, kind):
        raise Rejected(f"{kind.type}: expected metadata of this type, got {metadata.signed.type}")
    return metadata


def read_any(body: bytes) -> Metadata[Any]:
    """Parse metadata of our own, of any type."""
    return Metadata.from_bytes(body)


def verify(root: Root, metadata: Metadata[S]) -> None:
    """Check signatures against the root's threshold for the metadata's type; raises `Rejected`."""
    try:
        root.verify_delegate(metadata.signed.type, metadata.signed_bytes, metadata.signatures)
    except UnsignedMetadataError as error:
        raise Rejected(f"{metadata.signed.type}: expected enough valid signatures, got: {error}") from error


def snapshot_of(
    targets: Targets, *, version: int, expires: datetime, delegated: Mapping[str, int] | None = None
) -> Snapshot:
    """Return the snapshot that lists `targets`, and the versions of delegated roles."""
    roles = {Targets.type: targets.version} | dict(delegated or {})
    return Snapshot(version=version, expires=expires, meta={f"{role}.json": MetaFile(at) for role, at in roles.items()})


def timestamp_of(snapshot: Snapshot, *, version: int, expires: datetime) -> Timestamp:
    """Return the timestamp that lists `snapshot`."""
    return Timestamp(version=version, expires=expires, snapshot_meta=MetaFile(snapshot.version))


def sign(signed: Timestamp | Snapshot | Targets, *signers: Signer) -> bytes:
    """Return `signed` with the signatures of online keys, as published."""
    metadata: Metadata[Any] = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def needs_renewal(signed: S, life: timedelta, now: datetime) -> bool:
    """Say whether less than half of `life` is left."""
    return signed.expires - now < life / 2


def from_now(now: datetime, life: timedelta) -> datetime:
    """Return when something made now expires; TUF writes whole seconds."""
    return (now + life).replace(microsecond=0)
