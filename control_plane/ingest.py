"""What devices say, taken in: the twin's reported half, the outbox (each entry once), and answers to requests.

`handle` is called by one worker with each message of an `up` topic and returns what to publish, after the commit, so an
acknowledgement never names an entry that a power cut could still take back. A message that cannot be used is counted
and told in the timeline, at most once a minute and device, and never stops the worker.
"""

import logging
import threading
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from control_plane import components, desired, director, publication, requests, revocation
from control_plane.events import record
from control_plane.outbox_intake import take_outbox
from control_plane.schema.devices import Device
from skerry.errors import Rejected
from skerry.wire import codec, messages, topics

if TYPE_CHECKING:
    from control_plane.plane import Plane

MAX_REPORTED_BYTES = 64 * 1024
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reply:
    """A message for a device, to be published with QoS 1."""

    topic: str
    payload: bytes
    retain: bool = False
    expiry_s: int = 0


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
                came_back = _take_reported(plane, session, row, payload, now)
                # a device that is new in a group with a configuration has not been told
                told = desired.messages(plane, session, desired.settle(session, desired.DEVICE, device))
                # a broker that keeps nothing on disk has forgotten what waited for it
                asked = requests.waiting(plane, session, device) if came_back else []
            elif name == "answer":
                requests.take(session, row, codec.decode(messages.Answer, payload, limit=MAX_REPORTED_BYTES), now=now)
            else:
                ack = take_outbox(plane, session, row, payload, now)
        if row.state == "decommissioned":
            return [Reply(topics.down(who, "assign"), b"", retain=True)]
        if name == "reported":
            wanted = [Reply(topic, body, retain=True) for topic, body in told]
            return [*wanted, *(Reply(each.topic, each.payload, expiry_s=each.expiry_s) for each in asked)]
        if name != "outbox":
            return []
        return [Reply(topics.down(who, "ack"), codec.encode(replace(ack, at=now.timestamp())))]
    except Rejected as refusal:
        _refused.tell(plane, device or topic[:80], str(refusal), now)
        return []


def _take_reported(plane: "Plane", session: Session, device: Device, payload: bytes, now: datetime) -> bool:
    """Keep what a device says of itself; return whether it has just come back."""
    reported = codec.decode(messages.Reported, payload, limit=MAX_REPORTED_BYTES)
    if reported.state == messages.DECOMMISSIONED:
        if device.state == "decommissioning":
            device.last_seen = now
            revocation.take_farewell(session, device, now=now)
        return False
    was_online, old = device.online, device.reported
    device.online, device.last_seen = reported.online, now
    if reported.online:
        device.reported = asdict(reported)
        components.take(session, device, reported.components or {}, now=now)
    elif old:
        # a last will was written when the connection began: all that it knows better is that it is over
        device.reported = {**old, "online": False}
    if was_online != reported.online:
        state = "online" if reported.online else "offline"
        record(session, "device", device.name, f"{device.name} is {state}", online=reported.online)
    # the broker repeats what it retains: one report asks once
    if reported.online and reported.version != old.get("version"):
        stalled = [reported.stalled, *(each.stalled for each in (reported.components or {}).values())]
        for sha256 in filter(None, stalled):
            _ask_again(plane, session, device, sha256)
    if reported.online and reported.last_error and reported.last_error != old.get("last_error"):
        record(session, "device", device.name, f"{device.name}: {reported.last_error[:300]}", error=True)
    was = old.get("health", "")
    if reported.online and reported.health not in (was, "") and (was or reported.health != "ok"):
        why = f": {'; '.join(reported.reasons)[:300]}" if reported.reasons else ""
        record(session, "health", device.name, f"{device.name} is {reported.health[:20]}{why}", health=reported.health)
    return reported.online and not was_online


def _ask_again(plane: "Plane", session: Session, device: Device, sha256: str) -> None:
    """Have chunks that a device waits for in vain published once more, for all who miss them."""
    assigned = director.assignments(session, device.name).values()
    terms = next((terms for terms, _ in assigned if sha256 in director.blobs_in(terms)), None)
    if terms is None:
        return
    if publication.ask(plane, session, sha256, release=terms.release):
        text = f"{device.name} misses chunks of {terms.release} on the broker; they are published again"
        record(session, "stalled", device.name, text, blob=sha256, release=terms.release)


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
