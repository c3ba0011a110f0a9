"""Endpoints of enrolment: operators invite, devices claim."""

from typing import Annotated, Any

from fastapi import APIRouter, Body
from pydantic import BaseModel

from control_plane import enrolment
from control_plane.api.context import Operator, PlaneDep, SessionDep
from skerry.wire.codec import from_tree
from skerry.wire.messages import Enrolled, EnrolRequest

router = APIRouter(tags=["enrolment"])


class InvitationBody(BaseModel):
    """Who may join."""

    profile: str
    name: str = ""
    group: str = "default"
    uses: int = 1
    ttl_s: int = 86400


@router.post("/v1/devices/invite")
def invite(body: InvitationBody, plane: PlaneDep, session: SessionDep, _: Operator) -> dict[str, str]:
    """Make a join string."""
    join, expires = enrolment.invite(plane, session, enrolment.Invitation(**body.model_dump()))
    return {"join": str(join), "expires": expires.isoformat()}


@router.post("/v1/enrol")
def enrol(request: Annotated[dict[str, Any], Body()], plane: PlaneDep, session: SessionDep) -> Enrolled:
    """Take a claim; the token in it is the authentication."""
    return enrolment.claim(plane, session, from_tree(EnrolRequest, request))
