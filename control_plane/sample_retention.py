"""Owns how long samples of inputs are kept, and deletes them: by a turn of the clock, or because an operator says so.

`keep` deletes, in this order: what a deletion that was cut off has left, what is of devices that were decommissioned
(at once), what is older than the settings' `sample_days`, and the oldest of a device or of all that have more than
their megabytes; the least that a row counts for is `LEAST_BYTES`. Of a revoked device they stay for as long as of any
other: it may come back, and what it sent may tell why. Windows hold counts and no inputs, and are kept.

A deletion says so in the rows first (`DELETING`). Then it deletes the bytes and the rows, counts what went on the
epoch's mark and writes a line of the timeline, in one transaction: wherever it is cut off, the next turn takes the
rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement, Select, case, delete, func, or_, select, update
from sqlalchemy.orm import Session

from control_plane import events
from control_plane.refusals import Unknown
from control_plane.schema.devices import Device
from control_plane.schema.telemetry import OutboxMark, Sample
from skerry.errors import Rejected

if TYPE_CHECKING:
    from control_plane.plane import Plane

# of one transaction, which holds up whoever else writes; and of one turn, so that it ends
BATCH = 200
MOST_OF_A_TURN = 20_000
# of all the samples of a device, in one answer
MOST_OF_AN_ANSWER = 1000
MB = 1_000_000
# a row, and the file of a sample, take up as much as this on a disk
LEAST_BYTES = 4096
CLOCK = "the server's clock"
DELETING = "it is being deleted"


@dataclass(frozen=True, slots=True)
class Deleted:
    """How many samples went: those that were stored, with their bytes, and those of which only the reason was kept."""

    stored: int = 0
    size_bytes: int = 0
    quarantined: int = 0

    def __add__(self, other: "Deleted") -> "Deleted":
        return Deleted(
            self.stored + other.stored, self.size_bytes + other.size_bytes, self.quarantined + other.quarantined
        )


def keep(plane: "Plane") -> Deleted:
    """Delete what is over its time or beyond its room; return how much that was. Called again, it deletes nothing."""
    gone = Deleted()
    for why, query in _rules(plane):
        with plane.readers() as session:
            due = list(session.scalars(query.limit(MOST_OF_A_TURN)))
        gone += _delete(plane, due, why=why, by=CLOCK)
    return gone


def erase(plane: "Plane", device: str, numbers: Sequence[int] = (), *, by: str) -> Deleted:
    """Delete samples of a device because an operator says so: those of these numbers, or, without any, the oldest 1000.

    Raises:
        Unknown: there is no such device.
        Rejected: a number is none of its samples; nothing was deleted then.
    """
    with plane.readers() as session:
        if session.get(Device, device) is None:
            raise Unknown(f"device: expected one that is enrolled, got {device!r:.80}")
        query = select(Sample.id).where(Sample.device == device)
        query = query.where(Sample.id.in_(numbers)) if numbers else query.limit(MOST_OF_AN_ANSWER)
        found = list(session.scalars(query.order_by(Sample.id)))
    if others := sorted(set(numbers) - set(found)):
        shown = ", ".join(map(str, others[:10]))
        raise Rejected(
            f"samples: expected numbers of samples of {device}, got {shown}; nothing was deleted; "
            f"see: skerry sample list {device}"
        )
    return _delete(plane, found, why="an operator said so", by=by)


def _rules(plane: "Plane") -> list[tuple[str, Select[int]]]:
    settings = plane.settings
    stays = select(Device.name).where(Device.state != "decommissioned")
    oldest = select(Sample.id).order_by(Sample.id)
    device_bytes, fleet_bytes = settings.sample_device_mb * MB, settings.sample_fleet_mb * MB
    size = case((or_(Sample.blob == "", Sample.size_bytes < LEAST_BYTES), LEAST_BYTES), else_=Sample.size_bytes)
    return [
        ("its deletion was cut off", oldest.where(Sample.blob != "", Sample.reason == DELETING)),
        ("the device is decommissioned", oldest.where(Sample.device.not_in(stays))),
        (
            f"older than {settings.sample_days} days",
            oldest.where(Sample.taken_at < plane.clock() - timedelta(days=settings.sample_days)),
        ),
        (
            f"more than {settings.sample_device_mb} MB of a device",
            _beyond(device_bytes, func.sum(size).over(partition_by=Sample.device, order_by=Sample.id.desc())),
        ),
        (
            f"more than {settings.sample_fleet_mb} MB of all devices",
            _beyond(fleet_bytes, func.sum(size).over(order_by=Sample.id.desc())),
        ),
    ]


def _beyond(limit: int, running: ColumnElement[int]) -> Select[int]:
    """Select what is beyond so many bytes, counted from the newest sample on."""
    counted = select(Sample.id, running.label("bytes")).subquery()
    return select(counted.c.id).where(counted.c.bytes > limit).order_by(counted.c.id)


def _delete(plane: "Plane", numbers: Sequence[int], *, why: str, by: str) -> Deleted:
    gone = Deleted()
    for start in range(0, len(numbers), BATCH):
        if by == CLOCK and plane.stopping.is_set():
            break
        these = Sample.id.in_(numbers[start : start + BATCH])
        with plane.sessions.begin() as session:
            session.execute(update(Sample).where(these, Sample.blob != "").values(reason=DELETING))
        with plane.sessions.begin() as session:
            # the lock is taken here: no sample with the same bytes comes in between
            rows = session.scalars(select(Sample).where(these)).all()
            plane.blobs.delete(_unshared(session, rows))
            for device in sorted({row.device for row in rows}):
                own = [row for row in rows if row.device == device]
                gone += _note(session, device, own, why=why, by=by)
            session.execute(delete(Sample).where(Sample.id.in_([row.id for row in rows])))
    return gone


def _unshared(session: Session, rows: Sequence[Sample]) -> set[str]:
    """Return the blobs that no other sample names: the same bytes are stored once."""
    blobs = {row.blob for row in rows if row.blob}
    others = select(Sample.blob).where(Sample.blob.in_(blobs), Sample.id.not_in([row.id for row in rows]))
    return blobs - set(session.scalars(others))


def _note(session: Session, device: str, rows: Sequence[Sample], *, why: str, by: str) -> Deleted:
    stored = [row for row in rows if row.blob]
    gone = Deleted(len(stored), sum(row.size_bytes for row in stored), len(rows) - len(stored))
    for row in rows:
        if (mark := session.get(OutboxMark, (device, row.epoch))) is not None:
            mark.samples_deleted += 1
    text = f"{device}: {gone.stored} stored samples of {gone.size_bytes} bytes were deleted by {by}: {why}"
    if gone.quarantined:
        text += f"; so were the notes on {gone.quarantined} that were quarantined"
    numbers = [row.id for row in rows]
    events.record(
        session,
        "samples",
        device,
        text,
        action="deleted",
        by=by,
        why=why,
        stored=gone.stored,
        bytes=gone.size_bytes,
        quarantined=gone.quarantined,
        numbers=numbers,
    )
    return gone
