"""Owns what operators want of devices' configuration: set for a group or a device, told to each under a version.

The device's own wish wins over its group's. A device is told by a retained message, `down/desired`, and reports the
version that it follows; what is set anew with the same result is no new version.
"""

import re
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import events
from control_plane.plane import Plane
from control_plane.refusals import Unknown
from control_plane.schema.devices import Configuration, DesiredState, Device
from skerry.errors import Rejected
from skerry.wire import codec, topics
from skerry.wire.messages import Desired

DEVICE = "device"
GROUP = "group"
MIN_RATE = 1024
MAX_RATE = 1 << 30
MAX_JITTER_S = 86_400
_RATES = ("rate_limit_bytes_s", "resume_bytes_s")
KEYS = (*_RATES, "quiet_hours", "metered", "start_jitter_s")
_HOURS = re.compile(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d")


def check(key: str, text: str) -> int | str:
    """Return a value as devices take it; raises `Rejected` when there is no such key, or the value is none for it.

    `rate_limit_bytes_s` (of fetching) and `resume_bytes_s` (of telling what waited during an outage) are in bytes per
    second, `quiet_hours` in UTC such as 22:00-06:00, `metered` says what to do
    on a metered link (allow or pause), `start_jitter_s` up to how many seconds a fetch waits before it begins. An empty
    text is one for each.
    """
    if key not in KEYS:
        raise Rejected(f"configure: expected one of {', '.join(KEYS)}, got {key!r:.40}")
    if not text:
        return ""
    if key == "quiet_hours":
        if not _HOURS.fullmatch(text) or text[:5] == text[6:]:
            raise Rejected(f"quiet_hours: expected two different times (UTC) such as 22:00-06:00, got {text!r:.40}")
        return text
    if key == "metered":
        if text not in ("allow", "pause"):
            raise Rejected(f"metered: expected allow or pause, got {text!r:.40}")
        return text
    least, most = (MIN_RATE, MAX_RATE) if key in _RATES else (0, MAX_JITTER_S)
    if not (text.isascii() and text.isdecimal() and len(text) < 12 and least <= int(text) <= most):
        raise Rejected(f"{key}: expected a whole number from {least} to {most}, got {text!r:.40}")
    return int(text)


def configure(session: Session, scope: str, name: str, changes: dict[str, str]) -> Configuration:
    """Set keys of a device or a group; an empty value takes the key away. Publish `messages` after the commit.

    Raises:
        Unknown: there is no such device.
        Rejected: a key or a value cannot be one, or there is nothing to change.
    """
    if not changes:
        raise Rejected("configure: expected KEY=VALUE, got nothing")
    topics.check_name(name, scope)
    if scope == DEVICE and session.get(Device, name) is None:
        raise Unknown(f"device: expected one that is enrolled, got {name!r:.80}")
    checked = {key: check(key, text) for key, text in changes.items()}
    row = session.get(Configuration, (scope, name)) or Configuration(scope=scope, name=name, config={})
    row.config = {key: value for key, value in {**row.config, **checked}.items() if value != ""}
    session.add(row)
    session.flush()
    told = " ".join(f"{key}={value}" for key, value in sorted(row.config.items())) or "nothing set"
    events.record(session, "configure", name, f"{scope} {name}: {told}", config=row.config)
    return row


def settle(session: Session, scope: str = "", name: str = "") -> list[str]:
    """Give a new version to each device, of those concerned, whose configuration is another now; return their names."""
    devices = select(Device).where(Device.state == "enrolled")
    if scope:
        devices = devices.where((Device.name if scope == DEVICE else Device.group) == name)
    return [device.name for device in session.scalars(devices.order_by(Device.name)) if _settle(session, device)]


def of_device(session: Session, device: Device) -> dict[str, Any]:
    """Return what is wanted of a device: what its group has, and over that its own."""
    return {**own_config(session, GROUP, device.group), **own_config(session, DEVICE, device.name)}


def messages(plane: Plane, session: Session, names: list[str] | None = None) -> list[tuple[str, bytes]]:
    """Return (topic, payload) for the devices named, or for all that were ever told something."""
    rows = select(DesiredState).join(Device, Device.name == DesiredState.device).where(Device.state == "enrolled")
    if names is not None:
        rows = rows.where(DesiredState.device.in_(names))
    project = plane.settings.project
    return [
        (
            topics.down(topics.identity(project, row.device), "desired"),
            codec.encode(Desired(version=row.version, config=row.config)),
        )
        for row in session.scalars(rows.order_by(DesiredState.device))
    ]


def publish(plane: Plane, names: list[str]) -> None:
    """Publish the configuration of the devices named; call it after the commit."""
    with plane.readers() as session:
        told = messages(plane, session, names)
    for topic, payload in told:
        plane.outgoing.publish(topic, payload, retain=True)


def own_config(session: Session, scope: str, name: str) -> dict[str, Any]:
    """Return what is set for a device or a group itself."""
    row = session.get(Configuration, (scope, name))
    return dict(row.config) if row is not None else {}


def _settle(session: Session, device: Device) -> bool:
    wanted = of_device(session, device)
    row = session.get(DesiredState, device.name)
    if row is None:
        if not wanted:
            return False
        session.add(DesiredState(device=device.name, version=1, config=wanted))
    elif row.config == wanted:
        return False
    else:
        row.version, row.config = row.version + 1, wanted
    return True
