"""Where the local face listens: a unix socket and maybe a port of loopback, with bounded connections and threads.

One thread accepts, and looks once a second, while anybody is connected, for clients that are silent or slow. Each
connection has a thread. When all places are taken, the one that has waited longest for a request makes room; while all
are busy, who comes next waits in the kernel's queue.
"""

import contextlib
import logging
import os
import selectors
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

from agent.local.local_body import Bounds, Room
from agent.local.local_http import Connection, Doing, Request
from agent.local.serving_port import Reply
from skerry.errors import Broken
from skerry.inference.local_socket import address_of

_log = logging.getLogger("skerry.agent.serving")
TICK_S = 1.0
FAREWELL_S = 5.0
SOCKET_MODE = 0o660
# a unix socket whose queue is full sends away whoever connects with a time-out
_BACKLOG = 512


class Listener:
    """Listens, and has `answer` answer each request, in up to `bounds.connections` threads."""

    def __init__(self, answer: Callable[[Request], Reply], *, bounds: Bounds | None = None) -> None:
        self._answer = answer
        self._bounds = bounds or Bounds()
        self._room = Room(self._bounds.bodies_bytes)
        self._selector = selectors.DefaultSelector()
        self._sockets: list[socket.socket] = []
        self._paths: list[Path] = []
        self._connections: set[Connection] = set()
        self._lock = threading.Lock()
        self._left = threading.Event()
        self._stopping = threading.Event()
        self._woken, self._waker = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._accept_all, name="local face", daemon=True)

    def listen_unix(self, path: Path) -> None:
        """Listen on a unix socket of mode 0660; raises `Broken` when it cannot be made.

        Whoever calls owns the folder (the state folder has a lock), so a socket that is there is a dead agent's.
        """
        listening = socket.socket(socket.AF_UNIX)
        try:
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISSOCK(path.lstat().st_mode):
                    path.unlink()
            # before binding: the file is never there with a wider mode; after it: the umask has narrowed it
            os.fchmod(listening.fileno(), SOCKET_MODE)
            with address_of(path) as address:
                listening.bind(address)
            path.chmod(SOCKET_MODE)
            self._add(listening)
        except OSError as error:
            listening.close()
            raise Broken(f"{path}: expected to listen on this socket, got: {error.strerror or error}") from error
        except Broken:
            listening.close()
            raise
        self._paths.append(path)

    def listen_loopback(self, port: int) -> int:
        """Listen on a TCP port of 127.0.0.1 (0: any) and return which; raises `Broken` when it is taken."""
        listening = socket.socket(socket.AF_INET)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(("127.0.0.1", port))
            self._add(listening)
        except OSError as error:
            listening.close()
            problem = f"expected to listen on 127.0.0.1:{port}, got: {error.strerror}; choose another port"
            raise Broken(problem) from error
        return int(listening.getsockname()[1])

    def start(self) -> None:
        """Begin to accept."""
        self._thread.start()

    def stop(self) -> None:
        """Stop accepting, let requests under way be answered, for a while, and end every connection."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._waker.send(b"\0")
        if self._thread.is_alive():
            self._thread.join(timeout=FAREWELL_S)
        for path in self._paths:
            path.unlink(missing_ok=True)
        deadline = time.monotonic() + FAREWELL_S
        for connection in self._all():
            connection.is_last.set()
            connection.close_idle()
        while self._all() and time.monotonic() < deadline:
            self._left.wait(0.1)
            self._left.clear()
            for connection in self._all():
                connection.close_idle()
        for connection in self._all():
            connection.close_now()
        self._selector.close()
        for each in (*self._sockets, self._woken, self._waker):
            each.close()

    def _add(self, listening: socket.socket) -> None:
        listening.listen(_BACKLOG)
        listening.setblocking(False)
        self._sockets.append(listening)
        self._selector.register(listening, selectors.EVENT_READ)

    def _all(self) -> list[Connection]:
        with self._lock:
            return list(self._connections)

    def _accept_all(self) -> None:
        while not self._stopping.is_set():
            connections = self._all()
            for connection in connections:
                if connection.is_overdue:
                    connection.close_now()
            for key, _ in self._selector.select(TICK_S if connections else None):
                if key.fileobj is self._woken:
                    return
                assert isinstance(key.fileobj, socket.socket)  # noqa: S101 -- nothing else is registered
                self._accept(key.fileobj)

    def _accept(self, listening: socket.socket) -> None:
        self._left.clear()
        connections = self._all()
        if len(connections) >= self._bounds.connections:
            self._make_room(connections)
            return
        try:
            client, _ = listening.accept()
        except BlockingIOError:
            return  # whoever came has gone
        except OSError as error:
            # out of file handles, most likely: without a pause this would be asked without end
            _log.warning("expected to accept a connection, got: %s", error)
            self._left.wait(TICK_S)
            return
        self._serve(client, is_private=listening.family == socket.AF_UNIX)

    def _make_room(self, connections: list[Connection]) -> None:
        waiting = sorted((each for each in connections if each.doing is Doing.WAITING), key=lambda each: each.since)
        any(each.close_idle() for each in waiting)
        self._left.wait(TICK_S)

    def _serve(self, client: socket.socket, *, is_private: bool) -> None:
        client.setblocking(True)
        if not is_private:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(
            client, answer=self._answer, bounds=self._bounds, room=self._room, is_private=is_private
        )
        with self._lock:
            self._connections.add(connection)
        try:
            threading.Thread(target=self._converse, args=(connection,), name="local client", daemon=True).start()
        except RuntimeError as error:
            _log.warning("expected a thread for a connection, got: %s", error)
            self._forget(connection)
            connection.close()

    def _converse(self, connection: Connection) -> None:
        try:
            connection.handle()
        finally:
            self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        with self._lock:
            self._connections.discard(connection)
        self._left.set()
