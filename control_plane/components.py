"""Owns the rows of devices' components: which models run beside the one that each device has, what each reported last.

A device has one unnamed component, which runs whatever it is assigned, as ever. A further one is added by an operator
and is named like its model; from then on the releases of that model go to it, by rollouts as well as by replacements of
revoked ones, and all others still go to the unnamed one. The agent itself is the component `agent`, on every device.
Adding and removing is `component_changes`.
"""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.orm import Session

from control_plane import events
from control_plane.schema.devices import Device, DeviceComponent
from control_plane.schema.releases import Deployment, Release
from skerry.wire import messages
from skerry.wire.messages import AGENT

TOO_OLD = "its agent knows of one model alone: update that first"


def of_device(session: Session, device: str) -> list[DeviceComponent]:
    """Return the named components of a device, by name."""
    rows = select(DeviceComponent).where(DeviceComponent.device == device).order_by(DeviceComponent.name)
    return list(session.scalars(rows))


def named(session: Session) -> frozenset[tuple[str, str]]:
    """Return the named components of all devices, as pairs of a device and a name."""
    rows = session.execute(select(DeviceComponent.device, DeviceComponent.name))
    return frozenset((device, name) for device, name in rows)


def component_for(session: Session, device: str, model: str) -> str:
    """Return the component of a device that the releases of a model go to: empty for the unnamed one."""
    return model if model == AGENT or session.get(DeviceComponent, (device, model)) is not None else ""


def beside(session: Session, model: str) -> frozenset[str]:
    """Return the devices that have a component for a model: all of them for the agent."""
    rows = select(DeviceComponent.device).where(DeviceComponent.name == model)
    return frozenset(session.scalars(select(Device.name) if model == AGENT else rows))


def was_beside_alone(session: Session, device: str, model: str) -> bool:
    """Say whether all that a device was ever assigned of a model was for a named component."""
    rows = (
        select(Deployment.component)
        .join(Release, Release.name == Deployment.release)
        .where(Deployment.device == device, Release.model == model)
    )
    found = set(session.scalars(rows))
    return bool(found) and "" not in found


def is_too_old(device: Device, component: str) -> bool:
    """Say whether a device's agent knows of one model alone, as far as it has said.

    One that was never heard of is installed from files by whoever added the component, and taken to know several.
    """
    return device.reported.get("components") is None and (component == AGENT or bool(device.reported))


def running(session: Session, device: Device, component: str) -> str:
    """Return the SHA-256 of the manifest that a component last said it has committed; empty for none."""
    if not component:
        return str(device.reported.get("manifest", ""))
    row = session.get(DeviceComponent, (device.name, component))
    return row.manifest if row is not None else ""


def reporting(*more: Any) -> tuple[tuple[ColumnElement[Any], Select[Any]], ...]:
    """Return, for unnamed and for named components, the manifest's column and a query of (manifest, `more`).

    Both queries know the columns of `Device`.
    """
    unnamed = Device.reported["manifest"].as_string()
    named = DeviceComponent.manifest
    return (
        (unnamed, select(unnamed, *more).select_from(Device)),
        (
            named.expression,
            select(named, *more).select_from(DeviceComponent).join(Device, Device.name == DeviceComponent.device),
        ),
    )


def take(session: Session, device: Device, reported: Mapping[str, messages.Component], *, now: datetime) -> None:
    """Keep what a device said of its named components; one that was removed meanwhile is not brought back by it."""
    for name, said in reported.items():
        row = session.get(DeviceComponent, (device.name, name))
        if row is None and name == AGENT:
            row = DeviceComponent(device=device.name, name=AGENT, added_at=now)
            session.add(row)
        if row is None:
            continue
        if said.last_error and said.last_error != row.reported.get("last_error"):
            text = f"{device.name}, {name}: {said.last_error[:300]}"
            events.record(session, "device", device.name, text, error=True, component=name)
        row.manifest, row.reported = said.manifest[:64], asdict(said)


def tree(row: DeviceComponent) -> dict[str, Any]:
    """Return a component as JSON for the API."""
    return {"name": row.name, "manifest": row.manifest, "added_at": row.added_at.isoformat(), "reported": row.reported}
