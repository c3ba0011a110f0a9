"""Endpoints of remote requests: ask a device for something, and see what came of it."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from control_plane import requests
from control_plane.api.context import PlaneDep, SessionDep
from control_plane.api.operator import operator_name, require_operator
from control_plane.schema.devices import DeviceRequest

router = APIRouter(tags=["requests"], dependencies=[Depends(require_operator)])
Name = Annotated[str, Field(max_length=24)]
Value = Annotated[str, Field(max_length=80)] | Annotated[int, Field(ge=0, le=(1 << 62))]


class RequestBody(BaseModel):
    """What is asked of a device, and for how many seconds the question stands."""

    model_config = ConfigDict(extra="forbid")
    verb: Name
    args: dict[Name, Value] = Field(default_factory=dict, max_length=8)
    expires_s: int = requests.DEFAULT_EXPIRES_S


@router.post("/v1/devices/{name}/requests", status_code=201)
def ask(name: str, body: RequestBody, plane: PlaneDep, request: Request) -> dict[str, Any]:
    """Ask a device for something of its allow-list; the answer comes when it does."""
    with plane.sessions.begin() as session:
        row = requests.ask(
            plane, session, name, body.verb, body.args, expires_s=body.expires_s, asked_by=operator_name(request)
        )
    requests.publish(plane, [row])
    return request_tree(row, now=plane.clock())


@router.get("/v1/devices/{name}/requests")
def list_requests(
    name: str, plane: PlaneDep, session: SessionDep, limit: Annotated[int, Query(ge=1, le=200)] = 50
) -> list[dict[str, Any]]:
    """Return the requests to a device, newest first, without what came of them."""
    now = plane.clock()
    return [
        {key: value for key, value in request_tree(row, now=now).items() if key != "result"}
        for row in requests.listed(session, name, limit=limit)
    ]


@router.get("/v1/devices/{name}/requests/{request_id}")
def get_request(name: str, request_id: str, plane: PlaneDep, session: SessionDep) -> dict[str, Any]:
    """Return one request with its result."""
    return request_tree(requests.find(session, name, request_id), now=plane.clock())


def request_tree(row: DeviceRequest, *, now: datetime) -> dict[str, Any]:
    """Return a request as JSON; `state` is waiting, done, refused or expired."""
    return {
        "id": row.id,
        "device": row.device,
        "verb": row.verb,
        "args": row.args,
        "state": requests.state_of(row, now=now),
        "asked_by": row.asked_by,
        "asked_at": row.asked_at.isoformat(),
        "expires": row.expires.isoformat(),
        "answered_at": row.answered_at.isoformat() if row.answered_at else None,
        "late": row.answered_at is not None and row.answered_at > row.expires,
        "reason": str(row.result.get("reason", "")),
        "result": row.result,
    }
