"""The ways to a broker: WebSockets with TLS and identities, IPv6, names with dead addresses, proxies of both kinds."""

import contextlib
import getpass
import hashlib
import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.identity.enrol import fetch_anchor
from agent.link.address import parse_broker
from agent.link.dial import dial
from agent.link.https import call
from agent.link.proxy import parse_proxy
from agent.link.session import Link
from agent.link.tls import Credentials, client_context
from skerry.errors import Unavailable
from skerry.wire.join import Join
from tests.authority import DAY, NOW, Authority, identity, listener_lines, make_authority, serving
from tests.conftest import Mosquitto, pick_port, required, wait_for_port
from tests.integration.agent.shore import wait_for
from tests.socks5 import Socks5

NONE = Credentials(ca=Path("none"), certificate=Path("none"), key=Path("none"))
TOPIC = "skerry/1/blob/aa/0"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """A CA of the test's own."""
    return make_authority(tmp_path / "ca")


@pytest.fixture
def make_link() -> Iterator[Callable[..., Link]]:
    """Return a function that starts a link; all are stopped at the end."""
    links: list[Link] = []

    def make(url: str, credentials: Credentials = NONE, *, who: str = "watch.gull", proxy: str = "") -> Link:
        links.append(
            Link(
                parse_broker(url),
                who=who,
                will=lambda: b"gone",
                credentials=credentials,
                reconnect_s=0.3,
                proxy=parse_proxy(proxy),
            )
        )
        links[-1].start()
        return links[-1]

    yield make
    for link in links:
        link.stop()


def connected(link: Link, number: int) -> None:
    """Wait for the `number`th connection."""
    wait_for(lambda: link.connected and link.connections == number, why=f"connection {number}")


def talks(link: Link, *, by: Link | None = None) -> bool:
    """Say something large on a link, and hear it again from the broker."""
    # more than a WebSocket frame's short lengths can say; Mosquitto 2.0 sends 4 KiB of it each 100 ms
    payload = bytes(range(256)) * 300
    wait_for(lambda: link.connected, why="a connection")
    with link._talking() as connection:
        is_published = connection.publish(TOPIC, payload, retain=True)
    wait_for(is_published, why="the broker to have it")
    return (
        wait_for(lambda: (by or link).fetch_retained([TOPIC], timeout_s=1.0).get(TOPIC), why="what was said") == payload
    )


# --- WebSockets


@pytest.mark.broker
def test_a_link_over_websockets_says_and_hears(
    make_mosquitto: Callable[..., Mosquitto], make_link: Callable[..., Link]
) -> None:
    make_mosquitto(f"listener {(port := pick_port())} 127.0.0.1", "protocol websockets")

    assert talks(make_link(f"ws://127.0.0.1:{port}/mqtt"))


@pytest.mark.broker
def test_over_websockets_with_tls_a_device_is_known_by_its_certificate(
    make_mosquitto: Callable[..., Mosquitto], make_link: Callable[..., Link], authority: Authority, tmp_path: Path
) -> None:
    make_mosquitto(*listener_lines(authority, port := pick_port(), web=True), "use_identity_as_username true")
    url = f"wss://127.0.0.1:{port}/mqtt"
    stranger = make_link(url, identity_of_a_stranger(authority, tmp_path), who="watch.stranger")

    assert talks(make_link(url, identity(authority)))
    assert stranger.connections == 0
    wait_for(lambda: stranger.problem, why="a reason")


def identity_of_a_stranger(authority: Authority, tmp_path: Path) -> Credentials:
    """Return a device of another CA, which knows the broker's."""
    theirs = identity(make_authority(tmp_path / "stranger"))
    return Credentials(ca=authority.ca_file, certificate=theirs.certificate, key=theirs.key)


@pytest.mark.broker
def test_a_session_outlives_its_websocket(
    make_mosquitto: Callable[..., Mosquitto], make_link: Callable[..., Link]
) -> None:
    make_mosquitto(f"listener {(port := pick_port())} 127.0.0.1", "protocol websockets")
    link = make_link(f"ws://127.0.0.1:{port}/mqtt")
    for number in range(1, 4):
        connected(link, number)
        link.reconnect()

    connected(link, 4)
    assert talks(link)


# --- addresses


@pytest.mark.broker
@pytest.mark.parametrize("scheme", ["mqtt", "ws"])
def test_an_ipv6_literal_will_do(
    make_mosquitto: Callable[..., Mosquitto], make_link: Callable[..., Link], scheme: str
) -> None:
    port = pick_port()
    make_mosquitto(f"listener {port} ::1", *(("protocol websockets",) if scheme == "ws" else ()))

    assert talks(make_link(f"{scheme}://[::1]:{port}"))


@contextlib.contextmanager
def dead_address() -> Iterator[int]:
    """Give a port of ::1 that takes no connection and refuses none: its queue is full."""
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as listener, contextlib.ExitStack() as waiting:
        listener.bind(("::1", 0))
        listener.listen(0)
        port = int(listener.getsockname()[1])
        for _ in range(4):
            each = waiting.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_STREAM))
            each.setblocking(False)
            each.connect_ex(("::1", port))
        yield port


def resolves(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    """Let `broker.test` have these addresses."""
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *more: Any, **named: Any) -> Any:
        if host != "broker.test":
            return real(host, port, *more, **named)
        return [each for address, at in addresses for each in real(address, at, type=socket.SOCK_STREAM)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.broker
def test_a_name_whose_ipv6_address_is_dead_reaches_the_other_one_within_a_second(
    mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dead_address() as dead:
        resolves(monkeypatch, ("::1", dead), ("127.0.0.1", mosquitto.port))
        began = time.monotonic()

        with dial("broker.test", 1883, timeout_s=10) as sock:
            assert sock.getpeername() == ("127.0.0.1", mosquitto.port)
            assert sock.gettimeout() == 10

        assert time.monotonic() - began < 1.0


def test_an_address_that_refuses_costs_no_time_and_the_last_refusal_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    resolves(monkeypatch, *(("127.0.0.1", pick_port()) for _ in range(6)), ("::1", pick_port()))
    began = time.monotonic()

    with pytest.raises(OSError, match="refused"):
        dial("broker.test", 1883, timeout_s=10)

    assert time.monotonic() - began < 0.2


def test_addresses_that_are_all_dead_end_after_one_timeout_and_not_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    with dead_address() as one, dead_address() as other:
        resolves(monkeypatch, ("::1", one), ("::1", other))
        began = time.monotonic()

        with pytest.raises(TimeoutError, match=r"no answer within 0.6 s"):
            dial("broker.test", 1883, timeout_s=0.6)

        assert time.monotonic() - began < 1.0


def test_a_link_that_is_told_to_stop_does_not_wait_for_a_dead_address(make_link: Callable[..., Link]) -> None:
    with dead_address() as dead:
        link = make_link(f"mqtt://[::1]:{dead}")
        wait_for(lambda: link._connection is not None, why="an attempt")
        began = time.monotonic()

        link.stop()

        assert time.monotonic() - began < 1.5


# --- proxies


@pytest.fixture
def make_tinyproxy(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Return a function that starts tinyproxy with more lines of configuration, and returns its port."""
    program = required("tinyproxy", "/usr/bin", package="tinyproxy")
    running: list[subprocess.Popen[bytes]] = []

    def make(*lines: str) -> int:
        port, config = pick_port(), tmp_path / f"tinyproxy-{len(running)}.conf"
        user = f"User {getpass.getuser()}"
        config.write_text("\n".join((user, f"Port {port}", "Listen 127.0.0.1", "Timeout 60", *lines)) + "\n")
        running.append(subprocess.Popen([program, "-d", "-c", str(config)], stdout=subprocess.DEVNULL))
        wait_for_port(port)
        return port

    yield make
    for each in running:
        each.terminate()
        each.wait(10)


@pytest.mark.broker
@pytest.mark.parametrize("web", [False, True], ids=["mqtts", "wss"])
@pytest.mark.parametrize("kind", ["http", "socks5"])
def test_a_link_goes_through_a_proxy_with_a_password_that_nobody_gets_to_see(
    make_mosquitto: Callable[..., Mosquitto],
    make_tinyproxy: Callable[..., int],
    make_link: Callable[..., Link],
    authority: Authority,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    web: bool,
) -> None:
    caplog.set_level(logging.DEBUG)
    make_mosquitto(*listener_lines(authority, there := pick_port(), web=web))
    url = f"{'wss' if web else 'mqtts'}://127.0.0.1:{there}"
    ours = identity(authority)
    with Socks5(user="gull", password="salt") as socks:
        port = socks.port if kind == "socks5" else make_tinyproxy("BasicAuth gull salt", f"ConnectPort {there}")

        assert talks(make_link(url, ours, proxy=f"{kind}://gull:salt@127.0.0.1:{port}"))
        wrong = make_link(url, ours, who="watch.tern", proxy=f"{kind}://gull:pepper@127.0.0.1:{port}")
        problem = wait_for(lambda: wrong.problem, why="a reason")

        assert problem.startswith(f"proxy {kind}://127.0.0.1:{port}: expected a way to 127.0.0.1:{there}, got")
        assert "407" in problem or "401" in problem or "authentication failed" in problem
        assert (kind == "http") or ("127.0.0.1", there) in socks.asked
    assert "salt" not in caplog.text
    assert "pepper" not in caplog.text


def test_names_are_for_the_proxy_to_resolve() -> None:
    with Socks5() as socks:
        proxy = parse_proxy(f"socks5://127.0.0.1:{socks.port}")
        with pytest.raises(Unavailable, match=r"expected a way to broker\.invalid:8883, got"):
            dial("broker.invalid", 8883, timeout_s=5, proxy=proxy)

        assert socks.asked == [("broker.invalid", 8883)]


@pytest.mark.parametrize("kind", ["http", "socks5"])
def test_the_calls_to_the_server_go_through_a_proxy_too(
    make_tinyproxy: Callable[..., int], authority: Authority, kind: str
) -> None:
    with serving(authority.certify(NOW - DAY, NOW + DAY)) as (server, _), Socks5() as socks:
        port = socks.port if kind == "socks5" else make_tinyproxy()

        answer = call(
            f"https://127.0.0.1:{server}",
            "GET",
            "/",
            context=client_context(authority.pem),
            proxy=parse_proxy(f"{kind}://127.0.0.1:{port}"),
        )

        assert answer.body == b"ok"


def test_enrolment_goes_through_a_proxy_too(authority: Authority) -> None:
    pin = hashlib.sha256(b"ok").hexdigest()
    with serving(authority.certify(NOW - DAY, NOW + DAY)) as (server, _), Socks5() as socks:
        join = Join(f"https://127.0.0.1:{server}", "t0ken", pin)

        assert fetch_anchor(join, proxy=parse_proxy(f"socks5://127.0.0.1:{socks.port}")) == b"ok"

        assert socks.asked == [("127.0.0.1", server)]


REFUSALS = {
    "not there": (b"", "expected it to answer, got: Connection refused"),
    "not HTTP": (b"\x05\xff\r\n\r\n", "expected an answer to CONNECT, got none that is HTTP"),
    "endless": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 4000, "expected an answer to CONNECT, got none that is HTTP"),
    "a sign-in page": (
        b"HTTP/1.1 302 Found\r\nLocation: http://sign.in/\r\n\r\n",
        "got status 302; check what it lets",
    ),
    "no tunnels": (b"HTTP/1.1 405 No\r\n\r\n", "got status 405"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_proxy_that_refuses_is_told_in_one_line(case: str) -> None:
    said, expected = REFUSALS[case]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
        thread = threading.Thread(target=answer_once, args=(listener, said))
        if said:
            thread.start()
        else:
            listener.close()
        with pytest.raises(Unavailable) as refusal:
            dial("broker.test", 8883, timeout_s=5, proxy=parse_proxy(f"http://127.0.0.1:{port}"))
        if said:
            thread.join()

    assert expected in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_follows_the_proxys_answer_is_left_for_tls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        said = b"HTTP/1.0 200 Connection established\r\nProxy-Agent: x\r\n\r\nfirst bytes of the broker"
        thread = threading.Thread(target=answer_once, args=(listener, said))
        thread.start()
        proxy = parse_proxy(f"http://127.0.0.1:{listener.getsockname()[1]}")

        with dial("::1", 8883, timeout_s=5, proxy=proxy) as sock:
            assert sock.recv(100) == b"first bytes of the broker"
        thread.join()


def answer_once(listener: socket.socket, said: bytes) -> None:
    """Take one connection, read what is asked, answer, and wait for its end."""
    with contextlib.suppress(OSError):
        near, _ = listener.accept()
        with near:
            near.settimeout(10)
            asked = near.recv(4096)
            assert asked.startswith(b"CONNECT "), asked
            near.sendall(said)
            near.shutdown(socket.SHUT_WR)
            near.recv(1)
