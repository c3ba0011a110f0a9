"""What endpoints ask for: the plane, a session for the request, and proof that an operator is asking."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Request
from pydantic import Field
from sqlalchemy.orm import Session

from control_plane.api.operator import require_operator
from control_plane.plane import Plane

# what a column can hold: a larger number would only fail in the database's driver
Number = Annotated[int, Field(ge=0, le=(1 << 63) - 1)]


def get_plane(request: Request) -> Plane:
    """Return the plane that the application was made with."""
    plane: Plane = request.app.state.plane
    return plane


PlaneDep = Annotated[Plane, Depends(get_plane)]


def get_session(request: Request, plane: PlaneDep) -> Iterator[Session]:
    """Open the request's session: reading for GET, writing (and committed when the endpoint returns) for the rest."""
    maker = plane.readers if request.method in ("GET", "HEAD") else plane.sessions
    with maker() as session:
        yield session
        session.commit()


# scope: the commit must come before the answer, or a client reads its own write too early
SessionDep = Annotated[Session, Depends(get_session, scope="function")]

# Operator: `def endpoint(_: Operator)`, or `APIRouter(dependencies=[Depends(require_operator)])` for all of a router.
Operator = Annotated[None, Depends(require_operator)]


async def read_body(request: Request) -> bytes:
    """Return the body as it came, for what another parser than the framework's checks."""
    return await request.body()
