"""A whole agent, its own processes and disk, on a link that fails it and with a shore that changes its mind."""

import hashlib
import resource
from collections.abc import Callable

import pytest

from skerry.delivery.chunks import WINDOW
from skerry.wire import topics
from skerry.wire.manifest import SEALED_CHUNK_BYTES
from tests.integration.agent.shore import Device, Shore, wait_for
from tests.relay import Relay, Shape

pytestmark = pytest.mark.broker
# TUF metadata, assignments, acknowledgements, and what MQTT puts around all that
BESIDES = 200_000


def sealed_bytes(shore: Shore, version: int) -> int:
    """Return what an artifact weighs on the wire."""
    chunks = (shore.sealed_files[hashlib.sha256(data).hexdigest()] for data in shore.artifacts[version].values())
    return sum(len(chunk) for each in chunks for chunk in each)


def clear_chunks(shore: Shore, version: int, *, name: str = "model.onnx") -> None:
    """Withdraw a file from the broker."""
    data = shore.artifacts[version][name]
    sealed = shore.sealed_files[hashlib.sha256(data).hexdigest()]
    published = hashlib.sha256(b"".join(sealed)).hexdigest()
    for number in range(len(sealed)):
        shore.say(topics.blob(published, number), b"")


@pytest.mark.long
def test_a_device_on_a_slow_far_link_with_resets_commits(
    shore: Shore, make_relay: Callable[..., Relay], make_device: Callable[..., Device]
) -> None:
    shore.release(1)
    relay = make_relay(Shape(rate_bytes_s=64_000, delay_s=0.3, reset_every_s=4))
    device = make_device(port=relay.port).start(rate=20)

    deployment = shore.assign(device.name, 1)

    assert shore.ends(device.name, deployment, timeout_s=60).state == "committed"
    assert relay.resets >= 1


def test_a_device_that_is_killed_in_the_middle_goes_on_where_it_was(
    shore: Shore, make_relay: Callable[..., Relay], make_device: Callable[..., Device]
) -> None:
    shore.release(1, layers=3)
    whole = sealed_bytes(shore, 1)
    relay = make_relay(Shape(rate_bytes_s=1_500_000))
    device = make_device(port=relay.port).start()
    deployment = shore.assign(device.name, 1)

    wait_for(lambda: relay.down_bytes > 0.6 * whole, why="more than half of the artifact")
    device.kill()
    device.start()

    assert shore.ends(device.name, deployment).state == "committed"
    assert relay.down_bytes < whole + WINDOW * SEALED_CHUNK_BYTES + BESIDES


def test_an_assignment_replaces_the_one_that_is_being_fetched_and_whose_chunks_are_gone(
    shore: Shore, make_relay: Callable[..., Relay], make_device: Callable[..., Device]
) -> None:
    shore.release(1, layers=3)
    shore.release(2)
    relay = make_relay(Shape(rate_bytes_s=500_000))
    device = make_device(port=relay.port).start()
    first = shore.assign(device.name, 1)
    wait_for(lambda: relay.down_bytes > 0.2 * sealed_bytes(shore, 1), why="some of the first artifact")

    clear_chunks(shore, 1)
    second = shore.assign(device.name, 2)

    end = shore.ends(device.name, first)
    assert (end.state, end.reason) == ("failed", f"replaced by deployment {second}")
    assert shore.ends(device.name, second).state == "committed"


def test_an_artifact_that_was_withdrawn_in_the_middle_is_waited_for_and_comes_back_at_the_price_of_the_rest(
    shore: Shore, make_relay: Callable[..., Relay], make_device: Callable[..., Device]
) -> None:
    shore.release(1, layers=3)
    whole = sealed_bytes(shore, 1)
    relay = make_relay(Shape(rate_bytes_s=1_000_000))
    device = make_device(port=relay.port).start()
    deployment = shore.assign(device.name, 1)
    wait_for(lambda: relay.down_bytes > 0.3 * whole, why="some of the artifact")

    clear_chunks(shore, 1)
    wait_for(lambda: "got no answer" in shore.reported[device.name].last_error, why="a device that says what it lacks")
    assert shore.states(device.name, deployment)[-1].state == "fetching"
    shore.chunks(shore.artifacts[1]["model.onnx"])

    end = shore.ends(device.name, deployment)
    assert end.state == "committed"
    assert relay.down_bytes < whole + 2 * WINDOW * SEALED_CHUNK_BYTES + BESIDES


def test_a_disk_that_is_full_fails_the_deployment_and_what_runs_runs_on(
    shore: Shore, make_device: Callable[..., Device]
) -> None:
    shore.release(1)
    shore.release(2, layers=4)
    device = make_device().start()
    assert shore.ends(device.name, shore.assign(device.name, 1)).state == "committed"

    # the kernel refuses the file as it does on a disk that is full, without a file system of the test's own
    limit_files(device, 2 << 20)
    end = shore.ends(device.name, shore.assign(device.name, 2))

    assert end.state == "failed"
    assert "check the disk" in end.reason
    before = len(shore.windows(device.name))
    wait_for(lambda: len(shore.windows(device.name)) > before, why="another window of the last good one")
    assert shore.reported[device.name].release == "strokes-1"

    limit_files(device, resource.RLIM_INFINITY)
    assert shore.ends(device.name, shore.assign(device.name, 2)).state == "committed"


def limit_files(device: Device, size_bytes: int) -> None:
    """Let the agent's files grow to this size and no further."""
    assert device._process is not None
    resource.prlimit(device._process.pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))
