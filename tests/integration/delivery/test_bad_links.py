"""Fetching over links that are slow, far, cut, stalled and half-open: it ends, and costs little more than the bytes."""

import getpass
import random
import time
from collections.abc import Callable

import pytest

from skerry.delivery.chunks import WINDOW
from skerry.errors import Unavailable
from skerry.wire.manifest import SEALED_CHUNK_BYTES
from tests.conftest import Mosquitto
from tests.integration.delivery.fetcher import Artifact, Fetcher, Publisher
from tests.relay import Relay, Shape

pytestmark = pytest.mark.broker


@pytest.mark.long
def test_a_slow_far_link_that_is_reset_again_and_again_completes(
    publisher: Publisher, make_relay: Callable[..., Relay], make_fetcher: Callable[..., Fetcher]
) -> None:
    """64 kbit/s with 600 ms and a reset every 30 s, eight times as fast."""
    artifact = Artifact(6.5)
    publisher.publish(artifact)
    relay = make_relay(Shape(rate_bytes_s=64_000, delay_s=0.3, reset_every_s=4))
    fetcher = make_fetcher(relay.port)

    fetched = fetcher.fetch_on(artifact)

    assert fetched.complete
    assert fetcher.data(artifact) == artifact.data
    assert relay.resets >= 2
    # at each reset, what was under way is lost: less than a chunk that is half here and one that stands in line
    assert relay.down_bytes < artifact.sealed_bytes + relay.connections * 2 * SEALED_CHUNK_BYTES


def test_a_chunk_that_takes_longer_than_the_timeout_is_waited_for(
    publisher: Publisher, make_relay: Callable[..., Relay], make_fetcher: Callable[..., Fetcher]
) -> None:
    artifact = Artifact(2)
    publisher.publish(artifact)
    relay = make_relay(Shape(rate_bytes_s=32_000))
    fetcher = make_fetcher(relay.port)
    fetcher.connect()

    assert fetcher.fetch(artifact, timeout_s=0.7).complete

    assert relay.connections == 1
    assert relay.down_bytes < 1.1 * artifact.sealed_bytes


def test_a_window_that_is_cut_brings_what_had_come(
    publisher: Publisher, make_relay: Callable[..., Relay], make_fetcher: Callable[..., Fetcher]
) -> None:
    artifact = Artifact(WINDOW)
    publisher.publish(artifact)
    relay = make_relay(Shape(rate_bytes_s=1_000_000, reset_every_bytes=6 * SEALED_CHUNK_BYTES))
    fetcher = make_fetcher(relay.port)
    fetcher.connect()

    found = fetcher.link.fetch_retained([artifact.topic(number) for number in range(WINDOW)], timeout_s=1)

    assert 0 < len(found) < WINDOW
    assert all(payload in artifact.sealed for payload in found.values())


def test_a_link_that_is_cut_wherever_the_bytes_are_completes(
    publisher: Publisher, make_relay: Callable[..., Relay], make_fetcher: Callable[..., Fetcher]
) -> None:
    artifact = Artifact(40)
    publisher.publish(artifact)
    relay = make_relay(Shape(reset_every_bytes=700_000))
    fetcher = make_fetcher(relay.port)

    fetched = fetcher.fetch_on(artifact)

    assert fetched.complete
    assert fetcher.data(artifact) == artifact.data
    assert relay.resets >= 3
    # what the device had not read yet goes with the connection, a window at the most
    assert relay.down_bytes < artifact.sealed_bytes + relay.connections * WINDOW * SEALED_CHUNK_BYTES


def test_stalls_are_waited_for_on_the_same_connection(
    publisher: Publisher, make_relay: Callable[..., Relay], make_fetcher: Callable[..., Fetcher]
) -> None:
    artifact = Artifact(30)
    publisher.publish(artifact)
    relay = make_relay(Shape(rate_bytes_s=2_000_000, stall_every_s=0.6, stall_s=0.4))
    fetcher = make_fetcher(relay.port)
    fetcher.connect()

    assert fetcher.fetch(artifact).complete
    assert relay.connections == 1


def test_a_half_open_connection_is_noticed_and_the_fetch_goes_on_over_another(
    publisher: Publisher,
    make_relay: Callable[..., Relay],
    make_fetcher: Callable[..., Fetcher],
) -> None:
    artifact = Artifact(24)
    publisher.publish(artifact, only=lambda number: number < 8)
    relay = make_relay()
    fetcher = make_fetcher(relay.port, keep_alive_s=2)
    fetcher.connect()
    with pytest.raises(Unavailable):
        fetcher.fetch(artifact, timeout_s=0.2)
    assert fetcher.held(artifact) == 8
    publisher.publish(artifact)

    relay.vanish()
    with pytest.raises(Unavailable):
        fetcher.fetch(artifact, timeout_s=0.2)
    assert fetcher.fetch_on(artifact).complete

    assert relay.connections == 2
    assert fetcher.data(artifact) == artifact.data


def test_chunks_of_lost_connections_that_come_late_and_out_of_order_do_no_harm(
    publisher: Publisher, make_relay: Callable[..., Relay], make_fetcher: Callable[..., Fetcher]
) -> None:
    """The session keeps the topics of the lost connection, so what is published again comes unasked."""
    artifact, order = Artifact(30), random.Random(5)
    publisher.publish(artifact, only=lambda number: number % 3 > 0)
    relay = make_relay(Shape(reset_every_bytes=900_000))
    fetcher = make_fetcher(relay.port)
    fetcher.connect()
    with pytest.raises(Unavailable):
        fetcher.fetch(artifact, timeout_s=0.2)

    for number in order.sample(range(30), 30):
        publisher.say(artifact.topic(number), artifact.sealed[number])
        if number % 10 == 0:
            relay.reset()

    assert fetcher.fetch_on(artifact).complete
    assert fetcher.data(artifact) == artifact.data


@pytest.mark.parametrize("kept", [True, False], ids=["with its persistence", "without"])
def test_a_broker_that_restarts_costs_what_it_forgot(
    make_mosquitto: Callable[..., Mosquitto],
    tmp_path_factory: pytest.TempPathFactory,
    make_fetcher: Callable[..., Fetcher],
    kept: bool,
) -> None:
    user = f"user {getpass.getuser()}"  # as root it would become somebody who may not write here
    persistence = ("persistence true", f"persistence_location {tmp_path_factory.mktemp('kept')}/", user)
    broker = make_mosquitto(*(persistence if kept else ()))
    artifact = Artifact(20)
    with Publisher(broker.port) as publisher:
        publisher.publish(artifact, only=lambda number: number < 12)
        fetcher = make_fetcher(broker.port)
        fetcher.connect()
        with pytest.raises(Unavailable):
            fetcher.fetch(artifact, timeout_s=0.2)
        publisher.publish(artifact, only=lambda number: number >= 12)

    broker.stop()
    broker.start()

    if not kept:
        fetcher.connect()
        with pytest.raises(Unavailable):
            fetcher.fetch(artifact, timeout_s=0.2)
        with Publisher(broker.port) as publisher:
            publisher.publish(artifact)
    fetched = fetcher.fetch_on(artifact)
    assert fetched.complete
    assert fetched.received == artifact.sealed_bytes
    assert fetcher.data(artifact) == artifact.data


def test_a_device_that_is_restarted_goes_on_where_it_was(
    publisher: Publisher, make_relay: Callable[..., Relay], make_fetcher: Callable[..., Fetcher]
) -> None:
    artifact = Artifact(40)
    publisher.publish(artifact, only=lambda number: number < 25)
    first = make_fetcher(make_relay().port)
    first.connect()
    with pytest.raises(Unavailable):
        first.fetch(artifact, timeout_s=0.2)
    first.close()
    publisher.publish(artifact)

    relay = make_relay()
    again = make_fetcher(relay.port)

    assert again.fetch_on(artifact).complete
    assert relay.down_bytes < sum(len(chunk) for chunk in artifact.sealed[25:]) * 1.05
    assert again.data(artifact) == artifact.data


def test_a_fetch_that_is_called_off_ends_within_a_window_and_keeps_what_it_has(
    publisher: Publisher, make_relay: Callable[..., Relay], make_fetcher: Callable[..., Fetcher]
) -> None:
    artifact = Artifact(40)
    publisher.publish(artifact)
    relay = make_relay(Shape(rate_bytes_s=400_000))
    fetcher = make_fetcher(relay.port)
    fetcher.connect()
    began = time.monotonic()
    threading_timer = fetcher.stop_after(0.5)

    fetched = fetcher.fetch(artifact)

    threading_timer.join()
    assert not fetched.complete
    assert time.monotonic() - began < 4
    assert 0 < fetcher.held(artifact) < 40
