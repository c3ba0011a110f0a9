"""Small ONNX graphs and the two runtimes that are compared: what the writer's tests share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from ai_edge_litert.interpreter import Interpreter
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, np.dtype[Any]]
node = helper.make_node
TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL, "int32": TensorProto.INT32}


@dataclass(frozen=True, slots=True)
class Graph:
    """What the writer reads of a source, with inputs by name for comparisons."""

    data: bytes
    boundary: str = ""


def build(
    nodes: Sequence[Any],
    inputs: dict[str, tuple[int, ...]],
    outputs: Sequence[str],
    *,
    boundary: str = "",
    types: dict[str, str] | None = None,
    constants: dict[str, Any] | None = None,
    **more: Any,
) -> Graph:
    """Return a checked model of opset 17; the shapes of outputs are inferred, numbers are float32 unless arrays."""
    types, constants = types or {}, (constants or {}) | more
    tensors = [
        numpy_helper.from_array(each if isinstance(each, np.ndarray) else np.asarray(each, np.float32), name)
        for name, each in constants.items()
    ]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    results = [helper.make_tensor_value_info(name, TYPES[types.get(name, "float32")], None) for name in outputs]
    graph = helper.make_graph(list(nodes), "test", given, results, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    onnx.checker.check_model(model, full_check=True)
    return Graph(bytes(model.SerializeToString(deterministic=True)), boundary)


def run_onnx(data: bytes, inputs: dict[str, Array]) -> dict[str, Array]:
    """Run ONNX Runtime without its own optimisations, once."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


class Board:
    """A model in LiteRT, with XNNPACK as devices have it."""

    def __init__(self, data: bytes) -> None:
        self._interpreter = Interpreter(model_content=data, num_threads=1)
        self._interpreter.allocate_tensors()
        self._in = {tensor["name"]: tensor["index"] for tensor in self._interpreter.get_input_details()}
        self._out = {tensor["name"]: tensor["index"] for tensor in self._interpreter.get_output_details()}

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Run once."""
        for name, values in inputs.items():
            self._interpreter.set_tensor(self._in[name], values)
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(index) for name, index in self._out.items()}


def operators(data: bytes) -> list[str]:
    """Return the operators of a TFLite model in order."""
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    return [names[model.operatorCodes[each.opcodeIndex].builtinCode] for each in model.subgraphs[0].operators]


def assert_close(got: dict[str, Array], expected: dict[str, Array], *, atol: float = 1e-5) -> None:
    """Compare by name, shape and value, relative to the scale of each output."""
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        assert got[name].shape == values.shape, name
        scale = max(1.0, float(np.abs(values).max(initial=0)))
        assert np.abs(got[name].astype(np.float64) - values).max(initial=0) <= atol * scale, name
