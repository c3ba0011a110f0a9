"""Faults of programs on a link: callbacks, the network loop and the will, which may raise."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from paho.mqtt.client import Client

from agent.link.connection import Connection
from agent.link.session import Link
from tests.conftest import Mosquitto
from tests.integration.agent.links import connected, say
from tests.integration.agent.shore import wait_for

pytestmark = [pytest.mark.broker, pytest.mark.long]
FAULTS = ("let_in", "message", "on_change", "note")


@pytest.mark.parametrize("where", FAULTS)
def test_a_callback_that_raises_costs_no_thread_and_is_counted(
    mosquitto: Mosquitto,
    make_link: Callable[..., Link],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
) -> None:
    raised: list[float] = []

    def fault(*_: Any) -> None:
        raised.append(time.monotonic())
        raise LookupError("a fault")

    given = {where: fault} if where in ("on_change", "note") else {}
    link = make_link(mosquitto.url, start=False, **given)
    real = getattr(link, where, None) if not given else None
    if real is not None:
        monkeypatch.setattr(link, where, fault)
    link.start()
    if where == "message":
        connected(link)
        say(mosquitto, b"into a fault")
    wait_for(lambda: raised and link.faults, why="a fault that is counted")
    if real is not None:
        monkeypatch.setattr(link, where, real)

    connected(link)
    say(mosquitto, b"after it")

    assert link.heard.get(timeout=15).payload in (b"after it", b"into a fault")
    assert link._thread.is_alive()
    assert caplog.text.count("LookupError: a fault") >= 1


@pytest.mark.parametrize("callback", ["on_connect", "on_disconnect", "on_message"])
def test_each_callback_that_paho_has_of_us_is_guarded(
    mosquitto: Mosquitto, make_link: Callable[..., Link], monkeypatch: pytest.MonkeyPatch, callback: str
) -> None:
    name = {"on_connect": "_connected", "on_disconnect": "_disconnected", "on_message": "_message"}[callback]
    real, left = getattr(Connection, name), [1]

    def fault(self: Connection, *arguments: Any) -> None:
        if left:
            left.pop()
            raise LookupError("a fault")
        real(self, *arguments)

    fault.__name__ = name
    monkeypatch.setattr(Connection, name, fault)
    monkeypatch.setattr("agent.link.connection.CONNECT_TIMEOUT_S", 1.0)
    link = make_link(mosquitto.url)
    connected(link)
    say(mosquitto, b"one")
    link.reconnect()
    connected(link, 2)

    assert not left
    assert link.faults == 1
    assert link.heard.get(timeout=15).payload == b"one", "what was not acknowledged is said again"


@pytest.mark.parametrize("when", ["before it is let in", "once it is up"])
def test_a_network_loop_that_raises_is_replaced_within_a_second(
    mosquitto: Mosquitto, make_link: Callable[..., Link], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    real, armed = Client.loop, threading.Event()

    def loop(self: Client, timeout: float = 1.0) -> Any:
        if armed.is_set():
            armed.clear()
            raise IndexError("a fault of paho's")
        return real(self, timeout)

    monkeypatch.setattr(Client, "loop", loop)
    link = make_link(mosquitto.url, start=False)
    if when == "before it is let in":
        armed.set()
    link.start()
    connected(link)
    before = link.connections
    if not link.faults:
        armed.set()
        began = time.monotonic()
        say(mosquitto, b"wake up")
        wait_for(lambda: link.connections > before, why="another connection")
        assert time.monotonic() - began < 1.0 + 3 * 0.2

    assert link.faults == 1
    assert link._thread.is_alive()


def test_a_will_that_raises_is_counted_and_tried_again(mosquitto: Mosquitto, make_link: Callable[..., Link]) -> None:
    faults = [LookupError("a fault")]

    def will() -> bytes:
        if faults:
            raise faults.pop()
        return b"gone"

    link = make_link(mosquitto.url, will=will)
    connected(link)

    assert link.faults == 1
