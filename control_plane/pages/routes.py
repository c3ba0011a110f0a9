"""The pages' routes: the overview, devices, live fragments, static files; under a strict Content-Security-Policy.

`/` is one whole page and works without a script. `static/live.js` follows the event stream and fetches
`/fragments/NAME` again for each part that changed.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy.orm import Session

from control_plane import alarms, fleet_drift, trust_status
from control_plane.api.context import PlaneDep, SessionDep
from control_plane.api.operator import require_operator
from control_plane.pages import charts
from control_plane.pages.build_matrix import build_matrix
from control_plane.pages.device_views import device_page
from control_plane.pages.drift_views import DriftView, drift
from control_plane.pages.rocks import rock
from control_plane.pages.views import RolloutView, fleet, rollouts, timeline
from control_plane.plane import Plane

router = APIRouter(include_in_schema=False)
NAMED = 2

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True)
class _Asset:
    body: bytes
    media_type: str
    version: str


def _asset(name: str, media_type: str) -> _Asset:
    body = resources.files("control_plane.pages").joinpath("static", name).read_bytes()
    return _Asset(body=body, media_type=media_type, version=hashlib.sha256(body).hexdigest()[:12])


_ASSETS = {
    "skerry.css": _asset("skerry.css", "text/css; charset=utf-8"),
    "live.js": _asset("live.js", "text/javascript; charset=utf-8"),
    "icon.svg": _asset("icon.svg", "image/svg+xml"),
}


def wave_bars(rollout: RolloutView) -> list[charts.Bar]:
    """Return the deployments of a rollout that were assigned, as bars in seconds since its start."""
    start = rollout.created_at
    return [
        charts.Bar(
            row=one.device,
            group=f"{wave.name}, wave {wave.number}",
            start=(one.assigned_at - start).total_seconds(),
            end=(one.ended_at - start).total_seconds() if one.ended_at else None,
            tone={"committed": "good", "failed": "alarm"}.get(one.state, "watch" if one.ended_at else "moving"),
        )
        for wave in rollout.waves
        for one in wave.deployments
        if one.assigned_at
    ]


def evidence_rows(view: DriftView) -> list[tuple[str, float, str, str]]:
    """Return the evidence as rows of a chart."""
    return [(one.name, one.log10_e, one.tone, one.note) for one in view.evidence]


_templates = Environment(
    loader=PackageLoader("control_plane.pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.globals.update(
    evidence_bars=charts.evidence_bars,
    sparkline=charts.sparkline,
    evidence_rows=evidence_rows,
    wave_chart=charts.wave_chart,
    wave_bars=wave_bars,
    rock=rock,
    asset=lambda name: f"/static/{name}?v={_ASSETS[name].version}",
)


def badges(plane: Plane, session: Session, now: datetime) -> list[tuple[str, str]]:
    """Return (tone, text) of what an operator must know about this plane; see the architecture, "Trust"."""
    settings = plane.settings
    broker = "embedded, loopback only" if settings.embedded_broker else settings.public_broker_url
    return [
        *_alarm_badge(session, now),
        ("watch" if settings.identity == "none" else "plain", f"identity: {settings.identity}"),
        ("plain", f"broker: {broker}") if plane.outgoing.connected else ("alarm", f"broker: not connected ({broker})"),
    ]


def _alarm_badge(session: Session, now: datetime) -> list[tuple[str, str]]:
    """Return how many alarms stand, and of whom: of the first devices, or of the keys."""
    rows = alarms.listed(session)
    count = len(rows) + len(trust_status.alarms(session, now))
    if not count:
        return []
    names = list(dict.fromkeys(row.device for row in rows))
    whose = [*names[:NAMED], *(["others"] if len(names) > NAMED else []), *(["keys"] if count > len(rows) else [])]
    return [("alarm", f"{count} {'alarm' if count == 1 else 'alarms'}: {', '.join(whose)}")]


_READERS: Mapping[str, Callable[[Plane, Session, datetime], Any]] = {
    "badges": badges,
    "fleet": lambda _plane, session, now: fleet(session, now=now),
    "devices": lambda _plane, session, now: fleet(session, now=now),
    "drift": lambda plane, session, now: drift(session, fleet_drift.view(plane), now=now),
    "rollouts": lambda _plane, session, now: rollouts(session, now=now),
    "builds": lambda _plane, session, _now: build_matrix(session),
    "events": lambda _plane, session, now: timeline(session, now=now),
}


@router.get("/")
def overview(request: Request, plane: PlaneDep, session: SessionDep) -> HTMLResponse:
    """Show everything on one page; without the operator's cookie, say where to get it."""
    if not _is_operator(request):
        return _page("unknown_visitor.html", status=401)
    now = plane.clock()
    parts = {name: read(plane, session, now) for name, read in _READERS.items()}
    return _page("overview.html", parts=parts, now=now, project=plane.settings.project)


@router.get("/fragments/{name}")
def fragment(name: str, request: Request, plane: PlaneDep, session: SessionDep) -> HTMLResponse:
    """Show one part of the overview, as the script swaps it in."""
    if not _is_operator(request):
        return HTMLResponse("open the address that skerry-server run prints", status_code=401, headers=HEADERS)
    if name not in _READERS:
        raise HTTPException(404, f"fragment: expected one of {', '.join(_READERS)}, got {name!r}")
    now = plane.clock()
    return _page(f"_{name}.html", view=_READERS[name](plane, session, now), now=now)


@router.get("/devices/{name}")
def device(name: str, request: Request, plane: PlaneDep, session: SessionDep) -> HTMLResponse:
    """Show one device: how it is, what is in its slots, what was asked of it."""
    if not _is_operator(request):
        return _page("unknown_visitor.html", status=401)
    view = device_page(session, name, now=plane.clock())
    if view is None:
        raise HTTPException(404, f"device: expected one that is enrolled, got {name!r:.80}")
    return _page("device.html", view=view, project=plane.settings.project)


@router.get("/fragments/devices/{name}")
def device_fragment(name: str, request: Request, plane: PlaneDep, session: SessionDep) -> HTMLResponse:
    """Show the part of a device's page that the script swaps in."""
    if not _is_operator(request):
        return HTMLResponse("open the address that skerry-server run prints", status_code=401, headers=HEADERS)
    view = device_page(session, name, now=plane.clock())
    if view is None:
        raise HTTPException(404, f"device: expected one that is enrolled, got {name!r:.80}")
    return _page("_device.html", view=view)


@router.get("/static/{name}")
def static(name: str) -> Response:
    """Serve one of the page's own files: a fixed table, so that no path is ever joined."""
    asset = _ASSETS.get(name)
    if asset is None:
        raise HTTPException(404, f"static file: expected one of {', '.join(_ASSETS)}, got {name!r}")
    headers = HEADERS | {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(asset.body, media_type=asset.media_type, headers=headers)


def _is_operator(request: Request) -> bool:
    try:
        require_operator(request)
    except HTTPException:
        return False
    return True


def _page(template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    return HTMLResponse(_templates.get_template(template).render(**values), status_code=status, headers=HEADERS)
