"""The walk through a hostile TFLite flatbuffer: every offset, index, length and operator, in bounded work.

A second graph is allowed for one thing alone: `CALL_ONCE` names it to give streaming models the first values of their
variables, so it may hold nothing but `VAR_HANDLE` and `ASSIGN_VARIABLE`.
"""

import math
import struct
from collections import Counter
from functools import cache
from typing import Any

from skerry.errors import Rejected

MAX_PARTS = 20_000
MAX_LINKS = 200_000
"""The most inputs and outputs of all operators together: overlapping vectors could make a small file long to read."""
MAX_ELEMENTS = 1 << 26
MAX_RANK = 8
MAX_GRAPHS = 8
# fmt: off
STATEFUL = frozenset({"ASSIGN_VARIABLE", "CALL_ONCE", "READ_VARIABLE", "VAR_HANDLE"})
FIRST_VALUES = frozenset({"ASSIGN_VARIABLE", "VAR_HANDLE"})
TFLITE_OPERATORS = STATEFUL | {
    "ABS", "ADD", "ADD_N", "ARG_MAX", "ARG_MIN", "AVERAGE_POOL_2D", "BATCH_MATMUL", "BATCH_TO_SPACE_ND", "BROADCAST_TO",
    "CAST", "CEIL", "CONCATENATION", "CONV_2D", "COS", "CUMSUM", "DEPTHWISE_CONV_2D", "DEPTH_TO_SPACE", "DEQUANTIZE",
    "DIV", "ELU", "EQUAL", "EXP", "EXPAND_DIMS", "FILL", "FLOOR", "FLOOR_DIV", "FLOOR_MOD", "FULLY_CONNECTED", "GATHER",
    "GATHER_ND", "GELU", "GREATER", "GREATER_EQUAL", "HARD_SWISH", "L2_NORMALIZATION", "L2_POOL_2D", "LEAKY_RELU",
    "LESS", "LESS_EQUAL", "LOG", "LOGICAL_AND", "LOGICAL_NOT", "LOGICAL_OR", "LOGISTIC", "LOG_SOFTMAX", "MAXIMUM",
    "MAX_POOL_2D", "MEAN", "MINIMUM", "MIRROR_PAD", "MUL", "NEG", "NOT_EQUAL", "PACK", "PAD", "PADV2", "POW", "PRELU",
    "QUANTIZE", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1", "RESHAPE",
    "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "ROUND", "RSQRT", "SELECT", "SELECT_V2", "SHAPE", "SIGN", "SIN",
    "SLICE", "SOFTMAX", "SPACE_TO_BATCH_ND", "SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQRT", "SQUARE",
    "SQUARED_DIFFERENCE", "SQUEEZE", "STRIDED_SLICE", "SUB", "SUM", "SVDF", "TANH", "TILE", "TRANSPOSE",
    "TRANSPOSE_CONV", "UNIDIRECTIONAL_SEQUENCE_LSTM", "UNPACK", "ZEROS_LIKE",
}
# fmt: on
TFLITE_CONSTANTS = {"FLOAT32": 4, "FLOAT16": 2, "INT64": 8, "INT32": 4, "INT16": 2, "INT8": 1, "UINT8": 1, "BOOL": 1}
"""The types of constants that are allowed, with their sizes in bytes."""
BROKEN = (struct.error, IndexError, ValueError, TypeError, AttributeError, OverflowError)
"""What Python's flatbuffers raise on offsets that lead nowhere."""


def walk_tflite(data: bytes) -> tuple[str, Counter[str]]:
    """Check a TFLite file; returns its format, such as `TFLite version 3`, and how often each operator occurs.

    Raises:
        Rejected: it is not TFLite, is broken, or contains what is not allowed; in one line.
    """
    if data[4:8] != b"TFL3":
        raise Rejected(f"model file: expected TFLite (TFL3 at byte 4), got a file that begins with {data[:12]!r}")
    try:
        return _walk(data)
    except BROKEN as error:
        raise Rejected(f"model file: expected whole TFLite, got {len(data)} bytes with broken offsets") from error


def _walk(data: bytes) -> tuple[str, Counter[str]]:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(data, 0)
    codes = _operator_codes(model)
    graphs = model.SubgraphsLength()
    if not 1 <= graphs <= MAX_GRAPHS:
        raise Rejected(f"model file: expected one graph, got {graphs}")
    called = _called_once(model.Subgraphs(0), codes, schema)
    if called != set(range(1, graphs)):
        expected = "any other than the first only for CALL_ONCE"
        raise Rejected(f"model file: expected one graph, got {graphs}: {expected}")
    main = model.Subgraphs(0)
    if not main.OperatorsLength() or not main.InputsLength() or not main.OutputsLength():
        raise Rejected("model file: expected a graph with operators, inputs and outputs, got an empty one")
    used: Counter[str] = Counter()
    links = 0
    for index in range(graphs):
        found, joined = _walk_graph(model, model.Subgraphs(index), codes)
        links += joined
        if index and set(found) - FIRST_VALUES:
            got = ", ".join(sorted(set(found) - FIRST_VALUES))
            raise Rejected(f"model file: expected CALL_ONCE to give first values alone, got {got}")
        used += found
    if links > MAX_LINKS:
        raise Rejected(f"model file: expected at most {MAX_LINKS} inputs and outputs of operators, got {links}")
    return f"TFLite version {model.Version()}", used


def _operator_codes(model: Any) -> list[str]:
    """Check every operator code, and return their names in order."""
    names = _operator_names()
    codes = []
    for index in range(_capped(model.OperatorCodesLength(), "operator codes")):
        entry = model.OperatorCodes(index)
        # two fields since the code outgrew a byte; the larger one holds (schema, comment on OperatorCode)
        name = names.get(max(entry.BuiltinCode(), entry.DeprecatedBuiltinCode()), "an unknown one")
        if name not in TFLITE_OPERATORS:
            raise Rejected(f"model file: expected operators that Skerry allows, got {name}")
        codes.append(name)
    return codes


@cache
def _operator_names() -> dict[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    return {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}


@cache
def _sizes() -> dict[int, int]:
    from ai_edge_litert import schema_py_generated as schema

    return {getattr(schema.TensorType, name): size for name, size in TFLITE_CONSTANTS.items()}


def _called_once(graph: Any, codes: list[str], schema: Any) -> set[int]:
    """Return the graphs that the first one calls once."""
    called = set()
    for index in range(_capped(graph.OperatorsLength(), "operators")):
        operator = graph.Operators(index)
        _check_indices([operator.OpcodeIndex()], below=len(codes), least=0)
        if codes[operator.OpcodeIndex()] == "CALL_ONCE":
            table = operator.BuiltinOptions()
            if table is None or operator.BuiltinOptionsType() != schema.BuiltinOptions.CallOnceOptions:
                raise Rejected("model file: expected CALL_ONCE to name a graph, got none")
            options = schema.CallOnceOptions()
            options.Init(table.Bytes, table.Pos)
            called.add(options.InitSubgraphIndex())
    return called


def _walk_graph(model: Any, graph: Any, codes: list[str]) -> tuple[Counter[str], int]:
    """Check a graph's tensors, operators and ends; returns its operators, and how many inputs and outputs they have."""
    tensors = _capped(graph.TensorsLength(), "tensors")
    ends = [graph.Inputs(i) for i in range(_capped(graph.InputsLength(), "inputs", most=64))]
    ends += [graph.Outputs(i) for i in range(_capped(graph.OutputsLength(), "outputs", most=64))]
    _check_indices(ends, below=tensors, least=0)
    used: Counter[str] = Counter()
    links = 0
    for index in range(_capped(graph.OperatorsLength(), "operators")):
        operator = graph.Operators(index)
        _check_indices([operator.OpcodeIndex()], below=len(codes), least=0)
        links += _capped(operator.InputsLength(), "inputs") + _capped(operator.OutputsLength(), "outputs")
        _capped(links, "inputs and outputs of operators", most=MAX_LINKS)
        joined = [operator.Inputs(i) for i in range(operator.InputsLength())]
        joined += [operator.Outputs(i) for i in range(operator.OutputsLength())]
        _check_indices(joined, below=tensors, least=-1)  # -1 stands for an absent optional input
        used[codes[operator.OpcodeIndex()]] += 1
    for index in range(tensors):
        _check_tensor(model, graph.Tensors(index))
    return used, links


def _check_tensor(model: Any, tensor: Any) -> None:
    if tensor.Sparsity() is not None:
        raise Rejected("model file: expected dense constants, got a sparse one")
    shape = [tensor.Shape(i) for i in range(_capped(tensor.ShapeLength(), "dimensions", most=MAX_RANK))]
    if min(shape, default=0) < 0 or math.prod(max(size, 1) for size in shape) > MAX_ELEMENTS:
        raise Rejected(f"model file: expected at most {MAX_ELEMENTS} elements in a tensor, got the shape {shape}")
    _check_indices([tensor.Buffer()], below=model.BuffersLength(), least=0)
    buffer = model.Buffers(tensor.Buffer())
    if buffer.Offset() > 1 or buffer.Size() > 1:
        raise Rejected("model file: expected all data inside the flatbuffer, got data appended to it")
    length = buffer.DataLength()
    if not length:
        return
    buffer.Data(length - 1)  # raises when the vector leads past the end of the file
    # TFLite Micro believes the shape and reads past a shorter buffer
    expected = math.prod(shape) * _sizes().get(tensor.Type(), 0)
    if length != expected:
        got = f"{length} bytes of type {tensor.Type()}"
        raise Rejected(f"model file: expected a constant of shape {shape} in {expected} bytes, got {got}")


def _check_indices(indices: list[int], *, below: int, least: int) -> None:
    if not all(least <= index < below for index in indices):
        raise Rejected(f"model file: expected indices below {below}, got {indices[:8]}")


def _capped(length: int, what: str, *, most: int = MAX_PARTS) -> int:
    if length > most:
        raise Rejected(f"model file: expected at most {most} {what}, got {length}")
    return length
