"""The daemon's conversation: what is heard is durable before the broker hears so, and nothing said wrong is final."""

import socket
import subprocess
import sys
import threading
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.config import Config
from agent.daemon import Daemon
from agent.deployment.fit import check_room
from agent.identity.folder import Identity, StateFolder
from agent.link.connection import Connection
from agent.link.session import Heard
from agent.trust.assignment import Inbox
from agent.trust.metadata import RetainedMetadata
from agent.upkeep.disk import Disk
from skerry.errors import Broken, Unavailable
from skerry.inference.local_socket import SOCKET, connect
from skerry.wire import codec, topics
from skerry.wire.enrolment import Anchor

ANCHOR = Anchor(project="watch", image_root="{}", director_root="{}", server_ca="")
IDENTITY = Identity(
    project="watch",
    device="watch-1",
    profile="gateway",
    runtime="onnxruntime",
    architecture="x86_64",
    broker="mqtt://127.0.0.1:1",
    server="https://127.0.0.1:1",
)


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    """A daemon that has not been started."""
    folder = StateFolder(tmp_path)
    folder.keep(IDENTITY, anchor=codec.encode(ANCHOR), key=b"", certificate="", broker_ca="")
    return Daemon(folder, Config())


def test_a_port_that_another_program_has_costs_no_more_than_the_port(daemon: Daemon, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = Config(serve=f"127.0.0.1:{taken.getsockname()[1]}")
        daemon._ground = replace(daemon._ground, config=config)
        daemon._start_serving()
    try:
        with connect(tmp_path / SOCKET, timeout_s=10) as client:
            client.sendall(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
    finally:
        assert daemon._face is not None
        daemon._face.stop()
    assert "choose another port" in daemon._problem()


def test_an_assignment_that_the_disk_refused_is_kept_before_it_is_settled(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled: list[str] = []
    daemon._link.heard.put(Heard(name="assign", payload=b"{}", settle=lambda: settled.append("assign")))

    def refuse(*_: Any) -> None:
        raise Broken("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("agent.trust.assignment.write_durably", refuse)
        daemon._converse()
        assert (settled, daemon._problem()) == ([], "disk full")
    daemon._converse()

    assert (settled, daemon._problem()) == (["assign"], "")
    assert Inbox(tmp_path).pending() == b"{}"


def test_on_a_disk_that_refuses_at_the_start_the_broker_keeps_what_is_to_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StateFolder(tmp_path)
    folder.keep(IDENTITY, anchor=codec.encode(ANCHOR), key=b"", certificate="", broker_ca="")
    Daemon(folder, Config())._outbox.close()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr("agent.upkeep.disk._look", lambda _: "the disk is read-only")
    daemon = Daemon(folder, Config(), disk=Disk(tmp_path))
    settled: list[str] = []
    for name in ("assign", "desired", "ack", "request"):
        daemon._link.heard.put(Heard(name=name, payload=b"{}", settle=partial(settled.append, name)))

    daemon._converse()

    assert (settled, daemon._problem()) == (["request"], "the disk is read-only")
    assert daemon._link.heard.empty()
    assert daemon._reported(online=True, version=1).health == "failing"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    waited = daemon._wants_restart
    monkeypatch.setattr("agent.upkeep.disk._look", lambda _: "")
    monkeypatch.setattr("agent.upkeep.disk.LOOK_S", 0.0)
    daemon._disk._due = 0.0
    daemon._converse()
    assert (waited, daemon._wants_restart) == (False, True)
    daemon._outbox.close()


def test_an_artifact_that_would_fill_the_disk_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = SimpleNamespace(files=[SimpleNamespace(length=1000)])
    needed = 2 * 1000 + Config().quota_bytes
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(
            "agent.deployment.fit.shutil.disk_usage", lambda _path, free=free: SimpleNamespace(free=free)
        )
        with nullcontext() if fits else pytest.raises(Broken, match=f"expected {needed} bytes free"):
            check_room(artifact, tmp_path, spare_bytes=Config().quota_bytes)  # type: ignore[arg-type] # all that it looks at


def test_a_farewell_that_cannot_be_said_stops_nothing(daemon: Daemon) -> None:
    link = daemon._link
    cut_off = CutOff()
    link._connection = cast(Connection, cut_off)
    link._up.set()
    link._thread = threading.Thread(target=link._stop.wait, daemon=True)
    link.start()

    link.stop(b"farewell")

    assert not link._thread.is_alive()
    assert cut_off.left


def test_a_cleared_topic_is_no_assignment(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    inbox.offer(b"{}")
    inbox.decided(b"{}")

    assert not inbox.offer(b"")
    assert inbox.pending() is None


class CutOff:
    """A connection that was cut off, which nobody has noticed yet."""

    faults = 0
    left = False

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        raise Unavailable(f"broker: expected to publish {len(payload)} bytes on {topic} ({retain}), got cut off")

    def leave(self) -> None:
        self.left = True


class Broker:
    """A broker whose index is whatever somebody wrote there."""

    def __init__(self, index: bytes) -> None:
        self._index = index

    def fetch_retained(self, wanted: Any, *, timeout_s: float) -> dict[str, bytes]:
        assert timeout_s > 0
        return {topic: self._index for topic in wanted if topic == topics.tuf("watch", "index")}


@pytest.mark.parametrize("index", [b"", b"garbage", b"[]"])
def test_an_index_that_says_nothing_is_asked_for_again(index: bytes) -> None:
    source = RetainedMetadata(Broker(index), project="watch", timeout_s=1.0)

    with pytest.raises(Unavailable, match="image repository"):
        source.fetch("image", "2.root.json", limit=1000)


HELD_BY_NO_DAEMON = (
    *("asyncio", "calendar", "http.server", "inspect", "ipaddress", "numpy", "pickle", "shutil", "statistics"),
    *("sysconfig", "tempfile", "tomllib", "traceback", "urllib.request", "uuid", "zipfile"),
)
HELD_BY_NO_WORKER = (*("csv", "ipaddress", "logging", "pickle", "platform", "random", "ssl", "subprocess", "zipfile"),)


@pytest.mark.parametrize(
    ("program", "needless"),
    [("agent.__main__, agent.daemon", HELD_BY_NO_DAEMON), ("agent.inference.worker, numpy", HELD_BY_NO_WORKER)],
)
def test_a_process_holds_in_memory_what_it_uses(program: str, needless: tuple[str, ...]) -> None:
    loaded = "{name for name, module in sys.modules.items() if hasattr(module, '__file__')}"
    code = f"import sys, {program}; sys.exit(' '.join({{*{needless}}} & {loaded}) or 0)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
