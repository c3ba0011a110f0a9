"""A control plane with a SQLite file, the real job pool and the real API, and no broker: what it would say is kept."""

import contextlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI

from control_plane import ceremony, deltas
from control_plane.api.app import create_app
from control_plane.assembly import job_runner, routers
from control_plane.keys import hold_ceremony, sign_payload
from control_plane.link import Outgoing
from control_plane.online_keys import describe_online
from control_plane.plane import Plane
from control_plane.server import make_home, open_plane
from control_plane.settings import Settings
from tests.device_rows import enrolled

LABELS = ("rest", "lift", "turn")
STEPS, CHANNELS = 32, 2


class Said(Outgoing):
    """Keeps what is published."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[tuple[str, bytes, bool]] = []

    def publish(self, topic: str, payload: bytes, *, retain: bool, qos: int = 1, expiry_s: int = 0) -> bool:  # noqa: ARG002
        self.messages.append((topic, payload, retain))
        return True


@dataclass
class Coast:
    """A control plane as its operator sees it."""

    plane: Plane
    client: httpx.Client
    keys: Path
    said: Said = field(default_factory=Said)

    def ask(self, method: str, path: str, **options: Any) -> Any:
        """Send a request that must succeed; return its JSON."""
        answer = self.client.request(method, path, **options)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def job(self, asked: dict[str, Any], timeout_s: float = 50.0) -> dict[str, Any]:
        """Wait for the end of a job."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            job: dict[str, Any] = self.ask("GET", f"/v1/jobs/{asked['job']}")
            if job["state"] in ("done", "failed"):
                return job
            time.sleep(0.05)
        pytest.fail(f"expected the job's end within {timeout_s} s, got {job}")

    def release(self, model: str, version: int) -> dict[str, Any]:
        """Stage, sign and publish a release."""
        staged = self.ask("POST", "/v1/releases", json={"model": model, "version": version})
        path = f"/v1/releases/{staged['name']}"
        payload = self.client.get(f"{path}/payload").content
        for signature in sign_payload(self.keys, payload):
            staged = self.ask("POST", f"{path}/signatures", json=signature)
        self.make_deltas(staged["name"])
        return dict(staged)

    def make_deltas(self, release: str, timeout_s: float = 50.0) -> None:
        """Wait until what a rollout would wait for is made."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with self.plane.readers() as session:
                if not deltas.awaited(session, release, now=self.plane.clock()):
                    return
            time.sleep(0.05)
        pytest.fail(f"expected the deltas of {release} within {timeout_s} s, got none")

    def enrol(self, name: str, profile: str) -> None:
        """Put a device into the registry as enrolment would."""
        with self.plane.sessions.begin() as session:
            session.add(enrolled(name, self.plane.clock(), profile=profile))


def recordings(*, groups: int, rows: int, seed: int, shift: float = 0.0) -> bytes:
    """Return an npz of a small recording: three classes that differ in level and movement."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, len(LABELS), groups * rows)
    time_axis = np.linspace(0, 4 * np.pi, STEPS)
    x = rng.normal(0, 0.3, (len(y), STEPS, CHANNELS))
    x[:, :, 0] += np.where(y == 1, 2.0, 0.0)[:, None] + shift
    x[:, :, 1] += np.where(y == 2, 1.0, 0.0)[:, None] * np.sin(time_axis)[None, :] * 3
    file = io.BytesIO()
    np.savez_compressed(
        file,
        X=x.astype(np.float32),
        y=y.astype(np.int64),
        group=np.repeat(np.arange(groups), rows),
        labels=np.array(LABELS),
    )
    return file.getvalue()


@pytest.fixture
def coast(tmp_path: Path) -> Iterator[Coast]:
    """Return a control plane after its ceremony, with its jobs running."""
    home = make_home(tmp_path / "home", Settings(project="watch"))
    said = Said()
    plane = replace(open_plane(home.path), outgoing=said)
    keys = tmp_path / "keys"
    made = hold_ceremony(keys, describe_online(plane.signers, "watch"), keys=1, threshold=1, now=datetime.now(UTC))
    with plane.sessions.begin() as session:
        ceremony.take(plane, session, **made)
    app = create_app(plane, routers())
    headers = {"Authorization": f"Bearer {home.operator_token()}"}
    with job_runner(plane), served(app) as url, httpx.Client(base_url=url, headers=headers, timeout=30) as client:
        yield Coast(plane, client, keys, said)
        plane.stopping.set()
    plane.sessions.kw["bind"].dispose()


@contextlib.contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve an application on a port of its own while the body runs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
