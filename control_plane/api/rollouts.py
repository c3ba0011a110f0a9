"""Endpoints of rollouts: start one, follow it, cancel it."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import deltas, rollouts
from control_plane.api.context import Number, PlaneDep, SessionDep
from control_plane.api.operator import require_operator
from control_plane.refusals import Unknown
from control_plane.rollout_planner import WaveRequest
from control_plane.schema.releases import Deployment, Release, Rollout, Wave

router = APIRouter(tags=["rollouts"], dependencies=[Depends(require_operator)])


class WaveBody(BaseModel):
    """A wave: its name, and one of devices, share (of all eligible devices) or rest."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=63)
    devices: list[Annotated[str, Field(max_length=63)]] = Field(default_factory=list, max_length=100_000)
    share: float | None = None
    rest: bool = False


class RolloutBody(BaseModel):
    """The release, and the waves in order."""

    model_config = ConfigDict(extra="forbid")
    release: str = Field(max_length=63)
    waves: list[WaveBody] = Field(min_length=1, max_length=64)


@router.post("/v1/rollouts")
def create(body: RolloutBody, plane: PlaneDep, session: SessionDep) -> dict[str, Any]:
    """Start a rollout; the reconciler takes it from here."""
    waves = [
        WaveRequest(name=wave.name, devices=tuple(wave.devices), share=wave.share, rest=wave.rest)
        for wave in body.waves
    ]
    rollout = rollouts.create(session, release=body.release, waves=waves, now=plane.clock())
    session.flush()
    # devices may have moved since the release went live
    deltas.ask(session, session.get_one(Release, body.release), now=plane.clock())
    return _full_tree(session, rollout)


@router.get("/v1/rollouts")
def get_rollouts(session: SessionDep, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[dict[str, Any]]:
    """Return the newest rollouts, newest first, without their waves."""
    return [_tree(row) for row in session.scalars(select(Rollout).order_by(Rollout.id.desc()).limit(limit))]


@router.get("/v1/rollouts/{rollout}")
def get_rollout(rollout: Number, session: SessionDep) -> dict[str, Any]:
    """Return a rollout with its waves and deployments."""
    row = session.get(Rollout, rollout)
    if row is None:
        raise Unknown(f"rollout: expected one that was made, got {rollout}")
    return _full_tree(session, row)


@router.post("/v1/rollouts/{rollout}/cancel")
def cancel(rollout: Number, plane: PlaneDep, session: SessionDep) -> dict[str, Any]:
    """Cancel: nothing more is assigned; devices that were assigned go on."""
    row = rollouts.cancel(session, rollout, now=plane.clock())
    session.flush()
    return _full_tree(session, row)


def _full_tree(session: Session, rollout: Rollout) -> dict[str, Any]:
    waves = session.scalars(select(Wave).where(Wave.rollout == rollout.id).order_by(Wave.number))
    deployments = session.scalars(
        select(Deployment)
        .where(Deployment.rollout == rollout.id)
        .order_by(Deployment.wave, Deployment.device, Deployment.id)
    )
    return {
        **_tree(rollout),
        "waves": [
            {
                "number": wave.number,
                "name": wave.name,
                "state": wave.state,
                "started_at": wave.started_at.isoformat() if wave.started_at else None,
                "ended_at": wave.ended_at.isoformat() if wave.ended_at else None,
            }
            for wave in waves
        ],
        "choices": session.get_one(Release, rollout.release).choices,
        "deployments": [deployment_tree(deployment) for deployment in deployments],
    }


def deployment_tree(deployment: Deployment) -> dict[str, Any]:
    """Return a deployment as JSON."""
    return {
        "id": deployment.id,
        "rollout": deployment.rollout,
        "wave": deployment.wave,
        "device": deployment.device,
        "release": deployment.release,
        "manifest": deployment.manifest,
        "state": deployment.state,
        "reason": deployment.reason,
        "bytes_received": deployment.bytes_received,
        "measured": deployment.measured,
        "assigned_at": deployment.assigned_at.isoformat() if deployment.assigned_at else None,
        "ended_at": deployment.ended_at.isoformat() if deployment.ended_at else None,
        "committed_event_time": deployment.committed_event_time,
        "measures": deployment.measures,
        "component": deployment.component,
        "evidence": _evidence(deployment),
    }


def _evidence(deployment: Deployment) -> dict[str, Any]:
    """Return what the device measured, and the signed text, which anybody can verify with its public key."""
    kept = deployment.evidence
    return {**json.loads(kept["text"]), **kept} if kept else {}


def _tree(rollout: Rollout) -> dict[str, Any]:
    return {
        "id": rollout.id,
        "release": rollout.release,
        "state": rollout.state,
        "reason": rollout.reason,
        "created_at": rollout.created_at.isoformat(),
        "ended_at": rollout.ended_at.isoformat() if rollout.ended_at else None,
    }
