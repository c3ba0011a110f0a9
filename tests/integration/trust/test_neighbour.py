"""A device of another project on a shared broker that lets everybody read everything: it learns no model.

The whole product on one side: a server, a signed release, an agent that enrols, fetches and commits. On the other, a
stranger with a certificate and a key of its own, who keeps every byte that the broker hands out, retained and live.
"""

import contextlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest

from control_plane.authority import ensure_server_certificate, issue, load_authority, make_authorities, read_csr
from control_plane.plane import utc_now
from control_plane.schema.delivery import SealedArtifact
from control_plane.server import open_plane
from skerry.delivery.sealed import open_key
from skerry.errors import Rejected
from tests.conftest import pick_port, wait_for_port
from tests.integration.agent.shore import wait_for
from tests.integration.trust.products import PROFILE, release, train

WINDOW = 32


@dataclass
class SharedBroker:
    """A Mosquitto without any ACL: a listener for this project's programs, and one with TLS for the stranger."""

    port: int
    tls_port: int
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"


@dataclass
class Stranger:
    """A device of another project that keeps what it is sent."""

    key: bytes
    client: paho.Client
    heard: list[tuple[str, bytes]] = field(default_factory=list)

    def on(self, part: str) -> list[bytes]:
        """Return what came on the topics that have `part` in them."""
        return [payload for topic, payload in self.heard if part in topic]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedBroker]:
    """Run a broker that asks devices for a certificate of its CA, and then lets them read what they like."""
    program = shutil.which("mosquitto", path=os.pathsep.join((os.environ["PATH"], "/usr/sbin")))
    if program is None:
        pytest.skip("expected mosquitto, got none: apt-get install mosquitto")
    folder = tmp_path_factory.mktemp("shared")
    make_authorities(folder, "another")
    certificate, key = ensure_server_certificate(folder, host="127.0.0.1", now=utc_now())
    port, tls_port = pick_port(), pick_port()
    (folder / "mosquitto.conf").write_text(
        "per_listener_settings true\nuser root\n"
        f"listener {port} 127.0.0.1\nallow_anonymous true\n"
        f"listener {tls_port} 127.0.0.1\ncafile {folder / 'device-ca.pem'}\n"
        f"certfile {certificate}\nkeyfile {key}\nrequire_certificate true\nuse_identity_as_username true\n"
    )
    process = subprocess.Popen([program, "-c", str(folder / "mosquitto.conf")], stderr=subprocess.DEVNULL)
    wait_for_port(tls_port)
    yield SharedBroker(port, tls_port, folder, process)
    process.terminate()
    process.wait(10)


def come(broker: SharedBroker, folder: Path) -> Stranger:
    """Connect as a device of another project, with its own certificate, and subscribe to everything."""
    from agent.identity.enrol import make_key_and_request

    key, csr = make_key_and_request()
    authority = load_authority(broker.folder, "device")
    issued = issue(authority, read_csr(csr), name="another.spy-1", now=utc_now())
    folder.mkdir()
    (folder / "key.pem").write_bytes(key)
    (folder / "certificate.pem").write_text(issued.pem)
    context = ssl.create_default_context(cafile=str(broker.folder / "server-ca.pem"))
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")

    client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="another.spy-1", protocol=paho.MQTTv5)
    stranger = Stranger(key, client)
    client.tls_set_context(context)
    client.on_connect = lambda client, *_: client.subscribe([("#", 0), ("$SYS/#", 0)])
    client.on_message = lambda _client, _data, message: stranger.heard.append((message.topic, bytes(message.payload)))
    client.connect("127.0.0.1", broker.tls_port)
    client.loop_start()
    wait_for(client.is_connected, why="the stranger to be let in")
    return stranger


@contextlib.contextmanager
def running_device(server: Any, state: Path) -> Iterator[None]:
    """Enrol an agent, and run it while the body runs."""
    agent = [sys.executable, "-m", "agent"]
    join = server.post("/v1/devices/invite", {"profile": PROFILE, "name": "gull-1"})["join"]
    subprocess.run(
        [*agent, "init", join, "--profile", PROFILE, "--state", str(state), "--simulate"], check=True, timeout=60
    )
    # without inputs to infer on, the trial ends with the golden replay at the end of its grace
    recording = state.parent / "recording.npz"
    log = (state.parent / "agent.log").open("wb")
    process = subprocess.Popen(
        [*agent, "run", "--state", str(state), "--replay", str(recording), "--rate", "200"], stderr=log
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)
        log.close()
        sys.stderr.write((state.parent / "agent.log").read_text())


@dataclass
class Told:
    """What happened, for the assertions."""

    files: dict[str, bytes]
    content_key: bytes
    live: Stranger
    late: Stranger


@pytest.fixture(scope="module")
def told(
    make_home: Callable[..., Any], broker: SharedBroker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Told]:
    """Deliver a model to a device while one stranger listens, and let another come afterwards."""
    import numpy as np

    from skerry.runtimes.arrays import pack

    folder = tmp_path_factory.mktemp("neighbours")
    live = come(broker, folder / "live")
    server = make_home("--broker", broker.url)
    files, digest = train(server.home, folder)
    rows = np.random.default_rng(3).normal(size=(60, 100, 6)).astype(np.float32)
    (folder / "recording.npz").write_bytes(pack({"X": rows}))
    server.start()
    try:
        server.hold_ceremony()
        release(server)
        with running_device(server, folder / "state"):
            wait_for(lambda: server.get("/v1/devices/gull-1")["online"], why="the device")
            wave = {"name": "all", "devices": ["gull-1"]}
            rollout = server.post("/v1/rollouts", {"release": "strokes-1", "waves": [wave]})["id"]
            wait_for(
                lambda: server.get(f"/v1/rollouts/{rollout}")["state"] == "done", why="the rollout's end", timeout_s=60
            )
            late = come(broker, folder / "late")
            wait_for(lambda: late.on("/down/assign"), why="what is retained")
            time.sleep(1)  # nothing says when all of the retained messages have come
        plane = open_plane(server.home)
        with plane.readers() as session:
            key = session.get_one(SealedArtifact, digest).key
        plane.sessions.kw["bind"].dispose()
    finally:
        server.stop()
    yield Told(files, key, live, late)
    for stranger in (live, late):
        stranger.client.disconnect()
        stranger.client.loop_stop()


def windows(data: bytes) -> set[bytes]:
    """Return every run of 32 bytes."""
    return {data[start : start + WINDOW] for start in range(len(data) - WINDOW + 1)}


@pytest.mark.broker
@pytest.mark.parametrize("when", ["live", "late"])
def test_a_stranger_who_reads_every_topic_learns_no_model(told: Told, when: str) -> None:
    stranger: Stranger = getattr(told, when)

    # it did get everything: the metadata, the assignment, all of the chunks, and as much as the artifact is long
    assert stranger.on("/tuf/")
    assert stranger.on("/down/assign")
    chunks = [payload for payload in stranger.on("/blob/") if payload]
    assert sum(map(len, chunks)) > sum(map(len, told.files.values()))

    heard = [payload for _, payload in stranger.heard]
    whole = b"\n".join([*heard, b"".join(chunks)])
    long_enough = {name: data for name, data in told.files.items() if len(data) >= WINDOW}
    assert set(long_enough) >= {"model.onnx", "golden.npz", "manifest.json"}
    for name, data in long_enough.items():
        assert data not in whole, name
    known = set[bytes]().union(*map(windows, heard))
    for name in ("model.onnx", "golden.npz"):
        assert not windows(told.files[name]) & known, name


@pytest.mark.broker
@pytest.mark.parametrize("when", ["live", "late"])
def test_a_stranger_who_knows_a_plain_file_would_find_it(told: Told, when: str) -> None:
    """The search above can fail: had one chunk of the model gone out in the clear, it would have been found."""
    stranger: Stranger = getattr(told, when)
    leaked = [*(payload for _, payload in stranger.heard), told.files["model.onnx"][65536:131072]]

    assert windows(told.files["model.onnx"]) & set[bytes]().union(*map(windows, leaked))


@pytest.mark.broker
@pytest.mark.parametrize("when", ["live", "late"])
def test_a_stranger_opens_no_content_key(told: Told, when: str) -> None:
    stranger: Stranger = getattr(told, when)
    # an empty message clears what was retained for an earlier device of that name
    sealed = [key for payload in stranger.on("/down/assign") if payload for key in content_keys(payload)]

    assert sealed
    for key in sealed:
        for who in ("another.spy-1", "watch.gull-1"):
            with pytest.raises(Rejected):
                open_key(key, stranger.key, who=who)
    assert not any(told.content_key in payload for _, payload in stranger.heard)
    assert not any(told.content_key.hex().encode() in payload for _, payload in stranger.heard)


def content_keys(payload: bytes) -> Iterator[str]:
    """Yield the sealed content keys of an assignment."""
    targets = json.loads(json.loads(payload)["metadata"]["targets"])["signed"]["targets"]
    for target in targets.values():
        yield target["custom"]["content"]["key"]
