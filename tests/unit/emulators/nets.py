"""Small int8 nets as TFLite for tests, straight from the schema: independent of the writers under test."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.samples import Array


@dataclass(frozen=True, slots=True)
class Layer:
    """What a test says of one layer of a random net."""

    outputs: int
    per_channel: bool = False
    activation: str = "NONE"
    bias: bool = True


def random_net(
    rng: np.random.Generator, inputs: int, layers: Sequence[Layer], *, ends: str = "int8", apart: bool = False
) -> bytes:
    """Return a TFLite int8 net with random weights and scales that fit its sums.

    `ends` is int8 (integers on both sides), float (QUANTIZE and DEQUANTIZE) or softmax (and a SOFTMAX behind).
    `apart`: the activations are operators of their own.
    """
    graph = Graph()
    zero = int(rng.integers(-128, 128))
    scale = float(rng.uniform(0.005, 0.2))
    value = entering = graph.tensor("input", (1, inputs), "INT8", ([scale], [zero]))
    if ends != "int8":
        entering = graph.tensor("real_input", (1, inputs), "FLOAT32")
        graph.operator("QUANTIZE", [entering], value, schema.QuantizeOptionsT())
    width = inputs
    for number, layer in enumerate(layers):
        weights = rng.integers(-127, 128, (layer.outputs, width)).astype(np.int8)
        # sums of some 70 * 60 * sqrt(width) shall fill the integers of the output, and clamps shall lie within them
        before, scale = scale, float(rng.uniform(0.02, 0.08))
        fitting = scale / (before * np.sqrt(width) * rng.uniform(40, 120, layer.outputs if layer.per_channel else 1))
        scales = fitting.astype(np.float32)
        matrix = graph.tensor(f"weights_{number}", weights.shape, "INT8", (scales, [0] * len(scales)), weights)
        parts = [value, matrix]
        if layer.bias:
            offsets = rng.integers(-4000, 4000, layer.outputs).astype(np.int32)
            products = (np.float32(before) * scales).astype(np.float32)
            parts.append(graph.tensor(f"bias_{number}", offsets.shape, "INT32", (products, [0] * len(scales)), offsets))
        zero = int(rng.integers(-128, 128))
        fused = "NONE" if apart else layer.activation
        value = graph.tensor(f"hidden_{number}", (1, layer.outputs), "INT8", ([scale], [zero]))
        options = schema.FullyConnectedOptionsT()
        options.fusedActivationFunction = getattr(schema.ActivationFunctionType, fused)
        graph.operator("FULLY_CONNECTED", parts, value, options)
        if apart and layer.activation != "NONE":
            before = value
            value = graph.tensor(f"active_{number}", (1, layer.outputs), "INT8", ([scale], [zero]))
            graph.operator(layer.activation, [before], value, None)
        width = layer.outputs
    leaving = value
    if ends != "int8":
        leaving = graph.tensor("real_output", (1, width), "FLOAT32")
        graph.operator("DEQUANTIZE", [value], leaving, schema.DequantizeOptionsT())
    if ends == "softmax":
        real, leaving = leaving, graph.tensor("probabilities", (1, width), "FLOAT32")
        options = schema.SoftmaxOptionsT()
        options.beta = 1.0
        graph.operator("SOFTMAX", [real], leaving, options)
    return graph.to_bytes(entering, leaving)


class Graph:
    """A TFLite graph under construction."""

    def __init__(self) -> None:
        self._graph = schema.SubGraphT()
        self._graph.tensors, self._graph.operators = [], []
        self._codes: list[int] = []
        self._buffers = [schema.BufferT()]

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        kind: str,
        quantisation: tuple[Any, Any] | None = None,
        values: Array | None = None,
    ) -> int:
        """Add a tensor, with values when it is a constant."""
        tensor = schema.TensorT()
        tensor.name, tensor.shape = name.encode(), np.asarray(shape, dtype=np.int32)
        tensor.type = getattr(schema.TensorType, kind)
        if quantisation is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = np.asarray(quantisation[0], dtype=np.float32)
            tensor.quantization.zeroPoint = np.asarray(quantisation[1], dtype=np.int64)
        if values is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(values.tobytes(), dtype=np.uint8)
            self._buffers.append(buffer)
            tensor.buffer = len(self._buffers) - 1
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def operator(self, name: str, inputs: Sequence[int], output: int, options: Any) -> None:
        """Add an operator."""
        code = getattr(schema.BuiltinOperator, name)
        if code not in self._codes:
            self._codes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex = self._codes.index(code)
        operator.inputs, operator.outputs = np.asarray(inputs, dtype=np.int32), np.asarray([output], dtype=np.int32)
        if options is not None:
            operator.builtinOptions = options
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self._graph.operators.append(operator)

    def to_bytes(self, entering: int, leaving: int) -> bytes:
        """Write the model."""
        self._graph.inputs, self._graph.outputs = np.asarray([entering]), np.asarray([leaving])
        model = schema.ModelT()
        model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, [self._graph], self._buffers, []
        for code in self._codes:
            entry = schema.OperatorCodeT()
            # the versions from which on the operators know int8
            names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
            entry.version = {"FULLY_CONNECTED": 4, "RELU": 2, "RELU6": 2, "DEQUANTIZE": 2}.get(names[code], 1)
            entry.builtinCode, entry.deprecatedBuiltinCode = code, min(code, 127)
            model.operatorCodes.append(entry)
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())
