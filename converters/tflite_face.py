"""What a checked TFLite file shows of itself: its inputs and outputs, what it ends in, whether it remembers."""

from dataclasses import dataclass
from typing import Any

from converters.checks_tflite import BROKEN, STATEFUL, TFLITE_CONSTANTS, walk_tflite
from skerry.errors import Rejected
from skerry.wire.manifest import TensorSpec


@dataclass(frozen=True, slots=True)
class Face:
    """Inputs and outputs; the output that a softmax makes, or ""; whether variables keep what earlier rows left."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    softmax: str
    stateful: bool


def read_face(data: bytes) -> Face:
    """Return the face of a TFLite file; raises `Rejected` when it is not allowed, or its shapes leave more open."""
    _, used = walk_tflite(data)
    try:
        return _read(data, stateful=bool(STATEFUL & set(used)))
    except BROKEN as error:
        raise Rejected(f"model file: expected whole TFLite, got {len(data)} bytes with broken offsets") from error


def precision_of(data: bytes) -> str:
    """Return what a checked TFLite file computes in, in the words of profiles.

    Operators that compute in 8-bit integers alone are `int8`, beside others in floats `int8-hybrid`; floats over int8
    weights are `int8-dynamic`, over half-precision weights `fp16`. What only changes types is not counted, nor is the
    softmax at the end.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(data, 0)
    graph = model.Subgraphs(0)
    kinds = {getattr(schema.TensorType, name): name for name in TFLITE_CONSTANTS}
    builtin = schema.BuiltinOperator
    aside = {builtin.QUANTIZE, builtin.DEQUANTIZE, builtin.CAST, builtin.SOFTMAX, builtin.RESHAPE}
    computed, weights = set(), set()
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        entry = model.OperatorCodes(operator.OpcodeIndex())
        if max(entry.BuiltinCode(), entry.DeprecatedBuiltinCode()) not in aside:
            made = (graph.Tensors(operator.Outputs(i)) for i in range(operator.OutputsLength()))
            computed |= {kinds.get(tensor.Type(), "") for tensor in made}
        read = (operator.Inputs(i) for i in range(operator.InputsLength()))
        tensors = [graph.Tensors(number) for number in read if number >= 0]
        weights |= {kinds.get(t.Type(), "") for t in tensors if model.Buffers(t.Buffer()).DataLength()}
    if computed & {"INT8", "UINT8"}:
        return "int8-hybrid" if "FLOAT32" in computed else "int8"
    if "INT16" in computed:
        return "int16"
    if "INT8" in weights:
        return "int8-dynamic"
    return "fp16" if "FLOAT16" in weights else "float32"


def _read(data: bytes, *, stateful: bool) -> Face:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(data, 0)
    graph = model.Subgraphs(0)
    tensors = [graph.Tensors(index) for index in range(graph.TensorsLength())]
    inputs = tuple(_spec(tensors[graph.Inputs(i)], schema) for i in range(graph.InputsLength()))
    outputs = tuple(_spec(tensors[graph.Outputs(i)], schema) for i in range(graph.OutputsLength()))
    for ends in (inputs, outputs):
        names = [spec.name for spec in ends]
        if len(set(names)) != len(names):
            raise Rejected(f"model file: expected inputs and outputs of distinct names, got {names}")
    ends_in = {graph.Outputs(i): spec.name for i, spec in enumerate(outputs)}
    return Face(
        inputs=inputs,
        outputs=outputs,
        softmax=next((ends_in[made] for made in _softmaxes(model, graph, schema) if made in ends_in), ""),
        stateful=stateful or any(tensor.IsVariable() for tensor in tensors),
    )


def _softmaxes(model: Any, graph: Any, schema: Any) -> list[int]:
    """Return the tensors that a softmax makes, also by way of a change of type."""
    made: set[int] = set()
    builtin = schema.BuiltinOperator
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        entry = model.OperatorCodes(operator.OpcodeIndex())
        code = max(entry.BuiltinCode(), entry.DeprecatedBuiltinCode())
        read = {operator.Inputs(i) for i in range(operator.InputsLength())}
        passes = code in {builtin.QUANTIZE, builtin.DEQUANTIZE} and read & made
        if code == builtin.SOFTMAX or passes:
            made |= {operator.Outputs(i) for i in range(operator.OutputsLength())}
    return sorted(made)


def _spec(tensor: Any, schema: Any) -> TensorSpec:
    kinds = {getattr(schema.TensorType, name): name.lower() for name in TFLITE_CONSTANTS}
    try:
        name = (tensor.Name() or b"").decode()
    except UnicodeDecodeError as error:
        raise Rejected("model file: expected names in UTF-8, got other bytes") from error
    shape = tuple(int(tensor.Shape(i)) for i in range(tensor.ShapeLength()))
    signature = tuple(int(tensor.ShapeSignature(i)) for i in range(tensor.ShapeSignatureLength()))
    if tensor.Type() not in kinds:
        raise Rejected(f"{name[:80]!r}: expected numbers, got TFLite type {tensor.Type()}")
    if not name or not name.isprintable() or len(name) > 256:
        raise Rejected(f"model file: expected printable names of inputs and outputs, got {name[:80]!r}")
    if any(size < 0 for size in signature[1:]):
        got = f"{signature}: convert with fixed shapes"
        raise Rejected(f"{name!r}: expected no open dimension but the batch, got {got}")
    if shape[:1] != (1,) or min(shape) < 1:
        raise Rejected(f"{name!r}: expected a shape that begins with a batch of 1, got {shape}")
    return TensorSpec(name=name, shape=shape, dtype=kinds[tensor.Type()])
