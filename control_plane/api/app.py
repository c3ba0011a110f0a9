"""Makes the application: the routers, the errors' shape, the limit on bodies, and what runs beside the requests."""

import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI

from control_plane import alarms, trust_status
from control_plane.api import blobs, crl, enrol, metadata, operator, problems, proof, trust
from control_plane.api.context import PlaneDep
from control_plane.link import refused_messages
from control_plane.plane import Plane
from skerry.wire.messages import VERSION as WIRE_VERSION

BODY_LIMIT_BYTES = 4 << 20
UPLOADS = re.compile(r"/v1/datasets/.*|/v1/models/[^/]+/import")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

health = APIRouter(tags=["health"])


def create_app(
    plane: Plane,
    routers: Sequence[APIRouter] = (),
    *,
    background: Callable[[], AbstractAsyncContextManager[None]] | None = None,
) -> FastAPI:
    """Return the application over `plane`; `background` is entered with it and left with it."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> Any:
        if background is None:
            yield
        else:
            async with background():
                yield

    app = FastAPI(title="Skerry", version=version("skerry"), lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.plane = plane
    problems.install(app)
    app.add_middleware(BodyLimit, limit=BODY_LIMIT_BYTES, upload_limit=plane.settings.upload_limit_bytes)
    own = (trust, metadata, blobs, enrol, proof, crl, operator)
    for router in (health, *(module.router for module in own), *routers):
        app.include_router(router)
    return app


@health.get("/v1/health")
def get_health(plane: PlaneDep) -> dict[str, Any]:
    """Say how the server is; no authentication, and nothing secret."""
    connected = plane.outgoing.connected
    return {
        "status": "ok" if connected else "degraded",
        "version": version("skerry"),
        "wire": WIRE_VERSION,
        "project": plane.settings.project,
        "identity": plane.settings.identity,
        "ceremony": plane.home.anchor.exists(),
        "alarms": [*trust_status.summary(plane), *alarms.summary(plane)],
        "broker": {
            "url": plane.settings.public_broker_url,
            "embedded": plane.settings.embedded_broker,
            "connected": connected,
            "dropped": plane.outgoing.dropped,
            "refused": refused_messages(),
        },
    }


class BodyLimit:
    """Refuses a body by its declared length, before a byte of it is read; one without a length is refused too."""

    def __init__(
        self, app: Callable[[Scope, Receive, Send], Awaitable[None]], *, limit: int, upload_limit: int
    ) -> None:
        self._app = app
        self._limit = limit
        self._upload_limit = upload_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 411 or 413, or pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        limit = self._upload_limit if UPLOADS.fullmatch(scope["path"]) else self._limit
        if b"transfer-encoding" in headers:
            answer = problems.problem(411, "body: expected a Content-Length, got a body of unknown length")
        elif int(headers.get(b"content-length", b"0")) > limit:
            answer = problems.problem(413, f"body: expected at most {limit} bytes, got more; send it in parts")
        else:
            await self._app(scope, receive, send)
            return
        await answer(scope, receive, send)
