"""Samples end to end: an operator's policy, offline signatures on it, a real agent that keeps to it, and an export.

The broker is Mosquitto. What is exported is compared with the recording that the device had: row by row, bit by bit.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from control_plane.cli.program import main
from skerry.runtimes import open_session
from skerry.runtimes.arrays import pack, unpack
from tests.conftest import Mosquitto
from tests.integration.agent.shore import LABELS, MODEL, WINDOW_ROWS, wait_for
from tests.integration.trust.products import PROFILE, release, train

pytestmark = pytest.mark.broker
AGENT = [sys.executable, "-m", "agent"]
ROW_BYTES = 100 * 6 * 4
ROWS = np.random.default_rng(3).normal(size=(60, 100, 6)).astype(np.float32)
NAME = "gull-1"


@dataclass
class Sea:
    """A server, a folder beside it, and the model that was trained."""

    server: Any
    folder: Path
    model: bytes

    def run(self, *arguments: str) -> int:
        """Be the operator's program."""
        return main(["--home", str(self.server.home), *arguments])

    def outbox(self) -> dict[str, int]:
        """Return what the device has told, in sums over its epochs."""
        marks = [mark for mark in self.server.get("/v1/outbox") if mark["device"] == NAME]
        return {key: sum(mark[key] for mark in marks) for key in ("windows", "samples", "quarantined")}


@pytest.fixture
def sea(make_home: Callable[..., Any], mosquitto: Mosquitto, tmp_path: Path) -> Iterator[Sea]:
    """A control plane on Mosquitto after its ceremony, with a model."""
    server = make_home("--broker", f"mqtt://127.0.0.1:{mosquitto.port}")
    files, _ = train(server.home, tmp_path)
    (tmp_path / "recording.npz").write_bytes(pack({"X": ROWS}))
    server.start()
    try:
        server.hold_ceremony()
        yield Sea(server, tmp_path, files["model.onnx"])
    finally:
        server.stop()


@pytest.fixture
def device(sea: Sea) -> Iterator[Path]:
    """An enrolled agent that runs on its recording; its log is shown at the end."""
    state = sea.folder / "state"
    join = sea.server.post("/v1/devices/invite", {"profile": PROFILE, "name": NAME})["join"]
    subprocess.run([*AGENT, "init", join, "--profile", PROFILE, "--state", str(state), "--simulate"], check=True)
    with (sea.folder / "agent.log").open("wb") as log:
        recording = str(sea.folder / "recording.npz")
        command = [*AGENT, "run", "--state", str(state), "--replay", recording, "--rate", "200"]
        process = subprocess.Popen(command, stderr=log)
        try:
            yield state
        finally:
            process.terminate()
            process.wait(20)
    sys.stderr.write((sea.folder / "agent.log").read_text())


def roll_out(sea: Sea) -> None:
    """Bring the device the release, and wait until it has told a few windows."""
    wait_for(lambda: sea.server.get(f"/v1/devices/{NAME}")["online"], why="the device")
    waves = [{"name": "all", "devices": [NAME]}]
    rollout = sea.server.post("/v1/rollouts", {"release": f"{MODEL}-1", "waves": waves})["id"]
    ended = lambda: sea.server.get(f"/v1/rollouts/{rollout}")["state"] == "done"  # noqa: E731
    wait_for(ended, why="the rollout's end", timeout_s=60)
    wait_for(lambda: sea.outbox()["windows"] >= 3, why="three windows", timeout_s=60)


def test_a_device_sends_what_the_offline_keys_let_it_and_that_can_be_had_as_a_file(
    sea: Sea, device: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = ["--rows-per-window", "2", "--inputs", "window", "--max-bytes", str(ROW_BYTES)]
    assert sea.run("model", "samples", MODEL, *policy) == 0
    release(sea.server)
    capsys.readouterr()
    assert sea.run("release", "show", f"{MODEL}-1") == 0
    assert f"may send 2 rows of a window: window, at most {ROW_BYTES} bytes" in capsys.readouterr().out

    roll_out(sea)
    wait_for(lambda: sea.outbox()["samples"] >= 6, why="the samples of three windows", timeout_s=30)

    out = sea.folder / "samples.npz"
    assert sea.run("sample", "export", NAME, "--out", str(out)) == 0
    arrays = unpack(out.read_bytes(), what="samples")
    kept, windows = arrays["window"], arrays["sample.window"]
    assert (kept.dtype, kept.shape[1:]) == (np.float32, (100, 6))
    # two of each window, the last of which may still be under way
    counts = np.unique(windows, return_counts=True)[1].tolist()
    assert counts[:-1] == [2] * (len(counts) - 1)
    assert counts[-1] <= 2
    (sea.folder / "model.onnx").write_bytes(sea.model)
    session = open_session("onnxruntime", sea.folder / "model.onnx")
    known = {row.tobytes() for row in ROWS}
    for row, prediction, confidence in zip(kept, arrays["sample.prediction"], arrays["sample.confidence"], strict=True):
        assert row.tobytes() in known
        chances = session.run({"window": row[None]})["probabilities"][0]
        assert (LABELS[int(chances.argmax())], round(float(chances.max()), 5)) == (prediction, round(confidence, 5))
    told = sea.outbox()
    assert told["quarantined"] == 0
    assert told["samples"] <= 2 * (told["windows"] + 1)
    assert WINDOW_ROWS > 2

    # page by page, and no more than asked for
    last = int(arrays["sample.id"][2])
    assert sea.run("sample", "export", NAME, "--out", str(out), "--after", str(last), "--most", "1") == 0
    assert unpack(out.read_bytes(), what="samples")["sample.id"].tolist() == [int(arrays["sample.id"][3])]
    assert sea.run("sample", "export", NAME, "--out", str(out), "--model", "doors") == 2

    # who read which is in the timeline, and what is deleted is gone from the store
    events = [each for each in sea.server.get("/v1/events?limit=1000") if each["kind"] == "samples"]
    read = [each["data"]["numbers"] for each in events if each["data"].get("action") == "read"]
    assert arrays["sample.id"].tolist() in read
    assert sea.run("sample", "delete", NAME, str(last)) == 0
    assert sea.run("sample", "export", NAME, "--out", str(out)) == 0
    assert last not in unpack(out.read_bytes(), what="samples")["sample.id"].tolist()


def test_without_a_policy_no_input_leaves_the_device(sea: Sea, device: Path) -> None:
    release(sea.server)
    roll_out(sea)
    assert (sea.outbox()["samples"], sea.outbox()["quarantined"]) == (0, 0)
    assert sea.run("sample", "export", NAME, "--out", str(sea.folder / "samples.npz")) == 2


def test_the_policy_is_shown_and_half_a_one_is_refused(sea: Sea, capsys: pytest.CaptureFixture[str]) -> None:
    assert sea.run("model", "samples", MODEL) == 0
    assert "devices may send no inputs" in capsys.readouterr().out
    assert sea.run("model", "samples", MODEL, "--inputs", "window") == 2
    assert sea.run("model", "samples", MODEL, "--none", "--inputs", "window") == 2
    policy = ["--rows-per-window", "2", "--inputs", "window", "--max-bytes", "40000"]
    assert sea.run("model", "samples", MODEL, *policy) == 2
    assert "32768 bytes of each" in capsys.readouterr().err
    assert sea.run("model", "policy", MODEL, "automatic") == 0
    assert sea.run("model", "samples", MODEL, *policy[:-1], "4000") == 2
    assert f"skerry model policy {MODEL} manual" in capsys.readouterr().err
