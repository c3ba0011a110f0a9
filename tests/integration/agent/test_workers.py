"""What a running agent is made of: a daemon without NumPy, a worker with it, and programs that ask over the socket."""

import http.client
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from agent.inference.frames import NO_SAMPLE, ROW_NUMBER, Request, Status, Verb
from agent.inference.source import shuffled
from agent.inference.workers import Closed, Crashed, Given, Recording, check_answer, start_worker
from skerry.errors import Broken, Rejected
from skerry.runtimes import Refused, find_runtime
from skerry.runtimes.arrays import pack
from skerry.runtimes.confined import Limits
from skerry.runtimes.tflite_runtime import SMALLEST
from skerry.wire import codec
from skerry.wire.manifest import NO_SAMPLES, Manifest, SamplePolicy, TensorSpec, Tolerance, describe_file
from tests.integration.agent.shore import Device, Shore, make_artifact, wait_for
from tests.integration.agent.spoilt import request_for

HEAVY = ("numpy", "onnxruntime", "ai_edge_litert", "cryptography")


def children(process: int) -> list[int]:
    """Return the processes that a process has started and that run."""
    return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def mapped(process: int) -> set[str]:
    """Return which of the heavy libraries a process has mapped."""
    maps = Path(f"/proc/{process}/maps").read_text()
    return {name for name in HEAVY if f"/{name}/" in maps}


def all_children(process: int) -> list[int]:
    """Return the children of all threads of a process."""
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        found += [int(each) for each in (task / "children").read_text().split()]
    return found


def test_a_daemon_never_maps_numpy_or_a_runtime_and_its_worker_does(shore: Shore, device: Device) -> None:
    shore.release(1)
    device.start()
    assert device._process is not None
    daemon = device._process.pid
    shore.ends(device.name, shore.assign(device.name, 1))
    wait_for(lambda: shore.windows(device.name), why="a window")

    (worker,) = wait_for(lambda: all_children(daemon), why="a worker")
    assert mapped(daemon) == set()
    assert mapped(worker) == {"numpy", "onnxruntime"}

    # and it does not outlive its daemon, not even one that is killed
    device.kill()
    wait_for(lambda: not Path(f"/proc/{worker}").exists(), why="the worker to end")


def test_a_worker_that_is_killed_costs_a_running_agent_no_window(shore: Shore, device: Device) -> None:
    shore.release(1)
    device.start()
    assert device._process is not None
    daemon = device._process.pid
    shore.ends(device.name, shore.assign(device.name, 1))
    before = len(wait_for(lambda: shore.windows(device.name), why="a window"))
    (worker,) = wait_for(lambda: all_children(daemon), why="a worker")

    os.kill(worker, signal.SIGSEGV)

    wait_for(lambda: len(shore.windows(device.name)) > before + 1, why="more windows")
    assert [window.window for window in shore.windows(device.name)] == list(range(len(shore.windows(device.name))))
    assert all_children(daemon) != [worker]
    wait_for(lambda: shore.reported[device.name].runs.crashes == 1, why="a report of the crash")
    assert shore.reported[device.name].state == "committed"


def test_a_running_agent_is_asked_over_its_socket(shore: Shore, device: Device) -> None:
    shore.release(1)
    device.start()
    shore.ends(device.name, shore.assign(device.name, 1))

    head, body = request_for(0.5)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(device.folder / "serve.sock"))
        connection = http.client.HTTPConnection("localhost")
        connection.sock = client
        connection.request("POST", "/v2/models/strokes/infer", body, headers=dict(head))
        answer = connection.getresponse()
        tree = json.loads(answer.read())

    assert answer.status == 200
    assert [output["name"] for output in tree["outputs"]] == ["probabilities", "features"]
    assert answer.headers["Skerry-Manifest"] == shore.reported[device.name].manifest


# --- sources


def test_lines_on_standard_input_are_inferred_on_and_counted(shore: Shore, device: Device) -> None:
    shore.release(1)
    deployment = shore.assign(device.name, 1)
    line = json.dumps({"window": np.zeros((100, 6)).tolist(), "y": "rest"}).encode() + b"\n"
    command = [*(sys.executable, "-m", "agent", "run", "--state", str(device.folder)), "--source", "stdin"]
    with device.log.open("ab") as log:
        device._process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log)
    stdin = device._process.stdin
    assert stdin is not None
    wait_for(lambda: device.state() == "trial", why="a trial")
    with stdin:
        stdin.write(line * 20)
        stdin.flush()
        assert shore.ends(device.name, deployment).state == "committed"
        wait_for(lambda: shore.reported[device.name].state == "committed", why="a report")
        stdin.write(line * 25)
        stdin.flush()
        (window, *_) = wait_for(lambda: shore.windows(device.name), why="a window")

    assert (window.rows, window.labelled) == (25, 25)


@pytest.mark.broker
@pytest.mark.parametrize("broker_port", ["mosquitto"], indirect=True)
def test_messages_on_a_topic_are_inferred_on(shore: Shore, device: Device) -> None:
    shore.release(1)
    (device.folder / "config.toml").write_text(f'source = "mqtt://127.0.0.1:{shore.port}/watch/rows"\n')
    deployment = shore.assign(device.name, 1)
    command = [*(sys.executable, "-m", "agent", "run", "--state", str(device.folder))]
    with device.log.open("ab") as log:
        device._process = subprocess.Popen(command, stderr=log)
    wait_for(lambda: device.state() == "trial", why="a trial")
    line = json.dumps({"window": np.zeros((100, 6)).tolist()}).encode()

    def ended() -> bool:
        shore._client.publish("watch/rows", line, qos=0)
        return any(event.state == "committed" for event in shore.states(device.name, deployment))

    wait_for(ended, why="a commit")


# --- workers by themselves


@pytest.fixture
def given(tmp_path: Path) -> Given:
    """A good artifact as files."""
    files = make_artifact(tmp_path, version=1)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return Given(
        files["manifest.json"], "onnxruntime", tmp_path / "model.onnx", tmp_path / "golden.npz", limits=Limits()
    )


def test_inputs_of_unequally_many_rows_are_the_callers_mistake(tmp_path: Path) -> None:
    names = ("left", "right")
    graph = helper.make_graph(
        [helper.make_node("Add", list(names), ["sum"])],
        "sum",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 2)) for name in names],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, (1, 2))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    files = make_artifact(tmp_path, version=1)
    manifest = replace(
        codec.decode(Manifest, files["manifest.json"]),
        inputs=tuple(TensorSpec(name, (1, 2), "float32") for name in names),
        outputs=(TensorSpec("sum", (1, 2), "float32"),),
        observe={},
        files=tuple(describe_file(name, {**files, "model.onnx": model}[name]) for name in ("model.onnx", "golden.npz")),
    )
    (tmp_path / "model.onnx").write_bytes(model)
    worker = start_worker(Given(codec.encode(manifest), "onnxruntime", tmp_path / "model.onnx"))
    try:
        for rows, status in (((2, 2), 200), ((2, 1), 400)):
            tensors = [
                {"name": name, "shape": [count, 2], "datatype": "FP32", "data": [1.0] * 2 * count}
                for name, count in zip(names, rows, strict=True)
            ]
            answer = worker.ask(Request(Verb.INFER, b"{}", json.dumps({"inputs": tensors}).encode()), patience_s=30)
            assert (answer.status, answer.said.get("status")) == (Status.DONE, status), answer
        assert b"expected equally many rows of each" in bytes(answer.body)
    finally:
        worker.close()


def test_a_batch_that_takes_too_long_is_refused_before_it_is_taken_for_a_hang(given: Given) -> None:
    worker = start_worker(replace(given, batch_s=0.05))
    try:
        window = {"name": "window", "datatype": "FP32"}
        for count, status in ((20_000, 400), (2, 200)):
            tensor = {**window, "shape": [count, 100, 6], "parameters": {"binary_data_size": count * 2400}}
            text = json.dumps({"inputs": [tensor]}).encode()
            head = json.dumps({"inference-header-content-length": str(len(text))}).encode()
            answer = worker.ask(Request(Verb.INFER, head, text + bytes(count * 2400)), patience_s=30)
            assert (answer.status, answer.said.get("status")) == (Status.DONE, status)
            assert (b"expected rows for at most 0.05 s, got 20000" in bytes(answer.body)) == (status == 400)
    finally:
        worker.close()


def test_a_worker_replays_its_golden_vectors_from_files_and_from_memory(given: Given, tmp_path: Path) -> None:
    sealed = replace(given, model=(tmp_path / "model.onnx").read_bytes(), golden=(tmp_path / "golden.npz").read_bytes())
    for each in (given, sealed):
        worker = start_worker(each)
        try:
            answer = worker.ask(Request(Verb.REPLAY), patience_s=30)
            check_answer(answer)
            rows = list(answer.rows)
            assert [len(row.features) for row in rows] == [6] * 4
            assert worker.growth_bytes > 0
            with pytest.raises(Rejected, match="golden vectors to replay"):
                check_answer(worker.ask(Request(Verb.REPLAY), patience_s=30))
        finally:
            worker.close()
        with pytest.raises(Closed):
            worker.ask(Request(Verb.REPLAY), patience_s=30)


def test_a_worker_loads_only_what_was_signed(given: Given, tmp_path: Path) -> None:
    for name in ("model.onnx", "golden.npz"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[:-1] + b"x")
        with pytest.raises(Rejected, match=f"expected {name} as signed"):
            start_worker(given)
        (tmp_path / name).write_bytes(data)


def test_what_no_worker_can_be_had_for_is_this_machines_trouble(given: Given) -> None:
    with pytest.raises(Broken, match="expected one of onnxruntime"):
        start_worker(replace(given, runtime="abacus"))
    with pytest.raises(Crashed, match="exit code 1"):
        start_worker(replace(given, program=("-c", "raise SystemExit(1)")))


def test_what_a_worker_writes_on_standard_error_is_in_the_log(given: Given, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(Crashed):
        start_worker(replace(given, program=("-c", "raise SystemExit('a word')")))
    wait_for(lambda: "worker: a word" in caplog.messages, why="the line")


def test_a_recording_that_is_not_there_says_nothing_about_the_model(given: Given, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    worker = start_worker(replace(given, recording=Recording(path)))
    try:
        first = Request(Verb.NEXT, b"", ROW_NUMBER.pack(0))
        answer = worker.ask(first, patience_s=30)
        assert (answer.status, "expected a recording" in answer.said["reason"]) == (2, True)
        path.write_text(",".join(f"c{number}" for number in range(600)) + "\n" + ",".join(["0.5"] * 600) + "\n")
        answer = worker.ask(first, patience_s=30)
        assert (answer.status, len(answer.rows)) == (0, 1)
    finally:
        worker.close()


def test_a_worker_hands_back_the_inputs_of_the_row_that_is_wanted(given: Given, tmp_path: Path) -> None:
    rows = np.random.default_rng(3).normal(size=(8, 100, 6)).astype(np.float32)
    (tmp_path / "rows.npz").write_bytes(pack({"X": rows}))
    policy = SamplePolicy(rows_per_window=2, inputs=("window",), max_bytes=rows[0].nbytes)
    for samples, kept in ((policy, True), (replace(policy, max_bytes=rows[0].nbytes - 1), False), (NO_SAMPLES, False)):
        manifest = replace(codec.decode(Manifest, given.manifest), samples=samples)
        recording = Recording(tmp_path / "rows.npz")
        worker = start_worker(replace(given, manifest=codec.encode(manifest), recording=recording))
        try:
            line = json.dumps({"window": rows[0].ravel().tolist()}).encode()
            body = json.dumps({"inputs": [_tensor(rows)]}).encode()
            for request, row, at in (
                (Request(Verb.NEXT, b"", ROW_NUMBER.pack(0), 0), shuffled(8, seed=0, epoch=0)[0], 0),
                (Request(Verb.ROW, b"", line, 0), 0, 0),
                (Request(Verb.INFER, b"{}", body, 5), 5, 5),
            ):
                answer = worker.ask(request, patience_s=30)
                check_answer(answer)
                assert (answer.sample is not None) is kept
                if answer.sample is not None:
                    assert (answer.sample.row, answer.sample.inputs) == (at, {"window": rows[row].tobytes()})
                plain = worker.ask(request._replace(sample=NO_SAMPLE), patience_s=30)
                assert (plain.sample, bytes(plain.body)) == (None, bytes(answer.body))
            beyond = worker.ask(Request(Verb.INFER, b"{}", body, len(rows)), patience_s=30)
            assert (len(beyond.rows), beyond.sample) == (len(rows), None)
        finally:
            worker.close()


def _tensor(rows: Any) -> dict[str, Any]:
    return {"name": "window", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}


@pytest.mark.emulator
def test_a_legacy_runtime_runs_by_its_own_python(given: Given) -> None:
    found = find_runtime("tflite-runtime")
    assert not isinstance(found, Refused), found
    # one tensor of one number, which is input and output
    tensor = TensorSpec("x", (1,), "float32")
    golden = pack({"x": np.array([1.5, -2.0], np.float32)})
    manifest = replace(
        codec.decode(Manifest, given.manifest),
        runtime="tflite-runtime",
        inputs=(tensor,),
        outputs=(tensor,),
        observe={},
        tolerances={"x": Tolerance(0.0, 0.0)},
        files=(describe_file("model.onnx", SMALLEST), describe_file("golden.npz", golden)),
    )
    worker = start_worker(Given(codec.encode(manifest), "tflite-runtime", SMALLEST, golden))
    try:
        check_answer(worker.ask(Request(Verb.REPLAY), patience_s=30))
        assert Path(f"/proc/{worker.pid}/cmdline").read_bytes().startswith(found.python.encode())
    finally:
        worker.close()


@pytest.mark.parametrize(
    "said",
    [
        b"",
        bytes(5),
        struct.pack(">BIIII", 0, 1 << 30, 0, 0, 4),
        struct.pack(">BIIII", 0, 2, 0, 0, 4) + b"[]",
        struct.pack(">BIIII", 0, 1, 0, 0, 4) + b"{",
        struct.pack(">BIIII", 0, 0, 8, 0, 4) + bytes(8),
        struct.pack(">BIIII", 0, 0, 0, 0, 4) + b"and more",
        struct.pack(">BIIII", 0, 0, 0, 0, 4),
    ],
)
def test_a_worker_that_was_taken_over_is_ended_and_believed_nothing(given: Given, said: bytes) -> None:
    program = f"import socket, sys; s = socket.socket(fileno=int(sys.argv[1])); s.recv(1 << 20); s.sendall({said!r})"

    with pytest.raises((Crashed, Rejected), match="expected"):
        start_worker(replace(given, program=("-c", program)))
