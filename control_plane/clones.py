"""Tells a cloned device: one identity whose outboxes of two epochs go on, each after the other.

A device begins a new epoch when it was wiped, damaged or restored from a copy, and leaves the old one behind. What of
that was still on its way may come late: an epoch *returns* when it brings numbers that are new after a younger epoch
has brought some. What was on its way are `BATCHES_IN_FLIGHT` batches, so one device's epoch returns so often at most,
and once more each time its backup is restored. Of two devices one epoch returns for ever, whatever their pace:

    A A A | B A B B A B      one that was wiped: A returns twice, for what was on its way
    A B A B A B A B A ...    two devices

What came again, and numbers in conflict, count for nothing. A copy of the same epoch is told by its conflicts to begin
another (`control_plane.outbox_intake`): a restored backup has left the old one then, and of a clone both have, so there
are two epochs. Decision 1114.
"""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from control_plane import alarms
from control_plane.outbox_mark import BATCHES_IN_FLIGHT
from control_plane.schema.telemetry import Alarm, OutboxMark

if TYPE_CHECKING:
    from control_plane.plane import Plane

# what was on its way comes late once, and there is as much room for backups
MOST_RETURNS = 2 * BATCHES_IN_FLIGHT
SILENCE = timedelta(days=7)
# returns that are further apart than this are not counted together: a device with two state folders changes them seldom
LONG_AGO = timedelta(days=30)


def heard(session: Session, mark: OutboxMark, *, now: datetime) -> None:
    """Note that an epoch has brought something new; raise the alarm when it has returned too often."""
    mark.heard_at = now
    last = session.scalar(select(func.max(OutboxMark.turn)).where(OutboxMark.device == mark.device)) or 0
    if mark.turn == last > 0:
        return
    before, mark.turn = mark.turn, last + 1
    younger = session.scalars(
        select(OutboxMark)
        .where(
            OutboxMark.device == mark.device,
            OutboxMark.first_seen > mark.first_seen,
            OutboxMark.turn.between(before + 1, last),
        )
        .order_by(OutboxMark.turn.desc())
        .limit(1)
    ).first()
    # while the alarm stands nothing is counted: once it is cleared, it takes as many returns to raise it again
    if younger is None or alarms.standing(session, alarms.CLONE, mark.device):
        return
    if mark.returned_at is not None and now - mark.returned_at > LONG_AGO:
        mark.returns = 0
    mark.returns, mark.returned_at = mark.returns + 1, now
    if mark.returns > MOST_RETURNS:
        _sound(session, mark, younger, now=now)
        begin_anew(session, mark.device)


def begin_anew(session: Session, device: str) -> None:
    """Count the returns of all epochs of a device from 0."""
    session.execute(update(OutboxMark).where(OutboxMark.device == device).values(returns=0))


def settle(plane: "Plane") -> int:
    """Clear the alarms of devices of which one epoch alone goes on; return how many. A turn of the clock."""
    now = plane.clock()
    with plane.readers() as session:
        over = [row.id for row in alarms.listed(session) if row.kind == alarms.CLONE and _one_goes_on(session, row)]
    if not over:
        return 0
    with plane.sessions.begin() as session:
        for number in over:
            row = session.get_one(Alarm, number)
            if row.cleared_at is None:
                why = f"for {SILENCE.days} days one outbox alone has gone on"
                alarms.clear(session, row, why, now=now)
    return len(over)


def _one_goes_on(session: Session, alarm: Alarm) -> bool:
    # of two that are both silent nothing is known: the device may be out of reach
    query = select(OutboxMark.heard_at).where(OutboxMark.device == alarm.device, OutboxMark.heard_at.is_not(None))
    last = [at for at in session.scalars(query.order_by(OutboxMark.heard_at.desc()).limit(2)) if at is not None]
    return len(last) < 2 or last[0] - max(last[1], alarm.raised_at) > SILENCE


def _sound(session: Session, mark: OutboxMark, younger: OutboxMark, *, now: datetime) -> None:
    pair = (mark, younger)
    named = " and ".join(f"{each.epoch} (since {each.first_seen:%Y-%m-%d %H:%M} UTC)" for each in pair)
    text = (
        f"{mark.device} may be cloned: two outboxes speak in its name, {named}, and each goes on after the other; "
        f"find the second machine, or invite {mark.device} anew, which ends the certificates of both"
    )
    epochs = [
        {
            "epoch": each.epoch,
            "first_seen": each.first_seen.isoformat(),
            "heard_at": each.heard_at.isoformat() if each.heard_at else None,
        }
        for each in pair
    ]
    alarms.sound(session, alarms.CLONE, mark.device, text, now=now, epochs=epochs, returns=mark.returns)
