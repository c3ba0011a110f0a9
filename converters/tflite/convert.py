"""An ONNX model as a float TFLite graph: tidied, lowered operator by operator, and simplified."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from converters.tflite import lower_dense, lower_math, lower_recurrent, lower_shape, lower_windows
from converters.tflite.errors import Unsupported
from converters.tflite.ir import Graph, Operator
from converters.tflite.layout import Value, plain
from converters.tflite.lowering import Lowering
from converters.tflite.reader import Node, read
from converters.tflite.tidy import tidy
from skerry.errors import Rejected

_ONE = lower_windows.OPERATORS | lower_dense.OPERATORS | lower_math.OPERATORS | lower_shape.OPERATORS
_MANY = lower_shape.SPLITS | lower_recurrent.OPERATORS
MALFORMED = (KeyError, IndexError, TypeError, ValueError, OverflowError)
"""What a node without its inputs, with attributes of another type or with numbers out of range makes Python raise."""

OPERATORS = tuple(sorted((*_ONE, *_MANY)))
"""The ONNX operators that have a TFLite form."""

_RECTIFIERS = {"RELU": "RELU", "RELU6": "RELU6"}
_FUSING = (
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "FULLY_CONNECTED",
    "ADD",
    "SUB",
    "MUL",
    "DIV",
    "MAX_POOL_2D",
    "AVERAGE_POOL_2D",
)


def convert(data: bytes, *, boundary: str = "") -> tuple[Graph, frozenset[int]]:
    """Return the float graph of an ONNX file, and the tensors that hold the boundary (those of the inputs for none).

    Raises:
        Unsupported: an operator, a shape or a type has no TFLite form.
        Rejected: the bytes are no ONNX model, or the boundary is none of its tensors.
    """
    # weights beyond float32 become infinities, as ONNX Runtime has them; calibration refuses what is not finite
    with np.errstate(all="ignore"):
        return _converted(data, boundary)


def _converted(data: bytes, boundary: str) -> tuple[Graph, frozenset[int]]:
    boundaries = frozenset((boundary,)) if boundary else frozenset()
    model = read(data)
    produced = {name for node in model.nodes for name in node.outputs} | set(model.inputs)
    if boundary and boundary not in produced:
        raise Unsupported(f"boundary: expected a computed tensor of the model, got {boundary!r}")
    try:
        model = tidy(model, boundaries=boundaries)
        low = Lowering(model, boundaries=boundaries)
    except MALFORMED as error:
        raise Rejected(f"expected a well-formed ONNX graph, got {type(error).__name__}: {error}") from error
    for node in model.nodes:
        _lower(low, node)
    _finish(low)
    starts = frozenset((low.values[boundary].index,) if boundary else low.graph.inputs.values())
    low.graph.kept |= starts
    simplify(low.graph)
    return low.graph, starts


def _lower(low: Lowering, node: Node) -> None:
    low.node = node
    try:
        _emit(low, node)
    except MALFORMED as error:
        raise Rejected(f"{node.title}: expected a well-formed node, got {type(error).__name__}: {error}") from error


def _emit(low: Lowering, node: Node) -> None:
    if node.kind in _MANY:
        values = _MANY[node.kind](low)
        low.values |= zip(node.outputs, values, strict=True)
    elif node.kind in _ONE:
        low.values[node.outputs[0]] = _ONE[node.kind](low)
        _check(low, node)
    else:
        raise Unsupported(
            f"{node.title}: expected an operator that TFLite has here, got {node.kind}: ONNX profiles only"
        )


def _check(low: Lowering, node: Node) -> None:
    """Compare the shape that was lowered with the one that ONNX infers: a difference would be an error of ours."""
    name = node.outputs[0]
    expected, got = low.model.shapes.get(name), low.values[name].shape
    if expected is not None and -1 not in expected and expected != got and name not in low.flattened:
        raise node.refuse(f"an output of {list(expected)}", list(got))


def _finish(low: Lowering) -> None:
    """Bring the outputs into ONNX's order, under their names; what is also an input or an output is copied."""
    taken = set(low.graph.inputs.values())
    for name in low.model.outputs:
        low.node = Node("Output", name, len(low.model.nodes), (name,), (name,))
        operand = low.operand(0)
        value = operand if isinstance(operand, Value) else low.constant(operand)
        index = low.plain(value)
        if index in taken or low.graph.tensors[index].data is not None:
            index = _copy(low, index)
        taken.add(index)
        low.graph.result(name, index)


def _copy(low: Lowering, index: int) -> int:
    shape = low.graph.tensors[index].shape
    sizes = low.integers(shape)
    return low.emit(
        "RESHAPE", [index, sizes], plain(len(shape)), shape, newShape=np.asarray(shape, dtype=np.int32)
    ).index


def simplify(graph: Graph) -> None:
    """Fuse activations into the operators before them, join reshapes, and drop what leads nowhere."""
    _join_reshapes(graph)
    _fuse_rectifiers(graph)
    _drop_dead(graph)


def _fuse_rectifiers(graph: Graph) -> None:
    consumers, protected = graph.consumers(), graph.protected()
    makers = {index: operator for operator in graph.operators for index in operator.outputs}
    fused: dict[int, Operator] = {}
    gone: set[int] = set()
    for operator in graph.operators:
        if operator.kind not in _RECTIFIERS:
            continue
        source = operator.inputs[0]
        maker = makers.get(source)
        if maker is None or maker.kind not in _FUSING or "fusedActivationFunction" in maker.options:
            continue
        if len(consumers[source]) != 1 or source in protected or graph.tensors[source].dtype != "float32":
            continue
        options = maker.options | {"fusedActivationFunction": _RECTIFIERS[operator.kind]}
        fused[id(maker)] = replace(maker, outputs=operator.outputs, options=options)
        gone.add(id(operator))
    graph.operators = [fused.get(id(each), each) for each in graph.operators if id(each) not in gone]


def _join_reshapes(graph: Graph) -> None:
    """Let a RESHAPE behind another read what that one reads; one that changes nothing is read past."""
    origin: dict[int, int] = {}
    protected: Mapping[int, None] = dict.fromkeys(graph.protected() | set(graph.inputs.values()))
    operators = []
    for old in graph.operators:
        operator = old
        if operator.kind == "RESHAPE" and operator.inputs[0] in origin:
            operator = replace(operator, inputs=(origin[operator.inputs[0]], *operator.inputs[1:]))
        if operator.kind == "RESHAPE" and operator.inputs[0] not in graph.kept and operator.outputs[0] not in protected:
            origin[operator.outputs[0]] = operator.inputs[0]
        operators.append(operator)
    graph.operators = operators


def _drop_dead(graph: Graph) -> None:
    alive = set(graph.outputs.values())
    kept = []
    for operator in reversed(graph.operators):
        if alive & set(operator.outputs):
            alive |= set(operator.inputs)
            kept.append(operator)
    graph.operators = kept[::-1]
