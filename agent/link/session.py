"""The device's side of MQTT 5: one session, kept up for ever, that says, hears and fetches.

One thread connects (`agent.link.connection`), runs the connection until it is lost, waits (`agent.link.backoff`),
begins again. Every connection is a new client under the same client id, so the broker keeps the session and this
program keeps nothing that could go stale. What is heard goes into one bounded queue; chunks and metadata that were
asked for go to the one who asked. Whatever goes wrong on that thread is counted (`faults`) and costs a connection at
the most.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from agent.link.address import Address
from agent.link.backoff import RECONNECT_S, Backoff
from agent.link.collector import Collector
from agent.link.connection import CONNECT_TIMEOUT_S, Connection, Session
from agent.link.proxy import Proxy
from agent.link.tls import Credentials
from skerry.delivery.chunks import WINDOW
from skerry.errors import SkerryError, Unavailable
from skerry.wire import topics
from skerry.wire.codec import MAX_BYTES

KEEP_ALIVE_S = 60
QUEUE_MESSAGES = 64
# what this device asked for itself, such as a connection with its new certificate
_ASKED_WITHIN_S = 1.0
HEARD = ("assign", "ack", "desired", "request")
_LOST = "the connection was lost"
_log = logging.getLogger("skerry.agent.link")


@dataclass(frozen=True, slots=True)
class Heard:
    """One message from the control plane: its name (one of `HEARD`), its bytes, and how to acknowledge it."""

    name: str
    payload: bytes
    settle: Callable[[], None]


class Link:
    """A device's session with the broker, on a thread of its own; `heard` is what the control plane said.

    `note` is told why no connection comes about, in words, and nothing once there is one: on each change, not on each
    attempt. A connection that is half-open is noticed within two `keep_alive_s`.
    """

    def __init__(
        self,
        address: Address,
        *,
        who: str,
        will: Callable[[], bytes],
        credentials: Credentials,
        floor: Callable[[], float] = lambda: 0.0,
        on_change: Callable[[], None] = lambda: None,
        note: Callable[[str], None] = lambda _: None,
        keep_alive_s: int = KEEP_ALIVE_S,
        reconnect_s: float = RECONNECT_S,
        proxy: Proxy | None = None,
    ) -> None:
        self._address = address
        self._who = who
        self._will = will
        self._credentials = credentials
        self._floor = floor
        self._on_change = on_change
        self._note = note
        self._topics = {topics.down(who, name): name for name in HEARD}
        self._session = Session(
            who=who,
            topics=tuple(self._topics),
            will_topic=topics.up(who, "reported"),
            keep_alive_s=keep_alive_s,
            proxy=proxy,
        )
        self._backoff = Backoff(reconnect_s)
        self.heard: queue.Queue[Heard] = queue.Queue(QUEUE_MESSAGES)
        self.dropped = 0
        self.connections = 0
        # turns of the loop, for the watchdog (`agent.upkeep.service`)
        self.beats = 0
        self.problem = ""
        # what an earlier run noted is not known
        self._told: str | None = None
        self._faults = 0
        self._connection: Connection | None = None
        self._up = threading.Event()
        self._asked_to = threading.Event()
        self._stop = threading.Event()
        self._collector: Collector | None = None
        self._asked: set[str] = set()
        self._thread = threading.Thread(target=self._keep_up, name="link", daemon=True)

    @property
    def connected(self) -> bool:
        """True while the broker has accepted us and nothing was noticed since."""
        return self._up.is_set()

    @property
    def faults(self) -> int:
        """How many exceptions that nobody foresaw were survived: a callback that raises must not end a thread."""
        connection = self._connection
        return self._faults + (connection.faults if connection is not None else 0)

    def start(self) -> None:
        """Begin to connect, and keep doing so."""
        self._thread.start()

    def reconnect(self) -> None:
        """Let the connection go and make another, with the credentials that are on disk then."""
        self._asked_to.set()
        if (connection := self._connection) is not None:
            connection.leave()

    def stop(self, farewell: bytes | None = None) -> None:
        """Say `farewell` on `up/reported`, disconnect and end the thread."""
        connection = self._connection
        if farewell is not None and self.connected and connection is not None:
            with_grace = time.monotonic() + 2.0
            try:
                is_published = connection.publish(topics.up(self._who, "reported"), farewell, retain=True)
                while self.connected and time.monotonic() < with_grace and not is_published():
                    time.sleep(0.02)
            except (Unavailable, RuntimeError, ValueError):  # paho's words for a message that was lost
                pass  # the will says it
        self._stop.set()
        if connection is not None:
            connection.leave()
        if self._thread.is_alive():
            self._thread.join(timeout=CONNECT_TIMEOUT_S)

    def publish(self, name: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish on one of our `up` topics, QoS 1; raises `Unavailable` without a connection.

        Returning means little: only the control plane's own acknowledgement empties an outbox.
        """
        with self._talking() as connection:
            connection.publish(topics.up(self._who, name), payload, retain=retain)

    def fetch_retained(self, wanted: Sequence[str], *, timeout_s: float) -> dict[str, bytes]:
        """Return the retained messages on at most eight explicit topics, as far as they came.

        It waits until the connection has been silent for `timeout_s`: on a slow link a chunk takes longer than any
        fixed time would grant. A topic without a retained message answers nothing, so a missing one costs that time.
        Raises `Unavailable` without a connection, or when it is lost before anything came. One caller at a time.
        """
        if len(wanted) > WINDOW:
            raise ValueError(f"expected at most {WINDOW} topics, got {len(wanted)}")
        with self._talking() as connection:
            # a session outlives its connection, and so does what was asked for when that was lost
            if left := self._asked.difference(wanted):
                connection.unsubscribe(sorted(left))
            self._asked = set(wanted)
            with self._collecting(wanted) as collector:
                connection.subscribe(list(wanted))
                found = collector.wait(
                    timeout_s,
                    heard=connection.bytes_received,
                    while_true=lambda: self.connected and connection is self._connection,
                )
            if self.connected and connection is self._connection:
                connection.unsubscribe(list(wanted))
                self._asked.clear()
            elif not found:
                raise Unavailable("expected a connection, got cut off")
        return found

    @contextmanager
    def _talking(self) -> Iterator[Connection]:
        """Give the connection; what it raises names the broker."""
        connection = self._connection
        if connection is None or not self.connected:
            raise Unavailable(f"broker {self._address}: expected a connection, got none")
        try:
            yield connection
        except Unavailable as error:
            raise Unavailable(f"broker {self._address}: {error}") from error

    @contextmanager
    def _collecting(self, wanted: Sequence[str]) -> Iterator[Collector]:
        collector = Collector(frozenset(wanted))
        self._collector = collector
        try:
            yield collector
        finally:
            self._collector = None

    # --- on the link's own thread

    def _keep_up(self) -> None:
        """Connect, run the connection until it is gone, wait, again."""
        while not self._stop.is_set():
            self.beats += 1
            began = time.monotonic()
            problem = self._live_once()
            self._let_go()
            if self._stop.is_set():
                return
            asked, lived_s = self._asked_to.is_set(), 0.0 if problem else time.monotonic() - began
            self._asked_to.clear()
            self._tell(problem)
            self._stop.wait(min(self._backoff.pause(lived_s=lived_s), _ASKED_WITHIN_S if asked else float("inf")))

    def _live_once(self) -> str:
        """Make a connection and stay until its end; return why none came about, or nothing if one did."""
        try:
            problem = self._connect_once()
            if problem:
                return problem
            self._tell("")
            if self._connection is not None:
                self._connection.run(self._is_to_end)
            if not self._is_to_end():
                why = self._connection.end if self._connection is not None else ""
                _log.warning("broker %s: %s (%s); trying again, inference goes on", self._address, _LOST, why)
        except Exception as error:  # noqa: BLE001 -- see `faults`
            # paho's fault or ours: the connection is lost, and the thread goes on
            self._faults += 1
            _log.exception("broker %s: a fault of this program; trying again", self._address)
            return f"expected to go on, got a fault of this program: {type(error).__name__}; tell its makers"
        return ""

    def _is_to_end(self) -> bool:
        """Say whether the connection is to be let go; asked once a second while there is one."""
        self.beats += 1
        return self._stop.is_set() or self._asked_to.is_set()

    def _connect_once(self) -> str:
        """Try to connect; return an empty text, or one line saying why not."""
        self._asked_to.clear()
        try:
            self._connection = Connection(
                self._address,
                self._session,
                will=self._will(),  # tells the depth of the outbox, which the disk may refuse
                context=self._credentials.context(floor=self._floor()) if self._address.tls else None,
                ears=self,
                given_up=self._stop.is_set,
            )
            self._connection.open()
        except SkerryError as error:
            return str(error)
        return ""

    def _tell(self, problem: str) -> None:
        """Say once what is wrong, and once that it is over; the mere loss of a connection is no news."""
        if problem == self._told:
            return
        self.problem = self._told = problem
        if problem:
            _log.warning("broker %s: %s; trying again, inference goes on", self._address, problem)
        try:
            self._note(problem)
        except SkerryError as error:  # the disk refuses: `status` will not know, and the link goes on
            _log.warning("%s", error)
        except Exception:  # noqa: BLE001 -- see `faults`
            self._faults += 1
            _log.exception("the link's state was not noted")

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        was_up = self._up.is_set()
        self._up.clear()
        if connection is not None:
            connection.close()
            self._faults += connection.faults
        if was_up:
            self._changed()

    def _changed(self) -> None:
        try:
            self._on_change()
        except Exception:  # noqa: BLE001 -- see `faults`
            self._faults += 1
            _log.exception("a fault of this program, where the link tells of a change")

    # --- what a connection tells

    def let_in(self) -> None:
        """Hear that the broker has accepted us."""
        self.connections += 1
        _log.info("connected to %s as %s", self._address, self._who)
        self._up.set()
        self._changed()

    def message(self, topic: str, payload: bytes, settle: Callable[[], None]) -> None:
        """Hear a message: one that was fetched, or one from the control plane."""
        name = self._topics.get(topic)
        if name is None:
            if (collector := self._collector) is not None:
                collector.add(topic, payload)
            return
        if len(payload) > MAX_BYTES:
            self.dropped += 1
            settle()
            return
        try:
            self.heard.put_nowait(Heard(name=name, payload=payload, settle=settle))
        except queue.Full:
            # not acknowledged: the broker keeps it for the next connection
            self.dropped += 1
            return
        self._changed()
