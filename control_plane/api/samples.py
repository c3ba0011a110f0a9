"""Endpoints of samples: what a device was allowed to send, without and with its content, and its deletion."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from control_plane import sample_retention, samples
from control_plane.api.context import Number, PlaneDep, SessionDep
from control_plane.api.devices import artifact_names, named
from control_plane.api.operator import operator_name, require_operator
from control_plane.refusals import Unknown
from control_plane.schema.devices import Device
from skerry.errors import Rejected

router = APIRouter(tags=["samples"], dependencies=[Depends(require_operator)])
After = Annotated[int, Query(ge=-1, le=(1 << 63) - 1)]
MOST_NUMBERS = 1000


class DeleteBody(BaseModel):
    """Which samples of a device: those of these numbers, or all."""

    model_config = ConfigDict(extra="forbid")
    numbers: list[Number] = Field(default_factory=list, max_length=MOST_NUMBERS)
    every: bool = False


@router.get("/v1/devices/{name}/samples")
def get_samples(
    name: str,
    plane: PlaneDep,
    request: Request,
    model: Annotated[str, Query(max_length=63)] = "",
    version: Number | None = None,
    after: After = -1,
    limit: Annotated[int, Query(ge=1, le=samples.PAGE_ROWS)] = samples.PAGE_ROWS,
) -> list[dict[str, Any]]:
    """Return the stored samples of a device in the order of storing; `after` is the id of the last one seen.

    Each answer with samples is audited.
    """
    with plane.readers() as session:
        if session.get(Device, name) is None:
            raise Unknown(f"device: expected one that is enrolled, got {name!r:.80}")
        artifacts = artifact_names(session)
    wanted = [manifest for manifest, (m, v) in artifacts.items() if m == (model or m) and version in (None, v)]
    rows = samples.page(plane, name, manifests=wanted, after=after, limit=limit, by=operator_name(request))
    return [{**row, **named(artifacts.get(row["manifest"]))} for row in rows]


@router.get("/v1/devices/{name}/samples/list")
def list_samples(
    name: str,
    plane: PlaneDep,
    session: SessionDep,
    after: After = -1,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> dict[str, Any]:
    """Return what is known of a device's samples without their content, how many there are, and how long they stay."""
    if session.get(Device, name) is None:
        raise Unknown(f"device: expected one that is enrolled, got {name!r:.80}")
    artifacts = artifact_names(session)
    settings = plane.settings
    limits = {key: getattr(settings, key) for key in ("sample_days", "sample_device_mb", "sample_fleet_mb")}
    rows = samples.listed(session, name, after=after, limit=limit)
    shown = [{**row, **named(artifacts.get(row["manifest"]))} for row in rows]
    return {"device": name, **samples.account(session, name), **limits, "samples": shown}


@router.post("/v1/devices/{name}/samples/delete")
def delete_samples(name: str, body: DeleteBody, plane: PlaneDep, request: Request) -> dict[str, Any]:
    """Delete samples of a device for good, and the notes on those that were quarantined.

    Of every one, the oldest 1000 go: ask again while there are some `left`.
    """
    if body.every == bool(body.numbers):
        raise Rejected(
            "samples: expected numbers of samples, or every = true, got " + ("both" if body.every else "none")
        )
    gone = sample_retention.erase(plane, name, body.numbers, by=operator_name(request))
    with plane.readers() as session:
        account = samples.account(session, name)
    return {"device": name, **asdict(gone), "left": account["stored"] + account["quarantined"]}
