"""A SOCKS5 proxy for tests: CONNECT to names and both kinds of addresses (RFC 1928), with a user or not (RFC 1929).

with Socks5(user="gull", password="salt") as proxy:
    ...  # proxy.port; proxy.asked is whom it was asked for
"""

import contextlib
import ipaddress
import socket
import socketserver
import struct
import threading
from types import TracebackType
from typing import Self

_NO_AUTH, _BY_USER, _NONE_FITS = 0, 2, 0xFF
_NOT_ALLOWED, _REFUSED = 2, 5


class Socks5(socketserver.ThreadingTCPServer):
    """Listens on 127.0.0.1 until it is left; `allowed` false refuses every host by its rules."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, *, user: str = "", password: str = "", allowed: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port = int(self.server_address[1])
        self.user, self.password, self.allowed = user.encode(), password.encode(), allowed
        self.asked: list[tuple[str, int]] = []
        self.open: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), name="socks5", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        self.server_close()
        for each in self.open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


class _Handler(socketserver.StreamRequestHandler):
    server: Socks5
    rbufsize = 0

    def handle(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            if self._admit():
                self._carry()

    def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self.connection.recv(length - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def _admit(self) -> bool:
        version, count = self._read(2)
        methods = self._read(count)
        wanted = _BY_USER if self.server.user else _NO_AUTH
        if version != 5 or wanted not in methods:
            self.connection.sendall(bytes((5, _NONE_FITS)))
            return False
        self.connection.sendall(bytes((5, wanted)))
        if wanted == _NO_AUTH:
            return True
        self._read(1)
        user = self._read(self._read(1)[0])
        password = self._read(self._read(1)[0])
        good = (user, password) == (self.server.user, self.server.password)
        self.connection.sendall(bytes((1, 0 if good else 1)))
        return good

    def _carry(self) -> None:
        _, command, _, kind = self._read(4)
        if kind == 3:
            host = self._read(self._read(1)[0]).decode("idna")
        else:
            host = str(ipaddress.ip_address(self._read(4 if kind == 1 else 16)))
        (port,) = struct.unpack(">H", self._read(2))
        self.server.asked.append((host, port))
        if command != 1 or not self.server.allowed:
            self._answer(_NOT_ALLOWED)
            return
        try:
            far = socket.create_connection((host, port), timeout=10)
        except OSError:
            self._answer(_REFUSED)
            return
        with far:
            self.server.open += [far, self.connection]
            self._answer(0)
            back = threading.Thread(target=_pump, args=(far, self.connection), daemon=True)
            back.start()
            _pump(self.connection, far)
            back.join(10)

    def _answer(self, status: int) -> None:
        self.connection.sendall(bytes((5, status, 0, 1)) + bytes(6))


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        source.settimeout(None)
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
