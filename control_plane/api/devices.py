"""Endpoints of devices: what they last said, how they end, the windows that they sent, and their outboxes' account."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from control_plane import alarms, component_changes, components, enrolment, publisher, revocation, samples
from control_plane.api.context import Number, PlaneDep, SessionDep
from control_plane.api.operator import require_operator
from control_plane.api.rollouts import deployment_tree
from control_plane.refusals import Unknown
from control_plane.schema.devices import Device
from control_plane.schema.models import Build
from control_plane.schema.releases import Deployment
from control_plane.schema.telemetry import Gap, OutboxMark, Window

router = APIRouter(tags=["devices"], dependencies=[Depends(require_operator)])
RECENT_DEPLOYMENTS = 20


class OfflineBody(BaseModel):
    """A device for installs from a file."""

    model_config = ConfigDict(extra="forbid")
    name: str
    profile: str
    group: str = "default"


class ComponentBody(BaseModel):
    """A model to run beside what a device runs."""

    model_config = ConfigDict(extra="forbid")
    model: str


class DecommissionBody(BaseModel):
    """Whether to wait for the device's word."""

    model_config = ConfigDict(extra="forbid")
    now: bool = False


@router.get("/v1/devices")
def get_devices(session: SessionDep) -> list[dict[str, Any]]:
    """Return all devices by name."""
    return [_device_tree(device) for device in session.scalars(select(Device).order_by(Device.name))]


@router.get("/v1/devices/{name}")
def get_device(name: str, session: SessionDep) -> dict[str, Any]:
    """Return one device with its latest deployments, newest first."""
    device = session.get(Device, name)
    if device is None:
        raise Unknown(f"device: expected one that is enrolled, got {name!r:.80}")
    # those that wait first, then the one assigned last
    newest = (Deployment.assigned_at.is_(None).desc(), Deployment.assigned_at.desc())
    deployments = select(Deployment).where(Deployment.device == name).order_by(*newest).limit(RECENT_DEPLOYMENTS)
    return {
        **_device_tree(device),
        "deployments": [deployment_tree(deployment) for deployment in session.scalars(deployments)],
        "components": [components.tree(row) for row in components.of_device(session, name)],
        "alarms": [alarms.tree(row) for row in alarms.listed(session, device=name)],
    }


@router.post("/v1/devices/{name}/components")
def add_component(name: str, body: ComponentBody, plane: PlaneDep, session: SessionDep) -> dict[str, Any]:
    """Let a device run a model beside what it runs; the model's next rollout brings it."""
    return components.tree(component_changes.add(plane, session, name, body.model))


@router.delete("/v1/devices/{name}/components/{component}")
def remove_component(name: str, component: str, plane: PlaneDep) -> dict[str, str]:
    """Take a model away that a device runs beside its own."""
    with plane.sessions.begin() as session:
        component_changes.remove(plane, session, name, component)
    publisher.publish_assignment(plane, name)
    return {"device": name, "component": component}


@router.post("/v1/devices")
def name_offline(body: OfflineBody, plane: PlaneDep, session: SessionDep) -> dict[str, Any]:
    """Name a device that is installed from a file and may enrol later."""
    device = enrolment.name_offline(plane, session, body.name, profile=body.profile, group=body.group)
    return _device_tree(device)


@router.post("/v1/devices/{name}/revoke")
def revoke(name: str, plane: PlaneDep) -> dict[str, str]:
    """End a device's identity at once, and its session with the broker."""
    return {"device": name, "done": revocation.revoke(plane, name)}


@router.post("/v1/devices/{name}/decommission")
def decommission(name: str, body: DecommissionBody, plane: PlaneDep) -> dict[str, str]:
    """Order a device to wipe itself."""
    return {"device": name, "done": revocation.decommission(plane, name, now=body.now)}


@router.get("/v1/windows")
def get_windows(
    session: SessionDep,
    device: Annotated[str, Query(max_length=63)] = "",
    model: Annotated[str, Query(max_length=63)] = "",
    version: Number | None = None,
    after: Annotated[int, Query(ge=-1, le=(1 << 63) - 1)] = -1,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> list[dict[str, Any]]:
    """Return merged windows in the order of merging, without their tables; `after` is the id of the last one seen."""
    artifacts = artifact_names(session)
    query = select(*_SHOWN).where(Window.id > after).order_by(Window.id).limit(limit)
    if device:
        query = query.where(Window.device == device)
    if model or version is not None:
        wanted = [manifest for manifest, (m, v) in artifacts.items() if m == (model or m) and version in (None, v)]
        query = query.where(Window.manifest.in_(wanted))
    rows = (row._asdict() for row in session.execute(query))
    return [{**row, **named(artifacts.get(row["manifest"]))} for row in rows]


@router.get("/v1/outbox")
def get_outbox(session: SessionDep) -> list[dict[str, Any]]:
    """Return by device and epoch what was merged, what came again, in conflict, and what the device gave up."""
    windows = {
        (device, epoch): count
        for device, epoch, count in session.execute(
            select(Window.device, Window.epoch, func.count()).group_by(Window.device, Window.epoch)
        )
    }
    gaps = {
        (device, epoch): count
        for device, epoch, count in session.execute(
            select(Gap.device, Gap.epoch, func.sum(Gap.count)).group_by(Gap.device, Gap.epoch)
        )
    }
    kept = samples.counts(session)
    marks = session.scalars(select(OutboxMark).order_by(OutboxMark.device, OutboxMark.first_seen))
    return [
        {
            "device": mark.device,
            "epoch": mark.epoch,
            "up_to": mark.up_to,
            "beyond": len(mark.beyond),
            "merged": mark.merged,
            "repeated": mark.repeated,
            "conflicts": mark.conflicts,
            "windows": windows.get((mark.device, mark.epoch), 0),
            "gaps": gaps.get((mark.device, mark.epoch), 0),
            "samples": kept.get((mark.device, mark.epoch), (0, 0))[0],
            "quarantined": kept.get((mark.device, mark.epoch), (0, 0))[1],
            "samples_deleted": mark.samples_deleted,
            "first_seen": mark.first_seen.isoformat(),
            "heard_at": mark.heard_at.isoformat() if mark.heard_at else None,
        }
        for mark in marks
    ]


_SHOWN = (
    Window.id,
    Window.device,
    Window.epoch,
    Window.sequence,
    Window.manifest,
    Window.number,
    Window.start,
    Window.end,
    Window.rows,
    Window.labelled,
    Window.correct,
    Window.latency_p50_us,
    Window.latency_p99_us,
)


def artifact_names(session: Session) -> dict[str, tuple[str, int]]:
    """Return model and version by the manifests' names in windows and samples."""
    builds = session.scalars(select(Build).where(Build.manifest != ""))
    return {
        manifest[:16]: (build.model, build.version)
        for build in builds
        for manifest in (build.manifest, build.second)
        if manifest
    }


def named(artifact: tuple[str, int] | None) -> dict[str, Any]:
    """Return model and version as JSON; empty where they are not known."""
    return {"model": artifact[0] if artifact else "", "version": artifact[1] if artifact else 0}


def _device_tree(device: Device) -> dict[str, Any]:
    return {
        "name": device.name,
        "profile": device.profile,
        "group": device.group,
        "state": device.state,
        "online": device.online,
        "last_seen": device.last_seen.isoformat() if device.last_seen else None,
        "enrolled_at": device.enrolled_at.isoformat(),
        "certificate_expires": device.certificate_expires.isoformat(),
        "assign_counter": device.assign_counter,
        "reported": device.reported,
    }
