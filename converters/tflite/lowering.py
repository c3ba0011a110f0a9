"""What the lowering of every operator works with: values by ONNX name, and the few verbs that add operators.

An operand is a `Value` (given or computed) or an array (constant); `combine` and `apply` choose the order of axes, so
that an operator's own lowering seldom thinks about it.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from converters.samples import Array
from converters.tflite.errors import Unsupported
from converters.tflite.ir import Graph
from converters.tflite.layout import Arranger, Axes, Value, arrange, holds, plain, stored_shape
from converters.tflite.reader import Model, Node
from skerry.errors import Rejected

Operand = Value | Array
TYPES = ("float32", "int32", "int64", "int8", "uint8", "bool")


class Lowering:
    """A TFLite graph under construction from an ONNX model."""

    def __init__(self, model: Model, *, boundaries: frozenset[str] = frozenset()) -> None:
        self.model = model
        self.graph = Graph()
        self.values: dict[str, Value] = {}
        self.flattened: dict[str, Value] = {}
        """Flattened values that only dense layers read: these permute their weights instead."""
        self.arrange = Arranger(self.graph)
        self.boundaries = boundaries
        self.node = Node("", "", 0, (), ())
        self.consumers: dict[str, list[Node]] = {}
        for node in model.nodes:
            for name in node.inputs:
                self.consumers.setdefault(name, []).append(node)
        self.graph.reserve((*model.inputs, *model.outputs))
        for name in model.inputs:
            shape, dtype = model.shapes[name], model.dtypes[name]
            if dtype not in TYPES:
                raise Unsupported(f"input {name}: expected one of {', '.join(TYPES)}, got {dtype}: ONNX profiles only")
            self.values[name] = Value(self.graph.given(name, shape, dtype), plain(len(shape)), shape)

    def operand(self, number: int) -> Operand:
        """Return an input of the current node, computed or constant."""
        name = self.node.inputs[number]
        if name in self.model.constants:
            return self.model.constants[name]
        if name not in self.values:
            raise Rejected(f"{self.node.title}: expected an input that an earlier node computes, got {name!r}")
        return self.values[name]

    def value(self, number: int) -> Value:
        """Return an input of the current node as a tensor; a constant becomes one."""
        operand = self.operand(number)
        return operand if isinstance(operand, Value) else self.constant(operand)

    def given(self, number: int) -> bool:
        """Say whether the current node has an optional input."""
        return len(self.node.inputs) > number and bool(self.node.inputs[number])

    def known(self, number: int, what: str) -> Array:
        """Return an input of the current node that has to be constant."""
        values = self.model.constants.get(self.node.inputs[number])
        if values is None:
            raise self.node.refuse(f"constant {what}", "computed ones")
        return values

    def whole(self, number: int, attribute: str) -> list[int] | None:
        """Return whole numbers that newer opsets give as an input and older ones as an attribute; None for neither."""
        if self.given(number):
            return [int(each) for each in self.known(number, attribute).reshape(-1)]
        found = self.node.attributes.get(attribute)
        return None if found is None else [int(each) for each in found]

    def shape_out(self, number: int = 0) -> tuple[int, ...]:
        """Return the shape of an output of the current node."""
        shape = self.model.shapes.get(self.node.outputs[number])
        if shape is None or any(size < 0 for size in shape):
            raise self.node.refuse("an output of a fixed shape", "unknown" if shape is None else list(shape))
        if 0 in shape:
            raise self.node.refuse("an output with elements", list(shape))
        return shape

    def constant(self, values: Array) -> Value:
        """Add a constant as ONNX has it."""
        values = values.astype(np.int32) if values.dtype == np.int64 else values
        if values.dtype.name not in TYPES:
            raise self.node.refuse(f"constants of {', '.join(TYPES)}", values.dtype)
        index = self.graph.constant(f"{self.node.outputs[0]}/constant", values)
        return Value(index, plain(values.ndim), values.shape)

    def integers(self, values: Any) -> int:
        """Add a constant of int32, such as axes and paddings."""
        return self.graph.constant(f"{self.node.outputs[0]}/integers", np.asarray(values, dtype=np.int32))

    def floats(self, values: Array, what: str) -> int:
        """Add a constant of float32, such as weights."""
        return self.graph.constant(f"{self.node.outputs[0]}/{what}", values.astype(np.float32))

    def tensor(self, shape: tuple[int, ...], dtype: str = "") -> int:
        """Add the tensor of an output of the current node, in a stored shape."""
        found = dtype or self.model.dtypes.get(self.node.outputs[0], "float32")
        if found not in TYPES:
            raise self.node.refuse(f"one of {', '.join(TYPES)}", found)
        return self.graph.tensor(self.node.outputs[0], shape, found)

    def emit(
        self, kind: str, inputs: Sequence[int], axes: Axes, shape: tuple[int, ...], *, dtype: str = "", **options: Any
    ) -> Value:
        """Add an operator with one output, which holds an ONNX tensor of `shape` in the order of `axes`."""
        out = self.tensor(stored_shape(axes, shape), dtype)
        self.graph.add(kind, inputs, [out], node=self.node.title, **options)
        return Value(out, axes, shape)

    def place(self, operand: Operand, axes: Axes) -> int:
        """Return the tensor that holds an operand in the order of `axes`."""
        if isinstance(operand, Value):
            return self.arrange(operand, axes, node=self.node.title)
        values = operand.astype(np.int32) if operand.dtype == np.int64 else operand
        return self.graph.constant(f"{self.node.outputs[0]}/constant", arrange(values, axes))

    def plain(self, operand: Operand) -> int:
        """Return the tensor that holds an operand as ONNX has it."""
        return self.place(operand, plain(len(operand.shape)))

    def apply(self, kind: str, value: Value, *, dtype: str = "", **options: Any) -> Value:
        """Add an operator of one operand that works element by element."""
        return self.emit(kind, [value.index], value.axes, value.shape, dtype=dtype, **options)

    def combine(self, kind: str, *operands: Operand, dtype: str = "", **options: Any) -> Value:
        """Add an operator of several operands that works element by element and broadcasts."""
        shape = np.broadcast_shapes(*(operand.shape for operand in operands))
        rank = len(shape)
        wide = [
            each.widened(rank) if isinstance(each, Value) else each.reshape((1,) * (rank - each.ndim) + each.shape)
            for each in operands
        ]
        axes = shared_axes([each for each in wide if isinstance(each, Value)], shape)
        return self.emit(kind, [self.place(each, axes) for each in wide], axes, shape, dtype=dtype, **options)

    def scale(self, value: Value, factor: float) -> Value:
        """Multiply a value by a number."""
        return self.combine("MUL", value, np.asarray(factor, dtype=np.float32))

    def number(self, value: float) -> Array:
        """Return a number as a constant operand."""
        return np.asarray(value, dtype=np.float32)


def shared_axes(values: Sequence[Value], shape: tuple[int, ...]) -> Axes:
    """Return the order in which values of one rank meet: that of the largest which has a place for every axis."""
    fitting = [value for value in values if holds(value.axes, shape)]
    if not fitting:
        return plain(len(shape))
    return max(fitting, key=lambda value: (prod(value.shape), value.order != tuple(sorted(value.order)))).axes
