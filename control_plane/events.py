"""Owns the timeline: events written in the transaction they tell of, and the means to follow them.

Following is polling of the newest id: it sees what any process has committed, needs no notifier, and costs one indexed
read per interval.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from control_plane.schema.work import Event

if TYPE_CHECKING:
    from control_plane.plane import Plane

POLL_S = 0.25


def record(session: Session, kind: str, subject: str, text: str, **data: Any) -> Event:
    """Write one event: `kind` such as `release`, `subject` what it is about, `text` a line a person can read."""
    event = Event(at=datetime.now(UTC), kind=kind, subject=subject, text=text, data=data)
    session.add(event)
    return event


def newest(session: Session) -> int:
    """Return the id of the newest event, 0 before the first."""
    return session.scalar(select(func.max(Event.id))) or 0


def after(session: Session, last: int, *, limit: int = 500) -> list[Event]:
    """Return the events after the id `last`, oldest first."""
    return list(session.scalars(select(Event).where(Event.id > last).order_by(Event.id).limit(limit)))


async def follow(plane: "Plane", last: int) -> AsyncIterator[list[Event]]:
    """Yield what comes after the id `last`, in batches, and an empty list when nothing came for 10 s (a heartbeat).

    Ends when the server stops, so that no open stream holds up the shutdown.
    """
    quiet = 0.0
    while not plane.stopping.is_set():
        batch = await asyncio.to_thread(_read_after, plane, last)
        if batch:
            last = batch[-1].id
        if batch or quiet >= 10:
            quiet = 0.0
            yield batch
        quiet += POLL_S
        await asyncio.sleep(POLL_S)


def _read_after(plane: "Plane", last: int) -> list[Event]:
    with plane.readers() as session:
        return after(session, last)
