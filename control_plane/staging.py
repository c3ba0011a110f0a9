"""Owns changes of the targets metadata that wait for offline signatures: releases, revocations, grants, renewals.

What is staged is an `Edit` of whatever targets are published, not a copy of them. Operators sign the canonical bytes of
the result (`payload`); when the root's threshold for `targets` is met it is published. Then all other edits are applied
to the new list: their bytes change, so they have to be signed again, and none can undo what was published before it.

A staged change is named by its kind and a name that is unique within the kind. What follows from its publication
(a release is live, a device may be told) is the caller's: it hands a function over with each signature.

    payload = staging.stage(session, "release", "gestures-1", Edit(add=files), now=now)
    staging.add_signature(plane, session, "release", "gestures-1", keyid=..., sig=..., then=_is_live)
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from securesystemslib.exceptions import Error as KeyLibraryError
from securesystemslib.signer import Signature
from sqlalchemy import select
from sqlalchemy.orm import Session
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, TargetFile, Targets
from tuf.api.serialization.json import CanonicalJSONSerializer

from control_plane import approval, events, image_repository, tuf_rows
from control_plane.key_files import parse_key
from control_plane.keys import TARGETS_LIFE
from control_plane.plane import Plane
from control_plane.refusals import Forbidden, Unknown
from control_plane.schema.releases import TufMetadata
from skerry.wire.codec import from_tree
from skerry.wire.manifest import GRANTED_UNTIL

_PREFIX = "staged/"

# called in the transaction that publishes: the plane, the session, the name of the change, the targets as published
Then = Callable[[Plane, Session, str, Targets], None]


@dataclass(frozen=True, slots=True)
class Grant:
    """A terminating delegation to one online key: `key` as TUF writes it with its `keyid`, path patterns, an end."""

    role: str
    key: dict[str, Any]
    paths: tuple[str, ...]
    until: str


@dataclass(frozen=True, slots=True)
class Edit:
    """What a change does to the targets that are published by then. An edit that does nothing renews their expiry.

    `add` maps target paths to their entries as TUF writes them (`listed` makes one), `drop` names paths, or all below
    a path where it ends with "/", `grant` adds or replaces a delegation, and `withdraw` names one to remove.
    """

    add: dict[str, dict[str, Any]] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    grant: Grant | None = None
    withdraw: str = ""


@dataclass(frozen=True, slots=True)
class Staged:
    """A change as it waits: `metadata` is what it makes of the published targets, with the signatures so far."""

    kind: str
    name: str
    edit: Edit
    metadata: Metadata[Targets]


def listed(files: Mapping[str, TargetFile]) -> dict[str, dict[str, Any]]:
    """Return target entries as `Edit.add` wants them."""
    return {path: file.to_dict() for path, file in files.items()}


def apply(edit: Edit, published: Targets, *, now: datetime) -> Targets:
    """Return the targets that follow `published` when `edit` is made to them."""
    kept = {path: file for path, file in published.targets.items() if not _dropped(path, edit.drop)}
    added = {path: TargetFile.from_dict(dict(entry), path) for path, entry in edit.add.items()}
    return Targets(
        version=published.version + 1,
        expires=tuf_rows.from_now(now, TARGETS_LIFE),
        targets=kept | added,
        delegations=_delegations(edit, published),
    )


def stage(session: Session, kind: str, name: str, edit: Edit, *, now: datetime) -> bytes:
    """Stage a change and return the bytes to sign; staging one again replaces it and drops its signatures.

    Raises:
        Unknown: no ceremony was held.
    """
    return _write(session, kind, name, edit, now=now)


def get(session: Session, kind: str, name: str) -> Staged:
    """Return a staged change; raises `Unknown` when there is none, or none any more."""
    row = session.get(TufMetadata, (_PREFIX + kind, name))
    if row is None:
        raise Unknown(f"{kind} {name}: expected one that waits for signatures, got none; it may be published already")
    return _read(row)


def exists(session: Session, kind: str, name: str) -> bool:
    """Say whether such a change waits."""
    return tuf_rows.exists(session, _PREFIX + kind, name)


def waiting(session: Session) -> list[Staged]:
    """Return all changes that wait, by kind and name."""
    rows = select(TufMetadata).where(TufMetadata.repository.startswith(_PREFIX, autoescape=True))
    return [_read(row) for row in session.scalars(rows.order_by(TufMetadata.repository, TufMetadata.name))]


def payload(session: Session, kind: str, name: str) -> bytes:
    """Return the bytes to sign: the canonical form of the next targets metadata; raises `Unknown`."""
    return get(session, kind, name).metadata.signed_bytes


def signatures(session: Session, kind: str, name: str) -> tuple[list[str], int]:
    """Return the key ids that have signed so far (none for what does not wait), and how many the root asks for."""
    role = image_repository.root(session).roles[Targets.type]
    if not exists(session, kind, name):
        return [], role.threshold
    signed = get(session, kind, name).metadata.signatures
    return [keyid for keyid in signed if keyid in role.keyids], role.threshold


def approval_of(plane: Plane, session: Session, kind: str, name: str) -> approval.Approval:
    """Return a change as the file that key holders sign; raises `Unknown` when it does not wait."""
    staged = get(session, kind, name)
    present = image_repository.index(session)
    return approval.make(
        kind=kind,
        name=name,
        project=plane.settings.project,
        payload=staged.metadata.signed_bytes,
        published=image_repository.file(session, f"{present.targets}.targets"),
        root=image_repository.file(session, f"{present.root}.root"),
        signed=[approval.Given(each.keyid, each.signature) for each in staged.metadata.signatures.values()],
    )


def discard(session: Session, kind: str, name: str) -> None:
    """Forget a staged change, if there."""
    tuf_rows.delete(session, _PREFIX + kind, name)


def add_signature(
    plane: Plane, session: Session, kind: str, name: str, *, keyid: str, sig: str, then: Then | None = None
) -> bool:
    """Take one offline signature; with the threshold met, publish, call `then`, and say so.

    All in the caller's transaction: publish on the broker after its commit.

    Raises:
        Unknown: no such change waits.
        Forbidden: the key is not one of the root's targets keys, or the signature is not its own, of these bytes.
    """
    staged = get(session, kind, name)
    root = image_repository.root(session)
    metadata = staged.metadata
    what = f"{kind} {name}"
    if keyid not in root.roles[Targets.type].keyids:
        raise Forbidden(f"{what}: expected a targets key of the root, got {keyid!r:.80}")
    try:
        root.get_key(keyid).verify_signature(Signature(keyid, sig), metadata.signed_bytes)
    except (KeyLibraryError, ValueError) as error:
        raise Forbidden(
            f"{what}: expected a signature of its payload by {keyid[:8]}, got another; "
            "fetch the payload again and sign that"
        ) from error

    metadata.signatures[keyid] = Signature(keyid, sig)
    result = root.get_verification_result(Targets.type, metadata.signed_bytes, metadata.signatures)
    if not result:
        _put(session, staged)
        signed = len(result.signed)
        text = f"{what} has {signed} of {result.threshold} signatures"
        events.record(session, kind, name, text, signatures=signed)
        return False

    image_repository.publish_targets(session, plane.signers, metadata, now=plane.clock())
    discard(session, kind, name)
    restage(session, now=plane.clock())
    if then is not None:
        then(plane, session, name, metadata.signed)
    return True


def restage(session: Session, *, now: datetime) -> list[str]:
    """Apply the waiting edits that were staged upon something older to what is published now; return their names."""
    published = image_repository.targets(session).version
    stale = [staged for staged in waiting(session) if staged.metadata.signed.version != published + 1]
    for staged in stale:
        _write(session, staged.kind, staged.name, staged.edit, now=now)
        if staged.metadata.signatures:
            text = f"{staged.kind} {staged.name} was overtaken by another change: it has to be signed again"
            events.record(session, staged.kind, staged.name, text)
    return [staged.name for staged in stale]


def _write(session: Session, kind: str, name: str, edit: Edit, *, now: datetime) -> bytes:
    targets = apply(edit, image_repository.targets(session), now=now)
    _put(session, Staged(kind, name, edit, Metadata(targets)))
    return CanonicalJSONSerializer().serialize(targets)


def _put(session: Session, staged: Staged) -> None:
    body = {"edit": asdict(staged.edit), "metadata": staged.metadata.to_bytes().decode()}
    tuf_rows.write(session, _PREFIX + staged.kind, staged.name, json.dumps(body).encode())


def _read(row: TufMetadata) -> Staged:
    body = json.loads(row.body)
    return Staged(
        kind=row.repository.removeprefix(_PREFIX),
        name=row.name,
        edit=from_tree(Edit, body["edit"]),
        metadata=tuf_rows.parse(Targets, body["metadata"].encode()),
    )


def _dropped(path: str, drop: tuple[str, ...]) -> bool:
    return any(path.startswith(each) if each.endswith("/") else path == each for each in drop)


def _delegations(edit: Edit, published: Targets) -> Delegations | None:
    present = published.delegations
    roles = dict(present.roles or {}) if present else {}
    keys = dict(present.keys) if present else {}
    roles.pop(edit.withdraw, None)
    if edit.grant is not None:
        grant = edit.grant
        keyid = str(grant.key.get("keyid", ""))
        keys[keyid] = parse_key(keyid, grant.key)
        more = {GRANTED_UNTIL: grant.until}
        roles[grant.role] = DelegatedRole(
            grant.role, [keyid], 1, terminating=True, paths=list(grant.paths), unrecognized_fields=more
        )
    named = {keyid for role in roles.values() for keyid in role.keyids}
    return Delegations({keyid: keys[keyid] for keyid in named}, roles) if roles else None
