"""From a newer opset down to ours: younger operators spelt out in older ones, inputs turned back into attributes.

onnx's own version converter goes up well and down hardly at all: it knows no way for Pad, Split, Gelu or Mish, and
current exporters write opset 18 to 23 by default. What is not here is caught by the checks that follow.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from converters.fold import observe_shapes
from converters.onnx_graph import OPSET, STANDARD, add_constant, constants_of, fresh, replace_nodes
from converters.samples import Array
from skerry.errors import Rejected


def lower(model: Any, version: int) -> None:
    """Say in our opset what a model says in a newer one, in place; constants must be folded before.

    Raises:
        Rejected: it uses an attribute that our opset lacks, or needs a shape or constant that is not known.
    """
    graph = model.graph
    whole = shape_inference.infer_shapes(model, data_prop=True)
    observe_shapes(whole)
    inferred = whole.graph
    infos = (*inferred.value_info, *inferred.input, *inferred.output)
    shapes = {info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim] for info in infos}
    nodes: list[Any] = []
    for node in list(graph.node):
        rule = None if node.domain not in STANDARD else _RULES.get(node.op_type)
        if rule is None:
            nodes.append(node)
        else:
            rule(_Speller(graph, nodes, node, shapes.get(node.input[0], [])))
    replace_nodes(graph, nodes)
    for node in graph.node:
        if node.domain in STANDARD:
            _drop_newer_attributes(node, version)


def _drop_newer_attributes(node: Any, version: int) -> None:
    """Drop the attributes that our opset does not know where they say what it does anyway."""
    known = onnx.defs.get_schema(node.op_type, OPSET, "").attributes
    newer = onnx.defs.get_schema(node.op_type, version, "").attributes
    for attribute in [each for each in node.attribute if each.name not in known]:
        default = newer[attribute.name].default_value if attribute.name in newer else None
        says = helper.get_attribute_value(attribute)
        # no default and all ones: the dilations of an AveragePool
        nothing = says == helper.get_attribute_value(default) if default and default.type else set(says) == {1}
        if not nothing:
            got = f"{attribute.name} in {node.op_type} {node.name[:80]!r}"
            raise Rejected(f"model file: expected what opset {OPSET} can say, got {got}: export it for that opset")
        node.attribute.remove(attribute)


class _Speller:
    """Writes the nodes that stand for one; `x` is its first input, `out` its output."""

    def __init__(self, graph: Any, nodes: list[Any], node: Any, shape: list[int]) -> None:
        self._graph, self._nodes, self._node = graph, nodes, node
        self.shape = shape
        self.inputs, self.out = list(node.input), node.output[0]
        self.options = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        self._count = 0

    def known(self, index: int, what: str) -> Array | None:
        """Return the constant that is an input, None where it is absent; raises `Rejected` when it is no constant."""
        name = self.inputs[index] if index < len(self.inputs) else ""
        if not name:
            return None
        tensor = constants_of(self._graph).get(name)
        if tensor is None:
            raise Rejected(f"{self._node.op_type} {self.out[:80]!r}: expected constant {what}, got computed ones")
        values: Array = numpy_helper.to_array(tensor)
        return values

    def again(self, inputs: list[str], **options: Any) -> None:
        """Write the node itself with other inputs and attributes; None drops an attribute."""
        node = helper.make_node(
            self._node.op_type,
            inputs,
            list(self._node.output),
            name=self._node.name,
            **{key: value for key, value in (self.options | options).items() if value is not None},
        )
        self._nodes.append(node)

    @property
    def pieces(self) -> int:
        """How many outputs the node has."""
        return len(self._node.output)

    def number(self, value: float) -> str:
        return self.constant(np.asarray(value, dtype=np.float32))

    def constant(self, values: Array) -> str:
        return add_constant(self._graph, f"{self.out}_constant", values)

    def add(self, operator: str, *inputs: str, last: bool = False, **options: Any) -> str:
        self._count += 1
        out = self.out if last else fresh(self._graph, f"{self.out}_part{self._count}")
        self._nodes.append(helper.make_node(operator, list(inputs), [out], name=f"{operator}_{out}", **options))
        return out


def _gelu(spell: _Speller) -> None:
    x = spell.inputs[0]
    half, one = spell.number(0.5), spell.number(1.0)
    if spell.options.get("approximate", b"none") == b"tanh":
        cubic = spell.add("Mul", spell.add("Mul", x, x), x)
        inner = spell.add("Add", x, spell.add("Mul", cubic, spell.number(0.044715)))
        bent = spell.add("Tanh", spell.add("Mul", inner, spell.number(math.sqrt(2 / math.pi))))
    else:
        bent = spell.add("Erf", spell.add("Mul", x, spell.number(math.sqrt(0.5))))
    spell.add("Mul", spell.add("Mul", x, half), spell.add("Add", bent, one), last=True)


def _mish(spell: _Speller) -> None:
    x = spell.inputs[0]
    spell.add("Mul", x, spell.add("Tanh", spell.add("Softplus", x)), last=True)


def _group_normalization(spell: _Speller) -> None:
    x, scale, shift = spell.inputs[:3]
    shape, groups = spell.shape, int(spell.options["num_groups"])
    if len(shape) < 3 or min(shape) < 1 or shape[1] % groups:
        raise Rejected(f"GroupNormalization {spell.out!r}: expected a known shape of whole groups, got {shape}")
    grouped = spell.add("Reshape", x, spell.constant(np.asarray([shape[0], groups, -1], dtype=np.int64)))
    ones, zeros = spell.constant(np.ones(groups, np.float32)), spell.constant(np.zeros(groups, np.float32))
    epsilon = float(spell.options.get("epsilon", 1e-5))
    normal = spell.add("InstanceNormalization", grouped, ones, zeros, epsilon=epsilon)
    # of each channel since opset 21; the form of opset 18, of each group, is deprecated and refused before
    whole = spell.add("Reshape", normal, spell.constant(np.asarray(shape, dtype=np.int64)))
    channels = spell.constant(np.asarray([1, shape[1], *([1] * (len(shape) - 2))], dtype=np.int64))
    scaled = spell.add("Mul", whole, spell.add("Reshape", scale, channels))
    spell.add("Add", scaled, spell.add("Reshape", shift, channels), last=True)


def _reduce(spell: _Speller) -> None:
    """Axes were an attribute until opset 18, of ReduceSum until 13."""
    axes = spell.known(1, "axes")
    if axes is None or not axes.size:
        if spell.options.get("noop_with_empty_axes"):
            spell.add("Identity", spell.inputs[0], last=True)
        else:
            spell.again(spell.inputs[:1], noop_with_empty_axes=None)
    else:
        spell.again(spell.inputs[:1], axes=[int(axis) for axis in axes.ravel()], noop_with_empty_axes=None)


def _pad(spell: _Speller) -> None:
    """Which axes to pad is an input since opset 18; before, all of them are."""
    axes = spell.known(3, "axes")
    if axes is None:
        spell.again(spell.inputs[:3])
        return
    pads, rank = spell.known(1, "pads"), len(spell.shape)
    if pads is None or not rank or pads.size != 2 * axes.size:
        raise Rejected(f"Pad {spell.out[:80]!r}: expected a start and an end for each axis, got {axes.tolist()}")
    whole = np.zeros((2, rank), dtype=np.int64)
    whole[:, axes.ravel() % rank] = pads.reshape(2, -1)
    spell.again([spell.inputs[0], spell.constant(whole.ravel()), *spell.inputs[2:3]])


def _split(spell: _Speller) -> None:
    """How many pieces is an attribute since opset 18; before, the outputs say it, and all are of one length."""
    axis = int(spell.options.get("axis", 0))
    if spell.known(1, "lengths") is not None or spell.options.get("num_outputs") is None:
        spell.again(spell.inputs, num_outputs=None)
        return
    if not spell.shape or not -len(spell.shape) <= axis < len(spell.shape):
        raise Rejected(f"Split {spell.out[:80]!r}: expected a known shape, got {spell.shape}")
    pieces, length = spell.pieces, spell.shape[axis]
    each = -(-length // pieces)
    lengths = [max(0, min(each, length - each * number)) for number in range(pieces)]
    spell.again([spell.inputs[0], spell.constant(np.asarray(lengths, dtype=np.int64))], num_outputs=None)


_REDUCED = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
_RULES: dict[str, Callable[[_Speller], None]] = {
    "Gelu": _gelu,
    "GroupNormalization": _group_normalization,
    "Mish": _mish,
    "Pad": _pad,
    "Split": _split,
    **{f"Reduce{kind}": _reduce for kind in _REDUCED},
}
