"""Devices in the control plane's registry, as enrolment would put them there."""

from datetime import datetime, timedelta
from typing import Any

from control_plane.schema.devices import Device
from tests.device_keys import PUBLIC


def enrolled(name: str, now: datetime, **more: Any) -> Device:
    """Return the row of a device that enrolled now; whoever needs its key has `device_keys.PRIVATE`."""
    usual = {"profile": "x86-64-gateway", "certificate_serial": "1", "public_key": PUBLIC, "reported": {}}
    return Device(name=name, enrolled_at=now, certificate_expires=now + timedelta(days=30), **(usual | more))
