"""Looking for retained messages through the link, on Mosquitto; and that they go when their time is over."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from control_plane.link import Link
from control_plane.plane import Plane
from control_plane.server import make_home, open_plane
from control_plane.settings import Settings
from skerry.wire import topics

SHA256 = "ab" * 32


@pytest.fixture
def plane(tmp_path: Path, mosquitto: Any) -> Iterator[Plane]:
    """Return a control plane on Mosquitto."""
    opened = open_plane(make_home(tmp_path / "home", Settings(project="watch", broker=mosquitto.url)).path)
    yield opened
    opened.sessions.kw["bind"].dispose()


def through_the_link(plane: Plane, do: Callable[[Plane], Any]) -> Any:
    """Connect, call `do` as the republishing after a connect is called, and return its result."""
    results: list[Any] = []
    done = threading.Event()

    def on_connect(plane: Plane) -> None:
        try:
            results.append(do(plane))
        finally:
            done.set()

    async def run() -> None:
        link = Link(plane, handle=lambda *_: [], on_connect=on_connect)
        task = asyncio.create_task(link.run())
        assert await asyncio.to_thread(done.wait, 30)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    (result,) = results
    return result


@pytest.mark.broker
def test_what_is_retained_is_found_and_nothing_else(plane: Plane) -> None:
    there, cleared, never = (topics.blob(SHA256, number) for number in range(3))

    def publish_and_look(plane: Plane) -> set[str]:
        plane.outgoing.publish(there, b"chunk", retain=True)
        plane.outgoing.publish(cleared, b"chunk", retain=True)
        plane.outgoing.publish(cleared, b"", retain=True)
        found: set[str] = set()
        for _ in range(10):
            # publishing and looking are two ways to the broker: the first look may overtake the last message
            found = plane.outgoing.retained([there, cleared, never])
            if found == {there}:
                break
        return found

    assert through_the_link(plane, publish_and_look) == {there}
    # and by the next connection, of which the broker knows nothing
    assert through_the_link(plane, lambda plane: plane.outgoing.retained([there, never])) == {there}


@pytest.mark.broker
def test_all_that_is_there_is_found_without_waiting(plane: Plane) -> None:
    names = [topics.blob(SHA256, number) for number in range(8)]

    def publish(plane: Plane) -> set[str]:
        for name in names:
            plane.outgoing.publish(name, b"chunk", retain=True)
        return plane.outgoing.retained(names)

    def look(plane: Plane) -> float:
        began = time.monotonic()
        assert plane.outgoing.retained(names) == set(names)
        return time.monotonic() - began

    through_the_link(plane, publish)
    assert through_the_link(plane, look) < 1.0


@pytest.mark.broker
def test_a_message_with_an_end_is_gone_after_it(plane: Plane) -> None:
    name = topics.blob(SHA256, 0)

    def publish_and_wait(plane: Plane) -> bool:
        plane.outgoing.publish(name, b"chunk", retain=True, expiry_s=1)
        deadline = time.monotonic() + 20
        seen = False
        while time.monotonic() < deadline:
            there = bool(plane.outgoing.retained([name]))
            seen |= there
            if seen and not there:
                return True
        return False

    assert through_the_link(plane, publish_and_wait)
