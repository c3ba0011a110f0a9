"""The endpoint of the revocation list, for brokers that fetch it; it is signed, and public."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import Response

from control_plane import crl
from control_plane.api.context import PlaneDep
from control_plane.refusals import Unknown

router = APIRouter(tags=["revocation"])


@router.get("/v1/crl")
def get_crl(plane: PlaneDep) -> Response:
    """Return the list as PEM, as it is in the broker's folder; no authentication."""
    if not plane.settings.broker_folder:
        raise Unknown("crl: expected a broker that `skerry broker config` has set up, got none")
    body = (Path(plane.settings.broker_folder) / crl.FILE).read_bytes()
    return Response(body, media_type="application/x-pem-file", headers={"Cache-Control": "no-cache"})
