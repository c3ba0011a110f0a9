"""Every precision of an ONNX source: what it is, how near it stays, and that it is made again byte for byte."""

import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters.checks import check_contents, onnx_operators
from converters.fold import run
from converters.network import Network
from converters.normalise import normalise
from converters.onnx_candidates import PRECISIONS, write_onnx
from converters.samples import Array
from converters.source import Source, from_network, source_of
from firmware_profiles import load_profile
from skerry.errors import Rejected

Build = Callable[..., bytes]
node = helper.make_node
GATEWAY = load_profile("x86-64-gateway")


@pytest.fixture(scope="module")
def source(network: Network) -> Source:
    """The small network as a source."""
    return from_network(network)


@pytest.fixture(scope="module")
def convolution() -> Source:
    """A 2-D convolutional net without preprocessing: no boundary."""
    rng = np.random.default_rng(2)
    constants = {
        "k": rng.normal(size=(16, 1, 3, 3)) / 3,
        "l": rng.normal(size=(32, 16, 3, 3)) / 12,
        "w": rng.normal(size=(32, 4)) / 6,
    }
    graph = helper.make_graph(
        [
            node("Conv", ["x", "k"], ["a"], pads=[1, 1, 1, 1]),
            node("Relu", ["a"], ["b"]),
            node("Conv", ["b", "l"], ["c"]),
            node("Relu", ["c"], ["d"]),
            node("GlobalAveragePool", ["d"], ["e"]),
            node("Flatten", ["e"], ["f"]),
            node("Gemm", ["f", "w"], ["g"]),
            node("Softmax", ["g"], ["p"]),
        ],
        "cnn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 1, 12, 12))],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ("n", 4))],
        initializer=[numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return source_of(normalise(model.SerializeToString()), labels=("a", "b", "c", "d"), probabilities="p")


def _run(data: bytes, rows: dict[str, Array]) -> dict[str, Array]:
    model = onnx.ModelProto.FromString(data)
    count = len(next(iter(rows.values())))
    results = [run(model, {name: each[i : i + 1] for name, each in rows.items()}) for i in range(count)]
    return {name: np.concatenate([result[name] for result in results]) for name in results[0]}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("vnni", [True, False])
def test_a_precision_is_allowed_near_and_made_again_byte_for_byte(
    source: Source, windows: Array, precision: str, vnni: bool
) -> None:
    rows = {"window": windows}
    data, recipe = write_onnx(source, precision, calibration=rows, vnni=vnni)
    assert write_onnx(source, precision, calibration=rows, vnni=vnni) == (data, recipe)
    assert check_contents(data, GATEWAY) == "ONNX opset 17"
    assert recipe["precision"] == precision
    expected, got = _run(source.data, {"window": windows[:50]}), _run(data, {"window": windows[:50]})
    # half the weights gone is for the gate to judge; what quantises alone must keep to the labels
    floor = 0.6 if precision.startswith("pruned") else 0.9
    assert np.mean(got["probabilities"].argmax(1) == expected["probabilities"].argmax(1)) >= floor
    # preprocessing ends at the boundary, so the features are those of the float model
    assert np.allclose(got["features"], expected["features"], atol=1e-5)


def test_integers_and_halves_are_smaller_and_what_they_say_they_are(source: Source, windows: Array) -> None:
    kinds = {}
    for precision in ("float32", "int8-qdq", "int8-qoperator", "int8-dynamic", "fp16", "fp16-weights"):
        data, _ = write_onnx(source, precision, calibration={"window": windows}, vnni=True)
        kinds[precision] = (onnx_operators(data), len(data))
    sizes = {precision: size for precision, (_, size) in kinds.items()}
    assert max(size for precision, size in sizes.items() if precision != "float32") < 0.75 * sizes["float32"]
    assert kinds["int8-qdq"][0]["DequantizeLinear"] > 3
    assert kinds["int8-qoperator"][0]["com.microsoft.QGemm"] == 3
    assert kinds["int8-dynamic"][0]["MatMulInteger"] == 3
    assert kinds["fp16-weights"][0]["Cast"] == 4  # three weights, and the one bias of 64 elements


def test_int8_weights_are_per_channel_and_of_seven_bits_without_vnni(convolution: Source) -> None:
    rows = {"x": np.random.default_rng(3).normal(size=(40, 1, 12, 12)).astype(np.float32)}
    extremes = {}
    for vnni in (True, False):
        data, recipe = write_onnx(convolution, "int8-qdq", calibration=rows, vnni=vnni)
        assert recipe["reduce_range"] == str(not vnni).lower()
        tensors = onnx.ModelProto.FromString(data).graph.initializer
        weights = [numpy_helper.to_array(each) for each in tensors if each.data_type == TensorProto.INT8 and each.dims]
        kernels = [each for each in weights if each.ndim == 4]
        extremes[vnni] = max(int(np.abs(each.astype(np.int32)).max()) for each in kernels)
        # per channel: the largest weight of each output channel reaches the end of the range
        assert all((np.abs(each.astype(int)).reshape(len(each), -1).max(1) >= 63).all() for each in kernels)
    assert extremes[True] >= 127
    assert extremes[False] <= 64


def test_the_last_softmax_stays_float(convolution: Source) -> None:
    rows = {"x": np.random.default_rng(3).normal(size=(40, 1, 12, 12)).astype(np.float32)}
    data, recipe = write_onnx(convolution, "int8-qdq", calibration=rows, vnni=True)
    graph = onnx.ModelProto.FromString(data).graph
    assert graph.node[-1].op_type == "Softmax"
    assert recipe["float"] == "Softmax_p"


def test_calibration_rows_beyond_the_cap_change_nothing_but_the_choice(source: Source, windows: Array) -> None:
    _, recipe = write_onnx(source, "int8-qdq", calibration={"window": np.tile(windows, (5, 1, 1))}, vnni=True)
    assert recipe["calibration"] == "MinMax over 512 rows"


def test_pruning_zeroes_half_of_each_weight_and_nothing_else(source: Source, windows: Array) -> None:
    data, recipe = write_onnx(source, "pruned-50", calibration={"window": windows}, vnni=True)
    before = {
        each.name: numpy_helper.to_array(each) for each in onnx.ModelProto.FromString(source.data).graph.initializer
    }
    after = {each.name: numpy_helper.to_array(each) for each in onnx.ModelProto.FromString(data).graph.initializer}
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"weights_0", "weights_1", "weights_2"}
    for name in changed:
        gone = after[name] == 0
        assert gone.mean() == 0.5
        assert np.abs(before[name][gone]).max() <= np.abs(before[name][~gone]).min()
    assert recipe["pruned"] == "0.5 of 3 weights by magnitude"


@pytest.mark.parametrize("precision", [each for each in PRECISIONS if each != "float32"])
def test_what_has_nothing_to_convert_is_refused_not_copied(build: Build, precision: str) -> None:
    data = build([node("Abs", ["x"], ["y"])], {"x": (1, 4)}, {"y": None})
    with pytest.raises(Rejected, match=r"expected .*(got none|none to quantise)"):
        write_onnx(
            source_of(normalise(data)), precision, calibration={"x": np.ones((2, 4), dtype=np.float32)}, vnni=True
        )


def test_a_model_that_is_quantised_already_is_not_quantised_again(source: Source, windows: Array) -> None:
    data, _ = write_onnx(source, "int8-qdq", calibration={"window": windows}, vnni=True)
    with pytest.raises(Rejected, match="quantised already"):
        write_onnx(replace(source, data=data), "int8-dynamic", calibration={"window": windows}, vnni=True)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ({}, "expected rows for window, got"),
        ({"wrong": np.ones((2, 20, 2), dtype=np.float32)}, "expected rows for window, got wrong"),
        ({"window": np.ones((0, 20, 2), dtype=np.float32)}, "one or more"),
    ],
)
def test_calibration_that_does_not_fit_is_refused(source: Source, calibration: dict[str, Array], message: str) -> None:
    with pytest.raises(Rejected, match=message):
        write_onnx(source, "int8-qdq", calibration=calibration, vnni=True)


def test_an_unknown_precision_and_a_tflite_source_are_refused(source: Source) -> None:
    with pytest.raises(Rejected, match="precision: expected one of float32"):
        write_onnx(source, "int4", calibration={}, vnni=True)
    with pytest.raises(Rejected, match="TFLite profiles only"):
        write_onnx(replace(source, format="tflite"), "float32", calibration={}, vnni=True)


def test_the_quantiser_leaves_no_file_no_line_and_no_setting_behind(
    source: Source, windows: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    filters, disabled = list(warnings.filters), logging.root.manager.disable
    for precision in ("int8-qdq", "int8-qoperator", "int8-dynamic"):
        write_onnx(source, precision, calibration={"window": windows}, vnni=False)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert (list(warnings.filters), logging.root.manager.disable) == (filters, disabled)


def test_a_profile_that_names_operators_takes_no_others(source: Source, windows: Array) -> None:
    narrow = replace(GATEWAY, operators=tuple(sorted(onnx_operators(source.data))))
    assert check_contents(source.data, narrow)
    data, _ = write_onnx(source, "int8-qdq", calibration={"window": windows}, vnni=True)
    with pytest.raises(Rejected, match="only operators of x86-64-gateway, got DequantizeLinear, QuantizeLinear"):
        check_contents(data, narrow)
    assert isinstance(onnx_operators(data), Counter)
