"""Owns the metadata of delegated roles `automatic-MODEL`: targets that the server signs within what was granted.

A grant is a terminating delegation in the offline-signed targets: one online key, the paths of one model, and an end
(`GRANTED_UNTIL`). Metadata of such a role never expires after that end, and is renewed ahead of time before it. A role
that is withdrawn stays listed in the snapshot with its last version: TUF's clients refuse a snapshot that forgets one.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session
from tuf.api.metadata import DelegatedRole, Metadata, TargetFile, Targets

from control_plane import tuf_rows
from control_plane.online_keys import AUTOMATIC, OnlineSigners
from control_plane.schema.releases import TufMetadata
from skerry.wire.manifest import GRANTED_UNTIL

REPOSITORY = "image"
LIFE = timedelta(days=7)
_TIME = "%Y-%m-%dT%H:%M:%SZ"


def role_name(model: str) -> str:
    """Return the name of a model's role; it is unique in the whole repository."""
    return f"{AUTOMATIC}{model}"


def paths(model: str) -> tuple[str, ...]:
    """Return the path patterns that a model's role may list: its versions, profiles and files, nothing else."""
    return (f"models/{model}/*/*/*",)


def roles(targets: Targets) -> dict[str, DelegatedRole]:
    """Return the delegations that targets metadata makes, in their order."""
    return dict(targets.delegations.roles or {}) if targets.delegations else {}


def until(role: DelegatedRole) -> datetime:
    """Return when the grant of a role ends."""
    return datetime.strptime(role.unrecognized_fields[GRANTED_UNTIL], _TIME).replace(tzinfo=UTC)


def grant_end(now: datetime, life: timedelta) -> str:
    """Return the end of a grant made now, as its field has it."""
    return (now + life).strftime(_TIME)


def read(session: Session, name: str, version: int) -> Metadata[Targets] | None:
    """Return one version of a role's metadata, None when it is not kept."""
    if not tuf_rows.exists(session, REPOSITORY, f"{version}.{name}"):
        return None
    return tuf_rows.read_as(Targets, session, REPOSITORY, f"{version}.{name}")


def follow(
    session: Session, signers: OnlineSigners, targets: Targets, versions: Mapping[str, int], *, now: datetime
) -> dict[str, int]:
    """Bring all roles into line with newly published `targets`; return their versions for the snapshot.

    A role that is new, or whose key or end has changed, is signed; what it listed is kept. What is no longer delegated
    is deleted, and its version remembered.
    """
    made = dict(versions)
    granted = roles(targets)
    for name in versions:
        if name not in granted:
            _delete_all(session, name)
    for name, role in granted.items():
        before = read(session, name, versions.get(name, 0))
        if before is None or not _fits(targets, name, before) or before.signed.expires > until(role):
            kept = before.signed.targets if before else {}
            made[name] = write(session, signers, role, kept, version=versions.get(name, 0) + 1, now=now)
    return made


def renew(
    session: Session, signers: OnlineSigners, targets: Targets, versions: Mapping[str, int], *, now: datetime
) -> dict[str, int]:
    """Sign anew what has less than half of its life left, while its grant lasts; return the versions."""
    made = dict(versions)
    for name, role in roles(targets).items():
        present = read(session, name, versions[name])
        if present is None or now >= until(role) or present.signed.expires >= until(role):
            continue
        if tuf_rows.needs_renewal(present.signed, LIFE, now):
            made[name] = write(session, signers, role, present.signed.targets, version=versions[name] + 1, now=now)
    return made


def write(
    session: Session,
    signers: OnlineSigners,
    role: DelegatedRole,
    listed: Mapping[str, TargetFile],
    *,
    version: int,
    now: datetime,
) -> int:
    """Sign and keep one version of a role's metadata; return the version."""
    expires = min(tuf_rows.from_now(now, LIFE), until(role))
    signed = Targets(version=version, expires=expires, targets=dict(listed))
    body = tuf_rows.sign(signed, signers.named(role, role.name))
    tuf_rows.write(session, REPOSITORY, f"{version}.{role.name}", body)
    tuf_rows.delete(session, REPOSITORY, f"{version - 2}.{role.name}")
    return version


def superseded(targets: Targets, versions: Mapping[str, int]) -> Sequence[str]:
    """Return the names of files of delegated roles that nothing names any more."""
    granted = roles(targets)
    old = [f"{version - 2}.{name}" for name, version in versions.items() if version > 2]
    return old + [
        f"{number}.{name}"
        for name, version in versions.items()
        if name not in granted
        for number in (version - 1, version)
    ]


def _fits(targets: Targets, name: str, metadata: Metadata[Targets]) -> bool:
    return bool(targets.get_verification_result(name, metadata.signed_bytes, metadata.signatures))


def _delete_all(session: Session, name: str) -> None:
    rows = select(TufMetadata).where(
        TufMetadata.repository == REPOSITORY, TufMetadata.name.endswith(f".{name}", autoescape=True)
    )
    for row in session.scalars(rows):
        session.delete(row)
