"""Fixtures for agents: a broker, a shore, a device and a relay between them (`shore` says what they are)."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import iotcore
import pytest

from agent.link.address import parse_broker
from agent.link.session import Link
from agent.link.tls import Credentials
from tests.integration.agent.ailing import (
    Authority,
    Patient,
    broker_says,
    make_patient,
    server_context,
    serving,
    web_says,
)
from tests.integration.agent.links import NONE, WHO
from tests.integration.agent.shore import LABELS, Device, Shore
from tests.recordings import write_recording
from tests.relay import Relay

BROKER_TOML = """
id = 0
[router]
id = 0
max_connections = 64
max_outgoing_packet_count = 200
max_segment_size = 1048576
max_segment_count = 8
[v5.1]
name = "v5"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = 1048576
max_inflight_count = 100
dynamic_filters = true
"""


@pytest.fixture
def broker_port(request: pytest.FixtureRequest, tmp_path: Path, free_port: Callable[[], int]) -> Iterator[int]:
    """The port of a broker of the test's own: the embedded one, unless the test asks for Mosquitto."""
    if getattr(request, "param", "embedded") == "mosquitto":
        yield request.getfixturevalue("mosquitto").port
        return
    port = free_port()
    config = tmp_path / "broker.toml"
    config.write_text(BROKER_TOML.format(port=port))
    with iotcore.Broker(config_path=str(config)):
        yield port


@pytest.fixture
def shore(broker_port: int, tmp_path: Path) -> Iterator[Shore]:
    """A control plane of its own for each test."""
    shore = Shore(broker_port, tmp_path)
    yield shore
    shore.close()


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A recording whose truth is known."""
    return write_recording(tmp_path / "recording.npz", LABELS)


@pytest.fixture
def device(shore: Shore, tmp_path: Path, recording: Path) -> Iterator[Device]:
    """A device with a name of its own (the broker retains what earlier tests said), not yet started."""
    name = f"watch-{os.urandom(3).hex()}"
    device = Device(shore, name, tmp_path / name, recording)
    yield device
    device.kill()
    sys.stderr.write(device.log.read_text() if device.log.exists() else "")


@pytest.fixture
def relay(broker_port: int) -> Iterator[Relay]:
    """A relay to the broker, up."""
    relay = Relay(broker_port)
    yield relay
    relay.close()


@pytest.fixture(scope="module")
def authority() -> Authority:
    """A CA for the devices that are looked at by the doctor."""
    return Authority()


@pytest.fixture
def patient(tmp_path: Path, authority: Authority) -> Iterator[Patient]:
    """A device that is well, whose broker and server answer."""
    context = server_context(authority, tmp_path)
    asking = server_context(authority, tmp_path, asks=True)
    with serving(broker_says(0), context=asking) as broker, serving(web_says(), context=context) as server:
        yield make_patient(tmp_path / "state", authority, broker_port=broker, server_port=server)


@pytest.fixture
def make_link() -> Iterator[Callable[..., Link]]:
    """Return a function that makes a link and starts it; all are stopped at the end."""
    links: list[Link] = []

    def make(url: str, *, credentials: Credentials = NONE, start: bool = True, **more: Any) -> Link:
        given: dict[str, Any] = {"who": WHO, "will": lambda: b"gone", "reconnect_s": 0.2, "keep_alive_s": 3} | more
        links.append(Link(parse_broker(url), credentials=credentials, **given))
        if start:
            links[-1].start()
        return links[-1]

    yield make
    for link in links:
        link.stop()
