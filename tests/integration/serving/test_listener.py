"""Where the local face listens, who may stay there, and for how long."""

import contextlib
import http.client
import json
import os
import resource
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.local.local_body import Bounds
from agent.local.serving import Face, parse_serve
from skerry.errors import Broken
from skerry.inference.local_socket import connect
from tests.integration.serving.fake import FakeModels
from tests.integration.serving.served import POST, Served, held, request_of, until


def test_who_comes_when_all_places_are_busy_waits_and_is_answered(serve: Callable[..., Served]) -> None:
    served = serve(bounds=Bounds(connections=2))
    with held(served) as others:
        others.begin(2)
        late = threading.Thread(target=others._ask)
        others.threads.append(late)
        late.start()
        assert served.models.runs == 2
        others.end()
        assert others.statuses == [200, 200, 200]


def test_clients_with_time_outs_wait_in_the_queue_too(serve: Callable[..., Served]) -> None:
    """A unix socket with a full queue sends away whoever connects without blocking, instead of keeping him waiting."""
    served = serve(bounds=Bounds(connections=1))
    with contextlib.ExitStack() as stack, held(served) as others:
        others.begin(1)
        for _ in range(200):
            stack.enter_context(connect(served.path, timeout_s=10))


def test_the_connection_that_waited_longest_makes_room(serve: Callable[..., Served]) -> None:
    served = serve(bounds=Bounds(connections=2))
    first, second = (http.client.HTTPConnection("127.0.0.1", served.port, timeout=10) for _ in range(2))
    for connection in (first, second):
        connection.request("GET", "/v2")
        connection.getresponse().read()
    assert served.ask("GET", "/v2").status == 200
    second.request("GET", "/v2")
    assert second.getresponse().status == 200
    assert first.sock is not None
    assert first.sock.recv(1) == b""
    first.close()
    second.close()


@pytest.mark.parametrize("data", [b"", b"GET /v", POST, POST + b"Content-Length: 100\r\n\r\n{"])
def test_a_silent_client_is_not_waited_for(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr("agent.local.listener.TICK_S", 0.02)
    served = serve(bounds=Bounds(waiting_s=0.2, transfer_s=0.2))
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
        client.sendall(data)
        assert client.recv(1000) == b""


def test_a_client_that_does_not_read_is_not_waited_for(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.local.listener.TICK_S", 0.02)
    served = serve(bounds=Bounds(transfer_s=0.3))
    rows = 300_000
    tree = request_of()
    tree["inputs"][0] |= {"shape": [rows, 3], "parameters": {"binary_data_size": 12 * rows}}
    del tree["inputs"][0]["data"]
    text = json.dumps(tree).encode()
    head = b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n" % (len(text), len(text) + 12 * rows)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", served.port))
        client.sendall(POST + head + text + bytes(12 * rows))
        listener = served.face._listener
        until(lambda: not listener._all(), why="the connection to be given up")
    assert served.ask("GET", "/v2").status == 200


def test_a_model_that_takes_long_is_waited_for(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.local.listener.TICK_S", 0.02)
    served = serve(bounds=Bounds(waiting_s=0.05, transfer_s=0.2))
    with held(served) as others:
        others.begin(1)
        began = time.monotonic()
        until(lambda: time.monotonic() > began + 0.5, why="the limits to pass")
        others.end()
        assert others.statuses == [200]


def test_without_file_handles_clients_wait_until_there_are_some(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("agent.local.listener.TICK_S", 0.02)
    served = serve()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as client:
        resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, hard))
        try:
            client.connect(("127.0.0.1", served.port))
            until(lambda: "expected to accept" in caplog.text, why="a warning")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        client.settimeout(10)
        client.sendall(b"GET /v2 HTTP/1.1\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")


def test_without_threads_a_client_is_sent_away(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve()

    def fails(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fails)
        assert served.say(b"") == b""
    assert "expected a thread" in caplog.text
    assert served.ask("GET", "/v2").status == 200


def test_stopping_answers_what_was_asked_and_leaves_nothing(serve: Callable[..., Served]) -> None:
    served = serve()
    idle = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    idle.request("GET", "/v2")
    idle.getresponse().read()
    with held(served) as others:
        others.begin(2)
        stopping = threading.Thread(target=served.face.stop)
        stopping.start()
        until(lambda: not served.path.exists(), why="the socket to be gone")
        others.end()
        stopping.join(10)
        assert others.statuses == [200, 200]
    assert idle.sock is not None
    assert idle.sock.recv(1) == b""
    idle.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", served.port), timeout=10)


def test_the_socket_is_for_its_owner_and_group(serve: Callable[..., Served]) -> None:
    former = os.umask(0o077)
    try:
        served = serve()
    finally:
        os.umask(former)
    assert stat.S_IMODE(served.path.stat().st_mode) == 0o660


def test_a_long_path_is_no_hindrance(tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 120) / ("b" * 120)
    folder.mkdir(parents=True)
    served = Served(FakeModels(), folder / "serve.sock")
    try:
        assert served.ask("GET", "/v2", unix=True).status == 200
    finally:
        served.face.stop()
    assert list(folder.iterdir()) == []


def test_a_dead_agents_socket_is_replaced_and_another_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "serve.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    served = Served(FakeModels(), path)
    assert served.ask("GET", "/v2", unix=True).status == 200
    served.face.stop()
    path.write_text("mine")
    with pytest.raises(Broken, match="expected to listen"):
        Served(FakeModels(), path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("path", ["missing/serve.sock", "m" * 120 + "/serve.sock", "s" * 200])
def test_a_socket_that_cannot_be_is_said(tmp_path: Path, path: str) -> None:
    with pytest.raises(Broken, match="socket"):
        Served(FakeModels(), tmp_path / path)


def test_a_port_that_is_taken_is_said(serve: Callable[..., Served], tmp_path: Path) -> None:
    taken = serve().port
    face = Face(FakeModels())
    with pytest.raises(Broken, match="choose another port"):
        face.start(tmp_path / "other.sock", port=taken)
    assert not (tmp_path / "other.sock").exists()


@pytest.mark.parametrize(
    ("serve", "port"), [("unix", None), ("127.0.0.1:8000", 8000), ("localhost:1", 1), ("127.0.0.1:65535", 65535)]
)
def test_the_configuration_says_where(serve: str, port: int | None) -> None:
    assert parse_serve(serve) == port


@pytest.mark.parametrize(
    "serve", ["", "0.0.0.0:8000", "192.168.1.4:8000", "8000", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:+80", "[::]:80"]
)
def test_the_network_is_nowhere_to_serve(serve: str) -> None:
    with pytest.raises(ValueError, match=r"serve: expected"):
        parse_serve(serve)
