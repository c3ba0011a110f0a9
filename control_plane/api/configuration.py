"""Endpoints of the desired configuration: set it for a device or a group, and see what each device is told."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from control_plane import desired
from control_plane.api.context import PlaneDep, SessionDep
from control_plane.api.operator import require_operator
from control_plane.plane import Plane
from control_plane.refusals import Unknown
from control_plane.schema.devices import DesiredState, Device

router = APIRouter(tags=["configuration"], dependencies=[Depends(require_operator)])
Text = Annotated[str, Field(max_length=80)]


class Changes(BaseModel):
    """Keys with their new values as text; an empty one takes the key away."""

    model_config = ConfigDict(extra="forbid")
    set: dict[Text, Text] = Field(max_length=32)


@router.get("/v1/devices/{name}/config")
def get_device_config(name: str, session: SessionDep) -> dict[str, Any]:
    """Return what is set for a device, what it is told with that of its group, and which version it reports."""
    device = session.get(Device, name)
    if device is None:
        raise Unknown(f"device: expected one that is enrolled, got {name!r:.80}")
    told = session.get(DesiredState, name)
    return {
        "device": name,
        "own": desired.own_config(session, desired.DEVICE, name),
        "group": desired.own_config(session, desired.GROUP, device.group),
        "config": told.config if told is not None else {},
        "version": told.version if told is not None else 0,
        "reported_version": device.reported.get("desired_version", 0),
    }


@router.put("/v1/devices/{name}/config")
def set_device_config(name: str, body: Changes, plane: PlaneDep) -> dict[str, Any]:
    """Set keys of one device, over what its group has."""
    return _set(plane, desired.DEVICE, name, body)


@router.put("/v1/groups/{name}/config")
def set_group_config(name: str, body: Changes, plane: PlaneDep) -> dict[str, Any]:
    """Set keys of all devices of a group."""
    return _set(plane, desired.GROUP, name, body)


def _set(plane: Plane, scope: str, name: str, body: Changes) -> dict[str, Any]:
    with plane.sessions.begin() as session:
        row = desired.configure(session, scope, name, body.set)
        told = desired.settle(session, scope, name)
        answer = {"scope": scope, "name": name, "config": dict(row.config), "told": len(told)}
    desired.publish(plane, told)
    return answer
