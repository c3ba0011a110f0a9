"""Hundreds of retained chunks through the link, and out again in windows of eight, as devices read them."""

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest

from control_plane.broker import EmbeddedBroker
from control_plane.home import Home
from control_plane.link import Link, Outgoing
from control_plane.plane import Plane
from control_plane.server import make_home, open_plane
from control_plane.settings import Settings
from skerry.errors import Broken
from skerry.wire import topics
from skerry.wire.manifest import CHUNK_BYTES

CHUNKS = 300
WINDOW = 8


@pytest.fixture
def open_for(tmp_path: Path) -> Iterator[Callable[[Settings], Plane]]:
    """Return a function that opens a control plane with the settings."""
    opened: list[Plane] = []

    def make(settings: Settings) -> Plane:
        opened.append(open_plane(make_home(tmp_path / "home", settings).path))
        return opened[0]

    yield make
    for plane in opened:
        plane.sessions.kw["bind"].dispose()


def chunks() -> list[bytes]:
    """Return chunks that differ."""
    body = os.urandom(CHUNK_BYTES - 8)
    return [number.to_bytes(8, "big") + body for number in range(CHUNKS)]


def publish_all(plane: Plane, sha256: str, bodies: list[bytes], ensure: Callable[[], None] | None = None) -> None:
    """Run the link until it has published the chunks and heard a device that speaks after them."""
    done = threading.Event()

    def publish(plane: Plane) -> None:
        for number, body in enumerate(bodies):
            assert plane.outgoing.publish(topics.blob(sha256, number), body, retain=True)
        plane.outgoing.publish(topics.up("watch.probe", "answer"), b"", retain=False)

    def hear(_plane: Plane, _topic: str, _payload: bytes) -> list[Any]:
        done.set()
        return []

    async def run() -> None:
        task = asyncio.create_task(Link(plane, handle=hear, on_connect=publish, ensure_broker=ensure).run())
        assert await asyncio.to_thread(done.wait, 60)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(run())


def read_all(port: int, sha256: str) -> list[bytes]:
    """Read the chunks as a device does: eight explicit topics at QoS 0, one window at a time."""
    found: dict[int, bytes] = {}
    arrived = threading.Condition()

    def on_message(_client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        with arrived:
            found[int(message.topic.rpartition("/")[2])] = bytes(message.payload)
            arrived.notify()

    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.on_message = on_message
    client.connect("127.0.0.1", port)
    client.loop_start()
    for start in range(0, CHUNKS, WINDOW):
        window = range(start, min(start + WINDOW, CHUNKS))
        names = [topics.blob(sha256, number) for number in window]
        client.subscribe([(name, 0) for name in names])
        with arrived:
            complete = partial(set(window).issubset, found)
            assert arrived.wait_for(complete, 10), f"expected {window}, got {sorted(found)[-3:]}"
        client.unsubscribe(names)
    client.disconnect()
    client.loop_stop()
    return [found[number] for number in range(CHUNKS)]


def test_the_embedded_broker_holds_hundreds_of_chunks(
    open_for: Callable[[Settings], Plane], free_port: Callable[[], int]
) -> None:
    port = free_port()
    plane = open_for(Settings(project="watch", broker_port=port))
    broker, bodies = EmbeddedBroker(plane.home, port), chunks()
    sha256 = hashlib.sha256(b"".join(bodies)).hexdigest()
    try:
        publish_all(plane, sha256, bodies, ensure=broker.ensure)

        assert read_all(port, sha256) == bodies
    finally:
        broker.stop()


@pytest.mark.broker
def test_mosquitto_holds_hundreds_of_chunks(open_for: Callable[[Settings], Plane], mosquitto: Any) -> None:
    plane = open_for(Settings(project="watch", broker=mosquitto.url))
    bodies = chunks()
    sha256 = hashlib.sha256(b"".join(bodies)).hexdigest()

    publish_all(plane, sha256, bodies)

    assert read_all(mosquitto.port, sha256) == bodies


def test_the_embedded_broker_listens_on_loopback_alone(tmp_path: Path, free_port: Callable[[], int]) -> None:
    port = free_port()
    broker = EmbeddedBroker(Home(tmp_path), port)
    broker.ensure()
    try:
        listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        assert {line[1] for line in listening if line[1].endswith(f":{port:04X}") and line[3] == "0A"} == {
            f"0100007F:{port:04X}"
        }
    finally:
        broker.stop()


def test_without_a_broker_messages_are_dropped_and_counted() -> None:
    outgoing = Outgoing()

    assert not outgoing.publish("a", b"b", retain=True)
    assert outgoing.dropped == 1


def test_a_message_that_brokers_would_not_take_is_refused() -> None:
    with pytest.raises(Broken, match="1047552"):
        Outgoing().publish("a", bytes(1 << 20), retain=True)
