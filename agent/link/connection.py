"""One MQTT connection, from the first byte to the last: dialled, let in, run and closed on the thread of its owner.

    connection = Connection(address, ...)
    connection.open()                       # raises Unavailable, or the broker has let us in
    connection.run(lambda: stopping)        # returns when it is over; what is heard is told meanwhile
    connection.close()

paho's own network thread is not used: there is no public sign of its death, for `is_connected()` stays true. Here
`Client.loop` runs on the thread that called `run`, so an exception in it, paho's or ours, ends `run` and nothing else.
No exception of a callback gets that far: it is counted, logged and forgotten (`faults`).
"""

import contextlib
import logging
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from paho.mqtt.client import Client, MQTTMessage, MQTTv5, WebsocketConnectionError
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.link.address import Address
from agent.link.dial import dial
from agent.link.obstacle import NotOurs, describe
from agent.link.proxy import Proxy
from skerry.errors import Unavailable

SESSION_EXPIRY_S = 7 * 86400
CONNECT_TIMEOUT_S = 10.0
# TLS and the WebSocket's opening together, on a link of 64 kbit/s too
HANDSHAKE_MOST_S = 30.0
FAREWELL_S = 1.0
_TURN_S = 1.0
# where Linux's `struct tcp_info` has `tcpi_bytes_received`
_RECEIVED_AT = 128
_log = logging.getLogger("skerry.agent.link")


class Hears(Protocol):
    """Whoever is told what happens on a connection, on the thread that runs it."""

    def let_in(self) -> None:
        """Hear that the broker has accepted us."""

    def message(self, topic: str, payload: bytes, settle: Callable[[], None]) -> None:
        """Hear a message; `settle` acknowledges it, now or later, from any thread."""


@dataclass(frozen=True, slots=True)
class Session:
    """What all connections of a device have in common."""

    who: str
    topics: tuple[str, ...]
    will_topic: str
    keep_alive_s: int
    proxy: Proxy | None = None


class Connection:
    """A connection of `session` to `address`; `context` is TLS, `will` the last will. `given_up` ends what waits."""

    def __init__(
        self,
        address: Address,
        session: Session,
        *,
        will: bytes,
        context: ssl.SSLContext | None,
        ears: Hears,
        given_up: Callable[[], bool],
    ) -> None:
        self._address = address
        self._session = session
        self._ears = ears
        self._given_up = given_up
        self.faults = 0
        self._told: set[str] = set()
        self._let_in = False
        self._over = threading.Event()
        self._refusal = ""
        self._client = _Client(self._dial, session.who, web=bool(address.path))
        self._client.username_pw_set(session.who)
        self._client.max_queued_messages_set(256)
        self._client.will_set(session.will_topic, will, qos=1, retain=True)
        if address.path:
            self._client.ws_set_options(address.path, headers=self._headers)
        if context is not None:
            self._client.tls_set_context(context)
        self._client.on_connect = self._guarded(self._connected)
        self._client.on_disconnect = self._guarded(self._disconnected)
        self._client.on_message = self._guarded(self._message)

    def open(self) -> None:
        """Connect and wait to be let in; raises `Unavailable` with one line that says why not."""
        session, client = self._session, self._client
        expiry = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho leaves it untyped
        expiry.SessionExpiryInterval = SESSION_EXPIRY_S
        try:
            # paho looks once a second, twice until it gives up: two keep-alives are a promise
            keep_alive_s = max(session.keep_alive_s - 1, 1)
            client.connect(
                self._address.host, self._address.port, keepalive=keep_alive_s, clean_start=False, properties=expiry
            )
        except WebsocketConnectionError as error:
            raise Unavailable(describe(NotOurs("another answer, or none"), self._address)) from error
        except (OSError, ValueError) as error:
            raise Unavailable(describe(error, self._address)) from error
        finally:
            client.opened()
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while not (self._let_in or self._over.is_set() or self._given_up()) and time.monotonic() < deadline:
            self._turn(0.25)
        if self._over.is_set() or not self._let_in:
            hint = "the device's certificate and clock" if self._address.tls else "that it is an MQTT 5 broker"
            raise Unavailable(f"expected to be let in, got: {self._refusal or 'no answer'}; check {hint}")

    def run(self, until: Callable[[], bool]) -> None:
        """Move bytes until the connection is over or `until` is true, which is asked about once a second."""
        while not (self._over.is_set() or until()):
            self._turn(_TURN_S)

    def close(self) -> None:
        """Say goodbye if that can be said within a second, and let everything go."""
        client = self._client
        with contextlib.suppress(Exception):  # whatever broke it may break this too
            client.disconnect()
            deadline = time.monotonic() + FAREWELL_S
            while not self._over.is_set() and time.monotonic() < deadline:
                self._turn(0.1)
        self._over.set()
        client.let_go()

    # --- from any thread

    @property
    def end(self) -> str:
        """What ended it, in words; empty while nobody knows."""
        return self._refusal

    def leave(self) -> None:
        """End `run` from another thread."""
        with contextlib.suppress(Unavailable), _at_its_end():
            self._client.disconnect()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> Callable[[], bool]:
        """Publish with QoS 1, and return what says whether the broker has it; raises `Unavailable`."""
        with _at_its_end():
            info = self._client.publish(topic, payload, qos=1, retain=retain)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise Unavailable(f"expected to publish, got: {info.rc.name}")
        return info.is_published

    def subscribe(self, topics: list[str]) -> None:
        """Ask for topics with QoS 0; raises `Unavailable`."""
        with _at_its_end():
            code, _ = self._client.subscribe([(topic, 0) for topic in topics])
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise Unavailable(f"expected to subscribe, got: {code.name}")

    def unsubscribe(self, topics: list[str]) -> None:
        """Ask for them no more; raises `Unavailable`."""
        with _at_its_end():
            self._client.unsubscribe(topics)

    def bytes_received(self) -> int:
        """Return how many bytes have come, of messages that are still under way too; 0 if unknown."""
        sock = self._client.sock
        if sock is None or not hasattr(socket, "TCP_INFO"):
            return 0
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED_AT + 8)
        except (OSError, ValueError):
            return 0  # closed meanwhile
        return int.from_bytes(info[_RECEIVED_AT:], sys.byteorder)

    # --- on the thread that runs it

    def _turn(self, timeout_s: float) -> None:
        if self._client.loop(timeout_s) != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._over.set()

    def _dial(self) -> socket.socket:
        address = self._address
        return dial(
            address.host,
            address.port,
            timeout_s=CONNECT_TIMEOUT_S,
            proxy=self._session.proxy,
            given_up=self._given_up,
        )

    def _headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        # paho puts an IPv6 literal there without brackets
        return {**headers, "Host": self._address.authority}

    def _guarded(self, callback: Callable[..., None]) -> Callable[..., None]:
        def guarded(*arguments: Any) -> None:
            try:
                callback(*arguments)
            except Exception as error:  # noqa: BLE001 -- see `faults`
                self.faults += 1
                if repr(error) not in self._told and len(self._told) < 16:
                    self._told.add(repr(error))
                    _log.exception("a fault of this program, in %s; the connection goes on", callback.__name__)

        return guarded

    def _connected(self, client: Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if reason.is_failure:
            self._refusal = str(reason)
            self._over.set()
            return
        # on every connect, session or not: a broker that keeps nothing on disk forgets sessions too
        client.subscribe([(topic, 1) for topic in self._session.topics])
        try:
            self._ears.let_in()
            self._let_in = True
        except Exception:  # raised again below, and counted by whoever guards this callback
            # half a beginning is none: the next connection may have a whole one
            self._refusal = "a fault of this program"
            self._over.set()
            raise

    def _disconnected(self, _client: Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        # what paho calls an unspecified error is a closed connection
        said = str(reason)
        self._refusal = self._refusal or ("a closed connection" if said == "Unspecified error" else said)
        self._over.set()

    def _message(self, client: Client, _data: Any, message: MQTTMessage) -> None:
        mid, qos = message.mid, message.qos

        def settle() -> None:
            # what cannot be acknowledged is said again on the next connection
            with contextlib.suppress(Unavailable), _at_its_end():
                client.ack(mid, qos)

        self._ears.message(message.topic, bytes(message.payload), settle)


class _Client(Client):
    """paho's client on sockets that we make, and that we can cut: a server that drips would hold paho for ever."""

    def __init__(self, connect: Callable[[], socket.socket], who: str, *, web: bool) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=who,
            protocol=MQTTv5,
            transport="websockets" if web else "tcp",
            reconnect_on_failure=False,
            manual_ack=True,
        )
        self._connect = connect
        self.connect_timeout = CONNECT_TIMEOUT_S
        self.suppress_exceptions = True
        self.sock: socket.socket | None = None
        self._spare: socket.socket | None = None
        self._watch = threading.Timer(HANDSHAKE_MOST_S, self._cut)
        self._watch.daemon = True
        # says that writing is for `loop` alone: otherwise paho writes on whichever thread publishes
        self.on_socket_register_write = _nothing

    def opened(self) -> None:
        """End the watch over the handshakes, whatever came of them."""
        self._watch.cancel()
        if self._spare is not None:
            self._spare.close()

    def let_go(self) -> None:
        """Close what is open, and forget who was to be told: nothing waits for the collector of garbage."""
        self.on_connect = self.on_disconnect = self.on_message = None
        self.ws_set_options(headers={})
        self._connect, self._watch = _gone, threading.Timer(0, _gone)
        for each in (self.socket(), self.sock):
            if each is not None:
                each.close()
        self._reset_sockets()

    def _create_socket_connection(self) -> socket.socket:
        self.sock = self._connect()
        # TLS takes the socket over; its twin can still end the connection
        self._spare = self.sock.dup()
        self._watch.start()
        return self.sock

    def _ssl_wrap_socket(self, tcp_sock: socket.socket) -> ssl.SSLSocket:
        wrapped = super()._ssl_wrap_socket(tcp_sock)
        self.sock = wrapped
        return wrapped

    def _cut(self) -> None:
        spare = self._spare
        if spare is not None:
            with contextlib.suppress(OSError):
                spare.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _at_its_end() -> Iterator[None]:
    """Raise `Unavailable` where a connection is closed while another thread speaks."""
    try:
        yield
    except (OSError, AttributeError) as error:
        raise Unavailable("expected a connection, got cut off") from error


def _gone() -> socket.socket:
    raise OSError("the connection was closed")


def _nothing(_client: Client, _data: Any, _socket: Any) -> None:
    """Leave it to the loop."""
