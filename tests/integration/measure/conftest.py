"""Small models with a known cost and known answers, for every runtime that is here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skerry.runtimes import Refused, find_runtime
from skerry.runtimes.environments import PYTHON_VARIABLE

Array = np.ndarray[Any, np.dtype[Any]]


def onnx_model(nodes: list[Any], inputs: dict[str, tuple[Any, list[int]]], outputs: dict[str, tuple[Any, list[int]]],
               constants: dict[str, Array] | None = None) -> bytes:  # fmt: skip
    """Return an ONNX file of nodes; inputs and outputs are (element type, shape) by name."""
    from onnx import helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def dense(layers: int, *, width: int = 64, seed: int = 1) -> bytes:
    """Return an ONNX net of equally wide layers: its time grows with their number."""
    from onnx import TensorProto, helper

    drawn = np.random.default_rng(seed)
    weights = {f"w{n}": (drawn.normal(size=(width, width)) / 8).astype(np.float32) for n in range(layers)}
    names = ["x", *(f"h{n}" for n in range(layers - 1)), "y"]
    nodes = [helper.make_node("MatMul", [names[n], f"w{n}"], [names[n + 1]]) for n in range(layers)]
    shape = (TensorProto.FLOAT, [1, width])
    return onnx_model(nodes, {"x": shape}, {"y": shape}, weights)


def tflite_add(
    dtype: str, *, scale: float = 0.5, zero_point: int = 3, names: tuple[str, str, str] = ("a", "b", "sum")
) -> bytes:
    """Return a TFLite file that adds two inputs of four numbers."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def tensor(name: str) -> Any:
        made = schema.TensorT()
        made.name, made.shape, made.buffer = name.encode(), [1, 4], 0
        made.type = getattr(schema.TensorType, dtype.upper())
        if dtype != "float32":
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale, made.quantization.zeroPoint = [scale], [zero_point]
        return made

    code, operator, graph, model = schema.OperatorCodeT(), schema.OperatorT(), schema.SubGraphT(), schema.ModelT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    code.version = 1 if dtype == "float32" else 2
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1], [2]
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    graph.tensors, graph.inputs, graph.outputs = [tensor(name) for name in names], [0, 1], [2]
    graph.operators = [operator]
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[bytes], Path]:
    """Write a model file and return its path."""

    def save(data: bytes) -> Path:
        file = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        file.write_bytes(data)
        return file

    return save


def need(runtime: str) -> None:
    """Skip where a runtime is not to be had."""
    if isinstance(found := find_runtime(runtime), Refused):
        pytest.skip(found.reason)


@pytest.fixture(scope="session")
def legacy_python() -> str:
    """A Python with tflite-runtime 2.14; tests use no public network, so it has to be there."""
    found = find_runtime("tflite-runtime")
    if isinstance(found, Refused):
        pytest.skip(found.reason)
    return found.python


@pytest.fixture
def legacy(legacy_python: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """That Python, where `find_runtime` looks for it."""
    monkeypatch.setenv(PYTHON_VARIABLE, legacy_python)
    return legacy_python
