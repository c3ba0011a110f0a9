"""Endpoint of offline bundles: a release for one device, as a file."""

import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from fastapi import APIRouter, Depends
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from control_plane import offline_bundle
from control_plane.api.context import PlaneDep
from control_plane.api.operator import require_operator

router = APIRouter(tags=["bundles"], dependencies=[Depends(require_operator)])
_PIECE_BYTES = 1 << 20


class BundleBody(BaseModel):
    """Which release for which device; `request` is the text of a file of `skerry-agent request`."""

    model_config = ConfigDict(extra="forbid")
    device: str = Field(max_length=63)
    release: str = Field(max_length=63)
    request: str = Field(default="", max_length=64 * 1024)
    days: int = 14


@router.post("/v1/bundles")
def create(body: BundleBody, plane: PlaneDep) -> StreamingResponse:
    """Assign the release to the device, and answer with the bundle that installs it."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 -- closed when the answer has been sent
    try:
        offline_bundle.create(
            plane, file, device=body.device, release=body.release, request=body.request.encode(), days=body.days
        )
    except BaseException:  # whatever ends the making, also an interrupt, must not leave the file open
        file.close()
        raise
    length = file.tell()
    headers = {"Content-Length": str(length)}
    return StreamingResponse(_pieces(file), media_type="application/zip", headers=headers)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
        file.seek(0)
        while piece := file.read(_PIECE_BYTES):
            yield piece
