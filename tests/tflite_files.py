"""TFLite files for tests: our own models by the writer, and broken ones by hand, straight from the schema."""

from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.network import Network
from converters.samples import Array
from converters.source import from_network
from converters.tflite import write_tflite

IDENTIFIER = b"TFL3"
SIGNATURE = "serving_default"
_TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int32": schema.TensorType.INT32,
    "int8": schema.TensorType.INT8,
}


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How integers stand for reals: real = scale * (integer - zero_point); one scale, or one per output channel."""

    scales: tuple[float, ...]
    zero_point: int = 0


class FlatGraph:
    """One graph under construction; `tensor` and `constant` return indices, which `operator` joins."""

    def __init__(self) -> None:
        self._graph = schema.SubGraphT()
        self._graph.name = b"main"
        self._graph.tensors = []
        self._graph.operators = []
        self._codes: list[int] = []
        self._buffers = [schema.BufferT()]

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str = "float32",
        *,
        quantisation: Quantisation | None = None,
        variable: bool = False,
    ) -> int:
        """Add a tensor that is computed or given, or with `variable` kept from one row to the next."""
        index = self._add(name, shape, dtype, quantisation=quantisation, buffer=0)
        self._graph.tensors[index].isVariable = variable
        return index

    def constant(self, name: str, values: Array, *, quantisation: Quantisation | None = None) -> int:
        """Add a tensor with values: float32, int32 or int8."""
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(values.astype(values.dtype.newbyteorder("<")).tobytes(), dtype=np.uint8)
        self._buffers.append(buffer)
        return self._add(
            name, values.shape, values.dtype.name, quantisation=quantisation, buffer=len(self._buffers) - 1
        )

    def operator(self, name: str, inputs: list[int], output: int, *, options: Any = None) -> int:
        """Add a built-in operator with one output and return it; `options` is a table such as `AddOptionsT`."""
        code = getattr(schema.BuiltinOperator, name)
        if code not in self._codes:
            self._codes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex = self._codes.index(code)
        operator.inputs = np.asarray(inputs, dtype=np.int32)
        operator.outputs = np.asarray([output], dtype=np.int32)
        if options is not None:
            operator.builtinOptions = options
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self._graph.operators.append(operator)
        return output

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(int(size) for size in self._graph.tensors[tensor].shape)

    def to_bytes(self, *, inputs: dict[str, int], outputs: dict[str, int]) -> bytes:
        """Write the model with one signature that names its inputs and outputs."""
        self._graph.inputs = np.asarray(list(inputs.values()), dtype=np.int32)
        self._graph.outputs = np.asarray(list(outputs.values()), dtype=np.int32)
        signature = schema.SignatureDefT()
        signature.signatureKey = SIGNATURE.encode()
        signature.subgraphIndex = 0
        signature.inputs = [_named(name, tensor) for name, tensor in inputs.items()]
        signature.outputs = [_named(name, tensor) for name, tensor in outputs.items()]

        model = schema.ModelT()
        model.version = 3
        model.description = b"skerry"
        model.operatorCodes = [_operator_code(code) for code in self._codes]
        model.subgraphs = [self._graph]
        model.buffers = self._buffers
        model.signatureDefs = [signature]
        builder = _AlignedBuilder(1024)
        builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
        return bytes(builder.Output())

    def _add(
        self, name: str, shape: tuple[int, ...], dtype: str, *, quantisation: Quantisation | None, buffer: int
    ) -> int:
        tensor = schema.TensorT()
        tensor.name = name.encode()
        tensor.shape = np.asarray(shape, dtype=np.int32)
        tensor.type = _TYPES[dtype]
        tensor.buffer = buffer
        tensor.hasRank = True
        if quantisation is not None:
            parameters = schema.QuantizationParametersT()
            parameters.scale = np.asarray(quantisation.scales, dtype=np.float32)
            parameters.zeroPoint = np.full(len(quantisation.scales), quantisation.zero_point, dtype=np.int64)
            parameters.quantizedDimension = 0
            tensor.quantization = parameters
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1


def remembering_file(*, steps: int = 4) -> bytes:
    """Return a model with a state: `y` is the sum of `x` (1, 2) over this row and the `steps - 1` rows before it."""
    graph = FlatGraph()
    x = graph.tensor("x", (1, 2))
    feature = graph.constant("feature", np.ones((1, 2), dtype=np.float32))
    time = graph.constant("time", np.ones((1, steps), dtype=np.float32))
    state = graph.tensor("state", (1, steps), variable=True)
    y = graph.tensor("y", (1, 1))
    options = schema.SVDFOptionsT()
    options.rank = 1
    graph.operator("SVDF", [x, feature, time, -1, state], y, options=options)
    return graph.to_bytes(inputs={"x": x}, outputs={"y": y})


class _AlignedBuilder(flatbuffers.Builder):  # type: ignore[misc] # the library has no types
    """Aligns byte vectors, which hold the weights, to 16 as the schema's `force_align` asks; Python forgets."""

    def StartVector(self, elemSize: int, numElems: int, alignment: int) -> Any:  # noqa: N802, N803 -- the library's names
        return super().StartVector(elemSize, numElems, 16 if elemSize == 1 else alignment)


def _named(name: str, tensor: int) -> Any:
    entry = schema.TensorMapT()
    entry.name = name.encode()
    entry.tensorIndex = tensor
    return entry


def _operator_code(code: int) -> Any:
    entry = schema.OperatorCodeT()
    entry.builtinCode = code
    entry.deprecatedBuiltinCode = min(code, 127)  # the schema's place for readers of before the code was widened
    entry.version = 1
    return entry


def float_file(network: Network) -> bytes:
    """Return a network's float32 build."""
    return write_tflite(from_network(network), "float32", calibration={})[0]


def hybrid_file(network: Network, windows: Array) -> bytes:
    """Return a network's hybrid build, calibrated on windows."""
    return write_tflite(from_network(network), "int8-hybrid", calibration={"window": windows})[0]
