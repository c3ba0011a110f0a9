"""The road over HTTPS on bad links, against the control plane's own endpoint."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from agent.fetching.ranges import HttpsChunks
from agent.link.https import pinned
from skerry.errors import Unavailable
from skerry.wire.manifest import SEALED_CHUNK_BYTES
from tests.conftest import pick_port
from tests.integration.agent.shore import wait_for
from tests.integration.delivery.conftest import BlobServer
from tests.integration.delivery.fetcher import Artifact, Fetcher, Publisher
from tests.relay import Relay, Shape

pytestmark = [pytest.mark.broker, pytest.mark.long]


@pytest.fixture
def make_road() -> Iterator[Callable[..., tuple[HttpsChunks, Relay]]]:
    """Return a function that makes a road over a relay to a server."""
    with ExitStack() as stack:

        def make(server: BlobServer, shape: Shape | None = None) -> tuple[HttpsChunks, Relay]:
            relay = stack.enter_context(Relay(server.port, shape))
            context = pinned(server.ca)
            road = HttpsChunks(f"https://127.0.0.1:{relay.port}", context=lambda: context, token=lambda: "t0ken")
            stack.callback(road.close)
            return road, relay

        yield make


def test_a_slow_far_link_that_is_reset_again_and_again_completes(
    serve: Callable[[Artifact], BlobServer],
    make_road: Callable[..., tuple[HttpsChunks, Relay]],
    make_fetcher: Callable[..., Fetcher],
) -> None:
    artifact = Artifact(6.5)
    road, relay = make_road(serve(artifact), Shape(rate_bytes_s=64_000, delay_s=0.3, reset_every_s=5))
    fetcher = make_fetcher(pick_port())  # no broker

    held = [0]
    while held[-1] < 7:
        try:
            fetcher.fetch(artifact, timeout_s=2, https=road)
        except Unavailable:
            assert len(held) < 10, held
        held.append(fetcher.held(artifact))

    assert fetcher.data(artifact) == artifact.data
    assert relay.resets >= 1
    assert held == sorted(held)


def test_where_one_road_ends_the_other_goes_on_with_what_is_held(
    publisher: Publisher,
    serve: Callable[[Artifact], BlobServer],
    make_road: Callable[..., tuple[HttpsChunks, Relay]],
    make_relay: Callable[..., Relay],
    make_fetcher: Callable[..., Fetcher],
) -> None:
    artifact = Artifact(40)
    publisher.publish(artifact)
    road, https = make_road(serve(artifact), Shape(rate_bytes_s=4_000_000, reset_every_bytes=12 * SEALED_CHUNK_BYTES))
    mqtt = make_relay()
    fetcher = make_fetcher(mqtt.port)
    fetcher.connect()

    def cut_at_the_first_reset() -> None:
        wait_for(lambda: https.resets, why="a reset")
        https.cut()

    cutting = threading.Thread(target=cut_at_the_first_reset)
    cutting.start()

    assert fetcher.fetch(artifact, https=road).complete

    cutting.join()
    assert fetcher.data(artifact) == artifact.data
    assert https.down_bytes > 8 * SEALED_CHUNK_BYTES
    assert mqtt.down_bytes < artifact.sealed_bytes
