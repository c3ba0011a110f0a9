"""Gives devices components and takes them away: what an operator decides; `components` knows what follows."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from control_plane import director, events
from control_plane.builds import find_build
from control_plane.components import TOO_OLD, is_too_old, running
from control_plane.plane import Plane
from control_plane.refusals import Conflict, Unknown
from control_plane.schema.devices import Device, DeviceComponent
from control_plane.schema.models import ModelVersion
from control_plane.schema.releases import Deployment
from skerry.errors import Rejected
from skerry.wire.messages import AGENT, MAX_COMPONENTS, Assign
from skerry.wire.topics import check_name

_UNDER_WAY = Deployment.state.not_in(("left-out", "committed", "failed"))


def add(plane: Plane, session: Session, device: str, model: str) -> DeviceComponent:
    """Give a device a component for a model, beside what it runs.

    Raises:
        Unknown: there is no such device, or no version of the model.
        Conflict: the device is not enrolled, has it already, has as many as it can, runs the model as its one model, or
            its agent is too old.
        Rejected: the model is `agent`.
    """
    row = _device(session, device)
    if check_name(model, "component") == AGENT:
        raise Rejected(f"component {AGENT}: expected a model's name, got the agent itself, which every device has")
    if session.scalar(select(ModelVersion.model).where(ModelVersion.model == model).limit(1)) is None:
        raise Unknown(f"component: expected a model of `skerry model list`, got {model!r}")
    if session.get(DeviceComponent, (device, model)) is not None:
        raise Conflict(f"{device}: expected no component {model} yet, got one")
    if is_too_old(row, model):
        raise Conflict(f"{device}: expected an agent that has said that it runs several models, got none; {TOO_OLD}")
    count = session.scalar(select(func.count()).where(DeviceComponent.device == device, DeviceComponent.name != AGENT))
    # the unnamed one and the agent are always there
    if (count or 0) + 2 >= MAX_COMPONENTS:
        raise Conflict(f"{device}: expected at most {MAX_COMPONENTS} components, got one more; remove another first")
    if model in _models(session, row):
        raise Conflict(
            f"{device}: expected a model beside its own, got the one that it runs as its own; roll out another there"
        )
    made = DeviceComponent(device=device, name=model, added_at=plane.clock())
    session.add(made)
    events.record(session, "component", device, f"{device} gets a component for {model}", component=model)
    session.flush()
    return made


def remove(plane: Plane, session: Session, device: str, name: str) -> Assign | None:
    """Take a component away; the device stops and forgets it when it hears the assignment that is returned.

    None when it was never assigned anything. Publish the assignment after the commit. Raises `Unknown`.
    """
    _device(session, device)
    row = session.get(DeviceComponent, (device, name))
    if row is None or name == AGENT:
        raise Unknown(f"{device}: expected one of the components that were added, got {name!r:.80}")
    under_way = select(Deployment).where(Deployment.device == device, Deployment.component == name, _UNDER_WAY)
    for deployment in session.scalars(under_way):
        deployment.state = "left-out" if deployment.state == "waiting" else "failed"
        deployment.reason, deployment.ended_at = "the component was removed", plane.clock()
    session.delete(row)
    events.record(session, "component", device, f"{device} loses its component for {name}", component=name)
    return director.unassign(plane, session, device, name)


def _models(session: Session, device: Device) -> set[str]:
    """The models that the unnamed component runs or is assigned."""
    build = find_build(session, running(session, device, ""))
    assigned = director.assignments(session, device.name).get("")
    paths = [assigned[1].path.split("/")] if assigned else []
    return {path[1] for path in paths if len(path) > 1} | ({build.model} if build is not None else set())


def _device(session: Session, name: str) -> Device:
    row = session.get(Device, name, with_for_update=True)
    if row is None:
        raise Unknown(f"device: expected one that is enrolled, got {name!r:.80}")
    if row.state != "enrolled":
        raise Conflict(f"{name}: expected an enrolled device, got one that is {row.state}")
    return row
