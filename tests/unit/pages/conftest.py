"""An in-memory database, and short ways to fill it."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from control_plane.schema.devices import Device
from control_plane.schema.tables import Table

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def now() -> datetime:
    """Return the time at which the pages are read."""
    return NOW


@pytest.fixture
def session() -> Iterator[Session]:
    """Open a session on an empty database in memory."""
    engine = create_engine("sqlite://")
    Table.metadata.create_all(engine)
    with Session(engine) as session:
        yield session
    engine.dispose()


@pytest.fixture
def add_device(session: Session) -> Callable[..., Device]:
    """Return a function that adds a device; keywords of the device first, the rest is what it reported."""

    def add(name: str, *, online: bool = True, enrolled: str = "enrolled", seen_s: float = 3.0, **said: Any) -> Device:
        device = Device(
            name=name,
            profile="gateway",
            state=enrolled,
            certificate_serial="1",
            certificate_expires=NOW,
            enrolled_at=NOW,
            online=online,
            last_seen=NOW - timedelta(seconds=seen_s),
            reported={"state": "committed", "release": "watch-1", "runtime": "onnxruntime 1"} | said,
        )
        session.add(device)
        session.flush()
        return device

    return add
