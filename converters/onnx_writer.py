"""A network as a float32 ONNX model.

    window -> feature operators -> (x - mean) / scale -> dense layers -> Softmax -> probabilities
           `-> features

Opset 17 and IR version 8, which ONNX Runtime 1.15 and newer read.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters.network import Network
from converters.samples import Array

OPSET = 17
IR_VERSION = 8
SCALED = "scaled"
"""The tensor at which float preprocessing ends: the scaled features."""


class GraphBuilder:
    """Nodes and constants under construction; every method returns the name of what it added."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, values: Array) -> str:
        """Add a constant."""
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def node(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Add a node with one output, `name`."""
        self.nodes.append(helper.make_node(operator, inputs, [name], name=f"{operator}_{name}", **attributes))
        return name


def write_float(network: Network) -> bytes:
    """Return the model."""
    graph = GraphBuilder()
    value = _front(graph, network)
    for number, layer in enumerate(network.layers):
        parameters = [graph.constant(f"weights_{number}", layer.weights), graph.constant(f"bias_{number}", layer.bias)]
        value = graph.node("Gemm", [value, *parameters], f"dense_{number}")
        if number < len(network.layers) - 1:
            value = graph.node("Relu", [value], f"hidden_{number}")
    graph.node("Softmax", [value], "probabilities", axis=1)

    inputs = [_value("window", (1, network.steps, len(network.channels)))]
    outputs = [_value("probabilities", (1, len(network.labels))), _value("features", (1, network.width))]
    body = helper.make_graph(graph.nodes, "skerry", inputs, outputs, initializer=graph.constants)
    model = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="skerry"
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _front(graph: GraphBuilder, network: Network) -> str:
    """Add everything from the raw window to the scaled features, and return these."""
    features = add_features(graph, network.features, steps=network.steps)
    centred = graph.node("Sub", [features, graph.constant("mean_of_features", network.mean)], "shifted")
    return graph.node("Div", [centred, graph.constant("scale_of_features", network.scale)], SCALED)


def add_features(graph: GraphBuilder, names: tuple[str, ...], *, steps: int) -> str:
    """Add the features of `converters.network` over an input `window` of so many steps; returns `features` (1, F)."""

    def over_time(operator: str, value: str, name: str) -> str:
        return graph.node(operator, [value], name, axes=[1], keepdims=1)

    def feature(name: str) -> str:
        if name == "mad":
            centred = graph.node("Sub", ["window", over_time("ReduceMean", "window", "centre")], "centred")
            return over_time("ReduceMean", graph.node("Abs", [centred], "deviation"), name)
        if name == "mean_abs_diff":
            later = _slice(graph, "later", start=1, end=steps)
            step = graph.node("Sub", [later, _slice(graph, "earlier", start=0, end=steps - 1)], "step")
            return over_time("ReduceMean", graph.node("Abs", [step], "step_size"), name)
        return over_time({"mean": "ReduceMean", "min": "ReduceMin", "max": "ReduceMax"}[name], "window", name)

    joined = graph.node("Concat", [feature(name) for name in names], "joined", axis=2)
    return graph.node("Flatten", [joined], "features", axis=1)


def _slice(graph: GraphBuilder, name: str, *, start: int, end: int) -> str:
    bounds = [
        graph.constant(f"{name}_{part}", np.asarray([value], dtype=np.int64))
        for part, value in (("start", start), ("end", end), ("axis", 1))
    ]
    return graph.node("Slice", ["window", *bounds], name)


def _value(name: str, shape: tuple[int, ...]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
