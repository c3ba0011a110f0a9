"""Endpoints of enrolment: operators invite, devices claim, operators accept what waits; and the rules of groups."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, BackgroundTasks, Depends
from pydantic import BaseModel, ConfigDict

from control_plane import enrolment, groups, pending, revocation
from control_plane.api.context import Operator, PlaneDep, SessionDep, read_body
from control_plane.schema.devices import DeviceGroup
from skerry.wire import codec
from skerry.wire.enrolment import Enrolled, EnrolRequest, TicketRequest

router = APIRouter(tags=["enrolment"])
Body = Annotated[bytes, Depends(read_body)]


class InvitationBody(BaseModel):
    """Who may join."""

    model_config = ConfigDict(extra="forbid")
    profile: str
    name: str = ""
    group: str = "default"
    uses: int = 1
    ttl_s: int = 86400
    approve: Literal["", "automatic", "pending"] = ""


class GroupBody(BaseModel):
    """The rules of a group that are to change."""

    model_config = ConfigDict(extra="forbid")
    approve: Literal["automatic", "pending"] | None = None
    refuse_automatic: bool | None = None


@router.post("/v1/devices/invite")
def invite(body: InvitationBody, plane: PlaneDep, session: SessionDep, _: Operator) -> dict[str, str]:
    """Make a join string."""
    join, expires = enrolment.invite(plane, session, enrolment.Invitation(**body.model_dump()))
    return {"join": str(join), "expires": expires.isoformat()}


@router.post("/v1/enrol")
def enrol(body: Body, plane: PlaneDep, later: BackgroundTasks) -> Enrolled:
    """Take a claim; the token in it is the authentication."""
    began = plane.clock()
    with plane.sessions.begin() as session:
        enrolled = enrolment.claim(plane, session, codec.decode(EnrolRequest, body))
    # a device that is invited again: its earlier certificates end, which a broker may take seconds to be told
    later.add_task(revocation.spread, plane, enrolled.device, since=began)
    return enrolled


@router.post("/v1/enrol/ticket")
def collect(body: Body, plane: PlaneDep, session: SessionDep) -> Enrolled:
    """Answer a device that asks again; its ticket is the authentication."""
    return pending.collect(plane, session, codec.decode(TicketRequest, body))


@router.get("/v1/claims")
def get_claims(plane: PlaneDep, session: SessionDep, _: Operator) -> list[dict[str, str]]:
    """Return the claims that wait for an operator."""
    return [
        {
            "device": claim.device,
            "profile": claim.profile,
            "group": claim.group,
            "asked_at": claim.asked_at.isoformat(),
            "expires": claim.expires.isoformat(),
        }
        for claim in pending.listed(session, now=plane.clock())
    ]


@router.post("/v1/claims/{name}/accept")
def accept(name: str, plane: PlaneDep, later: BackgroundTasks, _: Operator) -> dict[str, str]:
    """Enrol a device that waits."""
    began = plane.clock()
    with plane.sessions.begin() as session:
        device = pending.accept(plane, session, name)
        answer = {"device": device.name, "state": device.state, "expires": device.certificate_expires.isoformat()}
    later.add_task(revocation.spread, plane, name, since=began)
    return answer


@router.post("/v1/claims/{name}/reject")
def reject(name: str, plane: PlaneDep, session: SessionDep, _: Operator) -> dict[str, str]:
    """Turn a device that waits away."""
    pending.reject(plane, session, name)
    return {"device": name, "state": "rejected"}


@router.get("/v1/groups")
def get_groups(session: SessionDep, _: Operator) -> list[dict[str, Any]]:
    """Return the groups that have a rule or a device."""
    return [{**_group_tree(group), "devices": count} for group, count in groups.listed(session)]


@router.put("/v1/groups/{name}")
def put_group(name: str, body: GroupBody, session: SessionDep, _: Operator) -> dict[str, Any]:
    """Set the rules of a group that are given."""
    group = groups.set_rule(session, name, approve=body.approve, refuse_automatic=body.refuse_automatic)
    return _group_tree(group)


def _group_tree(group: DeviceGroup) -> dict[str, Any]:
    return {"name": group.name, "approve": group.approve, "refuse_automatic": group.refuse_automatic}
