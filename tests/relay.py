"""A TCP relay that makes a link as bad as a test needs it: slow, far, stalling, cut, half-open; and counts its bytes.

    with Relay(broker_port, Shape(rate_bytes_s=8_000, delay_s=0.3, reset_every_s=30)) as relay:
        ...  # connect to relay.port

It shapes bytes and not packets, so what it makes of a link is what TCP makes of it: late, slow or gone, never lost in
the middle or out of order. All connections share one link, each way for itself. It knows nothing of what it carries.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

# a real link holds little; without these the kernel's own buffers would swallow megabytes at once
_SLOW_BUFFER_BYTES = 16 * 1024
_GRAIN_BYTES = 64 * 1024
_PIECES = 256
Pieces = asyncio.Queue[tuple[float, bytes]]
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing says RST and drops what was not sent


@dataclass(frozen=True, slots=True)
class Shape:
    """What a link does; 0 is never, and no limit.

    `rate_bytes_s` and `delay_s` hold each way, so a round trip takes twice the delay. Each connection is reset
    `reset_every_s` after it began, or once it has carried `reset_every_bytes` towards the device; and nothing moves for
    `stall_s` at the end of every `stall_every_s`.
    """

    rate_bytes_s: float = 0.0
    delay_s: float = 0.0
    reset_every_s: float = 0.0
    reset_every_bytes: int = 0
    stall_every_s: float = 0.0
    stall_s: float = 0.0


@dataclass
class _Lane:
    """One way of the link: when it is free again, and what it has carried."""

    free_at: float = 0.0
    carried: int = 0


@dataclass(eq=False)
class _Connection:
    """One device's connection and ours behind it."""

    near: socket.socket
    far: socket.socket
    task: asyncio.Task[None] | None = None
    resets: bool = False
    vanished: bool = False
    down: int = 0
    pumps: list[asyncio.Task[None]] = field(default_factory=list)


class Relay:
    """Listens on a port of 127.0.0.1 and carries what comes to `target`, until `close`; on a thread of its own."""

    def __init__(self, target: int, shape: Shape | None = None) -> None:
        self._target = target
        self.shape = shape or Shape()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self.connections = 0
        self.resets = 0
        self._down, self._up = _Lane(), _Lane()
        self._open: set[_Connection] = set()
        self._admits = True
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- what a test sees and does

    @property
    def down_bytes(self) -> int:
        """What the link has carried towards the device, lost in a reset or not."""
        return self._down.carried

    @property
    def up_bytes(self) -> int:
        """What it has carried from the device."""
        return self._up.carried

    def reset(self) -> None:
        """Reset every connection; new ones are let in."""
        self._do(self._reset)

    def cut(self) -> None:
        """Reset every connection and let no new one in, until `mend`."""
        self._admits = False
        self._do(self._reset)

    def mend(self) -> None:
        """Let connections in again."""
        self._admits = True

    def stall(self) -> None:
        """Let nothing move on any connection, and end none, until `flow`."""
        self._do(self._flowing.clear)

    def flow(self) -> None:
        """End a stall."""
        self._do(self._flowing.set)

    def vanish(self) -> None:
        """Leave every connection half-open: the far side is gone, and the device hears neither data nor an end."""
        self._do(self._vanish)

    def close(self) -> None:
        """Reset what is open and end the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    # --- the loop

    def _do(self, what: Callable[[], object]) -> None:
        """Run it in the loop and wait until it was done."""

        async def now() -> None:
            what()

        asyncio.run_coroutine_threadsafe(now(), self._loop).result(10)

    def _run(self) -> None:
        tasks = [self._loop.create_task(self._accept()), self._loop.create_task(self._stutter())]
        self._loop.run_forever()
        self._reset()
        for task in tasks:
            task.cancel()
        left = asyncio.all_tasks(self._loop)
        self._loop.run_until_complete(asyncio.wait(left, timeout=5))
        for connection in self._open:  # those that were let in a moment ago: what has not begun has no end
            connection.near.close()
            connection.far.close()
        self._listener.close()
        self._loop.close()

    async def _accept(self) -> None:
        while True:
            near, _ = await self._loop.sock_accept(self._listener)
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not self._admits:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                near.close()
                continue
            far = socket.socket()
            far.setblocking(False)
            if self.shape.rate_bytes_s:
                for each, option in ((near, socket.SO_RCVBUF), (near, socket.SO_SNDBUF), (far, socket.SO_RCVBUF)):
                    each.setsockopt(socket.SOL_SOCKET, option, _SLOW_BUFFER_BYTES)
            connection = _Connection(near, far)
            self._open.add(connection)
            self.connections += 1
            connection.task = self._loop.create_task(self._serve(connection))

    async def _serve(self, connection: _Connection) -> None:
        near, far = connection.near, connection.far
        timer = None
        if self.shape.reset_every_s:
            timer = self._loop.call_later(self.shape.reset_every_s, self._reset_one, connection)
        ended = False
        try:
            await self._loop.sock_connect(far, ("127.0.0.1", self._target))
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.pumps = [
                self._loop.create_task(each)
                for source, sink, lane in ((near, far, self._up), (far, near, self._down))
                for each in self._both_ends(source, sink, lane, connection)
            ]
            await asyncio.gather(*connection.pumps)
            ended = True
        except OSError:
            pass  # one side was reset: so is the other
        finally:
            if timer is not None:
                timer.cancel()
            await _end(connection.pumps)
            if connection.vanished:
                far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                far.close()
                await _swallow(self._loop, near)
            if not ended:
                self.resets += connection.resets
                for each in (near, far):
                    with contextlib.suppress(OSError):
                        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            near.close()
            far.close()
            self._open.discard(connection)

    def _both_ends(
        self, source: socket.socket, sink: socket.socket, lane: _Lane, connection: _Connection
    ) -> tuple[Coroutine[Any, Any, None], Coroutine[Any, Any, None]]:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES)
        return self._take(source, under_way, lane), self._deliver(under_way, sink, lane, connection)

    async def _take(self, source: socket.socket, under_way: Pieces, lane: _Lane) -> None:
        """Let one way of a connection into the link, until its end, which is passed on."""
        data = b"."
        while data:
            data = await self._loop.sock_recv(source, self._grain())
            await self._pass(len(data), lane)
            await under_way.put((self._loop.time() + self.shape.delay_s, data))

    async def _deliver(self, under_way: Pieces, sink: socket.socket, lane: _Lane, connection: _Connection) -> None:
        while True:
            due, data = await under_way.get()
            await asyncio.sleep(max(due - self._loop.time(), 0))
            if not data:
                with contextlib.suppress(OSError):
                    sink.shutdown(socket.SHUT_WR)
                return
            await self._loop.sock_sendall(sink, data)
            connection.down += len(data) if lane is self._down else 0
            if 0 < self.shape.reset_every_bytes <= connection.down:
                self._reset_one(connection)

    async def _pass(self, length: int, lane: _Lane) -> None:
        """Wait until the link has carried `length` bytes more."""
        await self._flowing.wait()
        if self.shape.rate_bytes_s:
            lane.free_at = max(lane.free_at, self._loop.time()) + length / self.shape.rate_bytes_s
            await asyncio.sleep(lane.free_at - self._loop.time())
            await self._flowing.wait()
        lane.carried += length

    def _grain(self) -> int:
        rate = self.shape.rate_bytes_s
        return max(256, min(_SLOW_BUFFER_BYTES, int(rate / 20))) if rate else _GRAIN_BYTES

    async def _stutter(self) -> None:
        while self.shape.stall_every_s:
            await asyncio.sleep(self.shape.stall_every_s - self.shape.stall_s)
            self._flowing.clear()
            await asyncio.sleep(self.shape.stall_s)
            self._flowing.set()

    def _reset(self) -> None:
        for connection in list(self._open):
            self._reset_one(connection)

    def _reset_one(self, connection: _Connection) -> None:
        if connection.task is not None and not connection.resets:
            connection.resets = True
            connection.vanished = False
            connection.task.cancel()

    def _vanish(self) -> None:
        for connection in list(self._open):
            if connection.task is not None and not connection.vanished:
                connection.vanished = True
                connection.task.cancel()


async def _swallow(loop: asyncio.AbstractEventLoop, near: socket.socket) -> None:
    """Take what the device says, and answer nothing, until it gives up or is reset."""
    with contextlib.suppress(OSError, asyncio.CancelledError):
        while await loop.sock_recv(near, _GRAIN_BYTES):
            pass


async def _end(tasks: "list[asyncio.Task[Any]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
