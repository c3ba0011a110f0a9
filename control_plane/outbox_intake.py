"""A device's outbox, taken in: each entry once, whatever comes how often, in which order and in how many pieces.

What was merged is known by number (`control_plane.outbox_mark`); merging and marking are one transaction, and only then
is it acknowledged. The same number with another body is a conflict: it is kept, never acknowledged, and the device is
asked for a new epoch, with every answer of this one from then on, so that no lost answer hides it.
"""

import base64
import binascii
import re
import zlib
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import clones, evidence, samples
from control_plane.events import record
from control_plane.outbox_mark import (
    BATCHES_IN_FLIGHT,
    MAX_SEQUENCE,
    as_ranges,
    fresh,
    from_json,
    is_new,
    take,
    to_json,
)
from control_plane.schema.devices import Device
from control_plane.schema.releases import Deployment
from control_plane.schema.telemetry import Gap, OutboxMark, Sample, Window
from skerry.errors import Rejected
from skerry.wire import codec, messages, report
from skerry.wire.batch import decode_batch

if TYPE_CHECKING:
    from control_plane.plane import Plane

MAX_CONFLICTS_SHOWN = 100
# of the kinds whose rows keep no CRC, the newest few entries' are kept with the mark
MAX_RECENT = 64
SETTLED = ("committed", "failed")
_EPOCH = re.compile(r"[0-9a-f]{1,32}")


def take_outbox(plane: "Plane", session: Session, device: Device, payload: bytes, now: datetime) -> messages.Ack:
    """Merge a batch and return what to answer after the commit; raises `Rejected` where it is none."""
    outbox = decode_batch(payload)
    if not _EPOCH.fullmatch(outbox.epoch):
        raise Rejected(f"epoch: expected 1 to 32 hex digits, got {outbox.epoch!r:.60}")
    device.last_seen = now
    row = _mark_of(session, device.name, outbox.epoch, now)

    mark = from_json(row.up_to, row.beyond)
    conflicts: list[int] = []
    merged = row.merged
    for entry in outbox.entries:
        new = is_new(mark, entry.sequence)
        last = _last_number(entry)
        if news := fresh(mark, entry.sequence, last) if new or entry.kind == "gap" else 0:
            _merge(plane, session, row, entry, now, news=news)
            mark = take(mark, entry.sequence, through=last)
            row.merged += 1
        elif _differs(session, row, entry):
            conflicts.append(entry.sequence)
            _keep_conflict(session, row, entry)
        else:
            row.repeated += 1
    row.up_to, row.beyond = mark.up_to, to_json(mark)
    if row.merged > merged:
        clones.heard(session, row, now=now)
    return _answer(row, outbox, conflicts)


def _mark_of(session: Session, device: str, epoch: str, now: datetime) -> OutboxMark:
    row = session.get(OutboxMark, (device, epoch))
    if row is None:
        row = OutboxMark(
            device=device,
            epoch=epoch,
            up_to=0,
            beyond={},
            merged=0,
            repeated=0,
            conflicts=0,
            conflict=0,
            recent={},
            samples_deleted=0,
            turn=0,
            returns=0,
            first_seen=now,
        )
        session.add(row)
    return row


def _answer(row: OutboxMark, outbox: messages.Outbox, conflicts: list[int]) -> messages.Ack:
    """Say what was heard: up to the first conflict of the epoch, and beyond it what this batch brought."""
    up_to = min(row.up_to, row.conflict - 1) if row.conflict else row.up_to
    heard = {entry.sequence for entry in outbox.entries} - set(conflicts)
    return messages.Ack(
        epoch=outbox.epoch,
        up_to=up_to,
        new_epoch=bool(row.conflict),
        ranges=as_ranges(number for number in heard if number > up_to),
        conflicts=tuple(conflicts),
        window=BATCHES_IN_FLIGHT,
    )


def _last_number(entry: messages.Entry) -> int:
    """Return the last number that the entry accounts for: its own, but for a gap that can be read."""
    if entry.kind != "gap":
        return entry.sequence
    try:
        return _gap(entry).last
    except Rejected:
        return entry.sequence


def _gap(entry: messages.Entry) -> messages.Gap:
    gap = codec.decode(messages.Gap, _body(entry))
    if not (gap.first == entry.sequence <= gap.last < MAX_SEQUENCE and 0 <= gap.count <= gap.last - gap.first + 1):
        raise Rejected(f"gap: expected a range from {entry.sequence}, got {gap.count} from {gap.first} to {gap.last}")
    return gap


def _merge(
    plane: "Plane", session: Session, row: OutboxMark, entry: messages.Entry, now: datetime, *, news: int
) -> None:
    """Write what the entry says; of a gap, the `news` numbers that were not heard.

    What cannot be read is a gap like any other: acknowledged, counted, never silent.
    """
    device = row.device
    try:
        body = _body(entry)
        if entry.kind == "window":
            _merge_window(session, device, row.epoch, entry, body, now)
        elif entry.kind == "sample":
            samples.take(plane, session, row, entry, body, now=now)
        elif entry.kind == "gap":
            _write_gap(session, row, _gap(entry), news=news)
        else:
            row.recent = _with_recent(row.recent, entry)
            if entry.kind == "deployment":
                _merge_deployment(session, device, entry, codec.decode(messages.DeploymentEvent, body), now)
            elif entry.kind == "evidence":
                evidence.take(session, device, body)
            else:
                text = f"{device}: an entry of the unknown kind {entry.kind[:20]!r} was left out"
                record(session, "refused", device, text)
    except Rejected as refusal:
        lost = messages.Gap(
            kind=entry.kind[:16], first=entry.sequence, last=entry.sequence, count=1, reason=f"unreadable: {refusal}"
        )
        _write_gap(session, row, lost, news=1)


def _with_recent(recent: dict[str, int], entry: messages.Entry) -> dict[str, int]:
    kept = sorted({**recent, str(entry.sequence): entry.crc}.items(), key=lambda each: int(each[0]))
    return dict(kept[-MAX_RECENT:])


def _body(entry: messages.Entry) -> bytes:
    try:
        body = base64.b64decode(entry.body, validate=True)
    except binascii.Error as error:
        raise Rejected(f"entry {entry.sequence}: expected base64, got {error}") from error
    if zlib.crc32(body) != entry.crc:
        raise Rejected(f"entry {entry.sequence}: expected CRC {entry.crc}, got {zlib.crc32(body)}: damaged on the way")
    return body


def _merge_window(session: Session, device: str, epoch: str, entry: messages.Entry, body: bytes, now: datetime) -> None:
    window = report.decode_report(body)
    if not window.correct <= window.labelled <= window.rows:
        raise Rejected(
            f"window {window.window}: expected correct <= labelled <= rows, "
            f"got {window.correct}, {window.labelled}, {window.rows}"
        )
    if window.tables and sum(window.tables[0]) != window.rows:
        raise Rejected(f"window {window.window}: expected {window.rows} counted rows, got {sum(window.tables[0])}")
    session.add(
        Window(
            device=device,
            epoch=epoch,
            sequence=entry.sequence,
            manifest=window.manifest,
            monitor=window.monitor,
            number=window.window,
            start=window.start,
            end=window.end,
            rows=window.rows,
            labelled=window.labelled,
            correct=window.correct,
            latency_p50_us=window.latency_p50_us,
            latency_p99_us=window.latency_p99_us,
            crc=entry.crc,
            tables=[list(table) for table in window.tables],
            merged_at=now,
        )
    )


def _merge_deployment(
    session: Session, device: str, entry: messages.Entry, event: messages.DeploymentEvent, now: datetime
) -> None:
    deployment = session.get(Deployment, event.deployment)
    if deployment is None or deployment.device != device:
        raise Rejected(f"deployment: expected one of {device}, got {event.deployment!r:.80}")
    # entries may come in any order: what is settled is not unsettled by an earlier step, only by its own undoing
    if deployment.state in SETTLED and event.state not in (*SETTLED, "rolling_back"):
        return
    deployment.state, deployment.reason = event.state[:16], event.reason[:1000]
    deployment.bytes_received = event.bytes_received
    deployment.measured = {**deployment.measured, **event.measured}
    if event.state in SETTLED:
        deployment.ended_at = now
    if event.state == "committed":
        deployment.committed_event_time = entry.event_time
    why = f": {deployment.reason}" if deployment.reason else ""
    record(
        session,
        "deployment",
        device,
        f"{device}: {event.release[:63]} {deployment.state}{why}",
        deployment=deployment.id,
        rollout=deployment.rollout,
        release=deployment.release,
        state=deployment.state,
        reason=deployment.reason,
        event_time=entry.event_time,
        component=deployment.component,
    )


def _write_gap(session: Session, row: OutboxMark, gap: messages.Gap, *, news: int) -> None:
    """Record what is lost; what of it was heard before is not, and a record that has grown is the same record."""
    count = min(gap.count, news)
    known = session.get(Gap, (row.device, row.epoch, gap.first))
    if known is None:
        session.add(
            Gap(
                device=row.device,
                epoch=row.epoch,
                sequence=gap.first,
                kind=gap.kind[:16],
                first=gap.first,
                last=gap.last,
                count=count,
                reason=gap.reason[:1000],
            )
        )
    else:
        known.last, known.count = max(known.last, gap.last), known.count + count
        known.kind = known.kind if known.kind == gap.kind[:16] else "any"
    text = f"{row.device}: {count} entries of kind {gap.kind[:16]} are lost: {gap.reason[:200]}"
    record(session, "gap", row.device, text, first=gap.first, last=gap.last, count=count)


def _differs(session: Session, row: OutboxMark, entry: messages.Entry) -> bool:
    """Say whether the merged entry of that number had another body, as far as a CRC was kept.

    A gap is no other body: the device lost what had been heard, before it knew that it had.
    """
    if entry.kind == "gap":
        return False
    crc = row.recent.get(str(entry.sequence))
    for table in (Window, Sample):
        if crc is None:
            known = select(table.crc).where(
                table.device == row.device, table.epoch == row.epoch, table.sequence == entry.sequence
            )
            crc = session.scalar(known)
    return crc is not None and crc != entry.crc


def _keep_conflict(session: Session, row: OutboxMark, entry: messages.Entry) -> None:
    row.conflicts += 1
    row.conflict = min(row.conflict or entry.sequence, entry.sequence)
    if row.conflicts <= MAX_CONFLICTS_SHOWN:
        text = f"{row.device}: entry {entry.sequence} came twice with different bodies; a new epoch was asked for"
        # a body that may hold what must not be kept is not shown
        body = "" if entry.kind == "sample" else entry.body[:8192]
        record(
            session, "conflict", row.device, text, epoch=row.epoch, sequence=entry.sequence, crc=entry.crc, body=body
        )
