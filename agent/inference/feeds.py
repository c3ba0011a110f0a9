"""Where the engine's inputs come from on a device without a program of its own: a recording, stdin, or an MQTT topic.

    replay:FILE, csv:FILE             a recording: the worker reads it (`agent.inference.source`), only counted here
    stdin                             lines of JSON
    mqtt://127.0.0.1:1883/TOPIC       the same, as messages on a broker of this machine; USER:PASSWORD@ before its name

Lines wait in a queue with a bound; when it is full, the oldest goes, is counted, and the log says how many went.
"""

import io
import logging
import sys
import threading
import time
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

_log = logging.getLogger("skerry.agent.feeds")
MAX_LINE_BYTES = 1 << 20
MAX_WAITING = 256
_SAY_AGAIN_S = 60.0


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
        self._say_at = 0.0

    def take(self) -> Request | None:
        """Return the oldest line."""
        with self._lock:
            return Request(Verb.ROW, b"", self._waiting.popleft()) if self._waiting else None

    def offer(self, line: bytes) -> None:
        """Keep a line for the model; one that is too long, or has no more room, is dropped and counted."""
        with self._lock:
            if len(line) > MAX_LINE_BYTES:
                self._drop(f"lines of at most {MAX_LINE_BYTES} bytes, got a longer one")
                return
            if len(self._waiting) == MAX_WAITING:
                self._waiting.popleft()
                self._drop(f"at most {MAX_WAITING} lines to wait for the model, got more, and the oldest went")
            self._waiting.append(line)
        self._on_input()

    def _drop(self, expected: str) -> None:
        self.dropped += 1
        if time.monotonic() >= self._say_at:
            _log.warning("input: expected %s; %d dropped since the start", expected, self.dropped)
            self._say_at = time.monotonic() + _SAY_AGAIN_S

    def start(self, on_input: Callable[[], None]) -> None:
        """Begin to listen."""
        self._on_input = on_input


class Stdin(Lines):
    """Lines of JSON on standard input; at its end there is nothing more to infer on, and the agent lives on."""

    def __init__(self, stream: BinaryIO | None = None) -> None:
        super().__init__()
        # a program that was started with its standard input closed has none
        self._stream = stream or (sys.stdin.buffer if sys.stdin is not None else io.BytesIO())

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

    def __init__(self, host: str, port: int, topic: str, *, user: str = "", password: str = "") -> None:
        super().__init__()
        self._host, self._port, self._topic = host, port, topic
        self._user, self._password = user, password

    def start(self, on_input: Callable[[], None]) -> None:
        """Connect, for as long as it takes."""
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        super().start(on_input)
        self._say("no connection yet")
        client = Client(CallbackAPIVersion.VERSION2)
        if self._user:
            client.username_pw_set(self._user, self._password)
        client.on_connect = lambda client, _data, _flags, reason, _properties: (
            self._say(str(reason)) if reason.is_failure else client.subscribe(self._topic, qos=0)
        )
        client.on_connect_fail = lambda _client, _data: self._say("no connection")
        client.on_disconnect = lambda _client, _data, _flags, reason, _properties: self._say(str(reason))
        client.on_subscribe = lambda _client, _data, _mid, reasons, _properties: self._say(
            next((f"{each} for the topic {self._topic}" for each in reasons if each.is_failure), "")
        )
        client.on_message = lambda _client, _data, message: self.offer(bytes(message.payload))
        client.reconnect_delay_set(min_delay=1, max_delay=30)
        client.connect_async(self._host, self._port, keepalive=30)
        client.loop_start()

    def _say(self, reason: str) -> None:
        problem = f"input: expected the broker at {self._host}:{self._port}, got: {reason}" if reason else ""
        if problem != self.problem:
            _log.info("%s", problem or f"input: comes from the topic {self._topic}")
        self.problem = problem


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
        # a # is a wildcard here
        parts = urlsplit(url, allow_fragments=False)
        port = parts.port or 1883
    except ValueError as error:
        raise Rejected(f"source: expected mqtt://[USER:PASSWORD@]127.0.0.1:1883/TOPIC, got another: {error}") from error
    topic = unquote(parts.path.removeprefix("/"))
    shown = f"mqtt://{parts.netloc.rpartition('@')[2]}{parts.path}"[:80]
    if not topic or not is_here(parts.hostname or ""):
        # what is inferred on leaves no device, and nobody else's broker decides what it is
        raise Rejected(f"source: expected mqtt://127.0.0.1:1883/TOPIC, a broker on this machine, got {shown!r}")
    levels = topic.split("/")
    if "#" in levels[:-1] or any(len(level) > 1 and set(level) & {"#", "+"} for level in levels):
        raise Rejected(f"source: expected + for one level of a topic and # for all that follow, got {shown!r}")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return Topic(parts.hostname or "", port, topic, user=user, password=password)
