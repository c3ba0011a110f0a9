"""The relay of the tests does to a link what it says, for what is tested through it is worth no more than it is."""

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from tests.relay import Relay, Shape


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        try:
            while data := self.request.recv(65536):
                self.request.sendall(data)
        except OSError:
            self.server.cut_off.set()  # type: ignore[attr-defined]


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False


@pytest.fixture
def echo() -> Iterator[_Server]:
    """A server that says what it hears, and notes when a connection was reset."""
    with _Server(("127.0.0.1", 0), _Echo) as server:
        server.cut_off = threading.Event()  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def _through(echo: _Server, shape: Shape | None = None) -> Relay:
    return Relay(echo.server_address[1], shape)


def _connect(relay: Relay) -> socket.socket:
    return socket.create_connection(("127.0.0.1", relay.port), timeout=5)


def _ask(connection: socket.socket, data: bytes) -> bytes:
    """Send it, and return as many bytes as were sent."""
    threading.Thread(target=connection.sendall, args=(data,), daemon=True).start()
    got = b""
    while len(got) < len(data):
        piece = connection.recv(65536)
        if not piece:
            break
        got += piece
    return got


def _talk(connection: socket.socket) -> None:
    """Talk for ever."""
    while True:
        connection.sendall(bytes(500))
        connection.recv(500)


def test_a_relay_without_a_shape_carries_every_byte_in_order_and_counts_both_ways(echo: _Server) -> None:
    data = bytes(range(256)) * 8192
    with _through(echo) as relay, _connect(relay) as one, _connect(relay) as other:
        assert _ask(one, data) == data
        assert _ask(other, b"again") == b"again"
        assert (relay.up_bytes, relay.down_bytes, relay.connections) == (len(data) + 5, len(data) + 5, 2)


def test_an_end_is_passed_on_and_what_was_under_way_arrives(echo: _Server) -> None:
    with _through(echo, Shape(delay_s=0.1)) as relay, _connect(relay) as connection:
        connection.sendall(b"last words")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b"last words"
        assert connection.recv(100) == b""


def test_a_rate_is_kept_by_all_connections_together(echo: _Server) -> None:
    with _through(echo, Shape(rate_bytes_s=100_000)) as relay, _connect(relay) as one, _connect(relay) as other:
        began = time.monotonic()
        threads = [threading.Thread(target=_ask, args=(each, bytes(25_000))) for each in (one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - began
    # up and down are carried at the same time, but for the first piece
    assert 0.5 <= took < 1.5


def test_a_delay_is_that_of_each_way_and_costs_no_rate(echo: _Server) -> None:
    data = bytes(1 << 20)
    with _through(echo, Shape(delay_s=0.15)) as relay, _connect(relay) as connection:
        began = time.monotonic()
        assert _ask(connection, b"x") == b"x"
        assert 0.3 <= time.monotonic() - began < 0.6
        began = time.monotonic()
        assert _ask(connection, data) == data
        assert time.monotonic() - began < 1.5


@pytest.mark.parametrize("shape", [Shape(reset_every_s=0.2), Shape(reset_every_bytes=1000)], ids=["time", "bytes"])
def test_connections_are_reset_and_others_are_let_in(echo: _Server, shape: Shape) -> None:
    with _through(echo, shape) as relay:
        for count in (1, 2):
            with _connect(relay) as connection, pytest.raises(ConnectionResetError):
                _talk(connection)
            assert relay.resets == count


def test_a_cut_refuses_until_it_is_mended(echo: _Server) -> None:
    with _through(echo) as relay:
        with _connect(relay) as connection:
            assert _ask(connection, b"x") == b"x"
            relay.cut()
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        with pytest.raises(ConnectionResetError), _connect(relay) as refused:
            refused.recv(1)
        relay.mend()
        with _connect(relay) as connection:
            assert _ask(connection, b"x") == b"x"


def test_a_stall_holds_everything_back_and_loses_nothing(echo: _Server) -> None:
    with _through(echo) as relay, _connect(relay) as connection:
        assert _ask(connection, b"x") == b"x"
        relay.stall()
        connection.sendall(b"held")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(4)
        relay.flow()
        connection.settimeout(5)
        assert connection.recv(4) == b"held"


def test_stalls_come_by_themselves(echo: _Server) -> None:
    with _through(echo, Shape(stall_every_s=0.2, stall_s=0.15)) as relay, _connect(relay) as connection:
        longest, until = 0.0, time.monotonic() + 0.7
        while time.monotonic() < until:
            began = time.monotonic()
            assert _ask(connection, b"x") == b"x"
            longest = max(longest, time.monotonic() - began)
    assert longest > 0.1


def test_a_half_open_connection_is_silent_at_our_end_and_gone_at_the_other(echo: _Server) -> None:
    with _through(echo) as relay, _connect(relay) as connection:
        assert _ask(connection, b"x") == b"x"
        relay.vanish()
        connection.sendall(b"is anybody there?")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert echo.cut_off.wait(5)  # type: ignore[attr-defined]
        with _connect(relay) as another:
            assert _ask(another, b"x") == b"x"


def test_a_server_that_is_not_there_resets_the_device(echo: _Server) -> None:
    echo.shutdown()
    echo.server_close()
    with _through(echo) as relay, pytest.raises(ConnectionResetError), _connect(relay) as connection:
        connection.recv(1)
