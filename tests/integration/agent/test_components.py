"""Several models on one device, each with a lifecycle of its own: a real agent on a real broker."""

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skerry.wire.messages import Component
from tests.integration.agent.several import SeveralShore
from tests.integration.agent.shore import Device, wait_for

BOTH = {"": "strokes", "lamps": "lamps"}


@pytest.fixture
def shore(broker_port: int, tmp_path: Path) -> Iterator[SeveralShore]:
    """A control plane of its own for each test."""
    shore = SeveralShore(broker_port, tmp_path)
    yield shore
    shore.close()


def ask(device: Device, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
    """Ask the local face of a device."""
    with closing(http.client.HTTPConnection("localhost")) as connection:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(device.folder / "serve.sock"))
        connection.request(method, path, body=json.dumps(body) if body is not None else None)
        answer = connection.getresponse()
        found = json.loads(answer.read() or b"{}")
        return answer.status, {**found, "manifest": answer.headers.get("Skerry-Manifest", "")}


def infer(device: Device, model: str) -> tuple[int, dict[str, Any]]:
    """Ask a model of a device about a window."""
    window = np.random.default_rng(1).normal(size=(1, 100, 6)).astype(np.float32)
    tensor = {"name": "window", "shape": [1, 100, 6], "datatype": "FP32", "data": window.ravel().tolist()}
    return ask(device, "POST", f"/v2/models/{model}/infer", {"inputs": [tensor]})


def lamps(shore: SeveralShore, device: Device) -> Component:
    """Return what was last reported of lamps."""
    return (shore.reported[device.name].components or {}).get("lamps", Component(state=""))


def both(shore: SeveralShore, device: Device) -> dict[str, str]:
    """Have two models committed; return their deployments."""
    shore.release_model("strokes", 1)
    shore.release_model("lamps", 1, seed=5)
    deployments = {name: shore.give(device.name, name, model, 1, trial_inferences=5) for name, model in BOTH.items()}
    # nobody asks lamps yet, so its trial ends with its grace
    deployments["lamps"] = shore.give(device.name, "lamps", "lamps", 1, grace_s=0)
    device.start()
    for name in BOTH:
        assert shore.ends(device.name, deployments[name]).state == "committed"
    return deployments


def test_two_models_are_committed_served_and_reported_each_under_its_own_name(
    shore: SeveralShore, device: Device
) -> None:
    deployments = both(shore, device)

    assert {event.component for event in shore.states(device.name, deployments[""])} == {""}
    assert {event.component for event in shore.states(device.name, deployments["lamps"])} == {"lamps"}
    for model in ("strokes", "lamps"):
        status, said = infer(device, model)
        assert (status, said["manifest"]) == (200, shore.digest(model, 1)), said
    assert infer(device, "doors")[0] in (400, 404)
    wait_for(lambda: lamps(shore, device).release == "lamps-1", why="a report of lamps")
    assert lamps(shore, device).state == "committed"
    assert lamps(shore, device).manifest == shore.digest("lamps", 1)
    assert shore.reported[device.name].manifest == shore.digest("strokes", 1)
    # rows of both are counted, by manifest
    wait_for(lambda: lamps(shore, device).inferences > 0, why="inferences of lamps")
    assert (device.folder / "components" / "lamps" / "slots" / "pointer.json").exists()


def test_what_befalls_one_component_leaves_the_other_alone(shore: SeveralShore, device: Device) -> None:
    both(shore, device)
    shore.release_model("strokes", 2)
    files = shore.made["lamps", 1]
    shore.made["lamps", 2] = {**files, "manifest.json": files["manifest.json"].replace(b"lamps", b"lumps")}
    shore.blobs["lamps", 2] = shore.blobs["lamps", 1]

    # of one set, lamps is listed nowhere, and strokes is good
    forged = shore.give(device.name, "lamps", "lamps", 2)
    good = shore.give(device.name, "", "strokes", 2, trial_inferences=5)

    assert shore.ends(device.name, good).state == "committed"
    end = shore.ends(device.name, forged)
    assert (end.state, end.component) == ("failed", "lamps")
    assert "lamps" in end.reason
    assert infer(device, "lamps")[1]["manifest"] == shore.digest("lamps", 1)
    assert infer(device, "strokes")[1]["manifest"] == shore.digest("strokes", 2)


def test_both_go_on_after_the_power_went_and_one_that_is_named_no_more_ends(
    shore: SeveralShore, device: Device
) -> None:
    both(shore, device)
    device.kill()
    device.start()
    wait_for(lambda: _serves(device) == {"strokes", "lamps"}, why="both models again")

    shore.take(device.name, "lamps")

    wait_for(lambda: _serves(device) == {"strokes"}, why="one model")
    wait_for(lambda: shore.reported[device.name].components == {}, why="a report without it")
    assert not (device.folder / "components" / "lamps").exists()
    assert infer(device, "strokes")[0] == 200

    again = shore.give(device.name, "lamps", "lamps", 1, grace_s=0)
    assert shore.ends(device.name, again).state == "committed"


def test_a_component_keeps_to_its_budget_on_the_disk(shore: SeveralShore, device: Device) -> None:
    config = device.folder / "config.toml"
    config.write_text(config.read_text() + "[budgets.lamps]\ndisk_bytes = 100000\n")
    shore.release_model("strokes", 1)
    shore.release_model("lamps", 1, seed=5)
    first = shore.give(device.name, "", "strokes", 1, trial_inferences=5)
    second = shore.give(device.name, "lamps", "lamps", 1)
    device.start()

    assert shore.ends(device.name, first).state == "committed"
    end = shore.ends(device.name, second)
    assert end.state == "failed"
    assert "expected at most 100000 bytes in its slots" in end.reason


def _serves(device: Device) -> set[str]:
    """Return the models that answer now."""
    try:
        return {model for model in ("strokes", "lamps") if ask(device, "GET", f"/v2/models/{model}/ready")[0] == 200}
    except OSError:
        return set()
