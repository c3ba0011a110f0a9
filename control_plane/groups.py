"""Owns the rules of device groups: whether a claim waits for an operator, and whether online-signed models are refused.

A group is a name that devices carry; it has a row only once it has a rule. What a device refuses is kept on the device
too: a rule reaches it when it enrols or renews, and there it is only ever tightened by the server.
"""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from control_plane import events
from control_plane.schema.devices import Device, DeviceGroup
from skerry.errors import Rejected
from skerry.wire.topics import check_name

AUTOMATIC = "automatic"
PENDING = "pending"


def rule(session: Session, group: str) -> DeviceGroup:
    """Return the rules of a group; those of one without any accept at once and refuse nothing."""
    return session.get(DeviceGroup, group) or DeviceGroup(name=group, approve=AUTOMATIC, refuse_automatic=False)


def set_rule(
    session: Session, group: str, *, approve: str | None = None, refuse_automatic: bool | None = None
) -> DeviceGroup:
    """Set the rules of a group that are given; raises `Rejected` when the name or `approve` cannot be one."""
    check_name(group, "group")
    row = rule(session, group)
    if approve is not None:
        check_approve(approve)
        row.approve = approve
    if refuse_automatic is not None:
        row.refuse_automatic = refuse_automatic
    session.add(row)
    verb = "refuses" if row.refuse_automatic else "accepts"
    text = f"group {group}: approval is {row.approve}; {verb} models that are signed online"
    events.record(session, "group", group, text, approve=row.approve, refuse_automatic=row.refuse_automatic)
    return row


def listed(session: Session) -> list[tuple[DeviceGroup, int]]:
    """Return the groups that have a rule or a device, by name, with the number of their devices."""
    counted = session.execute(select(Device.group, func.count()).group_by(Device.group))
    counts = {group: int(count) for group, count in counted}
    names = {*counts, *session.scalars(select(DeviceGroup.name))}
    return [(rule(session, name), counts.get(name, 0)) for name in sorted(names)]


def refusing_automatic(session: Session) -> frozenset[str]:
    """Return the groups whose devices refuse models that are signed online."""
    return frozenset(session.scalars(select(DeviceGroup.name).where(DeviceGroup.refuse_automatic)))


def check_approve(text: str) -> None:
    """Raise `Rejected` unless `text` is a way to approve of claims."""
    if text not in (AUTOMATIC, PENDING):
        raise Rejected(f"approve: expected {AUTOMATIC} or {PENDING}, got {text!r:.40}")
