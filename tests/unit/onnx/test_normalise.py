"""Any ONNX file comes out in one form, which computes the same."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from converters.fold import run
from converters.normalise import normalise
from skerry.errors import Rejected

Build = Callable[..., bytes]
node = helper.make_node


def _graph(data: bytes) -> onnx.GraphProto:
    return onnx.ModelProto.FromString(data).graph


def _shape(info: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def test_an_open_batch_becomes_one_and_every_shape_is_known(build: Build) -> None:
    data = build(
        [node("Relu", ["x"], ["h"]), node("Gemm", ["h", "w"], ["y"])],
        {"x": ("batch", 4)},
        {"y": ("batch", 3)},
        {"w": _random(4, 3)},
    )
    model = onnx.ModelProto.FromString(normalise(data))
    assert (model.ir_version, [(entry.domain, entry.version) for entry in model.opset_import]) == (8, [("", 17)])
    assert _shape(model.graph.input[0]) == (1, 4)
    assert _shape(model.graph.output[0]) == (1, 3)
    assert {info.name: _shape(info) for info in model.graph.value_info} == {"h": (1, 4)}


@pytest.mark.parametrize("shape", [(1, "time", 3), ("batch", None), (1, -1)])
def test_an_open_dimension_that_is_no_batch_is_refused_with_the_way_out(
    build: Build, shape: tuple[object, ...]
) -> None:
    data = build([node("Relu", ["x"], ["y"])], {"x": shape}, {"y": None})
    with pytest.raises(
        Rejected, match=r"input 'x': expected no open dimension but the batch.*give its shape, such as x="
    ):
        normalise(data)


def test_a_given_shape_closes_open_dimensions_and_must_fit_the_closed_ones(build: Build) -> None:
    data = build([node("Relu", ["x"], ["y"])], {"x": (1, "time", 3)}, {"y": None})
    assert _shape(_graph(normalise(data, shapes={"x": (1, 5, 3)})).output[0]) == (1, 5, 3)
    for shape in ((1, 5, 4), (1, 5), (1, 0, 3), (1, 1 << 30, 3)):
        with pytest.raises(Rejected, match="expected a shape that fits"):
            normalise(data, shapes={"x": shape})
    with pytest.raises(Rejected, match="expected inputs of the model"):
        normalise(data, shapes={"z": (1, 5, 3)})


def test_an_input_without_a_leading_one_is_given_one(build: Build) -> None:
    data = build([node("Neg", ["state"], ["next"])], {"state": (2, 3)}, {"next": (2, 3)})
    out = normalise(data)
    graph = _graph(out)
    assert (_shape(graph.input[0]), _shape(graph.output[0])) == ((1, 2, 3), (1, 2, 3))
    row = _random(1, 2, 3)
    assert np.array_equal(run(onnx.ModelProto.FromString(out), {"state": row})["next"], -row)


def test_what_does_not_depend_on_inputs_is_folded(build: Build) -> None:
    """The chain of Shape, Gather and Concat that exporters write for a flatten is one constant afterwards."""
    data = build(
        [
            node("Constant", [], ["zero"], value=helper.make_tensor("", TensorProto.INT64, [1], [0])),
            node("Shape", ["x"], ["shape"]),
            node("Gather", ["shape", "zero"], ["first"]),
            node("Concat", ["first", "rest"], ["wanted"], axis=0),
            node("Identity", ["x"], ["same"]),
            node("Dropout", ["same"], ["kept", "mask"]),
            node("Reshape", ["kept", "wanted"], ["y"]),
        ],
        {"x": ("batch", 2, 3)},
        {"y": None},
        {"rest": np.asarray([-1], dtype=np.int64), "unused": _random(100)},
    )
    graph = _graph(normalise(data))
    assert [each.op_type for each in graph.node] == ["Reshape"]
    assert len(graph.initializer) == 1
    assert _shape(graph.output[0]) == (1, 6)


def test_a_batch_normalisation_goes_into_its_convolution(build: Build) -> None:
    constants = {"w": _random(4, 2, 3), "b": _random(4)} | {name: _random(4) for name in ("scale", "shift", "mean")}
    constants["variance"] = np.abs(_random(4)) + 0.5
    data = build(
        [
            node("Conv", ["x", "w", "b"], ["c"]),
            node("BatchNormalization", ["c", "scale", "shift", "mean", "variance"], ["y"], epsilon=0.01),
        ],
        {"x": ("n", 2, 8)},
        {"y": None},
        constants,
    )
    out = normalise(data)
    assert [each.op_type for each in _graph(out).node] == ["Conv"]
    row = {"x": _random(1, 2, 8)}
    expected = run(onnx.ModelProto.FromString(data), row)["y"]
    assert np.allclose(run(onnx.ModelProto.FromString(out), row)["y"], expected, atol=1e-5)


def test_an_integer_weight_is_not_folded_back_to_float(build: Build) -> None:
    data = build(
        [node("DequantizeLinear", ["q", "scale"], ["w"]), node("MatMul", ["x", "w"], ["y"])],
        {"x": (1, 4)},
        {"y": None},
        {"q": np.ones((4, 4), dtype=np.int8), "scale": np.asarray(0.5, dtype=np.float32)},
    )
    assert [each.op_type for each in _graph(normalise(data)).node] == ["DequantizeLinear", "MatMul"]


def test_equal_models_give_equal_bytes_whatever_made_them(build: Build) -> None:
    nodes = [node("Relu", ["x"], ["h"]), node("MatMul", ["h", "w"], ["y"])]
    data = build(nodes, {"x": (1, 4)}, {"y": (1, 4)}, {"w": _random(4, 4)})
    once = normalise(data)
    model = onnx.ModelProto.FromString(data)
    model.producer_name, model.doc_string, model.graph.name = "someone", "today", "theirs"
    model.graph.node[0].doc_string = "/home/someone/train.py, line 7"
    model.metadata_props.add(key="date", value="today")
    assert normalise(model.SerializeToString()) == once
    assert normalise(once) == once


def test_the_constants_of_old_files_are_no_inputs(build: Build) -> None:
    data = build([node("MatMul", ["x", "w"], ["y"])], {"x": (1, 4), "w": (4, 2)}, {"y": None}, {"w": _random(4, 2)})
    assert [each.name for each in _graph(normalise(data)).input] == ["x"]


def test_labels_and_texts_are_dropped_beside_probabilities(build: Build) -> None:
    data = build(
        [node("Softmax", ["x"], ["p"]), node("ArgMax", ["p"], ["label"], axis=1, keepdims=0)],
        {"x": ("n", 3)},
        {"label": None, "p": None},
        kinds={"label": TensorProto.INT64},
    )
    assert [each.name for each in _graph(normalise(data)).output] == ["p"]


def test_an_argmax_alone_is_what_the_model_is_for(build: Build) -> None:
    data = build([node("ArgMax", ["x"], ["y"], axis=1)], {"x": ("n", 3)}, {"y": None}, kinds={"y": TensorProto.INT64})
    assert [each.name for each in _graph(normalise(data)).output] == ["y"]


@pytest.mark.parametrize("opset", range(7, 24))
def test_every_opset_from_7_to_23_comes_down_or_up_to_17(build: Build, opset: int) -> None:
    data = build(
        [node("Relu", ["x"], ["h"]), node("Gemm", ["h", "w", "b"], ["y"])],
        {"x": ("n", 4)},
        {"y": None},
        {"w": _random(4, 3), "b": _random(3)},
        opset=opset,
    )
    out = normalise(data)
    row = {"x": _random(1, 4)}
    assert onnx.ModelProto.FromString(out).opset_import[0].version == 17
    expected = np.maximum(row["x"], 0) @ _random(4, 3) + _random(3)
    assert np.allclose(run(onnx.ModelProto.FromString(out), row)["y"], expected, atol=1e-5)


@pytest.mark.parametrize("opset", [6, 24])
def test_an_opset_beyond_is_refused(build: Build, opset: int) -> None:
    data = build([node("Relu", ["x"], ["y"])], {"x": (1, 4)}, {"y": None}, opset=opset)
    with pytest.raises(Rejected, match=r"expected .*opset"):
        normalise(data)


def test_a_graph_whose_shapes_do_not_fit_is_refused_in_one_line(build: Build) -> None:
    data = build([node("MatMul", ["x", "w"], ["y"])], {"x": (1, 4)}, {"y": None}, {"w": _random(5, 2)})
    with pytest.raises(Rejected, match="expected shapes that fit each other") as caught:
        normalise(data)
    assert "\n" not in str(caught.value)
