"""What every part of the control plane is handed: settings, stores, online keys, and the way out to MQTT."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, sessionmaker

    from control_plane.home import Home
    from control_plane.link import Outgoing
    from control_plane.online_keys import OnlineSigners
    from control_plane.settings import Settings
    from control_plane.store import Blobs


def utc_now() -> datetime:
    """Return the real time, aware, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Plane:
    """The control plane's parts. All may be used from any thread.

    `sessions` makes sessions that may write (short ones, never one inside another), `readers` those that only read;
    `outgoing.publish(topic, payload, retain=..., qos=1)` hands a message to the MQTT link: call it after the commit.
    `stopping` is set when the server goes down: whatever waits, waits on it.
    """

    settings: Settings
    home: Home
    sessions: sessionmaker[Session]
    readers: sessionmaker[Session]
    blobs: Blobs
    signers: OnlineSigners
    outgoing: Outgoing
    clock: Callable[[], datetime] = utc_now
    stopping: threading.Event = field(default_factory=threading.Event)
