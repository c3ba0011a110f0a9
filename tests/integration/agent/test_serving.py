"""Programs ask a real agent for inference: another project's client, swaps under load, and what is counted of it."""

import hashlib
import http.client
import json
import stat
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from skerry.runtimes import open_session
from tests.integration.agent.shore import MODEL, WINDOW_ROWS, Device, Shore, wait_for
from tests.integration.serving.clients import UnixConnection, tell_by_tritonclient

INFER = f"/v2/models/{MODEL}/infer"
ROWS = np.random.default_rng(5).normal(size=(8, 1, 100, 6)).astype(np.float32)


@pytest.fixture
def port(device: Device, free_port: Callable[[], int]) -> int:
    """The port of loopback on which the device serves."""
    port = free_port()
    with (device.folder / "config.toml").open("a") as file:
        file.write(f'serve = "127.0.0.1:{port}"\n')
    return port


def commit(shore: Shore, device: Device, version: int) -> str:
    """Release and assign a version; return how it ended."""
    shore.release(version)
    return shore.ends(device.name, shore.assign(device.name, version)).state


def request_for(row: int) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a request with one of ROWS, in binary both ways."""
    data = ROWS[row].tobytes()
    tensor = {"name": "window", "shape": [1, 100, 6], "datatype": "FP32", "parameters": {"binary_data_size": len(data)}}
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return text + data, {"Inference-Header-Content-Length": str(len(text))}


def ask(connection: http.client.HTTPConnection, row: int) -> tuple[int, str, Any]:
    """Return status, the manifest that answered, and the probabilities."""
    body, headers = request_for(row)
    connection.request("POST", INFER, body=body, headers=headers)
    answer = connection.getresponse()
    data = answer.read()
    if answer.status != 200:
        return answer.status, data.decode(), None
    length = int(answer.headers["Inference-Header-Content-Length"])
    assert json.loads(data[:length])["outputs"][0]["name"] == "probabilities"
    return 200, answer.headers["Skerry-Manifest"], np.frombuffer(data[length : length + 12], "<f4")


def expected(shore: Shore, version: int) -> tuple[str, list[Any]]:
    """Return a version's manifest digest and what its model says of ROWS."""
    files = shore.artifacts[version]
    session = open_session("onnxruntime", files["model.onnx"])
    return (
        hashlib.sha256(files["manifest.json"]).hexdigest(),
        [session.run({"window": row})["probabilities"][0] for row in ROWS],
    )


def test_tritonclient_talks_to_the_agent(shore: Shore, device: Device, port: int) -> None:
    device.start()
    assert commit(shore, device, 1) == "committed"

    story = tell_by_tritonclient(port, MODEL)

    said = {key: story[key] for key in ("live", "ready", "model_ready", "version_ready", "other_ready")}
    assert said == {"live": True, "ready": True, "model_ready": True, "version_ready": True, "other_ready": False}
    assert [spec["name"] for spec in story["metadata"]["inputs"]] == ["window"]
    session = open_session("onnxruntime", shore.artifacts[1]["model.onnx"])
    ones = session.run({"window": np.ones((1, 100, 6), np.float32)})
    for form in ("json", "binary", "mixed", "gzip", "deflate"):
        assert story[form]["version"] == "1"
        dtype, shape, values = story[form]["outputs"]["probabilities"]
        assert (dtype, shape) == ("float32", [1, 3])
        np.testing.assert_array_equal(np.array(values, np.float32), ones["probabilities"][0])
    assert {name: status for name, (status, _) in story["errors"].items()} == {
        "model": "404",
        "version": "404",
        "datatype": "400",
        "output": "400",
        "classes": "400",
        "sequence": "400",
        "extension": "404",
    }


def test_before_anything_is_committed_it_lives_and_is_not_ready(device: Device, port: int) -> None:
    device.start()
    wait_for((device.folder / "serve.sock").exists, why="the socket")
    for connection in (UnixConnection(device.folder / "serve.sock"), http.client.HTTPConnection("127.0.0.1", port)):
        wait_for(lambda at=connection: _status(at, "/v2/health/live") == 200, why="an answer")  # type: ignore[misc]
        assert _status(connection, "/v2/health/ready") == 503
        assert ask(connection, 0)[0] == 404
        connection.close()
    assert stat.S_IMODE((device.folder / "serve.sock").stat().st_mode) == 0o660


@pytest.mark.parametrize("keep", [0, 1 << 20], ids=["nothing kept", "results kept"])
def test_what_programs_ask_ends_a_trial_and_is_counted(shore: Shore, device: Device, keep: int) -> None:
    with (device.folder / "config.toml").open("a") as file:
        file.write(f"serve_keep_bytes = {keep}\n")
    # its own source has a row in a quarter of an hour
    device.start(rate=0.001)
    shore.release(1)
    shore.assign(device.name, 1)
    connection = UnixConnection(device.folder / "serve.sock")
    wait_for(lambda: _status(connection, "/v2/health/ready") == 200, why="a trial")
    assert device.state() == "trial"
    asked = 0

    def ask_until(done: Callable[[], bool]) -> bool:
        nonlocal asked
        assert ask(connection, asked % len(ROWS))[0] == 200
        asked += 1
        return done()

    wait_for(lambda: ask_until(lambda: device.state() == "committed"), why="the trial to end")
    trial = asked
    wait_for(lambda: ask_until(lambda: len(shore.windows(device.name)) >= 2), why="two windows")
    connection.close()
    assert asked - trial >= 2 * WINDOW_ROWS - 2
    assert {window.rows for window in shore.windows(device.name)} == {WINDOW_ROWS}


def test_swaps_under_load_drop_and_mix_no_answer(shore: Shore, device: Device, port: int) -> None:
    device.start()
    assert commit(shore, device, 1) == "committed"
    ending = threading.Event()
    heard: list[tuple[int, int, str, Any]] = []

    def load(place: int) -> None:
        unix = UnixConnection(device.folder / "serve.sock")
        connection = unix if place % 2 else http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        row = place
        while not ending.is_set():
            row = (row + 1) % len(ROWS)
            heard.append((row, *ask(connection, row)))
        connection.close()

    threads = [threading.Thread(target=load, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    try:
        states = [commit(shore, device, version) for version in (2, 3)]
        # one that is refused at replay changes nothing
        shore.release(4, wrong_golden=True)
        states.append(shore.ends(device.name, shore.assign(device.name, 4)).state)
        count = len(heard)
        wait_for(lambda: len(heard) > count + 20, why="answers after the swaps")
    finally:
        ending.set()
        for thread in threads:
            thread.join(30)
    assert states == ["committed", "committed", "failed"]

    right = dict(expected(shore, version) for version in (1, 2, 3))
    assert [each for each in heard if each[1] != 200] == []
    assert {manifest for _, _, manifest, _ in heard} == set(right)
    for row, _, manifest, answer in heard:
        np.testing.assert_allclose(answer, right[manifest][row], atol=1e-6)
    assert heard[-1][2] == expected(shore, 3)[0]


def _status(connection: http.client.HTTPConnection, path: str) -> int:
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
    except OSError:
        connection.close()
        return 0
    return answer.status
