"""A graph as the bytes of a TFLite flatbuffer: reproducible, with one signature, and no TensorFlow.

Names follow the TFLite schema. Buffer 0 is empty by the schema's convention; equal constants share a buffer.
"""

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.tflite.ir import Graph, Operator, Tensor

IDENTIFIER = b"TFL3"
SIGNATURE = "serving_default"
_TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int64": schema.TensorType.INT64,
    "int32": schema.TensorType.INT32,
    "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8,
    "bool": schema.TensorType.BOOL,
}
_OPTIONS = {
    "CONV_2D": schema.Conv2DOptionsT,
    "DEPTHWISE_CONV_2D": schema.DepthwiseConv2DOptionsT,
    "TRANSPOSE_CONV": schema.TransposeConvOptionsT,
    "FULLY_CONNECTED": schema.FullyConnectedOptionsT,
    "BATCH_MATMUL": schema.BatchMatMulOptionsT,
    "MAX_POOL_2D": schema.Pool2DOptionsT,
    "AVERAGE_POOL_2D": schema.Pool2DOptionsT,
    "ADD": schema.AddOptionsT,
    "SUB": schema.SubOptionsT,
    "MUL": schema.MulOptionsT,
    "DIV": schema.DivOptionsT,
    "POW": schema.PowOptionsT,
    "MINIMUM": schema.MaximumMinimumOptionsT,
    "MAXIMUM": schema.MaximumMinimumOptionsT,
    "ABS": schema.AbsOptionsT,
    "NEG": schema.NegOptionsT,
    "EXP": schema.ExpOptionsT,
    "SIGN": schema.SignOptionsT,
    "COS": schema.CosOptionsT,
    "GELU": schema.GeluOptionsT,
    "LEAKY_RELU": schema.LeakyReluOptionsT,
    "HARD_SWISH": schema.HardSwishOptionsT,
    "SOFTMAX": schema.SoftmaxOptionsT,
    "LOG_SOFTMAX": schema.LogSoftmaxOptionsT,
    "MEAN": schema.ReducerOptionsT,
    "SUM": schema.ReducerOptionsT,
    "REDUCE_MAX": schema.ReducerOptionsT,
    "REDUCE_MIN": schema.ReducerOptionsT,
    "REDUCE_PROD": schema.ReducerOptionsT,
    "ARG_MAX": schema.ArgMaxOptionsT,
    "RESHAPE": schema.ReshapeOptionsT,
    "TRANSPOSE": schema.TransposeOptionsT,
    "CONCATENATION": schema.ConcatenationOptionsT,
    "SPLIT": schema.SplitOptionsT,
    "SPLIT_V": schema.SplitVOptionsT,
    "STRIDED_SLICE": schema.StridedSliceOptionsT,
    "PAD": schema.PadOptionsT,
    "PADV2": schema.PadV2OptionsT,
    "MIRROR_PAD": schema.MirrorPadOptionsT,
    "GATHER": schema.GatherOptionsT,
    "BROADCAST_TO": schema.BroadcastToOptionsT,
    "TILE": schema.TileOptionsT,
    "RESIZE_NEAREST_NEIGHBOR": schema.ResizeNearestNeighborOptionsT,
    "CAST": schema.CastOptionsT,
    "EQUAL": schema.EqualOptionsT,
    "GREATER": schema.GreaterOptionsT,
    "GREATER_EQUAL": schema.GreaterEqualOptionsT,
    "LESS": schema.LessOptionsT,
    "LESS_EQUAL": schema.LessEqualOptionsT,
    "LOGICAL_AND": schema.LogicalAndOptionsT,
    "LOGICAL_OR": schema.LogicalOrOptionsT,
    "LOGICAL_NOT": schema.LogicalNotOptionsT,
    "SELECT_V2": schema.SelectV2OptionsT,
    "QUANTIZE": schema.QuantizeOptionsT,
    "DEQUANTIZE": schema.DequantizeOptionsT,
}
_ENUMS = {
    "padding": schema.Padding,
    "fusedActivationFunction": schema.ActivationFunctionType,
    "mode": schema.MirrorPadMode,
    "inDataType": schema.TensorType,
    "outDataType": schema.TensorType,
    "outputType": schema.TensorType,
}
# by the schema's version of each kernel: an older runtime then refuses at load what it would compute wrongly
_INT8_VERSIONS = {
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 4,
    "TRANSPOSE_CONV": 2,
    "QUANTIZE": 2,
    "DEQUANTIZE": 2,
} | dict.fromkeys(
    (
        *("ADD", "SUB", "MUL", "MAX_POOL_2D", "AVERAGE_POOL_2D", "SOFTMAX", "LOG_SOFTMAX", "LOGISTIC", "TANH"),
        *("CONCATENATION", "PAD", "PADV2", "MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "TRANSPOSE", "SPLIT", "GATHER"),
        *("STRIDED_SLICE", "MINIMUM", "MAXIMUM", "RELU", "RELU6", "LEAKY_RELU"),
    ),
    2,
)
_FIRST_VERSIONS = {"BROADCAST_TO": 2}
_HYBRID_VERSIONS = {"FULLY_CONNECTED": 3, "CONV_2D": 2, "DEPTHWISE_CONV_2D": 4}


def emit(graph: Graph) -> bytes:
    """Return the model: the tensors that are used, in order of their index."""
    used = {index for operator in graph.operators for index in (*operator.inputs, *operator.outputs) if index >= 0}
    used |= set(graph.inputs.values()) | set(graph.outputs.values())
    place = {index: number for number, index in enumerate(sorted(used))}
    buffers: dict[bytes, int] = {b"": 0}
    codes: list[tuple[str, int]] = []

    body = schema.SubGraphT()
    body.name = b"main"
    body.tensors = [_tensor(graph.tensors[index], buffers) for index in place]
    body.operators = []
    for operator in graph.operators:
        code = (operator.kind, _version(graph, operator))
        if code not in codes:
            codes.append(code)
        body.operators.append(_operator(operator, codes.index(code), place))
    body.inputs = _integers([place[index] for index in graph.inputs.values()])
    body.outputs = _integers([place[index] for index in graph.outputs.values()])

    signature = schema.SignatureDefT()
    signature.signatureKey = SIGNATURE.encode()
    signature.subgraphIndex = 0
    signature.inputs = [_named(name, place[index]) for name, index in graph.inputs.items()]
    signature.outputs = [_named(name, place[index]) for name, index in graph.outputs.items()]
    model = schema.ModelT()
    model.version = 3
    model.description = b"skerry"
    model.operatorCodes = [_operator_code(kind, version) for kind, version in codes]
    model.subgraphs = [body]
    model.buffers = [_buffer(data) for data in buffers]
    model.signatureDefs = [signature]
    builder = _AlignedBuilder(1024)
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


class _AlignedBuilder(flatbuffers.Builder):  # type: ignore[misc] # the library has no types
    """Aligns byte vectors, which hold the weights, to 16 as the schema's `force_align` asks; Python forgets."""

    def StartVector(self, elemSize: int, numElems: int, alignment: int) -> Any:  # noqa: N802, N803 -- the library's names
        return super().StartVector(elemSize, numElems, 16 if elemSize == 1 else alignment)


def _tensor(tensor: Tensor, buffers: dict[bytes, int]) -> Any:
    entry = schema.TensorT()
    entry.name = tensor.name.encode()
    entry.shape = _integers(tensor.shape)
    entry.type = _TYPES[tensor.dtype]
    entry.buffer = 0
    entry.hasRank = True
    if tensor.data is not None:
        data = tensor.data.astype(tensor.data.dtype.newbyteorder("<")).tobytes()
        entry.buffer = buffers.setdefault(data, len(buffers))
    if tensor.quantisation is not None:
        parameters = schema.QuantizationParametersT()
        scales = tensor.quantisation.scales
        parameters.scale = np.asarray(scales, dtype=np.float32)
        parameters.zeroPoint = np.full(len(scales), tensor.quantisation.zero_point, dtype=np.int64)
        parameters.quantizedDimension = tensor.quantisation.axis
        entry.quantization = parameters
    return entry


def _buffer(data: bytes) -> Any:
    entry = schema.BufferT()
    if data:
        entry.data = np.frombuffer(data, dtype=np.uint8)
    return entry


def _operator(operator: Operator, code: int, place: dict[int, int]) -> Any:
    entry = schema.OperatorT()
    entry.opcodeIndex = code
    entry.inputs = _integers([place[index] if index >= 0 else -1 for index in operator.inputs])
    entry.outputs = _integers([place[index] for index in operator.outputs])
    table = _OPTIONS.get(operator.kind)
    if table is not None:
        entry.builtinOptions = options = table()
        entry.builtinOptionsType = getattr(schema.BuiltinOptions, table.__name__.removesuffix("T"))
        for name, value in operator.options.items():
            if not hasattr(options, name):
                raise AttributeError(f"{table.__name__} has no field {name}")
            setattr(options, name, getattr(_ENUMS[name], value) if isinstance(value, str) else value)
    return entry


def _version(graph: Graph, operator: Operator) -> int:
    types = [graph.tensors[index].dtype for index in (*operator.inputs, *operator.outputs) if index >= 0]
    if "int8" not in types:
        return _FIRST_VERSIONS.get(operator.kind, 1)
    if types[0] == "float32" and operator.kind in _HYBRID_VERSIONS:
        return _HYBRID_VERSIONS[operator.kind]
    return _INT8_VERSIONS.get(operator.kind, _FIRST_VERSIONS.get(operator.kind, 1))


def _operator_code(kind: str, version: int) -> Any:
    entry = schema.OperatorCodeT()
    entry.builtinCode = getattr(schema.BuiltinOperator, kind)
    entry.deprecatedBuiltinCode = min(entry.builtinCode, 127)  # the place for readers of before the code was widened
    entry.version = version
    return entry


def _named(name: str, tensor: int) -> Any:
    entry = schema.TensorMapT()
    entry.name = name.encode()
    entry.tensorIndex = tensor
    return entry


def _integers(values: Any) -> Any:
    return np.asarray(list(values), dtype=np.int32)
