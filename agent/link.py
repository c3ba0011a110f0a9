"""The device's side of MQTT 5: one session, kept up for ever, that says, hears and fetches.

Every connection is a new paho client under the same client id, so the broker keeps the session and this program keeps
nothing that could go stale. What is heard goes into one bounded queue; chunks and metadata that were asked for go to
the one who asked. No exception leaves a callback: it would kill paho's thread while `is_connected()` stays true.
"""

import logging
import queue
import random
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.tls import client_context
from skerry.delivery.chunks import WINDOW
from skerry.errors import Rejected, SkerryError, Unavailable
from skerry.wire import topics
from skerry.wire.codec import MAX_BYTES

KEEP_ALIVE_S = 30
SESSION_EXPIRY_S = 7 * 86400
CONNECT_TIMEOUT_S = 10.0
QUEUE_MESSAGES = 64
BACKOFF_LEAST_S = 1.0
BACKOFF_MOST_S = 60.0
# less than this is acknowledgements and pings; more is what was asked for
MURMUR_BYTES = 1024
# a link on which one window takes longer is dead in all but name
FETCH_MOST_S = 180.0
# where Linux's `struct tcp_info` has `tcpi_bytes_received`
_RECEIVED_AT = 128
HEARD = ("assign", "ack", "desired")
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_log = logging.getLogger("skerry.agent.link")


@dataclass(frozen=True, slots=True)
class Address:
    """Where the broker is, and whether it speaks TLS."""

    host: str
    port: int
    tls: bool


@dataclass(frozen=True, slots=True)
class Heard:
    """One message from the control plane: its name (one of `HEARD`), its bytes, and how to acknowledge it."""

    name: str
    payload: bytes
    settle: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Credentials:
    """The files of a TLS identity; unused where the broker speaks no TLS."""

    ca: Path
    certificate: Path
    key: Path

    def context(self, *, floor: float) -> ssl.SSLContext:
        """Return TLS with this identity, judged at `floor` (`agent.tls`)."""
        return client_context(
            self.ca.read_text(encoding="ascii"), floor=floor, certificate=self.certificate, key=self.key
        )


def parse_broker(url: str) -> Address:
    """Parse `mqtt://HOST:PORT` or `mqtts://HOST:PORT`.

    Raises:
        Rejected: another form; or a broker without identities (`mqtt://`) that is not on this machine.
    """
    expected = f"broker: expected mqtts://HOST:PORT, or mqtt:// on this machine, got {url!r}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Rejected(expected) from error
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
        raise Rejected(expected)
    if parts.scheme == "mqtt" and parts.hostname not in _LOOPBACK:
        raise Rejected(f"broker: expected mqtts:// for {parts.hostname}, got mqtt:// (no identity off this machine)")
    return Address(
        host=parts.hostname, port=port or (8883 if parts.scheme == "mqtts" else 1883), tls=parts.scheme == "mqtts"
    )


def full_jitter(attempt: int, *, least_s: float = BACKOFF_LEAST_S, most_s: float = BACKOFF_MOST_S) -> float:
    """Return how long to wait before an attempt: anywhere between `least_s` and a bound that doubles each time."""
    bound = min(most_s, least_s * 2 ** min(attempt, 16))
    return random.uniform(least_s, max(bound, least_s))  # noqa: S311 -- spreads a fleet, guards nothing


class Link:
    """A device's session with the broker, on threads of its own; `heard` is what the control plane said."""

    def __init__(
        self,
        address: Address,
        *,
        who: str,
        will: Callable[[], bytes],
        credentials: Credentials,
        floor: Callable[[], float] = lambda: 0.0,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._address = address
        self._who = who
        self._will = will
        self._credentials = credentials
        self._floor = floor
        self._on_change = on_change
        self.heard: queue.Queue[Heard] = queue.Queue(QUEUE_MESSAGES)
        self.dropped = 0
        self.connections = 0
        self._client: Client | None = None
        self._up = threading.Event()
        self._down = threading.Event()
        self._stop = threading.Event()
        self._refusal = ""
        self._collector: _Collector | None = None
        self._asked: set[str] = set()
        self._topics = {topics.down(who, name): name for name in HEARD}
        self._thread = threading.Thread(target=self._keep_up, name="link", daemon=True)

    @property
    def connected(self) -> bool:
        """True while the broker has accepted us and nothing was noticed since."""
        return self._up.is_set()

    def start(self) -> None:
        """Begin to connect, and keep doing so."""
        self._thread.start()

    def reconnect(self) -> None:
        """Let the connection go and make another, with the credentials that are on disk then."""
        self._down.set()

    def stop(self, farewell: bytes | None = None) -> None:
        """Say `farewell` on `up/reported`, disconnect and end the threads."""
        client = self._client
        if farewell is not None and self.connected and client is not None:
            info = client.publish(topics.up(self._who, "reported"), farewell, qos=1, retain=True)
            with_grace = time.monotonic() + 2.0
            published = info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS  # then there is nothing to wait for
            while not (published or info.is_published()) and self.connected and time.monotonic() < with_grace:
                time.sleep(0.02)
        self._stop.set()
        self._down.set()
        self._thread.join(timeout=CONNECT_TIMEOUT_S)

    def publish(self, name: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish on one of our `up` topics, QoS 1; raises `Unavailable` without a connection.

        Returning means little: only the control plane's own acknowledgement empties an outbox.
        """
        client = self._client
        if client is None or not self.connected:
            raise Unavailable(f"broker {self._shown()}: expected a connection, got none")
        info = client.publish(topics.up(self._who, name), payload, qos=1, retain=retain)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise Unavailable(f"broker {self._shown()}: expected to publish, got: {info.rc.name}")

    def fetch_retained(self, wanted: Sequence[str], *, timeout_s: float) -> dict[str, bytes]:
        """Return the retained messages on at most eight explicit topics, as far as they came.

        It waits until the connection has been silent for `timeout_s`: on a slow link a chunk takes longer than any
        fixed time would grant. A topic without a retained message answers nothing, so a missing one costs that time.
        Raises `Unavailable` without a connection, or when it is lost before anything came. One caller at a time.
        """
        if len(wanted) > WINDOW:
            raise ValueError(f"expected at most {WINDOW} topics, got {len(wanted)}")
        client = self._client
        if client is None or not self.connected:
            raise Unavailable(f"broker {self._shown()}: expected a connection, got none")
        # a session outlives its connection, and so does what was asked for when that was lost
        if left := self._asked.difference(wanted):
            client.unsubscribe(sorted(left))
        self._asked = set(wanted)
        with self._collecting(wanted) as collector:
            code, _ = client.subscribe([(topic, 0) for topic in wanted])
            if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
                raise Unavailable(f"broker {self._shown()}: expected to subscribe, got: {code.name}")
            found = collector.wait(
                timeout_s,
                heard=lambda: _bytes_received(client),
                while_true=lambda: self.connected and client is self._client,
            )
            if self.connected and client is self._client:
                client.unsubscribe(list(wanted))
                self._asked.clear()
            elif not found:
                raise Unavailable(f"broker {self._shown()}: expected a connection, got cut off")
        return found

    @contextmanager
    def _collecting(self, wanted: Sequence[str]) -> Iterator["_Collector"]:
        collector = _Collector(frozenset(wanted))
        self._collector = collector
        try:
            yield collector
        finally:
            self._collector = None

    def _keep_up(self) -> None:
        """Connect, wait until the connection is gone, wait with jitter, again."""
        attempt = 0
        told = ""
        while not self._stop.is_set():
            problem = self._connect_once()
            if not problem:
                attempt, told = 0, ""
                self._hold()
                problem = "the connection was lost"
            self._let_go()
            if self._stop.is_set():
                return
            pause = full_jitter(attempt)
            attempt += 1
            if problem != told:
                _log.warning("broker %s: %s; trying again, inference goes on", self._shown(), problem)
                told = problem
            self._stop.wait(pause)

    def _connect_once(self) -> str:
        """Try to connect; return an empty text, or one line saying why not."""
        self._up.clear()
        self._down.clear()
        self._refusal = ""
        try:
            client = self._new_client()
            self._client = client
            expiry = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho leaves it untyped
            expiry.SessionExpiryInterval = SESSION_EXPIRY_S
            client.connect(
                self._address.host, self._address.port, keepalive=KEEP_ALIVE_S, clean_start=False, properties=expiry
            )
            client.loop_start()
        except SkerryError as error:
            return str(error)  # the will tells the depth of the outbox, which the disk may refuse
        except ssl.SSLCertVerificationError as error:
            return f"expected a certificate of its CA, got: {error.verify_message}; check that this is our broker"
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            return f"expected it to answer, got: {reason}; check that it runs and that the address is right"
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while not self._up.is_set() and not self._down.is_set() and time.monotonic() < deadline:
            self._up.wait(0.05)
        if self._up.is_set():
            return ""
        hint = "the device's certificate and clock" if self._address.tls else "that it is an MQTT 5 broker"
        return f"expected to be let in, got: {self._refusal or 'no answer'}; check {hint}"

    def _hold(self) -> None:
        """Wait for the end of the connection, whichever notices it: a callback, or paho's thread having died."""
        client = self._client
        while not self._stop.is_set() and not self._down.wait(1.0):
            if client is None or not client.is_connected() or client._thread is None:  # noqa: SLF001 -- paho offers no other sign
                return

    def _let_go(self) -> None:
        client, self._client = self._client, None
        was_up = self._up.is_set()
        self._up.clear()
        if client is not None:
            client.disconnect()
            client.loop_stop()
        if was_up:
            self._on_change()

    def _new_client(self) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._who,
            protocol=MQTTv5,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.username_pw_set(self._who)
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.suppress_exceptions = True
        client.max_queued_messages_set(256)
        client.will_set(topics.up(self._who, "reported"), self._will(), qos=1, retain=True)
        if self._address.tls:
            client.tls_set_context(self._credentials.context(floor=self._floor()))
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_message = self._message
        client.on_socket_open = _no_delay
        return client

    def _connected(self, client: Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if reason.is_failure:
            self._refusal = str(reason)
            self._down.set()
            return
        # on every connect, session or not: a broker that keeps nothing on disk forgets sessions too
        client.subscribe([(topic, 1) for topic in self._topics])
        self.connections += 1
        _log.info("connected to %s as %s", self._shown(), self._who)
        self._up.set()
        self._on_change()

    def _disconnected(self, _client: Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        # before it has answered, what paho calls an unspecified error is a closed connection
        self._refusal = self._refusal or (str(reason) if self._up.is_set() else "a closed connection")
        self._down.set()

    def _message(self, client: Client, _data: Any, message: MQTTMessage) -> None:
        collector = self._collector
        name = self._topics.get(message.topic)
        if name is None:
            if collector is not None:
                collector.add(message.topic, bytes(message.payload))
            return
        mid, qos = message.mid, message.qos
        if len(message.payload) > MAX_BYTES:
            self.dropped += 1
            client.ack(mid, qos)
            return
        try:
            self.heard.put_nowait(
                Heard(name=name, payload=bytes(message.payload), settle=lambda: _settle(client, mid, qos))
            )
        except queue.Full:
            # not acknowledged: the broker keeps it for the next connection
            self.dropped += 1
            return
        self._on_change()

    def _shown(self) -> str:
        return f"{'mqtts' if self._address.tls else 'mqtt'}://{self._address.host}:{self._address.port}"


class _Collector:
    """Gathers the retained messages that one caller asked for."""

    def __init__(self, wanted: frozenset[str]) -> None:
        self._wanted = wanted
        self._found: dict[str, bytes] = {}
        self._news = threading.Condition()

    def add(self, topic: str, payload: bytes) -> None:
        with self._news:
            if topic in self._wanted and len(payload) <= MAX_BYTES:
                self._found[topic] = payload
                self._news.notify()

    def wait(self, silence_s: float, *, heard: Callable[[], int], while_true: Callable[[], bool]) -> dict[str, bytes]:
        began = since = time.monotonic()
        held, before = 0, heard()
        with self._news:
            while len(self._found) < len(self._wanted) and while_true():
                now, by_now = time.monotonic(), heard()
                if by_now >= before + MURMUR_BYTES or len(self._found) > held:
                    held, before, since = len(self._found), by_now, now
                left = min(since + silence_s, began + FETCH_MOST_S) - now
                if left <= 0:
                    break
                self._news.wait(min(left, 0.5))
            return dict(self._found)


def _settle(client: Client, mid: int, qos: int) -> None:
    client.ack(mid, qos)


def _bytes_received(client: Client) -> int:
    """Return how many bytes the connection has brought, of messages that are still under way too; 0 if unknown."""
    sock = client.socket()
    if not isinstance(sock, socket.socket) or not hasattr(socket, "TCP_INFO"):
        return 0
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED_AT + 8)
    except (OSError, ValueError):
        return 0  # closed meanwhile
    return int.from_bytes(info[_RECEIVED_AT:], sys.byteorder)


def _no_delay(_client: Client, _data: Any, sock: Any) -> None:
    # stop-and-wait over Nagle costs a factor of twenty
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        _log.debug("no TCP_NODELAY: %s", error)
