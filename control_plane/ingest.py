"""What devices say, taken in: the twin's reported half, the outbox (each entry once), and answers to requests.

`handle` is called by one worker with each message of an `up` topic and returns what to publish, after the commit, so an
acknowledgement never names an entry that a power cut could still take back. A message that cannot be used is counted
and told in the timeline, at most once a minute and device, and never stops the worker.
"""

import base64
import binascii
import logging
import re
import threading
import zlib
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import desired, director, evidence, publication, revocation
from control_plane.events import record
from control_plane.outbox_mark import MAX_SEQUENCE, Mark, is_new, take
from control_plane.schema import Deployment, Device, Gap, OutboxMark, Window
from skerry.errors import Rejected
from skerry.wire import codec, messages, report, topics

if TYPE_CHECKING:
    from control_plane.plane import Plane

MAX_REPORTED_BYTES = 64 * 1024
MAX_CONFLICTS_SHOWN = 100
SETTLED = ("committed", "failed")
_EPOCH = re.compile(r"[0-9a-f]{1,32}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reply:
    """A message for a device, to be published with QoS 1."""

    topic: str
    payload: bytes
    retain: bool = False


def handle(plane: "Plane", topic: str, payload: bytes) -> list[Reply]:
    """Take in one message and return the replies; whatever is wrong with the message is not raised."""
    now = plane.clock()
    device = ""
    try:
        who, name = topics.split_up(topic)
        project, device = topics.split_identity(who)
        if project != plane.settings.project:
            raise Rejected(f"topic: expected project {plane.settings.project!r}, got {project!r}")
        with plane.sessions.begin() as session:
            row = session.get(Device, device)
            if row is None or row.state not in ("enrolled", "decommissioning"):
                _log.info("ingest: a message of %s, which is not enrolled, was left alone", device)
                return []
            if name == "reported":
                _take_reported(plane, session, row, payload, now)
                # a device that is new in a group with a configuration has not been told
                told = desired.messages(plane, session, desired.settle(session, desired.DEVICE, device))
            elif name == "answer":
                _take_answer(session, row, payload)
            else:
                ack = _take_outbox(session, row, payload, now)
        if row.state == "decommissioned":
            return [Reply(topics.down(who, "assign"), b"", retain=True)]
        if name == "reported":
            return [Reply(topic, body, retain=True) for topic, body in told]
        if name != "outbox":
            return []
        return [Reply(topics.down(who, "ack"), codec.encode(ack))]
    except Rejected as refusal:
        _refused.tell(plane, device or topic[:80], str(refusal), now)
        return []


def _take_reported(plane: "Plane", session: Session, device: Device, payload: bytes, now: datetime) -> None:
    reported = codec.decode(messages.Reported, payload, limit=MAX_REPORTED_BYTES)
    if reported.state == messages.DECOMMISSIONED:
        if device.state == "decommissioning":
            device.last_seen = now
            revocation.take_farewell(session, device, now=now)
        return
    was_online, old = device.online, device.reported
    device.online, device.last_seen = reported.online, now
    if reported.online:
        device.reported = asdict(reported)
    elif old:
        # a last will was written when the connection began: all that it knows better is that it is over
        device.reported = {**old, "online": False}
    if was_online != reported.online:
        state = "online" if reported.online else "offline"
        record(session, "device", device.name, f"{device.name} is {state}", online=reported.online)
    # the broker repeats what it retains: one report asks once
    if reported.online and reported.stalled and reported.version != old.get("version"):
        _ask_again(plane, session, device, reported.stalled)
    if reported.online and reported.last_error and reported.last_error != old.get("last_error"):
        record(session, "device", device.name, f"{device.name}: {reported.last_error[:300]}", error=True)


def _ask_again(plane: "Plane", session: Session, device: Device, sha256: str) -> None:
    """Have chunks that a device waits for in vain published once more, for all who miss them."""
    if sha256 not in director.blobs_of(session, device.name):
        return
    terms, _ = director.terms_of(session, device.name)
    if publication.ask(plane, session, sha256, release=terms.release):
        text = f"{device.name} misses chunks of {terms.release} on the broker; they are published again"
        record(session, "stalled", device.name, text, blob=sha256, release=terms.release)


def _take_answer(session: Session, device: Device, payload: bytes) -> None:
    answer = codec.decode(messages.Answer, payload, limit=MAX_REPORTED_BYTES)
    device_says = "done" if answer.ok else "refused"
    record(
        session,
        "answer",
        device.name,
        f"{device.name}: request {answer.id[:40]} {device_says}",
        id=answer.id,
        ok=answer.ok,
        result=answer.result,
    )


def _take_outbox(session: Session, device: Device, payload: bytes, now: datetime) -> messages.Ack:
    outbox = codec.decode(messages.Outbox, payload)
    if not _EPOCH.fullmatch(outbox.epoch):
        raise Rejected(f"epoch: expected 1 to 32 hex digits, got {outbox.epoch!r:.60}")
    device.last_seen = now
    row = session.get(OutboxMark, (device.name, outbox.epoch))
    if row is None:
        row = OutboxMark(
            device=device.name,
            epoch=outbox.epoch,
            up_to=0,
            beyond={},
            merged=0,
            repeated=0,
            conflicts=0,
            first_seen=now,
        )
        session.add(row)

    mark = Mark(row.up_to, frozenset(map(int, row.beyond)))
    conflicts: list[int] = []
    for entry in outbox.entries:
        if is_new(mark, entry.sequence):
            through = _merge(session, device.name, outbox.epoch, entry, now)
            mark = take(mark, entry.sequence, through=through)
            row.merged += 1
        elif _differs(session, device.name, outbox.epoch, entry):
            conflicts.append(entry.sequence)
            _keep_conflict(session, row, entry)
        else:
            row.repeated += 1
    row.up_to, row.beyond = mark.up_to, {str(number): 1 for number in sorted(mark.beyond)}
    # what conflicts is not acknowledged: the device says it again, under its new epoch
    heard = min([mark.up_to, *(number - 1 for number in conflicts)])
    return messages.Ack(epoch=outbox.epoch, up_to=heard, new_epoch=bool(conflicts))


def _merge(session: Session, device: str, epoch: str, entry: messages.Entry, now: datetime) -> int:
    """Write what the entry says and return the last number that it accounts for: its own, but for a gap.

    What cannot be read is a gap like any other: acknowledged, counted, never silent.
    """
    try:
        body = _body(entry)
        if entry.kind == "window":
            _merge_window(session, device, epoch, entry, body, now)
        elif entry.kind == "deployment":
            _merge_deployment(session, device, entry, codec.decode(messages.DeploymentEvent, body), now)
        elif entry.kind == "evidence":
            evidence.take(session, device, body)
        elif entry.kind == "gap":
            gap = codec.decode(messages.Gap, body)
            if not (
                gap.first == entry.sequence <= gap.last < MAX_SEQUENCE and 0 <= gap.count <= gap.last - gap.first + 1
            ):
                raise Rejected(
                    f"gap: expected a range from {entry.sequence}, got {gap.count} from {gap.first} to {gap.last}"
                )
            _write_gap(session, device, epoch, entry.sequence, gap)
            return gap.last
        else:
            record(
                session, "refused", device, f"{device}: an entry of the unknown kind {entry.kind[:20]!r} was left out"
            )
    except Rejected as refusal:
        lost = messages.Gap(
            kind=entry.kind[:16], first=entry.sequence, last=entry.sequence, count=1, reason=f"unreadable: {refusal}"
        )
        _write_gap(session, device, epoch, entry.sequence, lost)
    return entry.sequence


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
    )


def _write_gap(session: Session, device: str, epoch: str, sequence: int, gap: messages.Gap) -> None:
    session.add(
        Gap(
            device=device,
            epoch=epoch,
            sequence=sequence,
            kind=gap.kind[:16],
            first=gap.first,
            last=gap.last,
            count=gap.count,
            reason=gap.reason[:1000],
        )
    )
    text = f"{device}: {gap.count} entries of kind {gap.kind[:16]} are lost: {gap.reason[:200]}"
    record(session, "gap", device, text, first=gap.first, last=gap.last, count=gap.count)


def _differs(session: Session, device: str, epoch: str, entry: messages.Entry) -> bool:
    """Say whether the merged entry of that number had another body, as far as windows tell (only they keep a CRC).

    A gap is no other body: the device lost what had been heard, before it knew that it had.
    """
    if entry.kind == "gap":
        return False
    known = select(Window.crc).where(Window.device == device, Window.epoch == epoch, Window.sequence == entry.sequence)
    crc = session.scalar(known)
    return crc is not None and crc != entry.crc


def _keep_conflict(session: Session, row: OutboxMark, entry: messages.Entry) -> None:
    row.conflicts += 1
    if row.conflicts <= MAX_CONFLICTS_SHOWN:
        record(
            session,
            "conflict",
            row.device,
            f"{row.device}: entry {entry.sequence} came twice with different bodies; a new epoch was asked for",
            epoch=row.epoch,
            sequence=entry.sequence,
            crc=entry.crc,
            body=entry.body[:8192],
        )


class _Refusals:
    """Tells refused messages in the timeline, one line a minute and device with the number of those left out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: dict[str, tuple[datetime, int]] = {}

    def tell(self, plane: "Plane", device: str, reason: str, now: datetime) -> None:
        with self._lock:
            last, left_out = self._told.get(device, (None, 0))
            quiet = last is not None and now - last < timedelta(minutes=1)
            if len(self._told) > 10_000:
                self._told.clear()
            self._told[device] = (last, left_out + 1) if quiet and last else (now, 0)
        _log.info("ingest: %s: %s", device, reason)
        if not quiet:
            more = f" (and {left_out} more since the last such line)" if left_out else ""
            with plane.sessions.begin() as session:
                record(session, "refused", device[:80], f"{device[:80]}: {reason[:500]}{more}", left_out=left_out)


_refused = _Refusals()
