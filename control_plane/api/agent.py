"""Endpoints of versions of the agent itself: sets of wheels."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from control_plane import agent_versions, builds
from control_plane.api.context import PlaneDep, SessionDep
from control_plane.api.datasets import read_upload
from control_plane.api.operator import require_operator
from skerry.wire.messages import AGENT

router = APIRouter(tags=["agent"], dependencies=[Depends(require_operator)])


@router.post("/v1/agent/versions")
def add_version(
    plane: PlaneDep,
    session: SessionDep,
    upload: Annotated[bytes, Depends(read_upload)],
    profile: Annotated[list[str], Query(max_length=64)],
    version: Annotated[int, Query(ge=0, le=(1 << 31) - 1)] = 0,
) -> dict[str, Any]:
    """Keep a zip file of wheels as a version of the agent for some profiles."""
    row = agent_versions.add(plane, session, upload=upload, profiles=profile, version=version)
    return builds.show_model(session, AGENT, row.version)
