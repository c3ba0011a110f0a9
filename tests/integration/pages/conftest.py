"""The application with its pages on a real port, over a home folder and a database of the test's own."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
import uvicorn
from sqlalchemy.orm import Session

from control_plane import schema
from control_plane.api import app, events
from control_plane.database import open_database, readers, sessions
from control_plane.home import create_home
from control_plane.link import Outgoing
from control_plane.online_keys import OnlineSigners
from control_plane.pages import routes
from control_plane.plane import Plane
from control_plane.settings import Settings
from control_plane.store import Blobs

TOKEN = "the-token-of-the-test"
DEVICES = ("watch-08", "watch-09", "watch-10", "bench-1")


@dataclass(frozen=True, slots=True)
class Served:
    """A running application: its address, its plane and the operator's token."""

    url: str
    plane: Plane
    token: str = TOKEN

    def add(self, *rows: schema.tables.Table) -> None:
        """Write rows as another part of the control plane would."""
        with self.plane.sessions.begin() as session:
            session.add_all(rows)


@pytest.fixture
def served(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Served]:
    """Serve the pages over a filled database."""
    home = create_home(tmp_path / "home")
    (home.path / "operator.token").write_text(TOKEN)
    engine = open_database(home)
    plane = Plane(
        settings=Settings(project="watch"),
        home=home,
        sessions=sessions(engine),
        readers=readers(engine),
        # the pages read the database alone
        blobs=cast("Blobs", None),
        signers=cast("OnlineSigners", None),
        outgoing=Outgoing(),
    )
    with plane.sessions.begin() as session:
        fill(session, datetime.now(UTC))
    port = free_port()
    application = app.create_app(plane, [routes.router, events.router])
    server = uvicorn.Server(uvicorn.Config(application, port=port, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive(), "expected the server to start, got its end"
        assert time.monotonic() < deadline, "expected the server to start within 20 s"
        time.sleep(0.02)
    yield Served(f"http://127.0.0.1:{port}", plane)
    plane.stopping.set()
    server.should_exit = True
    thread.join(20)
    engine.dispose()


def fill(session: Session, now: datetime) -> None:
    """Write a small fleet in the middle of a rollout."""
    for index, name in enumerate(DEVICES):
        reported = {
            "state": "committed",
            "release": "watch-1",
            "runtime": "litert 2.1",
            "outbox_depth": 4 * (index == 3),
        }
        session.add(
            schema.devices.Device(
                name=name,
                profile="board",
                certificate_serial="1",
                certificate_expires=now,
                enrolled_at=now,
                online=index != 3,
                last_seen=now - timedelta(seconds=index),
                reported=reported,
            )
        )
    session.add(schema.releases.Release(name="watch-1", model="watch", version=1, state="live", created_at=now))
    session.flush()
    session.add(schema.releases.Rollout(id=1, release="watch-1", state="running", created_at=now))
    session.flush()
    session.add(schema.releases.Wave(rollout=1, number=1, name="canary", state="done"))
    session.add(
        schema.releases.Deployment(
            id="d1",
            rollout=1,
            wave=1,
            device=DEVICES[0],
            release="watch-1",
            manifest="m",
            state="committed",
            assigned_at=now,
            ended_at=now + timedelta(seconds=4),
        )
    )
    candidate = {"name": "float32", "outcome": "passed", "checks": [], "size_bytes": 41_230}
    report = {"runtime": "litert", "runtime_version": "2.1", "chosen": "float32", "candidates": [candidate]}
    session.add(
        schema.models.ModelVersion(model="watch", version=1, dataset="wrist", metrics={}, bundle="b", trained_at=now)
    )
    session.add(
        schema.models.Build(model="watch", version=1, profile="board", gate="passed", report=report, built_at=now)
    )
    session.add(
        schema.telemetry.Finding(
            kind="local",
            device=DEVICES[1],
            model="watch",
            version=1,
            log_e=131.0,
            severity=1.3,
            event_time=0.0,
            window=9,
            found_at=now,
        )
    )
    session.add(schema.work.Event(at=now, kind="rollout", subject="1", text="rollout 1 began", data={}))
