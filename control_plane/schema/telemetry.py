"""Tables of what devices report."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from control_plane.schema.tables import Table


class OutboxMark(Table):
    """What of one device's epoch has been merged: everything up to `up_to`, and the ranges in `beyond`.

    `recent` are the CRCs of the newest entries that are in no table of their own, by number; `conflict` is the lowest
    number that came twice with different bodies, 0 for none. `samples_deleted` counts the rows of samples that went.

    `turn` numbers, over all epochs of a device, the times at which another one than before brought something new: it is
    the last such time of this one, which last did so at `heard_at`. `returns` is how often it did after a younger one
    had, and `returned_at` when it last did that (`control_plane.clones`).
    """

    __tablename__ = "outbox_mark"
    __table_args__ = (Index("ix_outbox_mark_turn", "device", "turn"),)
    device: Mapped[str] = mapped_column(String(63), primary_key=True)
    epoch: Mapped[str] = mapped_column(String(32), primary_key=True)
    up_to: Mapped[int] = mapped_column(default=0)
    beyond: Mapped[dict[str, Any]] = mapped_column(default=dict)
    merged: Mapped[int] = mapped_column(default=0)
    repeated: Mapped[int] = mapped_column(default=0)
    conflicts: Mapped[int] = mapped_column(default=0)
    first_seen: Mapped[datetime]
    recent: Mapped[dict[str, Any]] = mapped_column(default=dict)
    conflict: Mapped[int] = mapped_column(default=0)
    samples_deleted: Mapped[int] = mapped_column(default=0)
    turn: Mapped[int] = mapped_column(default=0)
    returns: Mapped[int] = mapped_column(default=0)
    heard_at: Mapped[datetime | None]
    returned_at: Mapped[datetime | None]


class Window(Table):
    """The counts of one window of one device, merged exactly once. `tables` are lists of counts per bin."""

    __tablename__ = "window"
    __table_args__ = (
        UniqueConstraint("device", "epoch", "sequence"),
        Index("ix_window_manifest", "manifest", "device", "number"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    device: Mapped[str] = mapped_column(String(63))
    epoch: Mapped[str] = mapped_column(String(32))
    sequence: Mapped[int]
    manifest: Mapped[str] = mapped_column(String(16))
    monitor: Mapped[str] = mapped_column(String(16))
    number: Mapped[int]
    start: Mapped[int]
    end: Mapped[int]
    rows: Mapped[int]
    labelled: Mapped[int]
    correct: Mapped[int]
    latency_p50_us: Mapped[int]
    latency_p99_us: Mapped[int]
    crc: Mapped[int]
    tables: Mapped[list[Any]] = mapped_column(default=list)
    merged_at: Mapped[datetime]


class Gap(Table):
    """Entries that a device gave up for lack of room, as its gap records say."""

    __tablename__ = "gap"
    device: Mapped[str] = mapped_column(String(63), primary_key=True)
    epoch: Mapped[str] = mapped_column(String(32), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    first: Mapped[int]
    last: Mapped[int]
    count: Mapped[int]
    reason: Mapped[str]


class Finding(Table):
    """Something that drift statistics concluded. `kind`: local (one device) or world (the fleet).

    `windows` counts the windows from the commissioning's end (or the last quiet decision) to the finding.
    """

    __tablename__ = "finding"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(8))
    device: Mapped[str] = mapped_column(String(63), default="")
    model: Mapped[str] = mapped_column(String(63))
    version: Mapped[int]
    log_e: Mapped[float]
    severity: Mapped[float] = mapped_column(default=0.0)
    event_time: Mapped[float]
    window: Mapped[int]
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)
    found_at: Mapped[datetime]


class Sample(Table):
    """An input that a device kept of a window: stored as `blob` where its artifact's manifest allows it.

    Otherwise the row is in quarantine: `blob` is empty, `reason` says why, and nothing of its content is kept. A row
    that has both is being deleted (`control_plane.sample_retention`).
    """

    __tablename__ = "sample"
    __table_args__ = (
        UniqueConstraint("device", "epoch", "sequence"),
        Index("ix_sample_window", "manifest", "device", "window"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    device: Mapped[str] = mapped_column(String(63))
    epoch: Mapped[str] = mapped_column(String(32))
    sequence: Mapped[int]
    manifest: Mapped[str] = mapped_column(String(16), default="")
    window: Mapped[int] = mapped_column(default=0)
    size_bytes: Mapped[int]
    crc: Mapped[int]
    blob: Mapped[str] = mapped_column(String(64), default="", index=True)
    reason: Mapped[str] = mapped_column(default="")
    taken_at: Mapped[datetime]


class Alarm(Table):
    """Something about a device that a person must see to; it stands while `cleared_at` is None.

    `cleared` says by whom or by what it was.
    """

    __tablename__ = "alarm"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    device: Mapped[str] = mapped_column(String(63), index=True)
    text: Mapped[str]
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)
    raised_at: Mapped[datetime]
    cleared_at: Mapped[datetime | None]
    cleared: Mapped[str] = mapped_column(default="")
