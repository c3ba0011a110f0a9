"""Half precision: arithmetic in float16 between float inputs and outputs, or float arithmetic on halves in the file.

The first form is for processors and accelerators that compute in half. The second is for all others: a Cast behind each
constant, which ONNX Runtime folds when it loads the model, so that the file is half as long and nothing is slower.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters.onnx_graph import add_constant, ancestors, canonical, constants_of, replace_nodes
from converters.samples import Array
from skerry.errors import Rejected

LEAST = 64
"""The least elements of a constant that is worth a Cast, which takes about as many bytes."""
# fmt: off
HALVED = frozenset({
    "Abs", "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "ConvTranspose", "Div", "Elu", "Erf",
    "Flatten", "GRU", "Gather", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish", "LSTM",
    "LeakyRelu", "MatMul", "Max", "MaxPool", "Min", "Mul", "Neg", "PRelu", "Pad", "Relu", "Reshape", "Sigmoid", "Slice",
    "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
})
# fmt: on


def to_half(data: bytes, *, boundary: str) -> tuple[bytes, dict[str, str]]:
    """Return the model with arithmetic in float16 behind `boundary`; raises `Rejected` when there is none."""
    model = onnx.ModelProto.FromString(data)
    graph = model.graph
    if not _large(graph):
        raise Rejected(f"fp16: expected float weights of {LEAST} elements or more, got none in it")
    before = ancestors(graph, boundary) if boundary else set()
    pairs = _Pairs(graph)
    for node in list(graph.node):
        if node.op_type in HALVED and not node.domain and not set(node.output) & before:
            pairs.halve(node)
        else:
            pairs.keep(node)
    pairs.finish()
    left = [node.name for node in graph.node if set(node.output) & before]
    return canonical(model), {"fp16": "float16 arithmetic, float inputs and outputs", "float": ", ".join(left)}


def store_half(data: bytes) -> tuple[bytes, dict[str, str]]:
    """Return the model with its large constants stored as float16; raises `Rejected` when it has none."""
    model = onnx.ModelProto.FromString(data)
    graph = model.graph
    large = _large(graph)
    if not large:
        raise Rejected(f"fp16-weights: expected float weights of {LEAST} elements or more, got none in it")
    casts = []
    for name, tensor in large.items():
        values = _halves(numpy_helper.to_array(tensor))
        graph.initializer.remove(tensor)
        half = add_constant(graph, f"{name}_half", values)
        casts.append(helper.make_node("Cast", [half], [name], name=f"Cast_{name}", to=TensorProto.FLOAT))
    replace_nodes(graph, [*casts, *graph.node])
    return canonical(model), {"fp16_weights": f"constants of {LEAST} elements or more"}


class _Pairs:
    """The two forms of each tensor: `t` in float and `t_half`, each made when something first reads it."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._constants = {n: t for n, t in constants_of(graph).items() if t.data_type == TensorProto.FLOAT}
        infos = (*graph.input, *graph.output, *graph.value_info)
        self._floats = {info.name for info in infos if info.type.tensor_type.elem_type == TensorProto.FLOAT}
        made = {name for node in graph.node for name in node.output}
        self._float = {name for name in self._floats if name not in made}
        self._half: set[str] = set()
        self._nodes: list[Any] = []

    def halve(self, node: Any) -> None:
        for index, name in enumerate(node.input):
            if name in self._constants and name not in self._half:
                values = numpy_helper.to_array(self._constants[name])
                self._graph.initializer.append(numpy_helper.from_array(_halves(values), f"{name}_half"))
                self._half.add(name)
            elif name in self._floats and name not in self._half:
                self._cast(name, f"{name}_half", TensorProto.FLOAT16)
                self._half.add(name)
            if name in self._half:
                node.input[index] = f"{name}_half"
        for index, name in enumerate(node.output):
            if name in self._floats:
                self._half.add(name)
                node.output[index] = f"{name}_half"
        self._nodes.append(node)

    def keep(self, node: Any) -> None:
        for name in node.input:
            self._as_float(name)
        self._float |= set(node.output) & self._floats
        self._nodes.append(node)

    def finish(self) -> None:
        for output in self._graph.output:
            self._as_float(output.name)
        replace_nodes(self._graph, self._nodes)

    def _as_float(self, name: str) -> None:
        if name in self._floats and name not in self._float:
            self._cast(f"{name}_half", name, TensorProto.FLOAT)
            self._float.add(name)

    def _cast(self, source: str, target: str, kind: int) -> None:
        self._nodes.append(helper.make_node("Cast", [source], [target], name=f"Cast_{target}", to=kind))


def _halves(values: Array) -> Array:
    limit = float(np.finfo(np.float16).max)
    halves: Array = np.clip(values, -limit, limit).astype(np.float16)
    return halves


def _large(graph: Any) -> dict[str, Any]:
    """Return the float constants by name that have enough elements."""
    return {
        name: tensor
        for name, tensor in constants_of(graph).items()
        if tensor.data_type == TensorProto.FLOAT and int(np.prod(tensor.dims, dtype=np.int64)) >= LEAST
    }
