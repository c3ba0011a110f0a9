"""The link to the broker: what is retained comes back with it, whoever runs it."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest

from skerry.wire import topics

PROJECT = "watch"


def retained(port: int, wanted: set[str], timeout_s: float = 10.0) -> dict[str, bytes]:
    """Return the retained messages of the topics as soon as there is one for each."""
    found: dict[str, bytes] = {}
    complete = threading.Event()

    def on_message(_client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        found[message.topic] = bytes(message.payload)
        if wanted <= set(found):
            complete.set()

    def on_connect(client: paho.Client, *_: Any) -> None:
        client.subscribe([(topic, 0) for topic in sorted(wanted)])

    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.on_message, client.on_connect = on_message, on_connect
    client.connect("127.0.0.1", port)
    client.loop_start()
    assert complete.wait(timeout_s), f"expected {sorted(wanted)}, got {sorted(found)}"
    client.disconnect()
    client.loop_stop()
    return found


def trust_topics() -> set[str]:
    """Return where the metadata of a fresh repository is."""
    return {topics.tuf(PROJECT, name) for name in ("index", "timestamp", "1.root", "1.targets", "1.snapshot")}


def test_the_ceremony_publishes_the_metadata(shared: Any) -> None:
    found = retained(shared.broker_port, trust_topics())

    assert found[topics.tuf(PROJECT, "index")] == b'{"root":1,"snapshot":1,"targets":1,"timestamp":1,"v":1}'


def test_a_broker_that_dies_is_started_again_with_all_that_was_retained(running: Any) -> None:
    running.hold_ceremony()
    before = retained(running.broker_port, trust_topics())
    (broker,) = children(running.process.pid)

    os.kill(broker, signal.SIGKILL)

    assert retained_when_back(running.broker_port) == before


def retained_when_back(port: int) -> dict[str, bytes]:
    """Return the retained metadata once a broker listens again."""
    for _ in range(100):
        try:
            return retained(port, trust_topics())
        except OSError:
            threading.Event().wait(0.05)
    pytest.fail("expected the broker back, got none")


def children(process: int) -> list[int]:
    """Return the child processes that run a broker."""
    listed = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in listed if "iotcore" in Path(f"/proc/{child}/cmdline").read_text()]


@pytest.mark.broker
def test_an_external_broker_is_one_setting_and_may_be_away_for_a_while(
    make_home: Callable[..., Any], mosquitto: Any
) -> None:
    server = make_home("--broker", mosquitto.url)
    server.start()
    try:
        server.hold_ceremony()
        before = retained(mosquitto.port, trust_topics())

        mosquitto.stop()
        mosquitto.start()

        assert retained(mosquitto.port, trust_topics()) == before
        assert server.wait_until_healthy()["broker"]["embedded"] is False
    finally:
        server.stop()
