"""Two Mosquittos, one at a site: one copy over the uplink, with the bridge as `skerry broker config` writes it.

Here without TLS and identities, for what a bridge does to the bytes; `test_site_with_certificates` has all of it.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from control_plane.broker_config import Listener
from control_plane.site_config import SitePlan, Uplink, site_files
from skerry.errors import Unavailable
from skerry.wire.manifest import SEALED_CHUNK_BYTES
from tests.conftest import Mosquitto
from tests.integration.agent.shore import PROJECT, Device, Shore, wait_for
from tests.integration.delivery.fetcher import Artifact, Fetcher, Publisher
from tests.relay import Relay, Shape

pytestmark = pytest.mark.broker
DEVICES = 10


def bridge_lines(port: int) -> list[str]:
    """Return the lines of the bridge, to a port of this machine, without TLS."""
    plan = SitePlan(
        project=PROJECT,
        gateway="site-1",
        name="127.0.0.1",
        uplink=Uplink("127.0.0.1", port),
        listen=Listener("127.0.0.1", 8883),
        folder=Path("/nowhere"),
        state=Path("/nowhere"),
        user="mosquitto",
        devices=("watch-1", "watch-2"),
    )
    tls = ("bridge_cafile", "bridge_certfile", "bridge_keyfile")
    lines = site_files(plan)["mosquitto.conf"].partition("\nconnection uplink\n")[2].splitlines()
    assert sum(line.startswith(tls) for line in lines) == len(tls)
    return ["connection uplink", *(line for line in lines if not line.startswith(tls))]


@pytest.fixture
def make_site(make_mosquitto: Callable[..., Mosquitto]) -> Iterator[Callable[..., tuple[Mosquitto, Relay]]]:
    """Return a function that starts a site's broker behind an uplink to another broker."""
    relays: list[Relay] = []

    def make(upstream: Mosquitto, shape: Shape | None = None) -> tuple[Mosquitto, Relay]:
        relays.append(Relay(upstream.port, shape))
        return make_mosquitto(*bridge_lines(relays[-1].port)), relays[-1]

    yield make
    for relay in relays:
        relay.close()


def test_a_site_of_many_devices_takes_one_copy_over_its_uplink(
    mosquitto: Mosquitto,
    publisher: Publisher,
    make_site: Callable[..., tuple[Mosquitto, Relay]],
    make_fetcher: Callable[..., Fetcher],
) -> None:
    before, after = Artifact(30, seed=1), Artifact(30, seed=2)
    publisher.publish(before)
    site, uplink = make_site(mosquitto)
    wait_for(lambda: uplink.down_bytes > before.sealed_bytes, why="the bridge to bring what is retained")
    publisher.publish(after)
    wait_for(lambda: uplink.down_bytes > before.sealed_bytes + after.sealed_bytes, why="the bridge to bring the rest")
    fetchers = [make_fetcher(site.port, name=f"watch-{number}") for number in range(DEVICES)]

    with ThreadPoolExecutor(DEVICES) as pool:
        for artifact in (before, after):
            assert all(fetched.complete for fetched in pool.map(lambda each: each.fetch_on(artifact), fetchers))  # noqa: B023

    assert all(each.data(artifact) == artifact.data for each in fetchers for artifact in (before, after))
    assert uplink.down_bytes < 1.02 * (before.sealed_bytes + after.sealed_bytes)


def test_a_whole_agent_behind_a_site_is_assigned_commits_and_is_heard(
    shore: Shore,
    mosquitto: Mosquitto,
    make_site: Callable[..., tuple[Mosquitto, Relay]],
    make_device: Callable[..., Device],
) -> None:
    site, uplink = make_site(mosquitto)
    shore.release(1)
    device = make_device(port=site.port).start()
    other = make_device("watch-2", port=site.port).start()

    ends = [shore.ends(each.name, shore.assign(each.name, 1)).state for each in (device, other)]

    assert ends == ["committed", "committed"]
    wait_for(lambda: shore.windows(device.name) and shore.windows(other.name), why="windows of both")
    wait_for(lambda: shore.reported[other.name].release, why="a report")
    uplink.cut()
    device.kill()
    time.sleep(0.5)
    uplink.mend()
    # the last will was said at the site, and is passed on when there is an uplink again
    wait_for(lambda: not shore.reported[device.name].online, why="the last will", timeout_s=30)


def test_what_the_queue_of_the_far_broker_dropped_is_missing_until_it_is_published_again(
    make_mosquitto: Callable[..., Mosquitto],
    make_site: Callable[..., tuple[Mosquitto, Relay]],
    make_fetcher: Callable[..., Fetcher],
) -> None:
    # more than the kernel takes off the broker's hands
    artifact = Artifact(160)
    upstream = make_mosquitto("max_queued_messages 10")
    with Publisher(upstream.port) as publisher:
        publisher.publish(artifact)
        site, uplink = make_site(upstream, Shape(rate_bytes_s=10_000_000))
        fetcher = make_fetcher(site.port)
        fetcher.connect()
        _quiet(uplink)
        with pytest.raises(Unavailable, match="got no answer"):
            fetcher.fetch(artifact, timeout_s=0.3)
        missing = fetcher.missing(artifact)
        assert missing

        for number in missing:
            # as slowly as the uplink is: what is published once for all must not be dropped as well
            publisher.say(artifact.topic(number), artifact.sealed[number])
            time.sleep(0.01)

    assert fetcher.fetch_on(artifact).complete
    assert uplink.down_bytes < artifact.sealed_bytes + 2 * SEALED_CHUNK_BYTES


def _quiet(uplink: Relay) -> None:
    """Wait until nothing has come over the uplink for a while."""
    before = -1
    while uplink.down_bytes != before:
        before = uplink.down_bytes
        time.sleep(0.5)
