"""A model file is hostile input: what it is and what it contains is checked before a runtime sees it.

Neither control flow nor custom operators nor data outside the file: a model is a bounded sequence of known operators.
Whether it runs, and at what cost, is found out in a child process (`skerry.runtimes.child`), never here. This file owns
the ONNX side; `converters.checks_tflite` walks a flatbuffer.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from converters.checks_tflite import walk_tflite
from skerry.errors import Rejected
from skerry.wire.profile import Profile

MAX_MODEL_BYTES = 64 << 20
MAX_PARTS = 20_000
MAX_OPSET = 23
MAX_ELEMENTS = 1 << 26
"""The most elements of one tensor: 256 MiB of float32, more than any device here has for a model."""
MAX_RANK = 8
MAX_ENDS = 64
"""The most inputs and outputs of a model together."""
# fmt: off
_STANDARD = frozenset({
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "AveragePool",
    "BatchNormalization", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv",
    "ConvInteger", "ConvTranspose", "Cos", "Cosh", "CumSum", "DepthToSpace", "DequantizeLinear", "Div", "Dropout",
    "DynamicQuantizeLinear", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "GRU", "Gather",
    "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual",
    "GroupNormalization", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "LRN", "LSTM",
    "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "LpNormalization", "MatMul",
    "MatMulInteger", "Max", "MaxPool", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pad", "Pow",
    "QLinearConv", "QLinearMatMul", "QuantizeLinear", "RNN", "Range", "Reciprocal", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "Relu", "Reshape", "Resize", "Round", "Selu", "Shape", "Sigmoid", "Sign", "Sin", "Sinh", "Size",
    "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tan",
    "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Upsample", "Where", "Xor",
})
_TREES = frozenset({
    "ArrayFeatureExtractor", "Binarizer", "Imputer", "LabelEncoder", "LinearClassifier", "LinearRegressor",
    "Normalizer", "SVMClassifier", "SVMRegressor", "Scaler", "TreeEnsembleClassifier", "TreeEnsembleRegressor",
})
_CONTRIBUTED = frozenset({
    "QGemm", "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearGlobalAveragePool", "QLinearLeakyRelu",
    "QLinearMul", "QLinearSigmoid", "QLinearSoftmax",
})
# fmt: on
ONNX_OPERATORS: Mapping[str, frozenset[str]] = {
    "": _STANDARD,
    "ai.onnx": _STANDARD,
    "ai.onnx.ml": _TREES,
    # compiled into ONNX Runtime, not a library beside it: what its own quantiser writes in the QOperator form
    "com.microsoft": _CONTRIBUTED,
}
IMPORTED_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
ML_OPSET = 3
ONNX_CONSTANTS = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8}
"""The types (TensorProto.DataType) of tensors that are allowed, with their sizes in bytes: numbers and booleans."""
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,256}")
_TYPED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


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
    _check_length(data)
    if profile.runtime == "onnxruntime":
        found = check_onnx(data, opset=profile.opset)
        used: Counter[str] = onnx_operators(data)
    else:
        found, used = walk_tflite(data)
    _check_operators(used, profile)
    return found


def check_import(data: bytes) -> str:
    """Check a stranger's file before it is normalised, and return its format: `onnx` or `tflite`.

    Raises:
        Rejected: it is neither, or contains what no profile allows; in one line.
    """
    _check_length(data)
    if data[4:8] == b"TFL3":
        walk_tflite(data)
        return "tflite"
    check_onnx(data, opset=MAX_OPSET, domains=IMPORTED_DOMAINS, texts=True)
    return "onnx"


def check_onnx(
    data: bytes, *, opset: int, domains: Collection[str] = tuple(ONNX_OPERATORS), texts: bool = False
) -> str:
    """Check an ONNX file of at most an opset, with operators of some domains; returns such as `ONNX opset 17`.

    With `texts`, constants may be strings: exporters write the names of labels so, and normalising drops them.
    """
    import onnx

    model = _parse(data)
    nodes = model.graph.node
    if model.functions or model.training_info or model.graph.sparse_initializer:
        raise Rejected("model file: expected a plain inference graph, got functions, training or sparse constants")
    _check_names(model)
    versions = _check_opsets(model, most=min(opset, MAX_OPSET), domains=domains)
    _check_ends(model.graph)
    for node in nodes:
        _check_node(node, domains, texts=texts)
    _check_tensors(model.graph.initializer, texts=texts)
    for info in model.graph.value_info:
        _check_shape(info)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError, MemoryError) as error:
        raise Rejected(f"model file: expected valid ONNX, got: {printable(str(error))}") from error
    return f"ONNX opset {versions[''] if '' in versions else max(versions.values())}"


def onnx_operators(data: bytes) -> Counter[str]:
    """Return how often each operator occurs; those of other domains as `DOMAIN.NAME`."""
    graph = _parse(data).graph
    return Counter(
        node.op_type if node.domain in {"", "ai.onnx"} else f"{node.domain}.{node.op_type}" for node in graph.node
    )


def _check_length(data: bytes) -> None:
    if not 0 < len(data) <= MAX_MODEL_BYTES:
        raise Rejected(f"model file: expected 1 to {MAX_MODEL_BYTES} bytes, got {len(data)}")


def _check_operators(used: Collection[str], profile: Profile) -> None:
    beyond = sorted(set(used) - set(profile.operators))
    if profile.operators and beyond:
        raise Rejected(f"model file: expected only operators of {profile.name}, got {', '.join(beyond)}")


def _parse(data: bytes) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise Rejected(f"model file: expected an ONNX model, got a file that begins with {data[:12]!r}") from error
    if not model.ir_version or not model.graph.node:
        raise Rejected(f"model file: expected an ONNX model, got a file that begins with {data[:12]!r}")
    if len(model.graph.node) > MAX_PARTS:
        raise Rejected(f"model file: expected at most {MAX_PARTS} operators, got {len(model.graph.node)}")
    return model


def _check_names(model: Any) -> None:
    """Protobuf hands over a name that is not UTF-8 as bytes, which no later step expects."""
    graph = model.graph
    named = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    names = [each.name for each in (*named, *graph.node)] + [entry.domain for entry in model.opset_import]
    for node in graph.node:
        names += [node.op_type, node.domain, *node.input, *node.output, *(each.name for each in node.attribute)]
    for info in (*graph.input, *graph.output, *graph.value_info):
        names += [dim.dim_param for dim in info.type.tensor_type.shape.dim]
    wrong = next((name for name in names if not isinstance(name, str)), None)
    if wrong is not None:
        raise Rejected(f"model file: expected names in UTF-8, got {wrong[:40]!r}")


def _check_opsets(model: Any, *, most: int, domains: Collection[str]) -> dict[str, int]:
    versions: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        limit = {"": most, "ai.onnx.ml": ML_OPSET}.get(domain, 1)
        # declared and unused is harmless, and what ONNX Runtime's optimiser leaves behind
        used = any(node.domain == entry.domain for node in model.graph.node)
        if used and (entry.domain not in domains or not 1 <= entry.version <= limit):
            got = printable(f"{entry.domain or 'ai.onnx'} {entry.version}")
            expected = f"the opset ai.onnx 1 to {most}" + (f" or ai.onnx.ml 1 to {ML_OPSET}" if domain else "")
            raise Rejected(f"model file: expected {expected}, got {got}")
        if not used and entry.domain not in domains:
            raise Rejected(f"model file: expected no domains but {_names(domains)}, got {entry.domain[:80]!r}")
        versions[domain] = entry.version
    return versions


def _check_node(node: Any, domains: Collection[str], *, texts: bool) -> None:
    if node.domain not in domains or node.op_type not in ONNX_OPERATORS[node.domain]:
        got = printable(f"{node.domain or 'ai.onnx'}.{node.op_type}")
        advice = ": export it with zipmap=False" if node.op_type == "ZipMap" else ""
        raise Rejected(f"model file: expected operators that Skerry allows, got {got}{advice}")
    for attribute in node.attribute:
        if attribute.HasField("g") or attribute.graphs:
            raise Rejected(f"model file: expected no graph inside an operator, got one in {printable(node.op_type)}")
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            raise Rejected(f"model file: expected dense constants, got a sparse one in {printable(node.op_type)}")
        _check_tensors([*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors], texts=texts)


def _check_tensors(tensors: Iterable[Any], *, texts: bool) -> None:
    import onnx

    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            got = f"external data for {tensor.name[:80]!r}: save it as one file"
            raise Rejected(f"model file: expected all data inside it, got {got}")
        text = texts and tensor.data_type == onnx.TensorProto.STRING
        size = ONNX_CONSTANTS.get(tensor.data_type, int(text))
        dims = list(tensor.dims[: MAX_RANK + 1])
        count = math.prod(dims)
        held = len(tensor.raw_data) if tensor.HasField("raw_data") else sum(len(getattr(tensor, f)) for f in _TYPED)
        expected = count * size if tensor.HasField("raw_data") else count
        if not size or len(dims) > MAX_RANK or min(dims, default=0) < 0 or held != expected:
            got = f"{held} for {tensor.name[:80]!r} of type {tensor.data_type}"
            raise Rejected(f"model file: expected numbers of shape {dims[:MAX_RANK]} in {expected}, got {got}")


def _check_ends(graph: Any) -> None:
    ends = [*graph.input, *graph.output]
    constants = {tensor.name for tensor in graph.initializer}
    open_ends = [end for end in ends if end.name not in constants]
    if len(open_ends) > MAX_ENDS or not graph.output or len(ends) > MAX_PARTS:
        raise Rejected(f"model file: expected 1 to {MAX_ENDS} inputs and outputs, got {len(open_ends)}")
    for end in ends:
        if not _NAME.fullmatch(end.name):
            raise Rejected(f"model file: expected printable names of inputs and outputs, got {end.name[:80]!r}")
        _check_shape(end)


def _check_shape(info: Any) -> None:
    dims = [dim.dim_value for dim in info.type.tensor_type.shape.dim[: MAX_RANK + 1]]
    # -1 is how some exporters say that a dimension is open
    if len(dims) > MAX_RANK or min(dims, default=0) < -1 or math.prod(max(dim, 1) for dim in dims) > MAX_ELEMENTS:
        got = f"{dims} for {info.name[:80]!r}"
        raise Rejected(f"model file: expected at most {MAX_ELEMENTS} elements in {MAX_RANK} dimensions, got {got}")


def printable(text: str, *, most: int = 200) -> str:
    """Return text of a stranger's as one line of so many printable characters at most."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())[:most]


def _names(domains: Collection[str]) -> str:
    return ", ".join(sorted({domain or "ai.onnx" for domain in domains}))
