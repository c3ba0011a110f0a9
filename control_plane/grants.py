"""Owns the granting of online signatures to a model: staged like a release, signed by the offline targets keys.

A grant delegates the paths of one model to one new online key, until a given end; withdrawing takes that back. Granting
again replaces key and end. `renew_targets` publishes what is published already with a new expiry.
"""

from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session
from tuf.api.metadata import Targets

from control_plane import delegated, events, image_repository, releases, rotation, staging
from control_plane.online_keys import describe_key
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Unknown
from control_plane.schema.models import ModelVersion
from control_plane.staging import Edit, Grant
from skerry.errors import Rejected
from skerry.wire.topics import check_name

GRANT, WITHDRAWAL, RENEWAL = "grant", "withdrawal", "renewal"
RENEWED = "targets"
MAX_DAYS = 365


def grant(plane: Plane, session: Session, model: str, *, days: int) -> bytes:
    """Stage a grant to sign releases of `model` online for `days` days; return the bytes to sign.

    Raises:
        Rejected: the name or the number of days cannot be.
        Unknown: there is no such model, or no ceremony was held.
    """
    check_name(model, "model")
    if not 1 <= days <= MAX_DAYS:
        raise Rejected(f"days: expected 1 to {MAX_DAYS}, got {days}")
    if session.scalar(select(ModelVersion.model).where(ModelVersion.model == model).limit(1)) is None:
        raise Unknown(f"model: expected one of `skerry model list`, got {model!r:.80}")
    role = delegated.role_name(model)
    key = plane.signers.make_next(role, named=rotation.named(session))
    now = plane.clock()
    until = delegated.grant_end(now, timedelta(days=days))
    staging.discard(session, WITHDRAWAL, model)
    payload = staging.stage(
        session, GRANT, model, Edit(grant=Grant(role, describe_key(key), delegated.paths(model), until)), now=now
    )
    events.record(session, GRANT, model, f"a grant to sign {model} online until {until} is staged", until=until)
    return payload


def withdraw(plane: Plane, session: Session, model: str) -> bytes:
    """Stage the end of a model's grant; return the bytes to sign.

    What the model's role listed is listed no more when that is signed: its releases are revoked.

    Raises:
        Conflict: nothing is granted to the model.
        Unknown: no ceremony was held.
    """
    staging.discard(session, GRANT, model)
    if image_repository.granted(session, model) is None:
        raise Conflict(f"model {model!r:.80}: expected a grant to withdraw, got none; see: skerry keys status")
    payload = staging.stage(session, WITHDRAWAL, model, Edit(withdraw=delegated.role_name(model)), now=plane.clock())
    events.record(session, WITHDRAWAL, model, f"the end of signing {model} online is staged")
    return payload


def renew_targets(plane: Plane, session: Session) -> bytes:
    """Stage the published targets as they are, with a new expiry; return the bytes to sign."""
    return staging.stage(session, RENEWAL, RENEWED, Edit(), now=plane.clock())


def published(plane: Plane, session: Session, name: str, targets: Targets, *, kind: str) -> None:
    """Take note that a grant, its end or a renewal is published; what `staging` calls."""
    if kind == WITHDRAWAL:
        releases.withdrawn(plane, session, name)
    text = {
        GRANT: f"releases of {name} may be signed online",
        WITHDRAWAL: f"releases of {name} are signed offline again",
        RENEWAL: f"targets are renewed until {targets.expires:%Y-%m-%d}",
    }[kind]
    events.record(session, kind, name, text, targets=targets.version)
