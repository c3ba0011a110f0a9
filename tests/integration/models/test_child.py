"""Whatever a model file does, the parent gets a value back."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from control_plane.training import Trained
from converters import onnx_writer
from skerry.errors import Broken, Rejected
from skerry.runtimes import Limits, Ran, Refused, RuntimeInfo, open_session, probe, run_in_child
from tests.tflite_files import FlatGraph, float_file

WINDOW = np.zeros((3, 100, 6), dtype=np.float32)
RUNTIMES = ["onnxruntime", "litert", "tflite-micro"]


def _need(runtime: str) -> None:
    if isinstance(missing := probe(runtime), Refused):
        pytest.skip(missing.reason)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("data", [b"", b"hello, I am not a model", bytes(5000), b"\x1c\x00\x00\x00TFL3" + bytes(500)])
def test_a_file_that_is_not_a_model_is_refused(tmp_path: Path, runtime: str, data: bytes) -> None:
    _need(runtime)
    file = tmp_path / "model"
    file.write_bytes(data)
    refused = run_in_child(runtime, file, {"window": WINDOW})
    assert isinstance(refused, Refused)
    assert "expected" in refused.reason
    assert "\n" not in refused.reason


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_truncated_model_is_refused(tmp_path: Path, first: Trained, runtime: str) -> None:
    _need(runtime)
    write = onnx_writer.write_float if runtime == "onnxruntime" else float_file
    file = tmp_path / "model"
    file.write_bytes(write(first.network)[:9000])
    assert isinstance(run_in_child(runtime, file, {"window": WINDOW}), Refused)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    refused = run_in_child("onnxruntime", tmp_path / "none.onnx")
    assert isinstance(refused, Refused)
    assert "expected a model file, got No such file" in refused.reason


def test_a_model_that_crashes_the_interpreter_comes_back_as_a_value(tmp_path: Path) -> None:
    _need("tflite-micro")
    graph = FlatGraph()
    graph.tensor("window", (1, 4))
    graph.tensor("probabilities", (1, 4))
    graph.operator("FULLY_CONNECTED", [0, 10**6, -1], 1)  # TFLite Micro believes the index and reads there
    file = tmp_path / "crash.tflite"
    file.write_bytes(graph.to_bytes(inputs={"window": 0}, outputs={"probabilities": 1}))
    refused = run_in_child("tflite-micro", file, {"window": np.zeros((1, 4), dtype=np.float32)})
    assert refused == Refused("expected the model to run, got a crash of the runtime by SIGSEGV")


def test_a_model_that_takes_too_long_is_stopped(tmp_path: Path, first: Trained) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(onnx_writer.write_float(first.network))
    refused = run_in_child("onnxruntime", file, {"window": WINDOW}, limits=Limits(wall_s=0.01))
    assert refused == Refused("expected the model to be done in 0.01 s, got a timeout")


def test_a_model_beyond_its_memory_is_refused(tmp_path: Path, first: Trained) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(onnx_writer.write_float(first.network))
    limits = Limits(address_space_bytes=120 << 20)
    assert isinstance(run_in_child("onnxruntime", file, {"window": WINDOW}, limits=limits), Refused)


def test_wrong_inputs_are_refused(tmp_path: Path, first: Trained) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(onnx_writer.write_float(first.network))
    for inputs in ({"windows": WINDOW}, {"window": WINDOW[:, :50]}, {"window": WINDOW.astype(np.float64)}):
        assert isinstance(run_in_child("onnxruntime", file, inputs), Refused)


def test_a_good_model_runs_every_row_and_is_measured(tmp_path: Path, first: Trained) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(onnx_writer.write_float(first.network))
    ran = run_in_child("onnxruntime", file, {"window": WINDOW})
    assert isinstance(ran, Ran)
    assert {name: array.shape for name, array in ran.outputs.items()} == {"probabilities": (3, 7), "features": (3, 30)}
    assert 0 < ran.latency_p50_us <= ran.latency_p99_us
    assert ran.peak_rss_bytes > 1 << 20
    assert ran.arena_bytes is None


def test_without_inputs_a_model_is_only_loaded(tmp_path: Path, first: Trained) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(onnx_writer.write_float(first.network))
    ran = run_in_child("onnxruntime", file)
    assert isinstance(ran, Ran)
    assert (ran.outputs, ran.latency_p50_us) == ({}, 0)


def test_the_child_sees_no_secret_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []
    original = subprocess.Popen

    def spy(*args: object, **options: object) -> object:
        seen.append(dict(options["env"]))  # type: ignore[call-overload] # a spy on any call
        return original(*args, **options)  # type: ignore[call-overload]

    monkeypatch.setenv("SKERRY_KEY_PASSPHRASE", "a secret")
    monkeypatch.setattr(subprocess, "Popen", spy)
    run_in_child("onnxruntime", tmp_path / "none.onnx")
    assert seen
    assert "a secret" not in seen[0].values()


@pytest.mark.parametrize(("runtime", "suffix"), [("onnxruntime", "onnx"), ("litert", "tflite")])
def test_a_file_that_is_not_a_model_is_rejected_in_process_too(tmp_path: Path, runtime: str, suffix: str) -> None:
    file = tmp_path / f"model.{suffix}"
    file.write_bytes(b"not a model at all")
    with pytest.raises(Rejected, match=r"expected an? .* model"):
        open_session(runtime, file)


def test_tflite_micro_never_runs_in_process(tmp_path: Path) -> None:
    _need("tflite-micro")
    file = tmp_path / "model.tflite"
    file.write_bytes(b"anything")
    with pytest.raises(Rejected, match="use run_in_child"):
        open_session("tflite-micro", file)


def test_an_installed_runtime_says_its_version() -> None:
    found = probe("onnxruntime")
    assert isinstance(found, RuntimeInfo)
    assert found.version[0].isdigit()


def test_a_missing_runtime_names_the_extra_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    reason = "expected the runtime onnxruntime, got none: pip install 'skerry[onnx]'"
    assert probe("onnxruntime") == Refused(reason)
    assert run_in_child("onnxruntime", tmp_path / "model.onnx") == Refused(reason)
    with pytest.raises(Broken, match="pip install"):
        open_session("onnxruntime", tmp_path / "model.onnx")


def test_an_unknown_runtime_lists_the_known_ones() -> None:
    known = "onnxruntime, litert, tflite-micro, tflite-runtime"
    assert probe("tensorrt") == Refused(f"runtime: expected one of {known}, got 'tensorrt'")


def test_importing_the_runtimes_imports_no_numpy() -> None:
    code = "import sys, skerry.runtimes; print(sorted({'numpy', 'onnxruntime', 'ai_edge_litert'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=dict(os.environ), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
