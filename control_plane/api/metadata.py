"""Endpoints of TUF metadata over HTTPS, by the names that TUF's clients ask for.

The image repository is public: what it says is signed, and the same for everybody. A device's part of the director is
for that device alone. What is served here is what the broker retains; a client verifies both in the same way.
"""

import re
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from control_plane import director, image_repository
from control_plane.api.context import SessionDep
from control_plane.api.proof import device_of
from control_plane.refusals import Forbidden, Unknown

router = APIRouter(tags=["metadata"])

_IMAGE = re.compile(r"(timestamp|\d{1,9}\.(?:root|snapshot|targets|automatic-[a-z0-9-]{1,63}))\.json")
_DIRECTOR = re.compile(r"(timestamp|\d{1,9}\.(?:root|snapshot|targets))\.json")
# a timestamp is what says that something is new; the rest has a version in its name, but may get further signatures
_FRESH = {"Cache-Control": "no-cache"}
_SHORT = {"Cache-Control": "public, max-age=60"}


@router.get("/v1/tuf/image/{name}")
def get_image(name: str, session: SessionDep) -> Response:
    """Return a metadata file of the image repository, such as `2.root.json`; no authentication."""
    known = _IMAGE.fullmatch(name)
    if known is None:
        raise Unknown(f"metadata: expected a name such as timestamp.json or 2.root.json, got {name!r:.80}")
    body = image_repository.file(session, known[1])
    return Response(body, media_type="application/json", headers=_FRESH if known[1] == "timestamp" else _SHORT)


@router.get("/v1/tuf/director/{device}/{name}")
def get_director(device: str, name: str, session: SessionDep, asker: Annotated[str, Depends(device_of)]) -> Response:
    """Return a metadata file of a device's assignment, such as `timestamp.json`, to that device."""
    if asker != device:
        raise Forbidden(f"metadata: expected to be asked for {asker}, whose token it is, got {device!r:.80}")
    known = _DIRECTOR.fullmatch(name)
    if known is None:
        raise Unknown(f"metadata: expected a name such as timestamp.json or 2.root.json, got {name!r:.80}")
    body = director.file(session, device, known[1])
    return Response(body, media_type="application/json", headers={"Cache-Control": "private, no-cache"})
