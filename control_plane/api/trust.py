"""Endpoints of trust: the anchor, the online keys, the ceremony, the state of the metadata."""

import hashlib
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, Field

from control_plane import ceremony, director, image_repository, publisher
from control_plane.api.context import Operator, PlaneDep, SessionDep
from control_plane.keys import describe_online
from control_plane.refusals import Unknown
from control_plane.tuf_rows import MAX_METADATA_BYTES

router = APIRouter(tags=["trust"])


class Founding(BaseModel):
    """The offline-signed metadata of the key ceremony, as JSON text."""

    image_root: str = Field(max_length=MAX_METADATA_BYTES)
    director_root: str = Field(max_length=MAX_METADATA_BYTES)
    targets: str = Field(max_length=MAX_METADATA_BYTES)


@router.get("/v1/anchor")
def get_anchor(plane: PlaneDep) -> Response:
    """Return what join strings pin, byte for byte; no authentication: its reader checks the hash."""
    try:
        body = plane.home.anchor.read_bytes()
    except FileNotFoundError as error:
        raise Unknown("anchor: expected the key ceremony first, got none; hold it: skerry keys init") from error
    return Response(body, media_type="application/json")


@router.get("/v1/trust/online-keys")
def get_online_keys(plane: PlaneDep, _: Operator) -> dict[str, Any]:
    """Return the public parts of the server's keys, for the roots."""
    return describe_online(plane.signers, plane.settings.project)


@router.post("/v1/trust/init")
def init_trust(founding: Founding, plane: PlaneDep, session: SessionDep, _: Operator) -> dict[str, str]:
    """Take the ceremony's result: found both repositories, and write the anchor."""
    anchor = ceremony.take(
        plane,
        session,
        image_root=founding.image_root,
        director_root=founding.director_root,
        targets=founding.targets,
    )
    session.commit()
    publisher.publish_metadata(plane)
    return {"anchor_sha256": hashlib.sha256(anchor).hexdigest()}


@router.get("/v1/trust")
def get_trust(plane: PlaneDep, session: SessionDep, _: Operator) -> dict[str, Any]:
    """Return version and expiry of each role, and the anchor's hash."""
    anchor = hashlib.sha256(plane.home.anchor.read_bytes()).hexdigest() if plane.home.anchor.exists() else ""
    return {"anchor_sha256": anchor, "roles": image_repository.status(session) + director.status(session)}
