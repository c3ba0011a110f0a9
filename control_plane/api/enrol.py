"""Endpoints of enrolment: operators invite, devices claim."""

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict

from control_plane import enrolment
from control_plane.api.context import Operator, PlaneDep, SessionDep, read_body
from skerry.wire import codec
from skerry.wire.messages import Enrolled, EnrolRequest

router = APIRouter(tags=["enrolment"])


class InvitationBody(BaseModel):
    """Who may join."""

    model_config = ConfigDict(extra="forbid")
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
def enrol(body: Annotated[bytes, Depends(read_body)], plane: PlaneDep, session: SessionDep) -> Enrolled:
    """Take a claim; the token in it is the authentication."""
    return enrolment.claim(plane, session, codec.decode(EnrolRequest, body))
