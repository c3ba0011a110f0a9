"""Endpoints of alarms of devices: those that stand, and the acknowledgement that clears one."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request

from control_plane import alarms
from control_plane.api.context import PlaneDep, SessionDep
from control_plane.api.operator import operator_name, require_operator

router = APIRouter(tags=["alarms"], dependencies=[Depends(require_operator)])


@router.get("/v1/alarms")
def get_alarms(
    session: SessionDep,
    device: Annotated[str, Query(max_length=63)] = "",
    cleared: Annotated[bool, Query()] = False,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> list[dict[str, Any]]:
    """Return the alarms of devices that stand, newest first; with `cleared` those too that do no longer."""
    return [alarms.tree(row) for row in alarms.listed(session, device=device, cleared=cleared, limit=limit)]


@router.post("/v1/alarms/{number}/acknowledge")
def acknowledge(
    number: Annotated[int, Path(ge=0, le=(1 << 63) - 1)], plane: PlaneDep, session: SessionDep, request: Request
) -> dict[str, Any]:
    """Clear an alarm because a person has seen to it."""
    return alarms.tree(alarms.acknowledge(session, number, by=operator_name(request), now=plane.clock()))
