"""Nothing is moved that need not be: transposes appear only where an output or a reshape asks for ONNX's order."""

import numpy as np
import pytest

from converters.tflite import write_tflite
from converters.tflite.layout import arrange, channels_last, holds, order_of, plain, stored_shape

from .graphs import Array, Board, assert_close, build, node, operators, run_onnx


def _normal(*shape: int) -> Array:
    return np.random.default_rng(3).normal(size=shape, scale=0.4).astype(np.float32)


def test_a_convolutional_net_that_ends_in_a_dense_layer_has_no_transpose_behind_its_input() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["a", "g", "g", "g", "v"], ["b"]),
        node("Relu", ["b"], ["c"]),
        node("Conv", ["c", "w2"], ["d"], pads=[1, 1, 1, 1]),
        node("Add", ["d", "c"], ["e"]),
        node("MaxPool", ["e"], ["f"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", ["f"], ["h"]),
        node("Gemm", ["h", "w3"], ["y"], transB=1),
    ]
    weights = {"w": _normal(6, 1, 3, 3), "w2": _normal(6, 6, 3, 3), "w3": _normal(4, 54)}
    graph = build(nodes, {"x": (1, 1, 6, 6)}, ["y"], constants=weights, g=_normal(6), v=np.abs(_normal(6)) + 0.5)
    data, _ = write_tflite(graph, "float32", calibration={})
    kinds = operators(data)
    assert kinds == ["RESHAPE", "CONV_2D", "CONV_2D", "ADD", "MAX_POOL_2D", "RESHAPE", "FULLY_CONNECTED"]
    row = {"x": np.random.default_rng(1).normal(size=(1, 1, 6, 6)).astype(np.float32)}
    assert_close(Board(data).run(row), run_onnx(graph.data, row))


def test_a_window_of_time_by_channels_enters_a_1_d_convolution_without_a_transpose() -> None:
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        node("Conv", ["t", "w"], ["c"]),
        node("GlobalAveragePool", ["c"], ["p"]),
        node("Squeeze", ["p", "last"], ["y"]),
    ]
    graph = build(nodes, {"x": (1, 20, 4)}, ["y"], w=_normal(5, 4, 3), last=np.asarray([2]))
    data, _ = write_tflite(graph, "float32", calibration={})
    assert "TRANSPOSE" not in operators(data)
    row = {"x": np.random.default_rng(1).normal(size=(1, 20, 4)).astype(np.float32)}
    assert_close(Board(data).run(row), run_onnx(graph.data, row))


@pytest.mark.parametrize("kind", ["Softmax", "ReduceMean"])
def test_an_axis_is_found_wherever_it_is_stored(kind: str) -> None:
    given = {"axis": 1} if kind == "Softmax" else {"axes": [1], "keepdims": 1}
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node(kind, ["c"], ["s"], **given),
        node("ReduceMax", ["s"], ["y"], axes=[2, 3]),
    ]
    graph = build(nodes, {"x": (1, 1, 6, 6)}, ["y"], w=_normal(4, 1, 3, 3))
    data, _ = write_tflite(graph, "float32", calibration={})
    # the one axis that is larger than 1 needs no moving either
    assert "TRANSPOSE" not in operators(data)
    row = {"x": np.random.default_rng(1).normal(size=(1, 1, 6, 6)).astype(np.float32)}
    assert_close(Board(data).run(row), run_onnx(graph.data, row))


def test_a_value_that_is_read_in_two_orders_is_moved_once() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Reshape", ["c", "rows"], ["r"]),
        node("Reshape", ["c", "columns"], ["s"]),
        node("Relu", ["r"], ["y"]),
        node("Relu", ["s"], ["z"]),
    ]
    shapes = {"rows": np.asarray([1, 4, 16]), "columns": np.asarray([1, 16, 4])}
    graph = build(nodes, {"x": (1, 1, 6, 6)}, ["y", "z"], constants=shapes, w=_normal(4, 1, 3, 3))
    assert operators(write_tflite(graph, "float32", calibration={})[0]).count("TRANSPOSE") == 1


def test_constants_are_arranged_as_values_are() -> None:
    image = np.arange(24).reshape(1, 2, 3, 4)
    assert np.array_equal(arrange(image, channels_last(4)), image.transpose(0, 2, 3, 1))
    series = np.arange(6).reshape(1, 2, 3)
    assert np.array_equal(arrange(series, channels_last(3)), series.transpose(0, 2, 1)[:, None])
    assert stored_shape(channels_last(3), (1, 2, 3)) == (1, 1, 3, 2)


def test_an_order_holds_a_shape_when_every_larger_axis_has_a_place() -> None:
    assert holds((2, 1), (1, 3, 4))
    assert not holds((0, 1), (1, 3, 4))
    assert order_of(channels_last(4), (1, 2, 1, 4)) == (3, 1)
    assert order_of(plain(3), (1, 2, 3)) == (1, 2)
