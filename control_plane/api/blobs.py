"""The endpoint of sealed blobs over HTTPS: ranges of what a device is assigned, to that device.

What is served is what the broker would retain: sealed chunks, one after the other, `SEALED_CHUNK_BYTES` each.
The store also holds models in the clear, so a blob is served because the asker's own assignment names it, and for
nothing else. An answer is at most `MAX_RANGE_BYTES`, whatever was asked for: who wants more asks again (RFC 9110,
15.3.7), and no request holds much of the server's memory.
"""

import re
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from control_plane import director
from control_plane.api import problems
from control_plane.api.context import PlaneDep, SessionDep
from control_plane.api.proof import device_of
from control_plane.refusals import Unknown
from skerry.wire.manifest import SEALED_CHUNK_BYTES

router = APIRouter(tags=["blobs"])

MAX_RANGE_BYTES = 16 * SEALED_CHUNK_BYTES
_RANGE = re.compile(r"bytes=(\d{1,12})-(\d{0,12})")


@router.get("/v1/blob/{sha256}")
def get_blob(
    sha256: str,
    request: Request,
    plane: PlaneDep,
    session: SessionDep,
    asker: Annotated[str, Depends(device_of)],
) -> Response:
    """Return a range of a sealed blob of the asker's assignment; without one, as much as one answer holds."""
    if sha256 not in director.blobs_of(session, asker):
        raise Unknown(f"blob: expected one of what {asker} is assigned, got {sha256!r:.80}; fetch the assignment again")
    length = plane.blobs.size(sha256)
    asked = request.headers.get("range", "bytes=0-")
    found = _RANGE.fullmatch(asked)
    first = int(found[1]) if found else length
    last = min(int(found[2]) if found and found[2] else length - 1, length - 1, first + MAX_RANGE_BYTES - 1)
    if first > last:
        line = f"range: expected one range, bytes=FIRST-LAST of {length}, got {asked!r:.80}"
        return problems.problem(416, line, {"Content-Range": f"bytes */{length}"})
    return Response(
        plane.blobs.part(sha256, first, last + 1),
        status_code=206,
        media_type="application/octet-stream",
        headers={
            "Content-Range": f"bytes {first}-{last}/{length}",
            "Accept-Ranges": "bytes",
            "ETag": f'"{sha256}"',
            "Cache-Control": "private, no-store",
        },
    )
