"""Many devices in two processes, for `bench.delivery`: the agent's own fetcher each, or bare subscribers.

A device is `agent.fetching.fetch.fetch_files` with a folder and a connection of its own: a plain MQTT 5 client
(`PlainLink`, below), the agent's link, or the agent's road over HTTPS. A bare subscriber is the same plain client,
which asks for the same topics, eight at a time, and drops what comes; one that keeps it takes its SHA-256 and writes
it to a file.

All are connected before the clock starts. Then as many threads as `Work.at_once` says go through the devices of a
process: on two cores hundreds of threads would measure Python's lock. It is the same for all kinds of devices.
"""

import contextlib
import hashlib
import os
import pickle
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from agent.fetching.fetch import fetch_files
from agent.fetching.ranges import HttpsChunks
from agent.link.address import parse_broker
from agent.link.https import pinned
from agent.link.session import Link
from agent.link.tls import Credentials
from skerry.delivery.chunks import WINDOW
from skerry.delivery.sealed import open_chunk
from skerry.errors import Rejected, Unavailable
from skerry.wire import topics
from skerry.wire.manifest import SEALING_BYTES, FileEntry

PROCESSES = 2
TIMEOUT_S = 120.0
_NONE = Credentials(ca=Path("none"), certificate=Path("none"), key=Path("none"))
# a disk of its own for each device: memory, where there is a file system in it
_FOLDERS = Path("/dev/shm")  # noqa: S108 -- a folder of its own is made in it


@dataclass(frozen=True, slots=True)
class Work:
    """What each device of a process does: `how` is `bare`, `keeping`, `plain`, `link` (the agent's) or `https`.

    Chunks that are sealed with `key` are opened; without one they are told from their padding alone. `deleting`, each
    device deletes its file once it is whole, as part of its time: for fleets whose files no memory would hold.
    """

    how: str
    port: int
    entry: FileEntry
    published: str
    count: int = 0
    key: bytes = b""
    ca: str = ""
    at_once: int = 4
    deleting: bool = False


@dataclass(frozen=True, slots=True)
class Took:
    """How long a fleet took, in seconds, and what its devices received; `cpu_s` is that of all of its processes."""

    seconds: float
    received: int
    cpu_s: float


class Fleet:
    """The processes, which serve one piece of work after the other; they end with the `with` block."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "bench.fleet"]
        pipe = subprocess.PIPE
        self._processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe) for _ in range(PROCESSES)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            # at the end of its input it clears its folder away, and ends
            process.communicate(timeout=TIMEOUT_S)

    def run(self, work: Work, devices: int) -> Took:
        """Connect the devices, start them together, and wait until each has the file."""
        shares = [devices // PROCESSES + (number < devices % PROCESSES) for number in range(PROCESSES)]
        pairs = [(process, share) for process, share in zip(self._processes, shares, strict=True) if share]
        for process, share in pairs:
            _say(process.stdin, replace(work, count=share))
        for process, _ in pairs:
            assert _hear(process.stdout) == "ready"
        began = time.monotonic()
        for process, _ in pairs:
            _say(process.stdin, "go")
        ends = [_hear(process.stdout) for process, _ in pairs]
        return Took(time.monotonic() - began, sum(received for received, _ in ends), sum(cpu for _, cpu in ends))


def _say(pipe: IO[bytes] | None, what: object) -> None:
    assert pipe is not None
    pickle.dump(what, pipe)
    pipe.flush()


def _hear(pipe: IO[bytes] | None) -> Any:
    assert pipe is not None
    return pickle.load(pipe)  # noqa: S301 -- of our own process


def main() -> None:
    """Be one process of a fleet, until stdin ends."""
    with contextlib.suppress(EOFError):
        while True:
            _serve(_hear(sys.stdin.buffer))


def _serve(work: Work) -> None:
    with (
        tempfile.TemporaryDirectory(dir=_FOLDERS if _FOLDERS.is_dir() else None) as folder,
        _all_connected(work, Path(folder)) as devices,
    ):
        before = _cpu_s()
        _say(sys.stdout.buffer, "ready")
        _hear(sys.stdin.buffer)
        with ThreadPoolExecutor(work.at_once) as pool:
            received = sum(pool.map(lambda device: device(), devices))
        _say(sys.stdout.buffer, (received, _cpu_s() - before))


@contextmanager
def _all_connected(work: Work, folder: Path) -> Iterator[list[Callable[[], int]]]:
    """Connect the devices of a process; each is a function that fetches, and returns the bytes that came."""
    links: list[PlainLink | Link] = []
    devices: list[Callable[[], int]] = []
    for number in range(work.count):
        name = f"fleet.{os.getpid()}-{number}"
        if work.how == "https":
            devices.append(_over_https(work, folder / str(number)))
            continue
        link = _agents_link(work.port, name) if work.how == "link" else PlainLink(work.port, name)
        links.append(link)
        if work.how in ("bare", "keeping"):
            devices.append(_bare(work, link, folder / str(number) if work.how == "keeping" else None))
        else:
            devices.append(_over_mqtt(work, link, folder / str(number)))
    deadline = time.monotonic() + TIMEOUT_S
    while not all(link.connected for link in links):
        assert time.monotonic() < deadline, "expected every device to connect"
        time.sleep(0.05)
    yield devices
    for link in links:
        link.stop()


def _over_mqtt(work: Work, link: "PlainLink | Link", folder: Path) -> Callable[[], int]:
    def fetch() -> int:
        received = _received(work, lambda **given: fetch_files(link, folder, **given).received)
        if work.deleting:
            shutil.rmtree(folder)
        return received

    return fetch


def _over_https(work: Work, folder: Path) -> Callable[[], int]:
    context = pinned(work.ca)
    road = HttpsChunks(f"https://127.0.0.1:{work.port}", context=lambda: context, token=lambda: "of-the-bench")
    closed = _Closed()
    return lambda: _received(
        work, lambda **given: fetch_files(closed, folder, https=road, roads=("https",), **given).received
    )


def _received(work: Work, fetch: Callable[..., int]) -> int:
    return fetch(
        entries=[work.entry],
        sealed={work.entry.name: work.published},
        opener=_Opener(work.key) if work.key else _Unpadder(),
        timeout_s=TIMEOUT_S,
    )


def _bare(work: Work, link: "PlainLink | Link", file: Path | None) -> Callable[[], int]:
    names = [topics.blob(work.published, number) for number in range(len(work.entry.chunks))]

    def receive() -> int:
        received = 0
        for start in range(0, len(names), WINDOW):
            found = link.fetch_retained(names[start : start + WINDOW], timeout_s=TIMEOUT_S)
            received += sum(len(payload) for payload in found.values())
            if file is not None:
                with file.open("ab") as kept:
                    for payload in found.values():
                        hashlib.sha256(payload).digest()
                        kept.write(payload)
        if file is not None and work.deleting:
            file.unlink()
        return received

    return receive


class _Opener:
    """Opens chunks in this process: hundreds of children would measure the machine and not the fetch."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def open(self, sealed: bytes, *, sha256: str, number: int) -> bytes | None:
        try:
            return open_chunk(self._key, sealed, sha256=sha256, number=number)
        except Rejected:
            return None


class _Unpadder:
    """Takes the padding off that stands where the sealing would be."""

    def open(self, sealed: bytes, *, sha256: str, number: int) -> bytes | None:  # noqa: ARG002 -- an opener's
        return sealed[SEALING_BYTES:]


class _Closed:
    """A broker that is not there."""

    def fetch_retained(self, wanted: Sequence[str], *, timeout_s: float) -> dict[str, bytes]:
        raise Unavailable(f"expected {len(wanted)} chunks within {timeout_s} s, got no broker")


class PlainLink:
    """The least of an MQTT 5 client that can fetch retained messages: one blocking socket."""

    def __init__(self, port: int, name: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = self._socket.makefile("rb")
        self._number = 0
        self._send(0x10, _text("MQTT") + b"\x05\x02\x00\x00\x00" + _text(name))
        kind, answer = self._packet()
        assert (kind, answer[1]) == (0x20, 0), f"expected to be let in, got {answer!r}"
        self.connected = True

    def stop(self) -> None:
        """Hang up."""
        self._send(0xE0, b"")
        self._stream.close()
        self._socket.close()

    def fetch_retained(self, wanted: Sequence[str], *, timeout_s: float) -> dict[str, bytes]:
        """Return what is retained on the topics, all of it."""
        self._socket.settimeout(timeout_s)
        self._ask(0x82, [_text(topic) + b"\0" for topic in wanted])
        found: dict[str, bytes] = {}
        while len(found) < len(wanted):
            kind, body = self._packet()
            if kind & 0xF0 == 0x30:
                length = int.from_bytes(body[:2], "big")
                topic, properties = bytes(body[2 : 2 + length]).decode(), body[2 + length]
                found[topic] = bytes(body[3 + length + properties :])
        self._ask(0xA2, [_text(topic) for topic in wanted])
        return found

    def _ask(self, kind: int, filters: list[bytes]) -> None:
        self._number = self._number % 65535 + 1
        self._send(kind, self._number.to_bytes(2, "big") + b"\0" + b"".join(filters))

    def _send(self, kind: int, body: bytes) -> None:
        length, head = len(body), bytearray([kind])
        while length > 127:
            head.append(length & 127 | 128)
            length >>= 7
        self._socket.sendall(bytes(head) + bytes([length]) + body)

    def _packet(self) -> tuple[int, memoryview]:
        kind = self._stream.read(1)
        length = shift = 0
        while True:
            digit = self._stream.read(1)[0]
            length |= (digit & 127) << shift
            shift += 7
            if digit < 128:
                return kind[0], memoryview(self._stream.read(length))


def _agents_link(port: int, name: str) -> Link:
    link = Link(parse_broker(f"mqtt://127.0.0.1:{port}"), who=name, will=lambda: b"{}", credentials=_NONE)
    link.start()
    return link


def _text(text: str) -> bytes:
    return len(text).to_bytes(2, "big") + text.encode()


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    # what is pickled is named after the module, which a program's own is not
    from bench.fleet import main as serve

    serve()
