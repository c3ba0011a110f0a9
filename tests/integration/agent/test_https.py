"""The agent's one HTTPS call against servers that mean harm: every one ends, in time and within its bytes."""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.link.https import Answer, call, pinned, problem
from skerry.errors import Rejected, Unavailable
from tests.integration.agent.test_enrol import make_certificate

Script = Callable[[ssl.SSLSocket], None]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Script], tuple[str, ssl.SSLContext]]]:
    """Return a function that serves one connection by a script; it returns the address and TLS that trusts it."""
    path, ca = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    threads: list[threading.Thread] = []
    listeners: list[socket.socket] = []

    def start(script: Script) -> tuple[str, ssl.SSLContext]:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with context.wrap_socket(connection, server_side=True) as secured:
                    secured.recv(65536)
                    script(secured)

        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()
        return f"https://127.0.0.1:{listener.getsockname()[1]}", pinned(ca)

    yield start
    for listener in listeners:
        listener.close()
    for thread in threads:
        thread.join(5)


def test_an_answer_comes_whole(serve: Callable[[Script], tuple[str, ssl.SSLContext]]) -> None:
    url, context = serve(
        lambda peer: peer.sendall(b"HTTP/1.1 404 No\r\nContent-Length: 20\r\n\r\n" + b'{"detail": "none\\n"}\n')
    )

    answer = call(url, "GET", "/x", context=context)

    assert (answer.status, answer.ok, problem(answer)) == (404, False, "none")
    assert problem(Answer(500, b"[]")) == "no reason given"


def drip(head: bytes) -> Script:
    """Send a head, then a byte every 50 ms, for as long as somebody listens."""

    def script(peer: ssl.SSLSocket) -> None:
        peer.sendall(head)
        for _ in range(200):
            time.sleep(0.05)
            peer.sendall(b"x")

    return script


@pytest.mark.parametrize(
    "head", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"], ids=["a", "b", "c"]
)
def test_a_server_that_drips_does_not_hold_the_agent(
    serve: Callable[[Script], tuple[str, ssl.SSLContext]], head: bytes
) -> None:
    url, context = serve(drip(head))
    began = time.monotonic()

    with pytest.raises(Unavailable, match=r"within 0\.6 s") as refusal:
        call(url, "GET", "/x", context=context, timeout_s=0.6)

    assert time.monotonic() - began < 5
    assert "\n" not in str(refusal.value)


def test_an_endless_answer_is_cut(serve: Callable[[Script], tuple[str, ssl.SSLContext]]) -> None:
    def pour(peer: ssl.SSLSocket) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            peer.sendall(b"x" * 4096)

    url, context = serve(pour)
    with pytest.raises(Rejected, match="at most 10000 bytes"):
        call(url, "GET", "/x", context=context, limit=10_000)


def test_an_answer_that_is_cut_off_is_none(serve: Callable[[Script], tuple[str, ssl.SSLContext]]) -> None:
    url, context = serve(lambda peer: peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"))

    with pytest.raises(Unavailable, match="the whole answer"):
        call(url, "GET", "/x", context=context)


def test_a_server_of_another_ca_hears_nothing(
    serve: Callable[[Script], tuple[str, ssl.SSLContext]], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    _, other = make_certificate(tmp_path / "other")
    url, _ = serve(lambda peer: peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))

    with pytest.raises(Rejected, match="certificate of the pinned CA"):
        call(url, "POST", "/x", context=pinned(other), body=b"secret")
    for nothing in ("", "no certificate"):
        with pytest.raises(Rejected, match="expected the server's CA as PEM"):
            pinned(nothing)
