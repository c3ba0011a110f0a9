"""Endpoints of data sets: upload a part, list the parts."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy import select

from control_plane import datasets
from control_plane.api.context import PlaneDep, SessionDep, read_body
from control_plane.api.operator import require_operator
from control_plane.events import record
from control_plane.schema.models import DatasetPart
from skerry.errors import Rejected

router = APIRouter(tags=["data"], dependencies=[Depends(require_operator)])


async def read_upload(request: Request) -> bytes:
    """Return the body, refused by its declared length before a byte of it is kept."""
    length = int(request.headers.get("content-length", "0"))
    if length > datasets.MAX_UPLOAD_BYTES:
        limit = datasets.MAX_UPLOAD_BYTES
        raise Rejected(f"data: expected at most {limit} bytes, got {length}; upload it in several parts")
    return await read_body(request)


@router.post("/v1/datasets/{name}/parts")
def add_part(
    name: str,
    plane: PlaneDep,
    session: SessionDep,
    data: Annotated[bytes, Depends(read_upload)],
    role: Annotated[str, Query(max_length=20)] = "train",
) -> dict[str, Any]:
    """Check and keep an npz; the same bytes again are the same part."""
    now = plane.clock()
    part = datasets.add_part(session, plane.blobs, dataset=name, role=role, data=data, now=now)
    if part.added_at == now:
        record(session, "data", name, f"{part.rows} rows to {role} of {name}", sha256=part.sha256, rows=part.rows)
    return _part_tree(part)


@router.get("/v1/datasets")
def list_parts(session: SessionDep) -> list[dict[str, Any]]:
    """Return every part of every data set, oldest first."""
    return [_part_tree(part) for part in session.scalars(select(DatasetPart).order_by(DatasetPart.id))]


def _part_tree(part: DatasetPart) -> dict[str, Any]:
    return {
        "dataset": part.dataset,
        "role": part.role,
        "sha256": part.sha256,
        "rows": part.rows,
        "summary": part.summary,
        "added_at": part.added_at.isoformat(),
    }
