"""Endpoints of releases: stage, fetch what is to be signed, hand in signatures; and what publishing has cost."""

from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from control_plane import publisher, releases
from control_plane.api.context import Number, PlaneDep, SessionDep
from control_plane.api.operator import require_operator
from control_plane.schema import Build, Publication, Release

router = APIRouter(tags=["releases"], dependencies=[Depends(require_operator)])


class Staging(BaseModel):
    """The model version to release."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(max_length=63)
    version: Number


class OfflineSignature(BaseModel):
    """A signature of the payload, as securesystemslib writes it."""

    model_config = ConfigDict(extra="forbid")
    keyid: str = Field(max_length=200)
    sig: str = Field(max_length=8192)


@router.post("/v1/releases")
def stage(staging: Staging, plane: PlaneDep, session: SessionDep) -> dict[str, Any]:
    """Stage the passed builds of a model version."""
    release = releases.stage(plane, session, model=staging.model, version=staging.version)
    session.flush()
    return _release_tree(session, release)


@router.get("/v1/releases")
def get_releases(session: SessionDep) -> list[dict[str, Any]]:
    """Return all releases, oldest first."""
    return [_release_tree(session, row) for row in session.scalars(select(Release).order_by(Release.created_at))]


@router.get("/v1/releases/{name}")
def get_release(name: str, session: SessionDep) -> dict[str, Any]:
    """Return one release."""
    return _release_tree(session, releases.get(session, name))


@router.get("/v1/releases/{name}/payload")
def get_payload(name: str, session: SessionDep) -> Response:
    """Return the bytes to sign: the canonical form of the next targets metadata."""
    return Response(releases.get(session, name).payload, media_type="application/octet-stream")


@router.post("/v1/releases/{name}/signatures")
def add_signature(name: str, signature: OfflineSignature, plane: PlaneDep, session: SessionDep) -> dict[str, Any]:
    """Take one offline signature; the one that meets the threshold makes the release live and publishes it."""
    before = releases.get(session, name).state
    release = releases.add_signature(plane, session, name, keyid=signature.keyid, sig=signature.sig)
    session.commit()
    if before != release.state == "live":
        publisher.announce_release(plane, name)
    return _release_tree(session, release)


@router.get("/v1/publications")
def get_publications(session: SessionDep) -> list[dict[str, Any]]:
    """Return by release what was published to the broker: files, their bytes, and all bytes ever sent for them."""
    sums = select(
        Publication.release, func.count(), func.sum(Publication.length), func.sum(Publication.bytes_sent)
    ).group_by(Publication.release)
    return [
        {"release": release, "files": files, "length": length, "bytes_sent": sent}
        for release, files, length, sent in session.execute(sums.order_by(Publication.release))
    ]


def _release_tree(session: Session, release: Release) -> dict[str, Any]:
    signed, threshold = releases.signatures(session, release.name)
    passed = select(Build.profile).where(
        Build.model == release.model, Build.version == release.version, Build.gate == "passed"
    )
    return {
        "name": release.name,
        "model": release.model,
        "version": release.version,
        "state": release.state,
        "profiles": list(session.scalars(passed.order_by(Build.profile))),
        "choices": release.choices,
        "signatures": signed,
        "threshold": threshold,
        "created_at": release.created_at.isoformat(),
        "live_at": release.live_at.isoformat() if release.live_at else None,
    }
