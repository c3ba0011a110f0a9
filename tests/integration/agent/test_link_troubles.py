"""What befalls a link: half-open connections, and portals and middleboxes in its way; and no leaks."""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.link.link_note import LinkNote, read_note
from agent.link.session import Link
from tests.authority import DAY, NOW, Authority, identity, listener_lines, make_authority, serving
from tests.conftest import Mosquitto, pick_port
from tests.integration.agent.links import Attempts, connected
from tests.integration.agent.shore import Device, Shore, wait_for
from tests.relay import Relay

pytestmark = [pytest.mark.broker, pytest.mark.long]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """A CA of the test's own."""
    return make_authority(tmp_path / "ca")


# --- half-open


@pytest.mark.parametrize("talking", [False, True], ids=["silent", "while it talks"])
def test_a_half_open_connection_is_noticed_within_two_keep_alives(
    mosquitto: Mosquitto, make_link: Callable[..., Link], talking: bool
) -> None:
    with Relay(mosquitto.port) as relay:
        link = make_link(f"mqtt://127.0.0.1:{relay.port}", keep_alive_s=3)
        connected(link)
        began = time.monotonic()

        relay.vanish()
        while link.connected and time.monotonic() - began < 10:
            if talking:
                with contextlib.suppress(Exception):  # the moment at which it is noticed
                    link.publish("reported", b"are you there?")
            threading.Event().wait(0.02)

        assert not link.connected
        assert time.monotonic() - began < 2 * 3
        connected(link, 2)


def test_a_connection_that_is_idle_and_well_is_left_alone(mosquitto: Mosquitto, make_link: Callable[..., Link]) -> None:
    link = make_link(mosquitto.url, keep_alive_s=2)
    connected(link)
    ended = threading.Event()

    assert not ended.wait(5)
    assert link.connections == 1


def test_a_socket_that_the_system_takes_away_is_noticed_at_once(
    mosquitto: Mosquitto, make_link: Callable[..., Link]
) -> None:
    """As when the local address changes and the kernel ends what was bound to it."""
    link = make_link(mosquitto.url)
    connected(link)
    with link._talking() as connection:
        sock = connection._client.sock
        assert sock is not None
        sock.shutdown(socket.SHUT_RDWR)

    connected(link, 2)


# --- something else answers


@contextlib.contextmanager
def answering(said: bytes) -> Iterator[int]:
    """Give a port at which something says this to whoever asks anything."""

    def serve() -> None:
        while True:
            try:
                near, _ = server.accept()
            except OSError:
                return
            with near, contextlib.suppress(OSError):
                near.settimeout(5)
                near.recv(4096)
                near.sendall(said)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield int(server.getsockname()[1])
        finally:
            server.shutdown(socket.SHUT_RDWR)
    thread.join()


PORTALS = {
    "a redirect, where TLS is spoken": ("mqtts", b"HTTP/1.1 302 Found\r\nLocation: http://sign.in/\r\n\r\n", "TLS"),
    "a page, where TLS is spoken": ("wss", b"HTTP/1.1 200 OK\r\n\r\n<html>Welcome</html>", "TLS"),
    "a page, where a WebSocket opens": ("ws", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello", "a WebSocket"),
    "a redirect, where a WebSocket opens": ("ws", b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", "a WebSocket"),
    "silence, where a WebSocket opens": ("ws", b"", "a WebSocket"),
}


@pytest.mark.parametrize("case", PORTALS)
def test_a_captive_portal_is_one_clear_line_and_tried_again(
    make_link: Callable[..., Link], authority: Authority, caplog: pytest.LogCaptureFixture, tmp_path: Path, case: str
) -> None:
    scheme, said, expected = PORTALS[case]
    attempts = Attempts()
    with answering(said) as port:
        link = make_link(
            f"{scheme}://127.0.0.1:{port}",
            credentials=identity(authority),
            note=LinkNote(tmp_path).keep,
            will=attempts,
        )
        wait_for(lambda: attempts.made >= 3, why="three attempts")
        link.stop()

    assert link.problem.startswith(f"expected {expected}, got")
    assert "captive portal" in link.problem
    assert read_note(tmp_path).problem == link.problem, "`status` shows it"
    lines = [each.getMessage() for each in caplog.records if "captive portal" in each.getMessage()]
    assert len(lines) == 1, "once, not with each attempt"
    assert f"{scheme}://127.0.0.1:{port}" in lines[0]
    assert link.faults == 0


def test_a_middlebox_that_opens_tls_is_refused_and_told(
    make_link: Callable[..., Link], authority: Authority, tmp_path: Path
) -> None:
    middlebox = make_authority(tmp_path / "middlebox")
    with serving(middlebox.certify(NOW - DAY, NOW + DAY)) as (port, received):
        link = make_link(f"mqtts://127.0.0.1:{port}", credentials=identity(authority))
        wait_for(lambda: link.problem, why="a reason")
        link.stop()

    assert link.problem.startswith("expected a certificate of its CA, got: ")
    assert "captive portal" in link.problem
    assert not any(received), "nothing is said to it, not even who we are"


def test_a_server_that_drips_does_not_hold_the_link_for_ever(
    make_link: Callable[..., Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.link.connection.HANDSHAKE_MOST_S", 0.5)
    drip = threading.Event()

    def serve() -> None:
        with contextlib.suppress(OSError):
            near, _ = server.accept()
            with near:
                while not drip.wait(0.05):
                    near.sendall(b"X")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        link = make_link(f"ws://127.0.0.1:{server.getsockname()[1]}")
        wait_for(lambda: link.problem, why="a reason", timeout_s=5)
        drip.set()
        thread.join()


def test_status_shows_what_keeps_a_device_from_its_broker(device: Device, free_port: Callable[[], int]) -> None:
    device.port = free_port()
    device.start()
    wait_for(lambda: read_note(device.folder).problem, why="a note")

    assert "link  expected it to answer, got: Connection refused" in device.status()
    assert '"problem": "expected it to answer' in device.status("--json")
    assert device.stop() == 0


def test_what_an_earlier_run_noted_is_taken_back_by_a_connection(device: Device, shore: Shore) -> None:
    LinkNote(device.folder).keep("expected it to answer, got: Connection refused")

    device.start()
    wait_for(lambda: device.name in shore.reported, why="a report")

    assert read_note(device.folder).problem == ""
    assert "link  no trouble noted" in device.status()


def test_a_link_that_flaps_writes_nothing(mosquitto: Mosquitto, make_link: Callable[..., Link], tmp_path: Path) -> None:
    with Relay(mosquitto.port) as relay:
        link = make_link(f"mqtt://127.0.0.1:{relay.port}", note=LinkNote(tmp_path).keep)
        for number in range(1, 4):
            connected(link, number)
            relay.reset()
        connected(link, 4)

    assert not (tmp_path / "link.json").exists()


# --- leaks


def resources() -> tuple[int, int]:
    """Return how many threads and open files this process has."""
    return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))


# CPython leaves the closing of a socket that was reset before TLS began to whoever collects it
@pytest.mark.filterwarnings("ignore:.*Judged:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("road", ["mqtt", "wss"])
def test_fifty_reconnects_leave_no_thread_and_no_file_behind(
    make_mosquitto: Callable[..., Mosquitto], make_link: Callable[..., Link], authority: Authority, road: str
) -> None:
    broker = make_mosquitto(*(listener_lines(authority, port := pick_port(), web=True) if road == "wss" else ()))
    url = broker.url if road == "mqtt" else f"wss://127.0.0.1:{port}"
    with Relay(broker.port if road == "mqtt" else port) as relay:
        # every other connection ends by itself, and every other one is cut
        link = make_link(
            url.replace(url.rpartition(":")[2], str(relay.port)), credentials=identity(authority), reconnect_s=0.02
        )
        connected(link)
        before = resources()
        for number in range(2, 52):
            link.reconnect() if number % 2 else relay.reset()
            connected(link, number)

        wait_for(lambda: resources()[0] <= before[0], why="threads to end")
        # the relay's own sockets come and go
        wait_for(lambda: resources()[1] <= before[1] + 2, why="files to be closed")
        assert link.faults == 0


def test_attempts_that_fail_leave_no_thread_and_no_file_behind(
    make_link: Callable[..., Link], authority: Authority
) -> None:
    attempts = Attempts()
    with answering(b"HTTP/1.1 302 Found\r\n\r\n") as port:
        before = resources()
        link = make_link(
            f"mqtts://127.0.0.1:{port}",
            credentials=identity(authority),
            reconnect_s=0.01,
            will=attempts,
        )
        wait_for(lambda: attempts.made > 50, why="fifty attempts")
        link.stop()

        wait_for(lambda: resources() <= (before[0], before[1] + 1), why="everything to be let go")


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="skerry.agent")
