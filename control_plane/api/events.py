"""Endpoints of the timeline: read it, and follow it as server-sent events."""

import json
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query
from fastapi.responses import StreamingResponse

from control_plane import events
from control_plane.api.context import Number, PlaneDep, SessionDep
from control_plane.api.operator import require_operator
from control_plane.plane import Plane
from control_plane.schema.work import Event

_EVENT_ID = re.compile(r"[0-9]{1,18}")
router = APIRouter(tags=["events"], dependencies=[Depends(require_operator)])


@router.get("/v1/events")
def get_events(
    session: SessionDep,
    after: Number = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 500,
) -> list[dict[str, Any]]:
    """Return the events after an id, oldest first."""
    return [event_tree(event) for event in events.after(session, after, limit=limit)]


@router.get("/v1/events/stream")
def follow_events(
    plane: PlaneDep,
    after: Number | None = None,
    last_event_id: Annotated[str, Header()] = "",
) -> StreamingResponse:
    """Stream events as they come, after `Last-Event-ID`, else after `after`, else from now on."""
    # an id that no event of ours can have is another server's: it is left alone, as the standard says
    last = int(last_event_id) if _EVENT_ID.fullmatch(last_event_id) else after
    if last is None:
        with plane.readers() as session:
            last = events.newest(session)
    # no cache and no proxy may hold lines back
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_stream(plane, last), media_type="text/event-stream", headers=headers)


def event_tree(event: Event) -> dict[str, Any]:
    """Return an event as JSON."""
    return {
        "id": event.id,
        "at": event.at.isoformat(),
        "kind": event.kind,
        "subject": event.subject,
        "text": event.text,
        "data": event.data,
    }


async def _stream(plane: Plane, last: int) -> AsyncIterator[str]:
    # the first bytes come at once, so that a client knows that it is connected
    yield ": following\n\n"
    async for batch in events.follow(plane, last):
        if not batch:
            yield ": quiet\n\n"
        for event in batch:
            yield f"id: {event.id}\nevent: change\ndata: {json.dumps(event_tree(event))}\n\n"
