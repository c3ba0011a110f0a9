"""A float graph in integers, by the rules of TFLite's int8 specification.

    weights   symmetric, -127 to 127, one scale per output channel (per tensor for products of two activations)
    biases    int32, at the scale of the products that they are added to
    others    asymmetric, -128 to 127, one scale per tensor, from calibration; what moves elements keeps their scale
    fixed     Softmax and Sigmoid 1/256 at -128, Tanh 1/128 at 0, LogSoftmax 16/256 at 127

An operator without an integer kernel on LiteRT and TFLite Micro stays float, between a DEQUANTIZE and a QUANTIZE.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from converters.samples import Array
from converters.tflite.calibrate import Range, quantisation_of, rounded_up
from converters.tflite.convert import simplify
from converters.tflite.ir import NONE, Graph, Operator, Quantisation
from converters.tflite.sticky import stick

WEIGHTED = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0, "TRANSPOSE_CONV": 0}
"""Operators with weights and a bias, and the axis of the weights that has a scale for each output."""
_FIRST = {"TRANSPOSE_CONV": 2}
_RESCALING = {
    *WEIGHTED,
    *("BATCH_MATMUL", "ADD", "SUB", "MUL", "MEAN", "SUM", "RELU", "LEAKY_RELU", "PRELU", "HARD_SWISH", "ELU", "ABS"),
}
_KEEPING = {
    *("MAX_POOL_2D", "AVERAGE_POOL_2D", "RESHAPE", "TRANSPOSE", "STRIDED_SLICE", "PAD", "PADV2", "MIRROR_PAD"),
    *("GATHER", "SPLIT", "SPLIT_V", "REDUCE_MAX", "REDUCE_MIN", "RELU6", "BROADCAST_TO", "RESIZE_NEAREST_NEIGHBOR"),
}
_JOINING = {"CONCATENATION", "MINIMUM", "MAXIMUM"}
_FIXED = {
    "SOFTMAX": Quantisation((1 / 256,), -128),
    "LOGISTIC": Quantisation((1 / 256,), -128),
    "TANH": Quantisation((1 / 128,), 0),
    "LOG_SOFTMAX": Quantisation((16 / 256,), 127),
}
INTEGER = frozenset(_RESCALING | _KEEPING | _JOINING | _FIXED.keys())
PROBABILITIES = frozenset(("SOFTMAX", "LOG_SOFTMAX"))
_INT32_MAX = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes integers: all operators, or those behind `starts` alone; `float_kinds` never do.

    `covered` is the share of calibrated values at each side that the ranges between inputs and outputs take in;
    `previous` are the grids of the version before, by tensor name, that are kept where they fit.
    """

    starts: frozenset[int] | None
    float_kinds: frozenset[str] = frozenset()
    dense_per_channel: bool = True
    covered: float = 1.0
    previous: Mapping[str, Quantisation] = field(default_factory=dict)


def quantise(graph: Graph, ranges: Mapping[int, Range], plan: Plan) -> Graph:
    """Return the graph in integers where the plan says so; inputs and outputs stay as they are."""
    return _Quantising(graph, ranges, plan).run()


def quantise_weights(graph: Graph, *, dense_per_channel: bool) -> Graph:
    """Return the graph with int8 weights and float activations, for LiteRT's hybrid kernels."""
    for number, operator in enumerate(graph.operators):
        if operator.kind not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            continue
        source, kernel = operator.inputs[0], graph.tensors[operator.inputs[1]]
        grouped = operator.kind == "CONV_2D" and kernel.shape[3] != graph.tensors[source].shape[3]
        if kernel.data is None or grouped:
            continue  # LiteRT's hybrid convolution knows no groups
        dense = operator.kind == "FULLY_CONNECTED"
        axis = None if dense and not dense_per_channel else WEIGHTED[operator.kind]
        integers, quantisation = symmetric(kernel.data, axis)
        index = graph.constant(f"{kernel.name}/int8", integers, quantisation=quantisation)
        options = operator.options | ({"asymmetricQuantizeInputs": True} if dense else {})
        inputs = (source, index, *operator.inputs[2:])
        graph.operators[number] = replace(operator, inputs=inputs, options=options)
    return graph


def symmetric(weights: Array, axis: int | None, previous: Quantisation | None = None) -> tuple[Array, Quantisation]:
    """Return weights as int8 with a scale per slice of `axis`, or one scale for None; `previous` is kept if it fits."""
    others = tuple(each for each in range(weights.ndim) if each != axis)
    most = np.abs(weights).max(axis=others, keepdims=True).astype(np.float64)
    scales = np.where(most > 0, most / 127, 1.0).astype(np.float32)
    grid = stick(previous, Quantisation(tuple(float(each) for each in scales.reshape(-1)), 0, axis or 0))
    scales = np.asarray(grid.scales, dtype=np.float32).reshape(scales.shape)
    return np.clip(np.rint(weights / scales), -127, 127).astype(np.int8), grid


class _Quantising:
    """One pass over a graph: `floats` and `integers` say where each old tensor is in the new graph."""

    def __init__(self, graph: Graph, ranges: Mapping[int, Range], plan: Plan) -> None:
        self.old, self.ranges, self.plan = graph, ranges, plan
        self.new = Graph()
        self.new.reserve((*graph.inputs, *graph.outputs))
        self.floats: dict[int, int] = {}
        self.integers: dict[tuple[int, Quantisation], int] = {}
        self.current: dict[int, Quantisation] = {}
        self.made: set[int] = set()
        self.behind = self._behind()
        self.unclipped = self._unclipped()
        self.wanted = self._wanted()

    def run(self) -> Graph:
        """Return the new graph."""
        for name, index in self.old.inputs.items():
            tensor = self.old.tensors[index]
            self.floats[index] = self.new.given(name, tensor.shape, tensor.dtype)
        for operator in self.old.operators:
            if self._is_integer(operator):
                self._integer(operator)
            else:
                self._float(operator)
        for name, index in self.old.outputs.items():
            self.new.result(name, self.float_of(index))
        simplify(self.new)
        return self.new

    def _behind(self) -> set[int]:
        """Return the tensors that depend on where the integers start."""
        found = set(self.plan.starts or ())
        for operator in self.old.operators:
            if found & set(operator.inputs):
                found |= set(operator.outputs)
        return found

    def _is_integer(self, operator: Operator) -> bool:
        if operator.kind not in INTEGER - self.plan.float_kinds:
            return False
        if self.plan.starts is not None and not self.behind & set(operator.inputs):
            return False
        computed = [each for each in self._operands(operator) if self.old.tensors[each].data is None]
        return bool(computed) and all(
            self.old.tensors[each].dtype == "float32" for each in (*computed, *operator.outputs)
        )

    def _operands(self, operator: Operator) -> list[int]:
        """Return the inputs that hold what is computed with, not axes, shapes or weights."""
        if operator.kind in WEIGHTED:
            return [operator.inputs[_FIRST.get(operator.kind, 0)]]
        return [each for each in operator.inputs if each != NONE and self.old.tensors[each].dtype == "float32"]

    def _unclipped(self) -> set[int]:
        """Return the tensors that keep their extremes: outputs, and what a softmax compares (two clipped ones tie)."""
        found = set(self.old.outputs.values())
        for operator in reversed(self.old.operators):
            if operator.kind in PROBABILITIES or (operator.kind in _KEEPING and found & set(operator.outputs)):
                found |= set(operator.inputs)
        return found

    def _wanted(self) -> dict[int, Quantisation]:
        """Return the scales that a joining operator asks of inputs which nobody else reads."""
        found: dict[int, Quantisation] = {}
        consumers = self.old.consumers()
        makers: dict[int, Operator] = {}
        for operator in self.old.operators:
            makers |= dict.fromkeys(operator.outputs, operator)
        for operator in reversed(self.old.operators):
            if operator.kind not in _JOINING or not self._is_integer(operator):
                continue
            out = operator.outputs[0]
            scale = found.setdefault(out, self._calibrated(out))
            for index in operator.inputs:
                maker = makers.get(index)
                alone = len(consumers[index]) == 1 and index not in self.old.protected()
                if alone and maker is not None and maker.kind in _RESCALING | _JOINING and self._is_integer(maker):
                    found[index] = scale
        return found

    def _calibrated(self, index: int) -> Quantisation:
        known = self.ranges.get(index)
        covered = 1.0 if index in self.unclipped else self.plan.covered
        if known is None:
            return Quantisation((1.0,), 0)
        return stick(self._previous(index), known.quantisation(covered))

    def _previous(self, index: int) -> Quantisation | None:
        return self.plan.previous.get(f"{self.old.tensors[index].name}/int8")

    def float_of(self, index: int) -> int:
        """Return the tensor of the new graph that holds an old one as it was."""
        if index not in self.floats:
            tensor = self.old.tensors[index]
            if tensor.data is not None:
                self.floats[index] = self.new.constant(tensor.name, tensor.data)
            else:
                self.floats[index] = self.new.tensor(tensor.name, tensor.shape, tensor.dtype)
                if index in self.made:
                    source = self.integers[index, self.current[index]]
                    self.new.add("DEQUANTIZE", [source], [self.floats[index]])
        return self.floats[index]

    def integer_of(self, index: int, wanted: Quantisation | None = None) -> int:
        """Return the tensor of the new graph that holds an old one in integers, at a scale that is wanted."""
        tensor = self.old.tensors[index]
        scale = wanted or self.current.get(index)
        if tensor.data is not None:
            low, high = float(tensor.data.min()), float(tensor.data.max())
            scale = wanted or quantisation_of(low, high)
            return self.new.constant(f"{tensor.name}/int8", _integers(tensor.data, scale), quantisation=scale)
        if scale is None:
            scale = self.current[index] = self.wanted.get(index) or self._calibrated(index)
        if (index, scale) not in self.integers:
            source = self.integers[index, self.current[index]] if index in self.made else self.float_of(index)
            out = self.new.tensor(f"{tensor.name}/int8", tensor.shape, "int8", quantisation=scale)
            self.new.add("QUANTIZE", [source], [out])
            self.integers[index, scale] = out
        return self.integers[index, scale]

    def _float(self, operator: Operator) -> None:
        inputs = [NONE if index == NONE else self.float_of(index) for index in operator.inputs]
        outputs = [self.float_of(index) for index in operator.outputs]
        self.new.operators.append(replace(operator, inputs=tuple(inputs), outputs=tuple(outputs)))

    def _integer(self, operator: Operator) -> None:
        scales = self._scales_out(operator)
        if operator.kind in WEIGHTED:
            inputs = self._weighted(operator)
        else:
            same = scales[0] if operator.kind in _JOINING else None
            if operator.kind == "PADV2":
                same = scales[0]
            inputs = [
                self._product_operand(operator, index, same)
                if self.old.tensors[index].dtype == "float32"
                else self.float_of(index)
                for index in operator.inputs
            ]
        outputs = []
        for index, scale in zip(operator.outputs, scales, strict=True):
            tensor = self.old.tensors[index]
            out = self.new.tensor(f"{tensor.name}/int8", tensor.shape, "int8", quantisation=scale)
            self.integers[index, scale] = out
            self.current[index] = scale
            self.made.add(index)
            outputs.append(out)
        self.new.operators.append(replace(operator, inputs=tuple(inputs), outputs=tuple(outputs)))

    def _scales_out(self, operator: Operator) -> list[Quantisation]:
        if operator.kind in _FIXED:
            return [_FIXED[operator.kind]]
        if operator.kind in _KEEPING:
            source = next(each for each in self._operands(operator) if self.old.tensors[each].data is None)
            self.integer_of(source)
            return [self.current[source]] * len(operator.outputs)
        return [self.wanted.get(index) or self._calibrated(index) for index in operator.outputs]

    def _product_operand(self, operator: Operator, index: int, same: Quantisation | None) -> int:
        tensor = self.old.tensors[index]
        if operator.kind == "BATCH_MATMUL" and tensor.data is not None:
            integers, scale = symmetric(tensor.data, None, self._previous(index))
            return self.new.constant(f"{tensor.name}/int8", integers, quantisation=scale)
        return self.integer_of(index, same)

    def _weighted(self, operator: Operator) -> list[int]:
        place = _FIRST.get(operator.kind, 0)
        entering = self.integer_of(operator.inputs[place])
        scale_in = self.current[operator.inputs[place]].scales[0]
        kernel = self.old.tensors[operator.inputs[1]]
        bias = self.old.tensors[operator.inputs[place + 1 if place else 2]]
        dense = operator.kind == "FULLY_CONNECTED"
        axis = None if dense and not self.plan.dense_per_channel else WEIGHTED[operator.kind]
        weights, addends, scale = _layer(kernel.data, bias.data, axis, scale_in, self._previous(operator.inputs[1]))
        products = Quantisation(tuple(scale_in * each for each in scale.scales))
        new_kernel = self.new.constant(f"{kernel.name}/int8", weights, quantisation=scale)
        new_bias = self.new.constant(f"{bias.name}/int32", addends, quantisation=products)
        if place:
            return [self.float_of(operator.inputs[0]), new_kernel, entering, new_bias]
        return [entering, new_kernel, new_bias]


def _layer(
    kernel: Array | None, bias: Array | None, axis: int | None, scale_in: float, previous: Quantisation | None
) -> tuple[Array, Array, Quantisation]:
    """Return int8 weights and int32 biases; where a bias would not fit, its channel's scale grows until it does."""
    assert kernel is not None and bias is not None  # noqa: S101, PT018 -- the lowering makes both constants
    weights, scale = symmetric(kernel, axis, previous)
    least = np.abs(bias.astype(np.float64)) / (_INT32_MAX * scale_in)
    scales = np.asarray(scale.scales, dtype=np.float64)
    needed = np.full(1, least.max()) if len(scales) == 1 else least
    if np.any(needed > scales):
        scales = np.maximum(scales, np.asarray([rounded_up(each) for each in needed]))
        shape = [1] * kernel.ndim
        shape[axis or 0] = len(scales)
        weights = np.clip(np.rint(kernel / scales.reshape(shape)), -127, 127).astype(np.int8)
        scale = replace(scale, scales=tuple(float(np.float32(each)) for each in scales))
    addends = np.rint(bias.astype(np.float64) / (scale_in * np.asarray(scale.scales)))
    return weights, np.clip(addends, -_INT32_MAX, _INT32_MAX).astype(np.int32), scale


def _integers(values: Array, scale: Quantisation) -> Array:
    integers: Array = np.rint(values.astype(np.float64) / scale.scales[0]) + scale.zero_point
    return integers.clip(-128, 127).astype(np.int8)
