"""Owns the policy of each model: whether its releases wait for offline signatures or are signed online at once."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import events
from control_plane.refusals import Conflict, Unknown
from control_plane.schema.models import ModelSamples, ModelVersion
from control_plane.schema.releases import ModelPolicy
from skerry.errors import Rejected

MANUAL = "manual"
AUTOMATIC = "automatic"


def policy(session: Session, model: str) -> str:
    """Return `manual` or `automatic`; raises `Unknown` when there is no such model."""
    check_model(session, model)
    return AUTOMATIC if is_automatic(session, model) else MANUAL


def is_automatic(session: Session, model: str) -> bool:
    """Say whether the releases of a model are signed online."""
    row = session.get(ModelPolicy, model)
    return row is not None and row.policy == AUTOMATIC


def set_policy(session: Session, model: str, *, policy: str) -> None:
    """Set the policy of a model; what is live or staged already stays as it was signed, or waits to be.

    Raises:
        Unknown: there is no such model.
        Rejected: the policy is neither manual nor automatic.
        Conflict: inputs of the model may leave devices, which only offline keys can allow.
    """
    if policy not in (MANUAL, AUTOMATIC):
        raise Rejected(f"policy: expected {MANUAL} or {AUTOMATIC}, got {policy!r:.80}")
    check_model(session, model)
    if policy == AUTOMATIC and session.get(ModelSamples, model) is not None:
        raise Conflict(
            f"policy of {model}: expected no samples of what is signed online, got some allowed; "
            f"first: skerry model samples {model} --none"
        )
    session.merge(ModelPolicy(model=model, policy=policy))
    events.record(session, "policy", model, f"releases of {model} are signed: {policy}", policy=policy)


def check_model(session: Session, model: str) -> None:
    """Raise `Unknown` when there is no such model."""
    if session.scalar(select(ModelVersion.version).where(ModelVersion.model == model).limit(1)) is None:
        raise Unknown(f"model: expected one of `skerry model list`, got {model!r:.80}")
