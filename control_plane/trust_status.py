"""Owns what people are told of trust: versions, ends, who signs; and the alarms before something ends.

What online keys sign is renewed at half of its life, so an alarm on it means that renewing fails. What offline keys
sign is renewed by people: they are told well ahead, and after the end.
"""

import logging
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, Role, Root, Snapshot, Targets, Timestamp

from control_plane import delegated, director, events, image_repository
from control_plane.online_keys import AUTOMATIC, ONLINE_ROLES
from control_plane.plane import Plane
from control_plane.refusals import Unknown
from control_plane.schema.work import Event
from skerry.errors import SkerryError

log = logging.getLogger(__name__)

OFFLINE_AHEAD = timedelta(days=30)
# a grant may be as short as a month: an alarm from its first day would say nothing
GRANT_AHEAD = timedelta(days=7)
# a quarter of the life, when half of it was the time to renew
ONLINE_AHEAD = {
    Snapshot.type: image_repository.SNAPSHOT_LIFE / 4,
    Timestamp.type: image_repository.TIMESTAMP_LIFE / 4,
}


@dataclass(frozen=True, slots=True)
class Alarm:
    """What ends, when, and what to do about it."""

    subject: str
    expires: str
    expired: bool
    text: str


def roles(session: Session) -> list[dict[str, Any]]:
    """Return version, end, threshold and keys of each role; nothing before the ceremony."""
    image = image_repository.signed(session)
    if not image:
        return []
    root = image_repository.root(session)
    top = image_repository.targets(session)
    rows = []
    for name, metadata in image:
        delegation = delegated.roles(top).get(name)
        named, keys = (delegation, top.delegations) if delegation else (root.roles[name], root)
        row = _row("image", name, metadata, named, keys)
        if delegation:
            row["granted_until"] = delegated.until(delegation).isoformat()
        rows.append(row)
    theirs = director.signed_root(session)
    return [*rows, _row("director", Root.type, theirs, theirs.signed.roles[Root.type], theirs.signed)]


def online_keys(plane: Plane, session: Session) -> dict[str, dict[str, Any]]:
    """Return for each online role the key that signs, and the one that lies ready to follow it, if any."""
    try:
        image, theirs = image_repository.root(session), director.root(session)
    except Unknown:
        return {}
    signing = {role: image.roles[role].keyids[0] for role in (Snapshot.type, Timestamp.type)}
    signing["director"] = theirs.roles[Targets.type].keyids[0]
    newest = {role: plane.signers.newest(role).public_key.keyid for role in ONLINE_ROLES}
    return {
        role: {"keyid": signing[role], "next": newest[role] if newest[role] != signing[role] else ""}
        for role in ONLINE_ROLES
    }


def alarms(session: Session, now: datetime) -> list[Alarm]:
    """Return what ends soon or has ended; nothing before the ceremony."""
    found = []
    top = None
    for name, metadata in image_repository.signed(session):
        if isinstance(metadata.signed, Targets) and name == Targets.type:
            top = metadata.signed
        if name.startswith(AUTOMATIC) and top is not None:
            model = name.removeprefix(AUTOMATIC)
            end = delegated.until(delegated.roles(top)[name])
            what, remedy = f"grant of {model}", f"skerry keys grant {model}, or skerry keys withdraw {model}"
            found.append(_alarm(what, end, GRANT_AHEAD, now, remedy))
        elif name in ONLINE_AHEAD:
            remedy = "the server renews it by itself: see its log for why it could not"
            found.append(_alarm(f"image {name}", metadata.signed.expires, ONLINE_AHEAD[name], now, remedy))
        else:
            remedy = f"skerry keys renew {name}"
            found.append(_alarm(f"image {name}", metadata.signed.expires, OFFLINE_AHEAD, now, remedy))
    if found:
        expires = director.root(session).expires
        found.append(_alarm("director root", expires, OFFLINE_AHEAD, now, "skerry keys renew root"))
    return [alarm for alarm in found if alarm is not None]


def sound(plane: Plane) -> list[Alarm]:
    """Write each alarm to the log and the timeline, once a day; return those that were written now."""
    now = plane.clock()
    with plane.sessions.begin() as session:
        fresh = [alarm for alarm in alarms(session, now) if _last_day(session, alarm.subject) != f"{now:%Y-%m-%d}"]
        for alarm in fresh:
            data = {**asdict(alarm), "day": f"{now:%Y-%m-%d}"}
            data.pop("text")
            data.pop("subject")
            events.record(session, "alarm", alarm.subject, alarm.text, **data)
    for alarm in fresh:
        log.warning("%s", alarm.text)
    return fresh


def summary(plane: Plane) -> list[str]:
    """Return the alarms as lines, for health; a database that does not answer is one of them."""
    try:
        with plane.readers() as session:
            return [alarm.text for alarm in alarms(session, plane.clock())]
    except SkerryError as error:
        return [str(error)]


def _row(repository: str, name: str, metadata: Metadata[Any], named: Role, keys: Any) -> dict[str, Any]:
    return {
        "repository": repository,
        "role": name,
        "version": metadata.signed.version,
        "expires": metadata.signed.expires.isoformat(),
        "threshold": named.threshold,
        "keys": [{"keyid": keyid, "scheme": keys.keys[keyid].scheme} for keyid in named.keyids],
        "signed_by": list(metadata.signatures),
    }


def _alarm(subject: str, end: datetime, ahead: timedelta, now: datetime, remedy: str) -> Alarm | None:
    if end - now > ahead:
        return None
    if end <= now:
        text = f"{subject} has expired on {end:%Y-%m-%d}: devices install nothing that needs it; {remedy}"
    else:
        days = (end - now).days
        text = f"{subject} expires on {end:%Y-%m-%d}, in {days} {'day' if days == 1 else 'days'}; {remedy}"
    return Alarm(subject=subject, expires=end.isoformat(), expired=end <= now, text=text)


def _last_day(session: Session, subject: str) -> str:
    last = select(Event.data).where(Event.kind == "alarm", Event.subject == subject).order_by(Event.id.desc()).limit(1)
    return str((session.scalar(last) or {}).get("day", ""))
