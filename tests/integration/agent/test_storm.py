"""A hundred links whose broker is killed come back spread out, and not all at once."""

import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.link.address import parse_broker
from agent.link.session import Link
from agent.link.tls import Credentials
from tests.conftest import Mosquitto
from tests.integration.agent.shore import wait_for

LINKS = 100
SPREAD_S = 5.0
NONE = Credentials(ca=Path("none"), certificate=Path("none"), key=Path("none"))


@pytest.mark.broker
@pytest.mark.long
@pytest.mark.parametrize("outage_s", [0.0, 4.0])
def test_a_hundred_links_come_back_spread_over_seconds(
    make_mosquitto: Callable[..., Mosquitto], outage_s: float
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))
    broker = make_mosquitto()
    arrivals: list[float] = []
    links: list[Link] = []

    def tell(number: int) -> Callable[[], None]:
        def changed() -> None:
            if links[number].connected:
                arrivals.append(time.monotonic())

        return changed

    try:
        for number in range(LINKS):
            link = Link(
                parse_broker(broker.url),
                who=f"watch.gull-{number}",
                will=lambda: b"gone",
                credentials=NONE,
                on_change=tell(number),
                reconnect_s=SPREAD_S,
            )
            links.append(link)
        for link in links:
            link.start()
        wait_for(lambda: all(link.connected for link in links), why="all to connect", timeout_s=30)
        arrivals.clear()

        assert broker.process is not None
        broker.process.kill()
        wait_for(lambda: not any(link.connected for link in links), why="all to notice")
        broker.stop()
        ended = time.monotonic()
        wait_for(lambda: time.monotonic() - ended >= outage_s, why="the outage to pass")
        broker.start()
        wait_for(lambda: len(arrivals) >= LINKS, why="all to come back", timeout_s=80)

        spread = max(arrivals) - min(arrivals)
        fullest = max(sum(first <= each < first + 0.2 for each in arrivals) for first in arrivals)
        print(f"outage {outage_s:g} s: {LINKS} links came back over {spread:.1f} s, at most {fullest} in 200 ms")
        # evenly spread it would be four
        assert fullest <= 16
        assert spread > SPREAD_S / 2
        assert all(link.faults == 0 for link in links)
    finally:
        for link in links:
            link._stop.set()
            link.reconnect()
        for link in links:
            link.stop()
