"""Fixtures for delivery over bad links: a Mosquitto, its publisher, and fetchers that are the agent's own."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from control_plane.server import make_home
from control_plane.settings import Settings
from control_plane.store import Blobs
from tests.conftest import Mosquitto, pick_port, wait_for_port
from tests.integration.agent.shore import LABELS, Device, Shore
from tests.integration.broker.conftest import make_shop, shop
from tests.integration.delivery.fetcher import Artifact, Fetcher, Publisher
from tests.recordings import write_recording
from tests.relay import Relay, Shape

__all__ = ["make_shop", "shop"]  # fixtures that the sites' tests share with the broker's


@pytest.fixture
def publisher(mosquitto: Mosquitto) -> Iterator[Publisher]:
    """Whoever may write chunks on the test's Mosquitto."""
    with Publisher(mosquitto.port) as publisher:
        yield publisher


@pytest.fixture
def make_relay(mosquitto: Mosquitto) -> Iterator[Callable[..., Relay]]:
    """Return a function that makes a relay of a shape to the test's Mosquitto."""
    relays: list[Relay] = []

    def make(shape: Shape | None = None) -> Relay:
        relays.append(Relay(mosquitto.port, shape))
        return relays[-1]

    yield make
    for relay in relays:
        relay.close()


@pytest.fixture
def make_fetcher(tmp_path: Path) -> Iterator[Callable[..., Fetcher]]:
    """Return a function that connects a fetcher to a port."""
    fetchers: list[Fetcher] = []

    def make(port: int, *, name: str = "watch-1", keep_alive_s: int = 60) -> Fetcher:
        fetchers.append(Fetcher(port, tmp_path / name, name=name, keep_alive_s=keep_alive_s))
        return fetchers[-1]

    yield make
    for fetcher in fetchers:
        fetcher.close()


@pytest.fixture
def shore(mosquitto: Mosquitto, tmp_path: Path) -> Iterator[Shore]:
    """A small control plane on the test's Mosquitto."""
    shore = Shore(mosquitto.port, tmp_path)
    yield shore
    shore.close()


@pytest.fixture
def make_device(shore: Shore, tmp_path: Path) -> Iterator[Callable[..., Device]]:
    """Return a function that makes a whole agent, enrolled and not yet started."""
    recording = write_recording(tmp_path / "recording.npz", LABELS)
    devices: list[Device] = []

    def make(name: str = "watch-1", *, port: int = 0) -> Device:
        devices.append(Device(shore, name, tmp_path / name, recording))
        devices[-1].port = port or shore.port
        return devices[-1]

    yield make
    for device in devices:
        device.kill()
        sys.stderr.write(device.log.read_text() if device.log.exists() else "")


@dataclass(frozen=True, slots=True)
class BlobServer:
    """The control plane's endpoint of one artifact."""

    port: int
    ca: str


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Artifact], BlobServer]]:
    """Return a function that has the control plane's own endpoint serve an artifact."""
    servers: list[subprocess.Popen[bytes]] = []

    def start(artifact: Artifact) -> BlobServer:
        home = make_home(tmp_path / "home", Settings(project="watch"))
        Blobs(home.blobs).put(b"".join(artifact.sealed))
        port = pick_port()
        command = [sys.executable, "-m", "tests.blob_server", str(home.path), str(port), artifact.published]
        servers.append(subprocess.Popen(command))
        wait_for_port(port)
        return BlobServer(port, (home.ca / "server-ca.pem").read_text())

    yield start
    for server in servers:
        server.kill()
        server.wait()
