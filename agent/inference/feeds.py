"""Where the engine's inputs come from on a device without a program of its own: a recording, stdin, or an MQTT topic.

    replay:FILE, csv:FILE             a recording: the worker reads it (`agent.inference.source`), here its rows are
    only counted stdin                             lines of JSON
    mqtt://127.0.0.1:1883/TOPIC       the same, as messages on a broker of this machine

Lines wait in a queue with a bound; when it is full, the oldest goes, and is counted.
"""

import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from agent.config import Config
from agent.inference.frames import ROW_NUMBER, Request, Verb
from agent.inference.workers import Recording
from agent.link.address import is_here
from skerry.errors import Rejected

MAX_LINE_BYTES = 1 << 20
MAX_WAITING = 256


class Source(Protocol):
    """Something that has the next request for the model."""

    paced: bool
    """True when it has as many as are wanted, so that `rate` decides how many those are."""
    problem: str

    def take(self) -> Request | None:
        """Return the next one, or None while there is none."""

    def start(self, on_input: Callable[[], None]) -> None:
        """Begin to listen; `on_input` is called when there is something to take."""


class Rows:
    """The rows of a recording, by number."""

    paced = True
    problem = ""

    def __init__(self) -> None:
        self._next = 0

    def take(self) -> Request | None:
        """Ask for the next row."""
        request = Request(Verb.NEXT, b"", ROW_NUMBER.pack(self._next))
        self._next += 1
        return request

    def start(self, on_input: Callable[[], None]) -> None:
        """Do nothing: the worker reads the file."""


class Lines:
    """Lines of JSON that arrive when they do; the newest are kept."""

    paced = False

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque()
        self._lock = threading.Lock()
        self._on_input: Callable[[], None] = lambda: None
        self.dropped = 0
        self.problem = ""

    def take(self) -> Request | None:
        """Return the oldest line."""
        with self._lock:
            return Request(Verb.ROW, b"", self._waiting.popleft()) if self._waiting else None

    def offer(self, line: bytes) -> None:
        """Keep a line for the model; one that is too long, or has no more room, is dropped and counted."""
        with self._lock:
            if len(line) > MAX_LINE_BYTES:
                self.dropped += 1
                self.problem = f"input: expected lines of at most {MAX_LINE_BYTES} bytes, got a longer one"
                return
            if len(self._waiting) == MAX_WAITING:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(line)
        self._on_input()

    def start(self, on_input: Callable[[], None]) -> None:
        """Begin to listen."""
        self._on_input = on_input


class Stdin(Lines):
    """Lines of JSON on standard input; at its end there is nothing more to infer on, and the agent lives on."""

    def __init__(self, stream: BinaryIO | None = None) -> None:
        super().__init__()
        self._stream = stream or sys.stdin.buffer

    def start(self, on_input: Callable[[], None]) -> None:
        """Begin to read."""
        super().start(on_input)
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    def _read(self) -> None:
        while line := self._stream.readline(MAX_LINE_BYTES + 1):
            whole = line
            while whole and not whole.endswith(b"\n"):
                # the rest of a line that is too long, which no cap may let in as a line of its own
                whole = self._stream.readline(MAX_LINE_BYTES + 1)
            if line.strip():
                self.offer(line)
        self.problem = "input: expected lines of JSON on standard input, got its end"


class Topic(Lines):
    """Messages on a topic of a broker on this machine; paho connects again by itself."""

    def __init__(self, host: str, port: int, topic: str) -> None:
        super().__init__()
        self._host, self._port, self._topic = host, port, topic

    def start(self, on_input: Callable[[], None]) -> None:
        """Connect, for as long as it takes."""
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        super().start(on_input)
        client = Client(CallbackAPIVersion.VERSION2)
        client.on_connect = lambda client, *_: client.subscribe(self._topic, qos=0)
        client.on_message = lambda _client, _data, message: self.offer(bytes(message.payload))
        client.reconnect_delay_set(min_delay=1, max_delay=30)
        client.connect_async(self._host, self._port, keepalive=30)
        client.loop_start()


def open_source(config: Config) -> tuple[Source | None, Recording | None]:
    """Return where inputs come from, and what recording a worker reads for that; raises `Rejected` for what is none."""
    wanted = config.source or (f"replay:{config.replay}" if config.replay else "")
    if not wanted:
        return None, None
    if wanted == "stdin":
        return Stdin(), None
    if wanted.startswith("mqtt://"):
        return _topic(wanted), None
    kind, colon, name = wanted.partition(":")
    if kind not in ("replay", "csv") or not colon:
        raise Rejected(
            f"source: expected replay:FILE, csv:FILE, stdin or mqtt://127.0.0.1:1883/TOPIC, got {wanted[:80]!r}"
        )
    path = Path(name)
    if kind == "csv" and path.suffix != ".csv":
        raise Rejected(f"source: expected a file named *.csv, got {name[:80]!r}")
    try:
        path.stat()
    except OSError as error:
        raise Rejected(f"{path}: expected a recording (npz or CSV), got: {error.strerror}") from error
    return Rows(), Recording(path, seed=config.seed)


def _topic(url: str) -> Topic:
    try:
        parts = urlsplit(url)
        port = parts.port or 1883
    except ValueError as error:
        raise Rejected(f"source: expected mqtt://127.0.0.1:1883/TOPIC, got {url[:80]!r}: {error}") from error
    topic = unquote(parts.path.removeprefix("/"))
    if not topic or not is_here(parts.hostname or ""):
        # what is inferred on leaves no device, and nobody else's broker decides what it is
        raise Rejected(f"source: expected mqtt://127.0.0.1:1883/TOPIC, a broker on this machine, got {url[:80]!r}")
    return Topic(parts.hostname or "", port, topic)
