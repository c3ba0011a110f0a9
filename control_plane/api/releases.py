"""Endpoints of releases: stage, revoke, fetch what is to be signed, hand in signatures; and what publishing cost."""

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from control_plane import bill, policies, provenance, publisher, releases, sample_policies
from control_plane.api.context import Number, PlaneDep, SessionDep
from control_plane.api.operator import require_operator
from control_plane.plane import Plane
from control_plane.schema.delivery import Publication
from control_plane.schema.models import Build
from control_plane.schema.releases import Release
from skerry.errors import Rejected
from skerry.wire.manifest import SamplePolicy

router = APIRouter(tags=["releases"], dependencies=[Depends(require_operator)])


class Staging(BaseModel):
    """The model version to release."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(max_length=63)
    version: Number


class Policy(BaseModel):
    """Who signs the releases of a model: the offline keys, or an online key that they granted."""

    model_config = ConfigDict(extra="forbid")
    policy: Literal["manual", "automatic"]


class Samples(BaseModel):
    """Which inputs of a model may leave the devices that run it; all of it left out stands for none."""

    model_config = ConfigDict(extra="forbid")
    rows_per_window: Number = 0
    inputs: list[Annotated[str, Field(max_length=200)]] = Field(default=[], max_length=64)
    max_bytes: Number = 0


class OfflineSignature(BaseModel):
    """A signature of the payload, as securesystemslib writes it."""

    model_config = ConfigDict(extra="forbid")
    keyid: str = Field(max_length=200)
    sig: str = Field(max_length=8192)


@router.post("/v1/releases")
def stage(staging: Staging, plane: PlaneDep, session: SessionDep) -> dict[str, Any]:
    """Stage the passed builds of a model version; with the policy `automatic` they are live at once."""
    release = releases.stage(plane, session, model=staging.model, version=staging.version)
    session.commit()
    if release.state == "live":
        publisher.announce_release(plane, release.name)
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
    return Response(releases.payload(session, name), media_type="application/octet-stream")


@router.get("/v1/releases/{name}/approval")
def get_approval(name: str, plane: PlaneDep, session: SessionDep) -> dict[str, Any]:
    """Return all that somebody without a network needs to see what waits for signatures, and to sign it."""
    return asdict(releases.approval_of(plane, session, name))


@router.post("/v1/releases/{name}/signatures")
def add_signature(name: str, signature: OfflineSignature, plane: PlaneDep, session: SessionDep) -> dict[str, Any]:
    """Take one offline signature; the one that meets the threshold makes the release live, or revokes it."""
    before = releases.get(session, name).state
    release = releases.add_signature(plane, session, name, keyid=signature.keyid, sig=signature.sig)
    session.commit()
    _announce(plane, release, before)
    return _release_tree(session, release)


@router.post("/v1/releases/{name}/revoke")
def revoke(name: str, plane: PlaneDep, session: SessionDep) -> dict[str, Any]:
    """Stage the revocation of a release; what no offline key has signed is revoked at once."""
    before = releases.get(session, name).state
    release = releases.revoke(plane, session, name)
    session.commit()
    _announce(plane, release, before)
    return _release_tree(session, release)


@router.get("/v1/releases/{name}/documents/{profile}/{kind}")
def get_document(
    name: str, profile: str, kind: Literal["bom", "provenance"], plane: PlaneDep, session: SessionDep
) -> Response:
    """Return the bill of materials (CycloneDX) or the provenance (in-toto) of a build, byte for byte as signed."""
    file = bill.FILE if kind == "bom" else provenance.FILE
    body = releases.document(plane, session, name, profile=profile, file=file)
    return Response(body, media_type="application/json")


@router.get("/v1/models/{model}/policy")
def get_policy(model: str, session: SessionDep) -> dict[str, Any]:
    """Return who signs the releases of a model."""
    return {"model": model, "policy": policies.policy(session, model)}


@router.put("/v1/models/{model}/policy")
def set_policy(model: str, body: Policy, session: SessionDep) -> dict[str, Any]:
    """Set who signs the releases of a model from now on."""
    policies.set_policy(session, model, policy=body.policy)
    return {"model": model, "policy": body.policy}


@router.get("/v1/models/{model}/samples")
def get_samples(model: str, session: SessionDep) -> dict[str, Any]:
    """Return which inputs of a model its next release lets leave devices."""
    return {"model": model, **asdict(sample_policies.policy(session, model))}


@router.put("/v1/models/{model}/samples")
def set_samples(model: str, body: Samples, session: SessionDep) -> dict[str, Any]:
    """Set which inputs of a model may leave devices, from its next release on; the offline keys sign that."""
    try:
        wanted = SamplePolicy(body.rows_per_window, tuple(body.inputs), body.max_bytes)
    except ValueError as error:
        raise Rejected(f"samples of {model}: {error}") from error
    return {"model": model, **asdict(sample_policies.set_policy(session, model, wanted))}


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


def _announce(plane: Plane, release: Release, before: str) -> None:
    if release.state == before:
        return
    if release.state == "live":
        publisher.announce_release(plane, release.name)
    elif release.state == "revoked":
        publisher.announce_revocation(plane)


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
        "role": release.role,
        "waits": releases.waits_as(session, release),
        "profiles": list(session.scalars(passed.order_by(Build.profile))),
        "choices": release.choices,
        "samples": sample_policies.of_release(session, release),
        "signatures": signed,
        "threshold": threshold,
        "created_at": release.created_at.isoformat(),
        "live_at": release.live_at.isoformat() if release.live_at else None,
        "revoked_at": release.revoked_at.isoformat() if release.revoked_at else None,
    }
