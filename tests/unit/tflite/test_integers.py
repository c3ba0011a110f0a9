"""The rules of TFLite's int8 specification, read back from what the writer wrote."""

from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from converters.tflite import write_tflite
from converters.tflite.calibrate import SCALE_BITS, Range, quantisation_of, rounded_up
from converters.tflite.quantise import symmetric

from .graphs import Array, Board, Graph, build, node, operators, run_onnx

RANDOM = np.random.default_rng(12)


def _normal(*shape: int) -> Array:
    return RANDOM.normal(size=shape, scale=0.4).astype(np.float32)


def _net(*, boundary: str = "") -> Graph:
    """Return scaling, a convolution, a depthwise one, pooling, a dense layer and a softmax."""
    nodes = [
        node("Mul", ["x", "gain"], ["scaled"]),
        node("Conv", ["scaled", "w", "b"], ["a"], pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["r"]),
        node("Conv", ["r", "d"], ["e"], group=4),
        node("AveragePool", ["e"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "v", "c"], ["l"], transB=1),
        node("Softmax", ["l"], ["y"]),
    ]
    weights = {
        "w": _normal(4, 2, 3, 3),
        "b": _normal(4),
        "d": _normal(4, 1, 3, 3),
        "v": _normal(3, 16),
        "c": _normal(3),
    }
    gain = np.asarray([1, 50], np.float32).reshape(1, 2, 1, 1)
    return build(nodes, {"x": (1, 2, 6, 6)}, ["y", "scaled"], boundary=boundary, constants=weights, gain=gain)


def _rows(count: int = 60) -> Array:
    return np.random.default_rng(5).normal(size=(count, 2, 6, 6)).astype(np.float32)


def _read(data: bytes) -> tuple[list[str], list[Any], list[Any], list[Any]]:
    """Return the kinds of operators, the operators, the tensors and the buffers of a model."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    return operators(data), model.subgraphs[0].operators, model.subgraphs[0].tensors, model.buffers


def _written(precision: str, *, boundary: str = "", dense_per_channel: bool = True) -> bytes:
    graph = _net(boundary=boundary)
    return write_tflite(graph, precision, calibration={"x": _rows()}, dense_per_channel=dense_per_channel)[0]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    global RANDOM  # noqa: PLW0603 -- every test draws the same weights
    RANDOM = np.random.default_rng(12)


def test_every_operator_between_the_edges_computes_in_integers() -> None:
    kinds, made, tensors, _ = _read(_written("int8"))
    assert kinds[0] == "QUANTIZE"
    for kind, operator in zip(kinds, made, strict=True):
        if kind not in ("QUANTIZE", "DEQUANTIZE"):
            assert all(tensors[index].type == schema.TensorType.INT8 for index in operator.outputs), kind


def test_weights_are_symmetric_with_a_scale_per_output_channel_and_biases_have_the_scale_of_the_products() -> None:
    kinds, made, tensors, buffers = _read(_written("int8"))
    axes = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}
    assert set(axes) <= set(kinds)
    for kind, operator in zip(kinds, made, strict=True):
        if kind not in axes:
            continue
        entering, weights, bias = (tensors[index] for index in operator.inputs)
        scales = weights.quantization.scale
        assert weights.quantization.quantizedDimension == axes[kind]
        assert len(scales) == weights.shape[axes[kind]]
        assert not np.any(weights.quantization.zeroPoint)
        assert buffers[weights.buffer].data.view(np.int8).min() >= -127
        assert bias.type == schema.TensorType.INT32
        assert np.allclose(bias.quantization.scale, scales * entering.quantization.scale[0], rtol=1e-6)


def test_a_dense_layer_has_one_scale_for_old_runtimes() -> None:
    kinds, made, tensors, _ = _read(_written("int8", dense_per_channel=False))
    dense = made[kinds.index("FULLY_CONNECTED")]
    assert len(tensors[dense.inputs[1]].quantization.scale) == 1
    convolution = made[kinds.index("CONV_2D")]
    assert len(tensors[convolution.inputs[1]].quantization.scale) == 4


def test_softmax_has_its_fixed_scale_and_pooling_that_of_its_input() -> None:
    kinds, made, tensors, _ = _read(_written("int8"))
    softmax = tensors[made[kinds.index("SOFTMAX")].outputs[0]].quantization
    assert (softmax.scale[0], softmax.zeroPoint[0]) == (1 / 256, -128)
    pool = made[kinds.index("AVERAGE_POOL_2D")]
    before, after = (tensors[index].quantization for index in (pool.inputs[0], pool.outputs[0]))
    assert (before.scale[0], before.zeroPoint[0]) == (after.scale[0], after.zeroPoint[0])


def test_a_hybrid_is_float_up_to_its_boundary_and_in_its_softmax() -> None:
    graph = _net(boundary="scaled")
    data, recipe = write_tflite(graph, "int8-hybrid", calibration={"x": _rows()})
    kinds = operators(data)
    assert kinds[0] == "MUL"
    assert kinds[-2:] == ["DEQUANTIZE", "SOFTMAX"]
    assert kinds.count("QUANTIZE") == 1
    assert recipe["boundary"] == "scaled"
    assert recipe["float_operators"] == "MUL, SOFTMAX"
    assert 0 < float(recipe["step:y"]) < 0.5
    row = {"x": _rows(1)}
    got, expected = Board(data).run(row), run_onnx(graph.data, row)
    assert np.array_equal(got["scaled"], expected["scaled"])
    assert np.abs(got["y"] - expected["y"]).max() < 0.1


def test_int8_weights_alone_leave_activations_in_floats() -> None:
    kinds, made, tensors, _ = _read(_written("int8-dynamic"))
    assert "QUANTIZE" not in kinds
    for kind, operator in zip(kinds, made, strict=True):
        assert tensors[operator.outputs[0]].type == schema.TensorType.FLOAT32
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            assert tensors[operator.inputs[1]].type == schema.TensorType.INT8


def test_an_operator_without_integers_stays_float_between_conversions() -> None:
    nodes = [node("Relu", ["x"], ["r"]), node("Exp", ["r"], ["e"]), node("Relu", ["e"], ["y"])]
    graph = build(nodes, {"x": (1, 8)}, ["y"])
    data, recipe = write_tflite(graph, "int8", calibration={"x": _rows(20).reshape(-1, 8)})
    assert operators(data) == ["QUANTIZE", "RELU", "DEQUANTIZE", "EXP", "QUANTIZE", "RELU", "DEQUANTIZE"]
    assert recipe["float_operators"] == "EXP"


def test_what_is_joined_arrives_at_one_scale() -> None:
    nodes = [
        node("Mul", ["x", "ten"], ["a"]),
        node("Concat", ["a", "x"], ["c"], axis=1),
        node("Relu", ["c"], ["y"]),
    ]
    graph = build(nodes, {"x": (1, 8)}, ["y"], ten=10.0)
    kinds, made, tensors, _ = _read(write_tflite(graph, "int8", calibration={"x": _rows(20).reshape(-1, 8)})[0])
    joined = made[kinds.index("CONCATENATION")]
    scales = {tensors[index].quantization.scale[0] for index in (*joined.inputs, *joined.outputs)}
    assert len(scales) == 1


@pytest.mark.parametrize("precision", ["float32", "int8", "int8-hybrid", "int8-dynamic"])
def test_equal_arguments_give_equal_bytes_and_a_recipe_that_says_so(precision: str) -> None:
    graph = _net(boundary="scaled")
    once, again = (write_tflite(graph, precision, calibration={"x": _rows()}) for _ in range(2))
    assert once == again
    assert once[1]["precision"] == precision


def test_integers_are_a_quarter_of_the_floats_where_weights_are_many() -> None:
    graph = build([node("MatMul", ["x", "w"], ["y"])], {"x": (1, 256)}, ["y"], w=_normal(256, 64))
    rows = np.random.default_rng(2).normal(size=(30, 256)).astype(np.float32)
    sizes = {each: len(write_tflite(graph, each, calibration={"x": rows})[0]) for each in ("float32", "int8")}
    assert sizes["int8"] < 0.32 * sizes["float32"]


def test_a_range_holds_zero_exactly_and_every_value_it_covers() -> None:
    for low, high in ((-3.0, 5.0), (0.5, 2.0), (-7.0, -1.0), (0.0, 0.0)):
        quantisation = quantisation_of(low, high)
        scale, zero = quantisation.scales[0], quantisation.zero_point
        assert -128 <= zero <= 127
        assert scale * (127 - zero) >= max(high, 0) - scale
        assert scale * (-128 - zero) <= min(low, 0) + scale


def test_scales_have_few_bits_so_that_other_processors_write_the_same_bytes() -> None:
    for value in (0.1, 1.0, 3.7e-5):
        scale = rounded_up(value)
        assert value <= scale <= value * (1 + 2.0 ** (1 - SCALE_BITS))
        assert rounded_up(value * (1 - 1e-9)) == scale


def test_a_range_can_leave_rare_extremes_out() -> None:
    values = np.concatenate([np.linspace(-1, 1, 10_000), [1_000.0]])
    seen = Range(-1.0, 1_000.0, values)
    assert seen.quantisation(1.0).scales[0] > 3.9
    assert seen.quantisation(0.999).scales[0] < 0.01


def test_weights_without_values_have_a_scale_that_divides() -> None:
    integers, quantisation = symmetric(np.zeros((2, 3), np.float32), 0)
    assert not integers.any()
    assert quantisation.scales == (1.0, 1.0)


def test_a_bias_beyond_its_products_widens_the_scale_of_its_weights() -> None:
    graph = build(
        [node("Gemm", ["x", "w", "b"], ["y"])],
        {"x": (1, 2)},
        ["y"],
        w=np.full((2, 1), 1e-7, np.float32),
        b=1e6 * np.ones(1, np.float32),
    )
    rows = np.random.default_rng(0).normal(size=(20, 2), scale=1e-3).astype(np.float32)
    small = Graph(graph.data)
    board = Board(write_tflite(small, "int8", calibration={"x": rows})[0])
    assert np.isclose(board.run({"x": rows[:1]})["y"].item(), 1e6, rtol=0.01)
