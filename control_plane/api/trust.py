"""Endpoints of trust: the anchor, the ceremony, rotations, grants, and the state of the metadata."""

import hashlib
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter, BackgroundTasks
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from control_plane import ceremony, grants, image_repository, publisher, rotation, staging, trust_status, tuf_rows
from control_plane.api.context import Number, Operator, PlaneDep, SessionDep
from control_plane.online_keys import describe_key, describe_online
from control_plane.plane import Plane
from control_plane.refusals import Unknown
from control_plane.tuf_rows import MAX_METADATA_BYTES

router = APIRouter(tags=["trust"])


class Founding(BaseModel):
    """The offline-signed metadata of the key ceremony, as JSON text."""

    image_root: str = Field(max_length=MAX_METADATA_BYTES)
    director_root: str = Field(max_length=MAX_METADATA_BYTES)
    targets: str = Field(max_length=MAX_METADATA_BYTES)


class NextRoots(BaseModel):
    """The signed next root of one repository, or of both; the published targets where they were signed further."""

    model_config = ConfigDict(extra="forbid")
    image_root: str = Field("", max_length=MAX_METADATA_BYTES)
    director_root: str = Field("", max_length=MAX_METADATA_BYTES)
    targets: str = Field("", max_length=MAX_METADATA_BYTES)


class GrantBody(BaseModel):
    """For how long a model's releases may be signed online."""

    model_config = ConfigDict(extra="forbid")
    days: Number = 30


class StagedSignature(BaseModel):
    """A signature of a staged change, as securesystemslib writes it."""

    model_config = ConfigDict(extra="forbid")
    keyid: str = Field(max_length=200)
    sig: str = Field(max_length=8192)


# what is staged here; releases and their revocations have endpoints of their own
Kind = Literal["grant", "withdrawal", "renewal"]


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
    """Return version, expiry and keys of each role, the online keys, the alarms, and the anchor's hash."""
    anchor = hashlib.sha256(plane.home.anchor.read_bytes()).hexdigest() if plane.home.anchor.exists() else ""
    return {
        "anchor_sha256": anchor,
        "roles": trust_status.roles(session),
        "online_keys": trust_status.online_keys(plane, session),
        "alarms": [asdict(alarm) for alarm in trust_status.alarms(session, plane.clock())],
        "waiting": [{"kind": staged.kind, "name": staged.name} for staged in staging.waiting(session)],
    }


# -- rotation


@router.get("/v1/trust/roots")
def get_roots(plane: PlaneDep, session: SessionDep, _: Operator) -> dict[str, Any]:
    """Return the newest roots and the published targets as JSON text: what a rotation starts from."""
    present = image_repository.index(session)
    return {
        "project": plane.settings.project,
        "image_root": image_repository.file(session, f"{present.root}.root").decode(),
        "director_root": tuf_rows.newest_root_bytes(session, "director").decode(),
        "targets": image_repository.file(session, f"{present.targets}.targets").decode(),
    }


@router.post("/v1/trust/online-keys/{role}")
def make_online_key(role: str, plane: PlaneDep, session: SessionDep, _: Operator) -> dict[str, Any]:
    """Make the key that is to follow for an online role; it signs nothing until a root names it."""
    return describe_key(rotation.make_next(plane, session, role))


@router.post("/v1/trust/root")
def follow_roots(
    roots: NextRoots, plane: PlaneDep, session: SessionDep, tasks: BackgroundTasks, _: Operator
) -> dict[str, Any]:
    """Follow offline-signed roots: what they name signs from now on, and what was signed before is signed anew."""
    followed = rotation.follow(
        plane,
        session,
        image_root=roots.image_root.encode(),
        director_root=roots.director_root.encode(),
        targets=roots.targets.encode(),
    )
    session.commit()
    _publish(plane)
    # after the answer: a large fleet's assignments take longer than an operator waits
    tasks.add_task(publisher.follow_roots, plane)
    return asdict(followed)


# -- grants


@router.post("/v1/trust/grants/{model}")
def grant(model: str, body: GrantBody, plane: PlaneDep, session: SessionDep, _: Operator) -> dict[str, Any]:
    """Stage a grant to sign a model's releases online; return what is to be signed offline."""
    grants.grant(plane, session, model, days=body.days)
    return asdict(staging.approval_of(plane, session, grants.GRANT, model))


@router.delete("/v1/trust/grants/{model}")
def withdraw(model: str, plane: PlaneDep, session: SessionDep, _: Operator) -> dict[str, Any]:
    """Stage the end of a model's grant; return what is to be signed offline."""
    grants.withdraw(plane, session, model)
    return asdict(staging.approval_of(plane, session, grants.WITHDRAWAL, model))


@router.post("/v1/trust/renewal")
def renew_targets(plane: PlaneDep, session: SessionDep, _: Operator) -> dict[str, Any]:
    """Stage the published targets with a new expiry; return what is to be signed offline."""
    grants.renew_targets(plane, session)
    return asdict(staging.approval_of(plane, session, grants.RENEWAL, grants.RENEWED))


@router.get("/v1/trust/staged/{kind}/{name}")
def get_staged(kind: Kind, name: str, plane: PlaneDep, session: SessionDep, _: Operator) -> dict[str, Any]:
    """Return what is to be signed offline."""
    return asdict(staging.approval_of(plane, session, kind, name))


@router.post("/v1/trust/staged/{kind}/{name}/signatures")
def add_signature(
    kind: Kind, name: str, signature: StagedSignature, plane: PlaneDep, session: SessionDep, _: Operator
) -> dict[str, Any]:
    """Take one offline signature of a staged change; the one that meets the threshold publishes it."""
    then = partial(grants.published, kind=kind)
    done = staging.add_signature(plane, session, kind, name, keyid=signature.keyid, sig=signature.sig, then=then)
    signed, threshold = staging.signatures(session, kind, name)
    session.commit()
    if done:
        _publish(plane)
    return {"kind": kind, "name": name, "published": done, "signatures": signed, "threshold": threshold}


def _publish(plane: Plane) -> None:
    rotation.tidy(plane)
    # the end of a grant revokes what was signed under it
    publisher.announce_revocation(plane)
