"""A model file is hostile input: what it is and what it contains is checked before a runtime sees it.

Neither control flow nor custom operators nor data outside the file: a model is a bounded sequence of known operators.
Whether it runs, and at what cost, is found out in a child process (`skerry.runtimes.child`), never here.
"""

import math
import struct
from collections.abc import Iterable
from typing import Any

from skerry.errors import Rejected
from skerry.wire.profile import Profile

MAX_MODEL_BYTES = 64 << 20
MAX_PARTS = 20_000
MAX_OPSET = 21
ONNX_DOMAINS = frozenset({"", "ai.onnx"})
# fmt: off
ONNX_OPERATORS = frozenset({
    "Abs", "Add", "ArgMax", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Constant", "Conv",
    "DequantizeLinear", "Div", "Dropout", "DynamicQuantizeLinear", "Elu", "Erf", "Exp", "Flatten", "Gather", "Gemm",
    "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "LogSoftmax",
    "MatMul", "MatMulInteger", "Max", "MaxPool", "Min", "Mul", "Neg", "PRelu", "Pad", "Pow", "QLinearConv",
    "QLinearMatMul", "QuantizeLinear", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Shape",
    "Sigmoid", "Slice", "Softmax", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
})
TFLITE_OPERATORS = frozenset({
    "ABS", "ADD", "ARG_MAX", "AVERAGE_POOL_2D", "CAST", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "DEQUANTIZE",
    "DIV", "ELU", "EXP", "EXPAND_DIMS", "FULLY_CONNECTED", "GATHER", "HARD_SWISH", "LEAKY_RELU", "LOG", "LOGISTIC",
    "LOG_SOFTMAX", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM", "MUL", "NEG", "PACK", "PAD", "PRELU", "QUANTIZE",
    "REDUCE_MAX", "REDUCE_MIN", "RELU", "RELU6", "RESHAPE", "RSQRT", "SHAPE", "SLICE", "SOFTMAX", "SPLIT", "SQRT",
    "SQUARE", "SQUEEZE", "STRIDED_SLICE", "SUB", "SUM", "TANH", "TRANSPOSE", "UNPACK",
})
# fmt: on
TFLITE_CONSTANTS = {"FLOAT32": 4, "FLOAT16": 2, "INT64": 8, "INT32": 4, "INT16": 2, "INT8": 1, "UINT8": 1, "BOOL": 1}
"""The types of constants that are allowed, with their sizes in bytes."""


def check_model_file(data: bytes, profile: Profile) -> str:
    """Check a model file for a profile, its size budget too, and return its format, such as `ONNX opset 17`.

    Raises:
        Rejected: it is too long, is not a model of that runtime, or contains what is not allowed; in one line.
    """
    if len(data) > profile.budgets.size_bytes:
        got = f"{len(data)}: shrink the model or choose another profile"
        raise Rejected(f"model file: expected at most {profile.budgets.size_bytes} bytes for {profile.name}, got {got}")
    return check_contents(data, profile)


def check_contents(data: bytes, profile: Profile) -> str:
    """Check a model file whatever its size budget, which is the gate's to judge; as `check_model_file` otherwise."""
    if not 0 < len(data) <= MAX_MODEL_BYTES:
        raise Rejected(f"model file: expected 1 to {MAX_MODEL_BYTES} bytes, got {len(data)}")
    return _check_onnx(data, opset=profile.opset) if profile.runtime == "onnxruntime" else _check_tflite(data)


def _check_onnx(data: bytes, *, opset: int) -> str:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # no stubs among our dependencies

    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise Rejected(f"model file: expected an ONNX model, got a file that begins with {data[:12]!r}") from error
    nodes = model.graph.node
    if not model.ir_version or not nodes:
        raise Rejected(f"model file: expected an ONNX model, got a file that begins with {data[:12]!r}")
    if len(nodes) > MAX_PARTS:
        raise Rejected(f"model file: expected at most {MAX_PARTS} operators, got {len(nodes)}")
    if model.functions or model.training_info or model.graph.sparse_initializer:
        raise Rejected("model file: expected a plain inference graph, got functions, training or sparse constants")
    most = min(opset, MAX_OPSET)
    for entry in model.opset_import:
        if entry.domain not in ONNX_DOMAINS or not 1 <= entry.version <= most:
            got = f"{entry.domain or 'ai.onnx'} {entry.version}"
            raise Rejected(f"model file: expected the opset ai.onnx 1 to {most}, got {got}")
    for node in nodes:
        _check_onnx_node(node)
    _check_onnx_tensors(model.graph.initializer)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise Rejected(f"model file: expected valid ONNX, got: {' '.join(str(error).split())[:200]}") from error
    return f"ONNX opset {max(entry.version for entry in model.opset_import)}"


def _check_onnx_node(node: Any) -> None:
    if node.domain not in ONNX_DOMAINS or node.op_type not in ONNX_OPERATORS:
        got = f"{node.domain or 'ai.onnx'}.{node.op_type}"
        raise Rejected(f"model file: expected operators that Skerry allows, got {got}")
    for attribute in node.attribute:
        if attribute.HasField("g") or attribute.graphs:
            raise Rejected(f"model file: expected no graph inside an operator, got one in {node.op_type}")
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            raise Rejected(f"model file: expected dense constants, got a sparse one in {node.op_type}")
        _check_onnx_tensors([*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors])


def _check_onnx_tensors(tensors: Iterable[Any]) -> None:
    import onnx

    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise Rejected(f"model file: expected all data inside it, got external data for {tensor.name!r}")


def _check_tflite(data: bytes) -> str:
    if data[4:8] != b"TFL3":
        raise Rejected(f"model file: expected TFLite (TFL3 at byte 4), got a file that begins with {data[:12]!r}")
    try:
        return _walk_tflite(data)
    # what Python's flatbuffers raise on offsets that lead nowhere
    except (struct.error, IndexError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise Rejected(f"model file: expected whole TFLite, got {len(data)} bytes with broken offsets") from error


def _walk_tflite(data: bytes) -> str:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(data, 0)
    if model.SubgraphsLength() != 1:
        raise Rejected(f"model file: expected one graph, got {model.SubgraphsLength()}")
    codes = _tflite_operators(model, schema)
    graph = model.Subgraphs(0)
    if not graph.OperatorsLength() or not graph.InputsLength() or not graph.OutputsLength():
        raise Rejected("model file: expected a graph with operators, inputs and outputs, got an empty one")
    tensors = _capped(graph.TensorsLength(), "tensors")
    _check_indices([graph.Inputs(i) for i in range(_capped(graph.InputsLength(), "inputs"))], below=tensors, least=0)
    _check_indices([graph.Outputs(i) for i in range(_capped(graph.OutputsLength(), "outputs"))], below=tensors, least=0)
    for index in range(_capped(graph.OperatorsLength(), "operators")):
        operator = graph.Operators(index)
        _check_indices([operator.OpcodeIndex()], below=codes, least=0)
        joined = [operator.Inputs(i) for i in range(_capped(operator.InputsLength(), "inputs"))]
        joined += [operator.Outputs(i) for i in range(_capped(operator.OutputsLength(), "outputs"))]
        _check_indices(joined, below=tensors, least=-1)  # -1 stands for an absent optional input
    for index in range(tensors):
        _check_tflite_tensor(model, graph.Tensors(index), schema)
    return f"TFLite version {model.Version()}"


def _tflite_operators(model: Any, schema: Any) -> int:
    """Check every operator code, and return how many there are."""
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    count = _capped(model.OperatorCodesLength(), "operator codes")
    for index in range(count):
        entry = model.OperatorCodes(index)
        # two fields since the code outgrew a byte; the larger one holds (schema, comment on OperatorCode)
        name = names.get(max(entry.BuiltinCode(), entry.DeprecatedBuiltinCode()), "an unknown one")
        if name not in TFLITE_OPERATORS:
            raise Rejected(f"model file: expected operators that Skerry allows, got {name}")
    return count


def _check_tflite_tensor(model: Any, tensor: Any, schema: Any) -> None:
    _check_indices([tensor.Buffer()], below=model.BuffersLength(), least=0)
    buffer = model.Buffers(tensor.Buffer())
    if buffer.Offset() > 1 or buffer.Size() > 1:
        raise Rejected("model file: expected all data inside the flatbuffer, got data appended to it")
    length = buffer.DataLength()
    if not length:
        return
    buffer.Data(length - 1)  # raises when the vector leads past the end of the file
    # TFLite Micro believes the shape and reads past a shorter buffer
    sizes = {getattr(schema.TensorType, name): size for name, size in TFLITE_CONSTANTS.items()}
    shape = [tensor.Shape(i) for i in range(_capped(tensor.ShapeLength(), "dimensions"))]
    expected = math.prod(shape) * sizes.get(tensor.Type(), 0)
    if min(shape, default=1) < 0 or length != expected:
        got = f"{length} bytes of type {tensor.Type()}"
        raise Rejected(f"model file: expected a constant of shape {shape} in {expected} bytes, got {got}")


def _check_indices(indices: list[int], *, below: int, least: int) -> None:
    if not all(least <= index < below for index in indices):
        raise Rejected(f"model file: expected indices below {below}, got {indices[:8]}")


def _capped(length: int, what: str) -> int:
    if length > MAX_PARTS:
        raise Rejected(f"model file: expected at most {MAX_PARTS} {what}, got {length}")
    return length
