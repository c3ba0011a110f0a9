"""Owns remote requests to devices: who asked which device for what and until when, and what came of it.

A request is a row before it is a message. It is published with QoS 1 and an expiry, so that the broker keeps it for a
device that is away and forgets it in time; again when the broker or the device comes back, since a device acts once per
id and gives the same answer again. An answer counts when it comes from the device that was asked, the first one alone;
one that comes late is kept. Answers that were lost after the request's end are asked for by `only_repeat`.
"""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from control_plane import components, events
from control_plane.plane import Plane
from control_plane.refusals import Conflict, TooMany, Unknown
from control_plane.schema.devices import Device, DeviceRequest
from skerry.errors import Rejected
from skerry.wire import codec, topics
from skerry.wire.messages import AGENT, Answer, Request
from skerry.wire.requests import check_request

DEFAULT_EXPIRES_S = 3600
MIN_EXPIRES_S = 10
# how long a broker keeps the session of a device that is away
MAX_EXPIRES_S = 7 * 86_400
MAX_WAITING = 8
KEPT_PER_DEVICE = 200
# so long after its end an answer is still asked for, and so long the broker keeps that question
ASKED_AFTER = timedelta(days=1)
LAST_CALL_S = 60


@dataclass(frozen=True, slots=True)
class Told:
    """A request as it is published."""

    topic: str
    payload: bytes
    expiry_s: int
    retain: bool = False


def ask(
    plane: Plane, session: Session, device: str, verb: str, args: Mapping[str, Any], *, expires_s: int, asked_by: str
) -> DeviceRequest:
    """Write a request down; `publish` it after the commit.

    Raises:
        Unknown: there is no such device.
        Conflict: it is not enrolled, so nothing would reach it; or it has no such component.
        TooMany: so many wait for it already.
        Rejected: it cannot be asked for that.
    """
    row = session.get(Device, device)
    if row is None:
        raise Unknown(f"device: expected one that is enrolled, got {device!r:.80}")
    if row.state not in ("enrolled", "decommissioning"):
        raise Conflict(f"{device}: expected an enrolled device, got one that is {row.state}")
    checked = check_request(verb, args)
    if name := checked.get("component"):
        known = [each.name for each in components.of_device(session, device) if each.name != AGENT]
        if name not in known:
            raise Conflict(f"{device}: expected one of its components ({', '.join(known) or 'none'}), got {name!r:.80}")
    if not MIN_EXPIRES_S <= expires_s <= MAX_EXPIRES_S:
        raise Rejected(f"expires_s: expected {MIN_EXPIRES_S} to {MAX_EXPIRES_S} seconds, got {expires_s}")
    now = plane.clock()
    waiting = session.scalar(
        select(func.count()).where(
            DeviceRequest.device == device, DeviceRequest.answered_at.is_(None), DeviceRequest.expires > now
        )
    )
    if (waiting or 0) >= MAX_WAITING:
        raise TooMany(f"{device}: expected fewer than {MAX_WAITING} requests that wait, got {waiting}; wait for one")
    asked = DeviceRequest(
        id=secrets.token_hex(8),
        device=device,
        verb=verb,
        args=checked,
        asked_by=asked_by[:80],
        asked_at=now,
        expires=now + timedelta(seconds=expires_s),
        result={},
    )
    session.add(asked)
    session.flush()
    _forget_old(session, device)
    shown = " ".join(f"{key}={value}" for key, value in sorted(checked.items()))
    text = f"{asked.asked_by} asked {device}: {verb} {shown}".rstrip()
    told = {"id": asked.id, "verb": verb, "args": checked, "asked_by": asked.asked_by}
    events.record(session, "request", device, text, **told, expires=asked.expires.isoformat())
    return asked


def publish(plane: Plane, rows: Iterable[DeviceRequest]) -> None:
    """Publish requests; call it after the commit. What finds no connection goes out with the next one."""
    for told in _messages(plane, rows):
        plane.outgoing.publish(told.topic, told.payload, retain=False, expiry_s=told.expiry_s)


def waiting(plane: Plane, session: Session, device: str = "") -> list[Told]:
    """Return what has no answer yet, to one device or to all, as it is to be published now."""
    rows = (
        select(DeviceRequest)
        .join(Device, Device.name == DeviceRequest.device)
        .where(DeviceRequest.answered_at.is_(None), DeviceRequest.expires > plane.clock() - ASKED_AFTER)
        .where(Device.state.in_(("enrolled", "decommissioning")))
        .order_by(DeviceRequest.number)
    )
    if device:
        rows = rows.where(DeviceRequest.device == device)
    return _messages(plane, session.scalars(rows))


def take(session: Session, device: Device, answer: Answer, *, now: datetime) -> None:
    """Keep what a device answered, once; raises `Rejected` when it was not asked that."""
    row = session.scalar(select(DeviceRequest).where(DeviceRequest.id == answer.id[:32]))
    if row is None or row.device != device.name or row.id != answer.id:
        raise Rejected(f"answer: expected one to a request to {device.name}, got {answer.id!r:.40}")
    if row.answered_at is not None:
        return
    row.answered_at, row.ok, row.result = now, answer.ok, answer.result
    reason = str(answer.result.get("reason", ""))[:300]
    late = ", late" if now > row.expires else ""
    said = f"done{late}" if answer.ok else f"refused{late}: {reason}"
    text = f"{device.name}: {row.verb} of {row.asked_by}: {said}"
    told = {"id": row.id, "verb": row.verb, "ok": answer.ok, "reason": reason, "asked_by": row.asked_by}
    events.record(session, "answer", device.name, text, **told)


def listed(session: Session, device: str, *, limit: int = KEPT_PER_DEVICE) -> list[DeviceRequest]:
    """Return a device's requests, newest first; raises `Unknown` when there is no such device."""
    if session.get(Device, device) is None:
        raise Unknown(f"device: expected one that is enrolled, got {device!r:.80}")
    rows = select(DeviceRequest).where(DeviceRequest.device == device).order_by(DeviceRequest.number.desc())
    return list(session.scalars(rows.limit(limit)))


def find(session: Session, device: str, request_id: str) -> DeviceRequest:
    """Return one request to a device; raises `Unknown`."""
    row = session.scalar(select(DeviceRequest).where(DeviceRequest.id == request_id, DeviceRequest.device == device))
    if row is None:
        raise Unknown(f"request: expected one to {device!r:.80}, got {request_id!r:.40}")
    return row


def state_of(row: DeviceRequest, *, now: datetime) -> str:
    """Say how a request stands: waiting, done, refused, or expired without an answer."""
    if row.answered_at is not None:
        return "done" if row.ok else "refused"
    return "waiting" if now < row.expires else "expired"


def _messages(plane: Plane, rows: Iterable[DeviceRequest]) -> list[Told]:
    now, project = plane.clock(), plane.settings.project
    told = []
    for row in rows:
        left_s = int((row.expires - now).total_seconds())
        request = Request(
            id=row.id,
            verb=row.verb,
            args=row.args,
            expires=row.expires.timestamp(),
            asked_by=row.asked_by,
            # a device whose clock is behind would take it for one that may still be done
            only_repeat=left_s <= 0,
        )
        topic = topics.down(topics.identity(project, row.device), "request")
        told.append(Told(topic, codec.encode(request), expiry_s=max(left_s, 1) if left_s > 0 else LAST_CALL_S))
    return told


def _forget_old(session: Session, device: str) -> None:
    """Keep the newest of a device: the timeline has what was asked and what came of it, for as long as it lives."""
    oldest = select(DeviceRequest.number).where(DeviceRequest.device == device).order_by(DeviceRequest.number.desc())
    last = session.scalar(oldest.offset(KEPT_PER_DEVICE).limit(1))
    if last is not None:
        session.execute(delete(DeviceRequest).where(DeviceRequest.device == device, DeviceRequest.number <= last))
