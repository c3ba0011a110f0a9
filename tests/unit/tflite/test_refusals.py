"""What has no TFLite form is refused by operator and node, and offered as "ONNX profiles only"."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from converters.tflite import Unsupported, write_tflite
from skerry.errors import Rejected

from .cases import CASES, normal
from .graphs import Graph, build, node


def _of(*nodes: Any, shape: tuple[int, ...] = (1, 2, 6), **constants: Any) -> Graph:
    return build(list(nodes), {"x": shape}, [nodes[-1].output[0]], constants=constants)


REFUSED: dict[str, tuple[Callable[[], Graph], str]] = {
    "an unknown operator": (
        lambda: _of(node("Relu", ["x"], ["r"]), node("Asinh", ["r"], ["y"], name="bend")),
        "Asinh (node 1, bend): expected an operator that TFLite has here, got Asinh: ONNX profiles only",
    ),
    "a convolution in three dimensions": (
        lambda: _of(node("Conv", ["x", "w"], ["y"]), shape=(1, 1, 4, 4, 4), w=normal(1, 1, 2, 2, 2)),
        "Conv (node 0): expected one or two spatial dimensions, got 3",
    ),
    "weights that are computed": (
        lambda: build([node("Conv", ["x", "w"], ["y"])], {"x": (1, 2, 6), "w": (2, 2, 3)}, ["y"]),
        "Conv (node 0): expected constant weights, got computed ones",
    ),
    "pooling with dilation": (
        lambda: _of(node("MaxPool", ["x"], ["y"], kernel_shape=[2], dilations=[2])),
        "MaxPool (node 0): expected pooling without dilation, got [2]",
    ),
    "an Elu of another slope": (
        lambda: _of(node("Elu", ["x"], ["y"], alpha=0.5)),
        "Elu (node 0): expected alpha 1, got 0.5",
    ),
    "padding by the edge": (
        lambda: _of(node("Pad", ["x", "p"], ["y"], mode="edge"), p=np.asarray([0, 0, 1, 0, 0, 1])),
        "Pad (node 0): expected pads of 0 or more",
    ),
    "a recurrent layer backwards in time": (
        lambda: _of(
            node("GRU", ["x", "w", "r"], ["y"], hidden_size=3, direction="reverse"),
            shape=(2, 1, 6),
            w=normal(1, 9, 6),
            r=normal(1, 9, 3),
        ),
        "GRU (node 0): expected one direction, time first",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_graph_without_a_tflite_form_is_refused_by_its_node(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(Unsupported) as refused:
        write_tflite(make(), "float32", calibration={})
    assert str(message) in str(refused.value)
    assert str(refused.value).endswith("ONNX profiles only")


def test_an_operator_of_another_domain_is_refused_by_its_domain() -> None:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Normalizer", ["x"], ["y"], domain="ai.onnx.ml", name="norm")],
        "other",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 3])],
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("ai.onnx.ml", 3)]
    data = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    with pytest.raises(Unsupported, match=r"Normalizer \(node 0, norm\).*ai\.onnx\.ml\.Normalizer"):
        write_tflite(Graph(data), "float32", calibration={})


def test_an_open_batch_is_refused_by_its_input() -> None:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "open",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 3])],
    )
    data = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]).SerializeToString()
    with pytest.raises(Unsupported, match="input x: expected a fixed shape"):
        write_tflite(Graph(data), "float32", calibration={})


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x08" * 40])
def test_bytes_that_are_no_model_are_rejected(data: bytes) -> None:
    with pytest.raises(Rejected):
        write_tflite(Graph(data), "float32", calibration={})


def test_a_precision_and_rows_are_asked_for() -> None:
    graph = _of(node("Relu", ["x"], ["y"]))
    with pytest.raises(Rejected, match="precision: expected one of float32, int8"):
        write_tflite(graph, "int4", calibration={})
    with pytest.raises(Rejected, match="calibration: expected rows for the input x, got none"):
        write_tflite(graph, "int8", calibration={})
    with pytest.raises(Rejected, match=r"calibration: expected rows of \[1, 2, 6\], got \[5\]"):
        write_tflite(graph, "int8", calibration={"x": np.zeros((3, 5), np.float32)})
    with pytest.raises(Rejected, match="calibration: expected finite values in x"):
        write_tflite(graph, "int8", calibration={"x": np.full((3, 2, 6), np.inf, np.float32)})
    with pytest.raises(Rejected, match="boundary: expected a computed tensor of the model, got 'nowhere'"):
        write_tflite(Graph(graph.data, "nowhere"), "int8-hybrid", calibration={"x": np.zeros((3, 2, 6), np.float32)})


def test_a_constant_that_would_fill_memory_is_refused() -> None:
    huge = np.asarray([1, 1 << 20, 1 << 10])
    nodes = [
        onnx.helper.make_node("ConstantOfShape", ["s"], ["c"], name="flood"),
        onnx.helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "flood",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, 1])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(huge, "s")],
    )
    data = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]).SerializeToString()
    with pytest.raises(Unsupported, match=r"ConstantOfShape \(flood\)"):
        write_tflite(Graph(data), "float32", calibration={})


def test_bits_that_flip_in_a_model_are_written_or_refused_and_raise_nothing_else() -> None:
    random = np.random.default_rng(31)
    names = list(CASES)
    outcomes = {"written": 0, "refused": 0}
    for number in range(400):
        data = bytearray(CASES[names[number % len(names)]]().data)
        for place in random.integers(0, len(data), size=1 + number % 3):
            data[place] ^= 1 << int(random.integers(0, 8))
        cut = int(random.integers(0, len(data))) if number % 5 == 0 else len(data)
        try:
            write_tflite(Graph(bytes(data[:cut])), "float32", calibration={})
            outcomes["written"] += 1
        except Rejected:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20
