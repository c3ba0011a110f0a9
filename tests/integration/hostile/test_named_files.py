"""Files that are made to do harm, each by a trick with a name: refused with a reason, and nothing happens here."""

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper, numpy_helper

from converters.source import import_model
from skerry.errors import Rejected
from skerry.runtimes import Refused, run_in_child

node = helper.make_node
FLOAT = TensorProto.FLOAT


def _file(nodes: list[Any], *constants: Any, shape: tuple[Any, ...] = (1, 4), domain: str = "") -> bytes:
    graph = helper.make_graph(
        nodes,
        "hostile",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, ("open",))],
        initializer=list(constants),
    )
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def _ints(name: str, *values: int) -> Any:
    return numpy_helper.from_array(np.asarray(values, dtype=np.int64), name)


def _external(location: str, name: str = "w") -> Any:
    tensor = onnx.TensorProto(name=name, data_type=FLOAT, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="length", value="16")
    return tensor


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of sixteen bytes that no model may read, and a link to it beside the model."""
    file = tmp_path / "secret"
    file.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link").symlink_to(file)
    return file


@pytest.mark.parametrize("location", ["../secret", "{absolute}", "link", "../../../../etc/hostname", ""])
@pytest.mark.parametrize("where", ["constant", "attribute"])
def test_data_outside_the_file_is_refused_and_no_runtime_reads_it(secret: Path, location: str, where: str) -> None:
    tensor = _external(location.format(absolute=secret))
    if where == "constant":
        data = _file([node("Add", ["x", "w"], ["y"])], tensor)
    else:
        data = _file([node("Constant", [], ["w"], value=tensor), node("Add", ["x", "w"], ["y"])])
    with pytest.raises(Rejected, match=r"expected all data inside it, got external data for 'w': save it as one file"):
        import_model(data)
    # and were it not for the check: the child loads bytes, which have no folder beside them
    file = secret.parent / "inside" / "model.onnx"
    file.write_bytes(data)
    assert isinstance(run_in_child("onnxruntime", file, {"x": np.zeros((1, 4), dtype=np.float32)}), Refused)


@pytest.mark.parametrize("domain", ["com.evil", "com.microsoft", "ai.onnx.training", "org.pytorch.aten"])
def test_an_operator_of_a_domain_that_is_not_ours_is_refused(domain: str) -> None:
    for declared in ("", domain):
        data = _file([node("Inverse", ["x"], ["y"], domain=domain)], domain=declared)
        with pytest.raises(Rejected, match="model file: expected"):
            import_model(data)


HUGE = 1 << 29  # float32 elements: 2 GiB
BOMBS: dict[str, Callable[[], bytes]] = {
    "an input": lambda: _file([node("Abs", ["x"], ["y"])], shape=(1, HUGE)),
    "a constant without data": lambda: _file(
        [node("Add", ["x", "w"], ["y"])], onnx.TensorProto(name="w", data_type=FLOAT, dims=[HUGE])
    ),
    "a constant that overflows": lambda: _file(
        [node("Add", ["x", "w"], ["y"])], onnx.TensorProto(name="w", data_type=FLOAT, dims=[1 << 62, 4])
    ),
    "a constant of shape": lambda: _file(
        [node("ConstantOfShape", ["n"], ["w"]), node("ReduceSum", ["w"], ["s"]), node("Add", ["x", "s"], ["y"])],
        _ints("n", HUGE),
    ),
    "an expansion": lambda: _file([node("Expand", ["x", "n"], ["y"])], _ints("n", HUGE // 4, 4)),
    "a tile": lambda: _file([node("Tile", ["x", "n"], ["y"])], _ints("n", 1, HUGE // 4)),
    "a padding": lambda: _file([node("Pad", ["x", "n"], ["y"])], _ints("n", 0, 0, 0, HUGE)),
    "a range": lambda: _file(
        [
            node("Range", ["a", "b", "c"], ["r"]),
            node("Cast", ["r"], ["f"], to=FLOAT),
            node("ReduceSum", ["f"], ["s"]),
            node("Add", ["x", "s"], ["y"]),
        ],
        *(numpy_helper.from_array(np.asarray(v, dtype=np.int64), n) for n, v in (("a", 0), ("b", HUGE), ("c", 1))),
    ),
    "a product of vectors": lambda: _file(
        [
            node("Reshape", ["x", "n"], ["column"]),
            node("Tile", ["column", "m"], ["long"]),
            node("Transpose", ["long"], ["row"]),
            node("MatMul", ["long", "row"], ["y"]),
        ],
        _ints("n", 4, 1),
        _ints("m", 8192, 1),
    ),
    "a resize": lambda: _file(
        [node("Resize", ["x", "", "", "n"], ["y"], mode="nearest")],
        _ints("n", 1, 1, 1 << 15, 1 << 14),
        shape=(1, 1, 2, 2),
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_two_gigabytes_in_a_kilobyte_are_refused_and_never_held_here(bomb: str) -> None:
    data = BOMBS[bomb]()
    assert len(data) < 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Rejected, match="expected") as caught:
        import_model(data)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_a_circle_of_operators_is_refused() -> None:
    with pytest.raises(Rejected, match="expected valid ONNX"):
        import_model(_file([node("Add", ["x", "b"], ["a"]), node("Abs", ["a"], ["b"]), node("Abs", ["b"], ["y"])]))


@pytest.mark.parametrize("name", ["", "a\nb", "a\x00b", "n" * 300])
def test_a_name_that_could_not_be_printed_is_refused(name: str) -> None:
    model = onnx.ModelProto.FromString(_file([node("Abs", ["x"], ["y"])]))
    model.graph.input[0].name = model.graph.node[0].input[0] = name
    with pytest.raises(Rejected, match="expected"):
        import_model(model.SerializeToString())


Change = Callable[[Any], None]


def _repacked(data: bytes, change: Change) -> bytes:
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    change(model)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _dense(model: Any) -> Any:
    code = next(i for i, each in enumerate(model.operatorCodes) if each.builtinCode == 9)
    return next(each for each in model.subgraphs[0].operators if each.opcodeIndex == code)


def _unlike_dense(model: Any) -> None:
    """The weights of a dense layer get another shape of as many elements: whole, and impossible to run."""
    weights = model.subgraphs[0].tensors[_dense(model).inputs[1]]
    weights.shape = np.asarray([1, *weights.shape[::-1], 1], dtype=np.int32)


def _custom(model: Any) -> None:
    model.operatorCodes[0].builtinCode = model.operatorCodes[0].deprecatedBuiltinCode = 32
    model.operatorCodes[0].customCode = "evil"


def _call(model: Any) -> None:
    """The first graph calls itself once."""
    code = schema.OperatorCodeT()
    code.builtinCode = schema.BuiltinOperator.CALL_ONCE
    code.deprecatedBuiltinCode = 127  # the old field is a byte; this says that the new one holds
    model.operatorCodes.append(code)
    operator = schema.OperatorT()
    operator.opcodeIndex = len(model.operatorCodes) - 1
    operator.inputs, operator.outputs = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32)
    operator.builtinOptionsType = schema.BuiltinOptions.CallOnceOptions
    operator.builtinOptions = schema.CallOnceOptionsT()
    operator.builtinOptions.initSubgraphIndex = 0
    model.subgraphs[0].operators.insert(0, operator)


def _call_a_copy(model: Any) -> None:
    """The graph that is called once computes, where it may only give first values."""
    model.subgraphs.append(model.subgraphs[0])
    _call(model)
    model.subgraphs[0].operators[0].builtinOptions.initSubgraphIndex = 1


def _huge_tensor(model: Any) -> None:
    model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]].shape = np.asarray([1, HUGE], dtype=np.int32)


def _appended(model: Any) -> None:
    model.buffers[-1].offset, model.buffers[-1].size = 4096, 1 << 31


def _open(model: Any) -> None:
    tensor = model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]]
    tensor.shapeSignature = np.asarray([-1, -1, 2], dtype=np.int32)


def _same_names(model: Any) -> None:
    graph = model.subgraphs[0]
    for index in graph.outputs:
        graph.tensors[index].name = "twice"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_unlike_dense, "a file that LiteRT refuses|expected the model to run"),
        (_custom, "operators that Skerry allows, got CUSTOM"),
        (_call, "expected one graph, got 1: any other than the first only for CALL_ONCE"),
        (_call_a_copy, "expected CALL_ONCE to give first values alone"),
        (_huge_tensor, "elements in a tensor"),
        (_appended, "expected all data inside the flatbuffer|broken offsets"),
        (_open, "expected no open dimension but the batch"),
        (_same_names, "inputs and outputs of distinct names"),
    ],
)
def test_a_tflite_file_that_is_whole_and_means_harm_is_refused(
    whole: dict[str, bytes], change: Change, message: str
) -> None:
    with pytest.raises(Rejected, match=message) as caught:
        import_model(_repacked(whole["tflite"], change))
    assert "\n" not in str(caught.value)
