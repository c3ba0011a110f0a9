"""Owns the connection to the broker: messages in, one at a time through a worker thread; messages out, from any thread.

All that is retained is republished on each connect, and devices repeat whatever was not acknowledged; so what is lost
with a connection is only counted here. Both queues are bounded: outgoing, a caller waits; incoming, the newest is
dropped.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import unquote, urlsplit

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from control_plane.plane import Plane
from skerry.errors import Broken, SkerryError
from skerry.wire.codec import MAX_BYTES
from skerry.wire.topics import UP_FILTERS

log = logging.getLogger(__name__)
# the library warns of each message that finds the queue full: that is counted here, and must not fill the log
_client_log = log.getChild("mqtt")
_client_log.setLevel(logging.ERROR)

# its user name and the start of its client id: without a dot, so never a device's PROJECT.DEVICE
CONTROL_PLANE = "control-plane"
OUTGOING_LIMIT = 256
INCOMING_LIMIT = 2000
IN_FLIGHT = 32
PUBLISH_TIMEOUT_S = 30.0
KEEPALIVE_S = 30
# for what a broker retains it answers at once: what did not come by then is not there
LOOK_S = 2.0
RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
# the broker's limit is on the payload; a topic and properties come beside it
MAX_PAYLOAD_BYTES = MAX_BYTES - 1024


@dataclass(frozen=True, slots=True)
class Message:
    """A message that waits to be published."""

    topic: str
    payload: bytes
    retain: bool
    qos: int
    expiry_s: int = 0


class Reply(Protocol):
    """What a handler wants published."""

    @property
    def topic(self) -> str: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def retain(self) -> bool: ...
    @property
    def expiry_s(self) -> int: ...


class Handler(Protocol):
    """What is done with an incoming message; returns what to publish. Runs in the worker thread."""

    def __call__(self, plane: Plane, topic: str, payload: bytes, /) -> Iterable[Reply]: ...


# says which of some topics have a retained message; from any thread but the link's own
Look = Callable[[Sequence[str]], set[str]]


class Outgoing:
    """The way out, from any thread: a bounded queue that is open while the broker is connected."""

    def __init__(self, limit: int = OUTGOING_LIMIT) -> None:
        self._limit = limit
        self._queue: deque[Message] = deque()
        self._changed = threading.Condition()
        self._wake: Callable[[], object] | None = None
        self._look: Look | None = None
        self._dropped = 0

    @property
    def connected(self) -> bool:
        """Whether the broker is connected."""
        return self._wake is not None

    @property
    def dropped(self) -> int:
        """How many messages found no connection, or lost it while they waited."""
        return self._dropped

    def publish(self, topic: str, payload: bytes, *, retain: bool, qos: int = 1, expiry_s: int = 0) -> bool:
        """Hand a message to the link, waiting while the queue is full; False when it was dropped instead.

        The broker forgets it after `expiry_s` seconds, where that is not 0.

        Raises:
            Broken: the payload is larger than brokers take.
        """
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise Broken(f"{topic}: expected at most {MAX_PAYLOAD_BYTES} bytes for a message, got {len(payload)}")
        with self._changed:
            self._changed.wait_for(lambda: len(self._queue) < self._limit or not self.connected, PUBLISH_TIMEOUT_S)
            if self._wake is None or len(self._queue) >= self._limit:
                self._dropped += 1
                return False
            self._queue.append(Message(topic=topic, payload=payload, retain=retain, qos=qos, expiry_s=expiry_s))
            self._wake()
            return True

    def open(self, wake: Callable[[], object], look: "Look | None" = None) -> None:
        """Take messages from now on; `wake` is called, from any thread, when there is one; `look` does `retained`."""
        with self._changed:
            self._wake = wake
            self._look = look

    def retained(self, topics: Sequence[str]) -> set[str]:
        """Return which of a few topics the broker retains a message on; none while there is no connection."""
        look = self._look
        return look(topics) if look is not None and self.connected else set()

    def close(self) -> None:
        """Take no more, and drop what waits: what is kept is published again after the next connect."""
        with self._changed:
            self._dropped += len(self._queue)
            self._queue.clear()
            self._wake = self._look = None
            self._changed.notify_all()

    def take(self) -> Message | None:
        """Return the next message, or None."""
        with self._changed:
            if not self._queue:
                return None
            self._changed.notify()
            return self._queue.popleft()


class _CountingQueue(asyncio.Queue[aiomqtt.Message]):
    """A bounded queue that counts what it had no room for; what was looked for on the broker goes past it."""

    refused = 0
    sought: dict[str, asyncio.Event]

    def put_nowait(self, item: aiomqtt.Message) -> None:
        if (found := self.sought.get(str(item.topic))) is not None:
            # an empty one is the news that it was cleared
            if item.payload:
                found.set()
            return
        if self.full():
            _CountingQueue.refused += 1
        super().put_nowait(item)


def refused_messages() -> int:
    """Return how many incoming messages found the queue full, since the start; devices send them again."""
    return _CountingQueue.refused


class Link:
    """Keeps the broker connected until it is cancelled."""

    def __init__(
        self,
        plane: Plane,
        *,
        handle: Handler,
        on_connect: Callable[[Plane], None],
        ensure_broker: Callable[[], None] | None = None,
    ) -> None:
        self._plane = plane
        self._handle = handle
        self._on_connect = on_connect
        self._ensure_broker = ensure_broker
        self._sought: dict[str, asyncio.Event] = {}

    async def run(self) -> None:
        """Connect, serve, and connect again, until the server stops."""
        attempt = 0
        while not self._plane.stopping.is_set():
            failure: BaseException | None = None
            try:
                if self._ensure_broker is not None:
                    await asyncio.to_thread(self._ensure_broker)
                async with self._client() as client:
                    log.info("broker connected: %s", self._plane.settings.public_broker_url)
                    attempt = 0
                    await self._serve(client)
            except* Exception as errors:  # noqa: BLE001 -- whatever it is, devices need the link back; the log says what
                failure = _first(errors)
            await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
            attempt += 1
            # after the pause: a signal to all of the process group ends the embedded broker a moment before us
            if failure is not None and not self._plane.stopping.is_set():
                _tell(failure)

    async def _serve(self, client: aiomqtt.Client) -> None:
        arrived = asyncio.Event()
        loop = asyncio.get_running_loop()
        for each in UP_FILTERS:
            await client.subscribe(each, qos=1)

        def look(topics: Sequence[str]) -> set[str]:
            looking = asyncio.run_coroutine_threadsafe(self._look(client, topics), loop)
            try:
                return looking.result(LOOK_S + PUBLISH_TIMEOUT_S)
            except (TimeoutError, CancelledError, aiomqtt.MqttError):
                # the connection ends: the next one looks again
                looking.cancel()
                return set()

        self._plane.outgoing.open(lambda: loop.call_soon_threadsafe(arrived.set), look)
        # one worker: messages of a device are handled in their order
        worker = ThreadPoolExecutor(1, thread_name_prefix="ingest")
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._send(client, arrived), name="link-out")
                tasks.create_task(self._receive(client, worker), name="link-in")
                tasks.create_task(asyncio.to_thread(self._on_connect, self._plane), name="republish")
        finally:
            self._plane.outgoing.close()
            worker.shutdown(wait=False, cancel_futures=True)

    async def _send(self, client: aiomqtt.Client, arrived: asyncio.Event) -> None:
        room = asyncio.Semaphore(IN_FLIGHT)
        async with asyncio.TaskGroup() as flights:
            while True:
                await room.acquire()
                message = self._plane.outgoing.take()
                while message is None:
                    arrived.clear()
                    # a message may have come between the look and the clearing
                    message = self._plane.outgoing.take()
                    if message is None:
                        await arrived.wait()
                        message = self._plane.outgoing.take()
                flight = flights.create_task(_publish(client, message))
                flight.add_done_callback(lambda _: room.release())

    async def _look(self, client: aiomqtt.Client, topics: Sequence[str]) -> set[str]:
        """Subscribe to explicit topics, and see which of them a retained message comes on in time."""
        self._sought.update({topic: asyncio.Event() for topic in topics})
        try:
            await client.subscribe([(topic, 0) for topic in topics])
            arrivals = [self._sought[topic].wait() for topic in topics]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await asyncio.gather(*arrivals)
            await client.unsubscribe(list(topics))
            return {topic for topic in topics if self._sought[topic].is_set()}
        finally:
            for topic in topics:
                self._sought.pop(topic, None)

    async def _receive(self, client: aiomqtt.Client, worker: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        async for message in client.messages:
            payload = message.payload
            if isinstance(payload, bytes):
                await loop.run_in_executor(worker, self._work, str(message.topic), payload)

    def _work(self, topic: str, payload: bytes) -> None:
        try:
            answers = list(self._handle(self._plane, topic, payload))
        except SkerryError as error:
            log.warning("%s: %s", topic, error)
            return
        except Exception:  # one bad message must not end the link for all devices
            log.exception("%s: expected to handle %d bytes, failed", topic, len(payload))
            return
        for answer in answers:
            self._plane.outgoing.publish(answer.topic, answer.payload, retain=answer.retain, expiry_s=answer.expiry_s)

    def _client(self) -> aiomqtt.Client:
        settings = self._plane.settings
        parts = urlsplit(settings.broker_url)
        client = aiomqtt.Client(
            parts.hostname or "127.0.0.1",
            parts.port or 1883,
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            identifier=f"{CONTROL_PLANE}:{settings.project}",
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=True,
            keepalive=KEEPALIVE_S,
            tls_context=_tls(settings.broker_ca) if parts.scheme == "mqtts" else None,
            queue_type=type("_Queue", (_CountingQueue,), {"sought": self._sought}),
            logger=_client_log,
            max_queued_incoming_messages=INCOMING_LIMIT,
            max_inflight_messages=2 * IN_FLIGHT,
            # stop-and-wait over Nagle costs a factor of 20
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        )
        client.pending_calls_threshold = 2 * IN_FLIGHT
        return client


async def _publish(client: aiomqtt.Client, message: Message) -> None:
    properties = None
    if message.expiry_s:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call] # paho has no types here
        properties.MessageExpiryInterval = message.expiry_s
    await client.publish(
        message.topic,
        message.payload,
        qos=message.qos,
        retain=message.retain,
        properties=properties,
        timeout=PUBLISH_TIMEOUT_S,
    )


def _tell(failure: BaseException) -> None:
    if isinstance(failure, aiomqtt.MqttError | OSError | SkerryError):
        log.warning("broker: %s; trying again", failure)
    else:
        log.error("broker: the link failed; trying again", exc_info=failure)


def _tls(ca: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca or None)
    except OSError as error:
        raise Broken(f"broker_ca: expected a file of CA certificates, got {ca}: {error}") from error


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
