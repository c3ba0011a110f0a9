"""ONNX bytes as nodes, constants and shapes: everything that does not depend on an input is computed here.

Exporters spell a Flatten as Shape, Gather, Concat and Reshape; after folding, only the Reshape is left. Folding runs
each such node through ONNX's own reference operators, so there is no second arithmetic to trust.
"""

from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from converters.samples import Array
from converters.tflite.errors import Unsupported
from skerry.errors import Rejected

MAX_FOLDED_ELEMENTS = 1 << 24
MAX_ROUNDS = 8
SCALER = ("ai.onnx.ml", "Scaler")
"""What scikit-learn's exporters write for a StandardScaler: the one operator beside the standard domain."""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One ONNX operator: `number` is its place in the file; an empty input name is an optional input left out."""

    kind: str
    name: str
    number: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """How messages name it: operator and node."""
        return f"{self.kind} (node {self.number}{f', {self.name}' if self.name else ''})"

    def refuse(self, expected: str, got: object) -> Unsupported:
        """Return the refusal of this node."""
        return Unsupported(f"{self.title}: expected {expected}, got {got}: ONNX profiles only")


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A graph whose shapes are all known: `shapes` and `dtypes` by tensor name, `constants` by name."""

    nodes: tuple[Node, ...]
    constants: dict[str, Array]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def with_nodes(self, nodes: list[Node], constants: dict[str, Array]) -> "Model":
        """Return the model with other nodes."""
        shapes = self.shapes | {name: values.shape for name, values in constants.items()}
        dtypes = self.dtypes | {name: values.dtype.name for name, values in constants.items()}
        return replace(self, nodes=tuple(nodes), constants=constants, shapes=shapes, dtypes=dtypes)


def read(data: bytes) -> Model:
    """Read an ONNX file; raises `Rejected` when it is none, `Unsupported` when a shape is not fixed."""
    try:
        return _model(_folded(onnx.load_model_from_string(data)))
    except Rejected:
        raise
    except Exception as error:  # protobuf's, onnx's and its operators' exceptions share no other root
        raise Rejected(f"expected an ONNX model, got: {' '.join(str(error).split())[:200]}") from error


def _folded(model: Any) -> Any:
    """Return the model with its shapes inferred and everything computed that can be."""
    for _ in range(MAX_ROUNDS):
        model = shape_inference.infer_shapes(model, data_prop=True)
        if not _fold(model.graph, model.opset_import):
            break
    return model


def _model(model: Any) -> Model:
    graph = model.graph
    if not graph.input or not graph.output:
        raise Rejected("expected an ONNX model, got one without inputs or outputs")
    # judged before the shapes: of an operator of another domain, no shape is known
    _check_domains(graph)
    constants = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
    shapes: dict[str, tuple[int, ...]] = {name: values.shape for name, values in constants.items()}
    dtypes = {name: values.dtype.name for name, values in constants.items()}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and kind.elem_type:
            shapes.setdefault(value.name, tuple(_size(size) for size in kind.shape.dim))
            dtypes.setdefault(value.name, helper.tensor_dtype_to_np_dtype(kind.elem_type).name)
    inputs = tuple(value.name for value in graph.input if value.name not in constants)
    _check_shapes(shapes, inputs)
    return Model(
        nodes=tuple(_node(number, node) for number, node in enumerate(graph.node)),
        constants=constants,
        shapes=shapes,
        dtypes=dtypes,
        inputs=inputs,
        outputs=tuple(value.name for value in graph.output),
    )


def _node(number: int, node: Any) -> Node:
    return Node(
        kind=node.op_type,
        name=node.name,
        number=number,
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        attributes={each.name: _attribute(each) for each in node.attribute},
    )


def _attribute(attribute: Any) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return value


def _size(dimension: Any) -> int:
    return int(dimension.dim_value) if dimension.HasField("dim_value") else -1


def _check_domains(graph: Any) -> None:
    for number, node in enumerate(graph.node):
        if node.domain not in ("", "ai.onnx") and (node.domain, node.op_type) != SCALER:
            title = f"{node.op_type} (node {number}{f', {node.name}' if node.name else ''})"
            raise Unsupported(
                f"{title}: expected an operator that TFLite has, got {node.domain}.{node.op_type}: ONNX profiles only"
            )


def _check_shapes(shapes: dict[str, tuple[int, ...]], inputs: tuple[str, ...]) -> None:
    for name in inputs:
        shape = shapes.get(name, (-1,))
        if any(size <= 0 for size in shape) or not shape:
            raise Unsupported(f"input {name}: expected a fixed shape, got {list(shape)}: ONNX profiles only")


def _fold(graph: Any, opsets: Any) -> bool:
    """Replace nodes that depend on constants alone, or ask for a known shape; say whether there were any."""
    constants = {value.name: value for value in graph.initializer}
    shapes = {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info, *graph.output)}
    results = {value.name for value in graph.output}
    kept, found = [], False
    for node in graph.node:
        values = _value_of(node, constants, shapes, opsets)
        if values is None or results & set(node.output):
            kept.append(node)
            continue
        found = True
        for name, array in zip(node.output, values, strict=False):
            tensor = numpy_helper.from_array(array, name)
            constants[name] = tensor
            graph.initializer.append(tensor)
    if found:
        del graph.node[:]
        graph.node.extend(kept)
    return found


def _value_of(node: Any, constants: dict[str, Any], shapes: dict[str, Any], opsets: Any) -> list[Array] | None:
    """Return the outputs of a node when they are known already."""
    if node.op_type == "Constant" and node.domain == "" and node.attribute[0].name == "value":
        return [numpy_helper.to_array(node.attribute[0].t)]
    if node.op_type in ("Shape", "Size") and node.input[0] in shapes and not node.attribute:
        kind = shapes[node.input[0]]
        sizes = [_size(size) for size in kind.shape.dim] if kind.HasField("shape") else [-1]
        if all(size >= 0 for size in sizes):
            return [np.asarray(sizes if node.op_type == "Shape" else prod(sizes), dtype=np.int64)]
    known = all(name in constants for name in node.input if name)
    random = node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial")
    subgraph = any(each.type == onnx.AttributeProto.GRAPH for each in node.attribute)
    if not known or random or subgraph or node.domain not in ("", "ai.onnx"):
        return None
    if _too_large(node, constants):
        raise Unsupported(
            f"{node.op_type} ({node.name}): expected at most {MAX_FOLDED_ELEMENTS} constants, got more: "
            "ONNX profiles only"
        )
    given = {name: numpy_helper.to_array(constants[name]) for name in node.input if name}
    values: list[Array] = _evaluate(node, given, opsets)
    return values


def _too_large(node: Any, constants: dict[str, Any]) -> bool:
    """Say whether a node blows a few bytes up, as ConstantOfShape, Expand and Tile can."""
    if node.op_type == "ConstantOfShape":
        return prod(map(int, numpy_helper.to_array(constants[node.input[0]]))) > MAX_FOLDED_ELEMENTS
    if node.op_type in ("Expand", "Tile"):
        sizes = prod(max(1, int(size)) for size in numpy_helper.to_array(constants[node.input[1]]))
        return bool(sizes * max(1, prod(constants[node.input[0]].dims)) > MAX_FOLDED_ELEMENTS)
    return bool(node.op_type in ("Range", "Loop", "Scan"))


def _evaluate(node: Any, given: dict[str, Array], opsets: Any) -> list[Array]:
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values.dtype), values.shape)
        for name, values in given.items()
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    graph = helper.make_graph([node], "fold", inputs, outputs)
    model = helper.make_model(graph, opset_imports=opsets)
    return [np.asarray(value) for value in ReferenceEvaluator(model).run(None, given)]
