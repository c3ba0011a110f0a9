"""A whole agent on a real broker: it waits where its owner wishes, says so, and takes a delta where one is offered."""

import hashlib
import time
from dataclasses import replace

import pytest

from skerry.delivery.delta import make_delta
from skerry.wire import codec, topics
from skerry.wire.messages import Desired
from tests.integration.agent.shore import PROJECT, Device, Shore, wait_for
from tests.manifests import offer_delta

pytestmark = pytest.mark.broker


def wish(shore: Shore, device: Device, version: int, **config: object) -> None:
    """Publish a desired configuration."""
    payload = codec.encode(Desired(version=version, config=config))
    shore.say(topics.down(f"{PROJECT}.{device.name}", "desired"), payload)


def obeys(shore: Shore, device: Device, version: int) -> bool:
    """Say whether the device has reported this version."""
    reported = shore.reported.get(device.name)
    return reported is not None and reported.desired_version == version


@pytest.mark.parametrize("broker_port", ["mosquitto"], indirect=True)
def test_a_fetch_waits_through_quiet_hours_and_a_delta_brings_the_next_version(shore: Shore, device: Device) -> None:
    hour = time.gmtime().tm_hour
    wish(shore, device, 4, quiet_hours=f"{hour:02}:00-{(hour + 2) % 24:02}:00")
    shore.release(1)
    deployment = shore.assign(device.name, 1)
    device.start()

    wait_for(lambda: device.name in shore.reported and shore.reported[device.name].waiting, why="a wait")
    assert shore.reported[device.name].waiting.startswith("quiet hours")
    assert obeys(shore, device, 4)
    assert shore.states(device.name, deployment)[-1].state == "assigned"

    wish(shore, device, 5, rate_limit_bytes_s=4 << 20)
    assert shore.ends(device.name, deployment).state == "committed"
    wait_for(lambda: obeys(shore, device, 5), why="version 5")
    wait_for(lambda: not shore.reported[device.name].waiting, why="the end of the wait")

    shore.release(2)
    old, new = (shore.artifacts[version]["model.onnx"] for version in (1, 2))
    delta = make_delta(old, new)
    assert delta is not None
    offered = offer_delta(delta, source=hashlib.sha256(old).hexdigest(), sealed=shore.chunks(delta))
    content = replace(shore.content(device.name, 2), deltas=(offered,))

    end = shore.ends(device.name, shore.assign(device.name, 2, content=content))

    assert end.state == "committed"
    assert (end.measured["fallbacks"], end.measured["delta_bytes"]) == (0, len(delta) + 28 * len(offered.chunks))
    wait_for(lambda: shore.reported[device.name].release == "strokes-2", why="a report")
    assert shore.reported[device.name].last_error == ""
