"""The port takes any names, any number of inputs and any dtype that a model has, and says what they are."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from skerry.errors import Broken
from skerry.runtimes import Ran, Refused, Tensor, open_session, race_in_child, run_in_child

from .conftest import Array, need, onnx_model, tflite_add

Save = Callable[[bytes], Path]
TFLITE = ("litert", "tflite-micro")


def _ran(runtime: str, file: Path, inputs: dict[str, Array]) -> Ran:
    ran = run_in_child(runtime, file, inputs)
    assert isinstance(ran, Ran), ran.reason
    return ran


@pytest.mark.parametrize("runtime", TFLITE)
def test_two_inputs_are_told_apart_by_name(saved: Save, runtime: str) -> None:
    need(runtime)
    a, b = np.arange(12, dtype=np.float32).reshape(3, 4), np.full((3, 4), 100, dtype=np.float32)
    ran = _ran(runtime, saved(tflite_add("float32")), {"b": b, "a": a})
    np.testing.assert_array_equal(ran.outputs["sum"], a + b)
    assert [each.name for each in ran.signature.inputs] == ["a", "b"]


@pytest.mark.parametrize("runtime", TFLITE)
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_integers_go_in_and_come_out_with_their_scale_beside_them(saved: Save, runtime: str, dtype: str) -> None:
    need(runtime)
    if (runtime, dtype) == ("tflite-micro", "uint8"):
        refused = run_in_child(runtime, saved(tflite_add(dtype)), {"a": np.zeros((1, 4), np.uint8)})
        assert isinstance(refused, Refused)  # TFLite Micro has no uint8 kernel for it, and says so
        return
    rows = np.full((5, 4), 5, dtype=dtype)
    ran = _ran(runtime, saved(tflite_add(dtype)), {"a": rows, "b": rows})
    # (5 - 3) * .5 twice is 2, which is 2 / .5 + 3
    assert (ran.outputs["sum"].dtype, ran.outputs["sum"].tolist()) == (np.dtype(dtype), [[7] * 4] * 5)
    assert ran.signature.outputs == (Tensor("sum", (1, 4), dtype, scale=0.5, zero_point=3),)


@pytest.mark.parametrize("runtime", TFLITE)
def test_a_wrong_dtype_or_name_is_a_refusal(saved: Save, runtime: str) -> None:
    need(runtime)
    file, right = saved(tflite_add("int8")), np.zeros((1, 4), dtype=np.int8)
    wrong: tuple[dict[str, Array], ...] = ({"a": right.astype(np.float32), "b": right}, {"a": right}, {"c": right})
    for inputs in wrong:
        assert isinstance(run_in_child(runtime, file, inputs), Refused)


@pytest.mark.parametrize("runtime", TFLITE)
def test_names_that_repeat_or_are_empty_get_a_position(saved: Save, runtime: str) -> None:
    need(runtime)
    rows = np.ones((2, 4), dtype=np.float32)
    ran = _ran(runtime, saved(tflite_add("float32", names=("x", "x", ""))), {"x#0": rows, "x#1": rows})
    assert ran.outputs["#0"].tolist() == [[2.0] * 4] * 2


def test_fp16_goes_in_and_comes_out_of_onnx_runtime(saved: Save) -> None:
    from onnx import TensorProto, helper

    shape = (TensorProto.FLOAT16, [1, 4])
    model = onnx_model(
        [helper.make_node("Add", ["file", "b"], ["out/1"])], {"file": shape, "b": shape}, {"out/1": shape}
    )
    rows = np.ones((3, 4), dtype=np.float16)
    ran = _ran("onnxruntime", saved(model), {"file": rows, "b": rows})
    assert (ran.outputs["out/1"].dtype, ran.outputs["out/1"].tolist()) == (np.dtype(np.float16), [[2.0] * 4] * 3)
    assert ran.signature.inputs[0] == Tensor("file", (1, 4), "float16")


def test_a_state_that_a_model_hands_out_goes_back_in_as_an_input(saved: Save) -> None:
    from onnx import TensorProto, helper

    shape = (TensorProto.FLOAT, [1, 1])
    nodes = [helper.make_node("Add", ["x", "state"], ["next"]), helper.make_node("Neg", ["next"], ["y"])]
    session = open_session(
        "onnxruntime", saved(onnx_model(nodes, {"x": shape, "state": shape}, {"y": shape, "next": shape}))
    )
    state = np.zeros((1, 1), dtype=np.float32)
    answers = []
    for value in (1, 2, 3):
        outputs = session.run({"x": np.full((1, 1), value, dtype=np.float32), "state": state})
        state = outputs["next"]
        answers.append(outputs["y"].item())
    session.close()
    assert answers == [-1, -3, -6]


def test_the_memory_of_a_model_is_told_apart_from_the_runtimes(saved: Save) -> None:
    from onnx import TensorProto, helper

    shape, rows = (TensorProto.FLOAT, [1, 1024]), np.zeros((3, 1024), dtype=np.float32)
    sizes = {}
    for width in (8, 8192):
        weights = {"w": np.ones((1024, width), dtype=np.float32), "v": np.ones((width, 1024), dtype=np.float32)}
        nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])]
        ran = _ran("onnxruntime", saved(onnx_model(nodes, {"x": shape}, {"y": shape}, weights)), {"x": rows})
        sizes[width] = ran.growth_bytes
        assert ran.growth_bytes < ran.peak_rss_bytes
    # 64 MiB of weights, read into a file's buffer and then the runtime's own
    assert sizes[8] < 32 << 20 < 64 << 20 < sizes[8192]


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8"])
def test_the_legacy_runtime_runs_by_its_own_python(saved: Save, legacy: str, dtype: str) -> None:
    rows = np.full((5, 4), 5, dtype=dtype)
    ran = _ran("tflite-runtime", saved(tflite_add(dtype)), {"a": rows, "b": rows})
    assert ran.outputs["sum"].tolist() == [[10 if dtype == "float32" else 7] * 4] * 5
    assert ran.growth_bytes < ran.peak_rss_bytes


def test_the_legacy_runtime_races_too_and_refuses_what_it_cannot_load(saved: Save, legacy: str) -> None:
    rows = np.ones((5, 4), dtype=np.float32)
    file = saved(tflite_add("float32"))
    raced = race_in_child("tflite-runtime", file, file, {"a": rows, "b": rows}, pairs=30, seconds=5)
    assert not isinstance(raced, Refused), raced.reason
    assert len(raced.model_us) == len(raced.rival_us) == 30
    refused = run_in_child("tflite-runtime", saved(b"\x1c\0\0\0TFL3" + bytes(60)), {"a": rows})
    assert isinstance(refused, Refused)


def test_a_runtime_of_another_python_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skerry.runtimes.onnx", None)

    with pytest.raises(Broken, match="expected a runtime onnxruntime for this Python and machine, got: "):
        open_session("onnxruntime", b"any")
