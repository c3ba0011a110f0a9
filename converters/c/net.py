"""The int8 dense layers of a TFLite model as plain numbers, with the multipliers that TFLite Micro would compute.

    ... -> [QUANTIZE ->] FULLY_CONNECTED, RELU, RESHAPE, ... -> [DEQUANTIZE, SOFTMAX]

The chain is followed back from an output, and ends at a QUANTIZE of floats or at an int8 input of the model. What an
int8 SOFTMAX at its end would do is left to the caller: it is monotonous, so the label is that of the logits.
"""

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.samples import Array
from skerry.errors import Rejected

BEHIND = ("DEQUANTIZE", "SOFTMAX")
MAX_WIDTH = 1 << 16
CLAMPS = ("RELU", "RELU6")
_BROKEN = (struct.error, IndexError, ValueError, TypeError, AttributeError, OverflowError)


@dataclass(frozen=True, slots=True)
class Scale:
    """real = scale * (integer - zero_point)."""

    scale: float
    zero_point: int


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """One FULLY_CONNECTED: weights int8 (outputs, inputs), bias int32, one multiplier and shift or one per output."""

    weights: Array
    bias: Array
    multipliers: Array
    shifts: Array
    entering: Scale
    leaving: Scale
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Clamp:
    """One activation by itself, which leaves the scale as it is."""

    low: int
    high: int


@dataclass(frozen=True, slots=True, eq=False)
class Net:
    """The chain: `boundary` is the tensor that enters it in the model (float where a QUANTIZE stands in front)."""

    boundary: str
    before: tuple[str, ...]
    steps: tuple[Dense | Clamp, ...]
    entering: Scale
    leaving: Scale
    width: int
    outputs: int
    softmax: bool
    tensors: tuple[int, int]
    operators: tuple[int, ...]
    ahead: tuple[int, ...]


def read_net(tflite: bytes) -> Net:
    """Find the int8 dense layers of a model; raises `Rejected`, naming the operator that is in the way."""
    model = load(tflite)
    try:
        return _Graph(model).net()
    except _BROKEN as error:
        raise Rejected(f"model: expected whole TFLite, got broken tables: {error}") from error


def load(tflite: bytes) -> Any:
    """Return the model as the schema's tables of objects; raises `Rejected`."""
    if tflite[4:8] != b"TFL3":
        raise Rejected(f"expected a TFLite model (TFL3 at byte 4), got {tflite[:8]!r}")
    try:
        return schema.ModelT.InitFromObj(schema.Model.GetRootAs(tflite, 0))
    except _BROKEN as error:
        raise Rejected(f"expected whole TFLite, got {len(tflite)} bytes with broken offsets") from error


class _Graph:
    """A model whose operators are found by the tensors that they give."""

    def __init__(self, model: Any) -> None:
        self._model = model
        if len(model.subgraphs or ()) != 1:
            raise Rejected(f"model: expected one graph, got {len(model.subgraphs or ())}")
        self._graph = model.subgraphs[0]
        self._names = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
        self._by_output = {
            int(output): number for number, operator in enumerate(self._graph.operators) for output in operator.outputs
        }

    def net(self) -> Net:
        refusals = []
        for output in self._graph.outputs:
            try:
                return self._chain(int(output))
            except Rejected as error:
                refusals.append(str(error))
        raise Rejected(next((text for text in refusals if "FULLY_CONNECTED" in text), refusals[0]))

    def _chain(self, output: int) -> Net:
        last, softmax, behind = output, False, 0
        while self._operator(last) in BEHIND:
            softmax = softmax or self._operator(last) == "SOFTMAX"
            last, behind = self._input(last), behind + 1
            self._check_bounded(behind)
        steps: list[Dense | Clamp] = []
        operators: list[int] = []
        tensor = last
        while True:
            name = self._operator(tensor)
            if name == "FULLY_CONNECTED":
                steps.insert(0, self._dense(tensor))
            elif name in CLAMPS:
                steps.insert(0, self._clamp(tensor, name))
            elif name != "RESHAPE":
                break
            operators.insert(0, self._by_output[tensor])
            self._check_bounded(len(operators))
            tensor = self._input(tensor)
        name = self._operator(tensor)
        if not any(isinstance(step, Dense) for step in steps):
            raise Rejected(f"C emitter: expected FULLY_CONNECTED before the output, got {name or 'the input'}")
        if max(self._size(tensor), self._size(last)) > MAX_WIDTH:
            raise Rejected(f"C emitter: expected at most {MAX_WIDTH} inputs and outputs, got {self._size(tensor)}")
        if not (name == "" and self._type(tensor) == "INT8") and not self._quantises(tensor):
            raise Rejected(f"C emitter: expected FULLY_CONNECTED, RELU, RESHAPE or QUANTIZE, got the operator {name}")
        boundary = self._input(tensor) if self._quantises(tensor) else tensor
        return Net(
            boundary=self._name(boundary),
            before=tuple(self._kind(number) for number in self._ahead(boundary)),
            steps=tuple(steps),
            entering=self._scale(tensor),
            leaving=self._scale(last),
            width=self._size(tensor),
            outputs=self._size(last),
            softmax=softmax,
            tensors=(tensor, last),
            operators=tuple(operators),
            ahead=self._ahead(tensor),
        )

    def _check_bounded(self, steps: int) -> None:
        """Refuse a chain longer than the graph, which bites its own tail."""
        if steps > len(self._graph.operators):
            raise Rejected("C emitter: expected operators in a chain, got a loop")

    def _quantises(self, tensor: int) -> bool:
        return self._operator(tensor) == "QUANTIZE" and self._type(self._input(tensor)) == "FLOAT32"

    def _ahead(self, tensor: int) -> tuple[int, ...]:
        """Return the operators, in order, that a tensor is computed by."""
        seen, waiting = set(), [tensor]
        while waiting:
            number = self._by_output.get(waiting.pop())
            if number is not None and number not in seen:
                seen.add(number)
                waiting += [int(tensor) for tensor in self._graph.operators[number].inputs]
        return tuple(sorted(seen))

    def _dense(self, tensor: int) -> Dense:
        operator = self._graph.operators[self._by_output[tensor]]
        value, weights, bias = (*(int(index) for index in operator.inputs), -1)[:3]
        what = f"FULLY_CONNECTED that gives {self._name(tensor)}"
        for index in (value, weights, tensor):
            if self._type(index) != "INT8":
                raise Rejected(f"C emitter: expected {what} in int8, got {self._name(index)} in {self._type(index)}")
        options = operator.builtinOptions
        if options is None or options.weightsFormat:
            raise Rejected(f"C emitter: expected {what} with plain weights, got shuffled ones")
        matrix = self._constant(weights, np.dtype(np.int8), what)
        outputs, inputs = matrix.shape
        if self._size(value) != inputs or self._size(tensor) != outputs:
            got = f"{self._size(value)} to {self._size(tensor)}"
            raise Rejected(f"C emitter: expected {what} of one row of {inputs} to {outputs}, got {got}")
        offset = self._constant(bias, np.dtype(np.int32), what) if bias >= 0 else np.zeros(outputs, dtype=np.int32)
        entering, leaving = self._scale(value), self._scale(tensor)
        reach = np.abs(matrix.astype(np.int64)).sum(axis=1) * 255 + np.abs(offset.astype(np.int64))
        if offset.shape != (outputs,) or reach.max() >= 2**31:
            raise Rejected(f"C emitter: expected {what} with sums in 32 bits, got {offset.shape} and {reach.max()}")
        pairs = [quantised_multiplier(real) for real in self._multipliers(value, weights, tensor, outputs)]
        low, high = self._range(options.fusedActivationFunction, leaving)
        multipliers, shifts = (np.asarray(column, dtype=np.int32) for column in zip(*pairs, strict=True))
        return Dense(matrix, offset, multipliers, shifts, entering, leaving, low, high)

    def _multipliers(self, value: int, weights: int, output: int, outputs: int) -> list[float]:
        """Return what the sums are multiplied with, in TFLite Micro's own precision and order of operations.

        Per channel it multiplies as doubles, per tensor it rounds the product of the scales to a float first
        (PopulateConvolutionQuantizationParams and GetQuantizedConvolutionMultipler in kernel_util.cc).
        """
        parameters = self._graph.tensors[weights].quantization
        if np.any(np.asarray(parameters.zeroPoint if parameters.zeroPoint is not None else [0])):
            raise Rejected(f"C emitter: expected FULLY_CONNECTED with symmetric weights, got {self._name(weights)}")
        scales = np.asarray(parameters.scale, dtype=np.float32)
        entering, leaving = np.float32(self._scale(value).scale), np.float64(self._scale(output).scale)
        if len(scales) == 1:
            return [float(np.float64(entering * scales[0]) / leaving)]
        if len(scales) != outputs or parameters.quantizedDimension:
            raise Rejected(f"C emitter: expected FULLY_CONNECTED with one scale per output, got {len(scales)}")
        return [float(np.float64(entering) * np.float64(scale) / leaving) for scale in scales]

    def _clamp(self, tensor: int, name: str) -> Clamp:
        value = self._input(tensor)
        if self._type(value) != "INT8" or self._type(tensor) != "INT8":
            raise Rejected(f"C emitter: expected {name} in int8, got {self._type(value)} to {self._type(tensor)}")
        # TFLite Micro's RELU6 does not rescale at all, so only what every kernel agrees on is emitted
        if self._scale(value) != self._scale(tensor):
            raise Rejected(f"C emitter: expected {name} that keeps its scale, got {self._name(tensor)} with another")
        low, high = self._range(getattr(schema.ActivationFunctionType, name), self._scale(tensor))
        return Clamp(low, high)

    def _range(self, activation: int, leaving: Scale) -> tuple[int, int]:
        """Return the clamp of an activation (CalculateActivationRangeQuantized in kernel_util.cc)."""
        kinds = schema.ActivationFunctionType
        bounds = {
            kinds.NONE: (None, None),
            kinds.RELU: (0.0, None),
            kinds.RELU6: (0.0, 6.0),
            kinds.RELU_N1_TO_1: (-1.0, 1.0),
        }
        if activation not in bounds:
            raise Rejected(f"C emitter: expected FULLY_CONNECTED with a RELU or none, got activation {activation}")
        low, high = bounds[activation]
        return (
            -128 if low is None else max(-128, _quantised(low, leaving)),
            127 if high is None else min(127, _quantised(high, leaving)),
        )

    def _operator(self, tensor: int) -> str:
        """Return the name of the operator that gives a tensor, or nothing for inputs and constants."""
        number = self._by_output.get(tensor)
        return "" if number is None else self._kind(number)

    def _kind(self, number: int) -> str:
        code = self._model.operatorCodes[self._graph.operators[number].opcodeIndex]
        return str(self._names.get(max(code.builtinCode, code.deprecatedBuiltinCode), "of an unknown kind"))

    def _input(self, tensor: int) -> int:
        return int(self._graph.operators[self._by_output[tensor]].inputs[0])

    def _name(self, tensor: int) -> str:
        return bytes(self._graph.tensors[tensor].name or b"").decode(errors="replace")

    def _type(self, tensor: int) -> str:
        kind = self._graph.tensors[tensor].type
        return next((str(name) for name, code in vars(schema.TensorType).items() if code == kind), "no known type")

    def _size(self, tensor: int) -> int:
        return math.prod(int(size) for size in self._graph.tensors[tensor].shape)

    def _scale(self, tensor: int) -> Scale:
        parameters = self._graph.tensors[tensor].quantization
        if parameters is None or parameters.scale is None or len(parameters.scale) != 1:
            raise Rejected(f"C emitter: expected one scale for the activations {self._name(tensor)}, got others")
        scale, zero_point = float(np.float32(parameters.scale[0])), int(parameters.zeroPoint[0])
        if not (math.isfinite(scale) and scale > 0 and -128 <= zero_point <= 127):
            raise Rejected(f"C emitter: expected an int8 scale for {self._name(tensor)}, got {scale}, {zero_point}")
        return Scale(scale, zero_point)

    def _constant(self, tensor: int, dtype: np.dtype[Any], what: str) -> Array:
        table = self._graph.tensors[tensor]
        data = self._model.buffers[table.buffer].data
        if data is None or self._type(tensor) != dtype.name.upper():
            raise Rejected(f"C emitter: expected {what} with constants in {dtype}, got {self._name(tensor)}")
        values = np.frombuffer(np.asarray(data, dtype=np.uint8).tobytes(), dtype=dtype.newbyteorder("<"))
        return values.reshape([int(size) for size in table.shape]).astype(dtype)


def quantised_multiplier(real: float) -> tuple[int, int]:
    """Return a positive real as a 31-bit multiplier and a shift to the left (QuantizeMultiplier in TFLite)."""
    if not (math.isfinite(real) and real > 0):
        raise Rejected(f"C emitter: expected positive scales, got the multiplier {real}")
    fraction, shift = math.frexp(real)
    multiplier = math.floor(fraction * (1 << 31) + 0.5)
    if multiplier == 1 << 31:
        multiplier, shift = multiplier // 2, shift + 1
    if shift < -31:
        return 0, 0
    if shift > 30:
        raise Rejected(f"C emitter: expected a multiplier below 2**30, got {real}")
    return multiplier, shift


def _quantised(real: float, leaving: Scale) -> int:
    ratio = np.float32(real) / np.float32(leaving.scale)
    # TfLiteRound: halves away from zero
    return leaving.zero_point + int(math.copysign(math.floor(abs(float(ratio)) + 0.5), float(ratio)))
