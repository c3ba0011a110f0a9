"""Owns alarms of devices: one of a kind and device is raised once, stands until it is cleared, and both are audited.

What they are about is for others to say (`control_plane.clones`). Alarms of keys and metadata are computed when they
are asked for, and are in `control_plane.trust_status`.
"""

from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from control_plane import events
from control_plane.refusals import Conflict, Unknown
from control_plane.schema.telemetry import Alarm
from skerry.errors import SkerryError

if TYPE_CHECKING:
    from control_plane.plane import Plane

CLONE = "clone"
WORDS = {CLONE: "it may be cloned: two outboxes speak in its name"}
"""What each kind is, in the few words that a row of a table has room for."""


def sound(session: Session, kind: str, device: str, text: str, *, now: datetime, **detail: Any) -> None:
    """Raise an alarm; whoever does asks first that none of that kind is `standing` for the device."""
    session.add(Alarm(kind=kind, device=device, text=text, detail=detail, raised_at=now))
    events.record(session, "alarm", device, text, alarm=kind, **detail)


def standing(session: Session, kind: str, device: str) -> bool:
    """Say whether an alarm of that kind stands for the device."""
    query = select(Alarm.id).where(Alarm.device == device, Alarm.kind == kind, Alarm.cleared_at.is_(None))
    return session.scalar(query.limit(1)) is not None


def listed(session: Session, *, device: str = "", cleared: bool = False, limit: int = 1000) -> list[Alarm]:
    """Return the alarms that stand, newest first; with `cleared` those too that do no longer."""
    query = select(Alarm).order_by(Alarm.id.desc()).limit(limit)
    if device:
        query = query.where(Alarm.device == device)
    return list(session.scalars(query if cleared else query.where(Alarm.cleared_at.is_(None))))


def acknowledge(session: Session, number: int, *, by: str, now: datetime) -> Alarm:
    """Clear an alarm because a person has seen to it.

    Raises:
        Unknown: there is no such alarm.
        Conflict: it does not stand any more.
    """
    row = session.get(Alarm, number, with_for_update=True)
    if row is None:
        raise Unknown(f"alarm: expected the number of one, got {number}; see: skerry alarm list --all")
    if row.cleared_at is not None:
        raise Conflict(f"alarm {number}: expected one that stands, got one that was cleared: {row.cleared}")
    clear(session, row, f"acknowledged by {by}", now=now)
    return row


def clear(session: Session, row: Alarm, why: str, *, now: datetime) -> None:
    """Clear an alarm that stands, and say why."""
    row.cleared_at, row.cleared = now, why
    text = f"{row.device}: the alarm that {WORDS.get(row.kind, row.kind)} is cleared: {why}"
    events.record(session, "alarm", row.device, text, alarm=row.kind, number=row.id, cleared=why)


def clear_all(session: Session, device: str, why: str, *, now: datetime) -> None:
    """Clear what stands for a device."""
    for row in listed(session, device=device):
        clear(session, row, why, now=now)


def summary(plane: "Plane") -> list[str]:
    """Return what health says of them, which anybody may read: how many there are, and no name."""
    try:
        with plane.readers() as session:
            count = session.scalar(select(func.count()).where(Alarm.cleared_at.is_(None))) or 0
    except SkerryError:
        # a database that does not answer is said by others
        return []
    if not count:
        return []
    return [f"{count} {'alarm' if count == 1 else 'alarms'} of devices; see: skerry alarm list"]


def tree(row: Alarm) -> dict[str, Any]:
    """Return an alarm as JSON."""
    return {
        "id": row.id,
        "kind": row.kind,
        "device": row.device,
        "text": row.text,
        "detail": row.detail,
        "raised_at": row.raised_at.isoformat(),
        "cleared_at": row.cleared_at.isoformat() if row.cleared_at else None,
        "cleared": row.cleared,
    }
