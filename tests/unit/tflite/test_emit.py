"""The flatbuffer itself: alignment, names, shared buffers, and versions that old runtimes judge by."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from converters.tflite import write_tflite
from converters.tflite.emit import emit
from converters.tflite.ir import Graph as Flat

from .graphs import Board, Graph, build, node


def _two_dense() -> Graph:
    """Return two dense layers with the same weights, and an output that is also an input of another node."""
    weights = np.random.default_rng(1).normal(size=(16, 16)).astype(np.float32)
    nodes = [node("MatMul", ["x", "w"], ["first"]), node("MatMul", ["first", "v"], ["second"])]
    return build(nodes, {"x": (1, 16)}, ["first", "second"], w=weights, v=weights)


def test_weights_are_aligned_to_16_bytes_as_the_schema_asks() -> None:
    data, _ = write_tflite(_two_dense(), "float32", calibration={})
    model = schema.Model.GetRootAs(data, 0)
    large = [model.Buffers(i) for i in range(model.BuffersLength()) if model.Buffers(i).DataLength() >= 1024]
    assert large
    assert all(data.find(buffer.DataAsNumpy().tobytes()) % 16 == 0 for buffer in large)


def test_equal_constants_share_a_buffer() -> None:
    data, _ = write_tflite(_two_dense(), "float32", calibration={})
    assert len(data) < 2 * 16 * 16 * 4


def test_tensors_and_the_signature_keep_the_names_of_inputs_and_outputs() -> None:
    data, _ = write_tflite(_two_dense(), "float32", calibration={})
    signature = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0)).signatureDefs[0]
    assert [entry.name for entry in signature.inputs] == [b"x"]
    assert [entry.name for entry in signature.outputs] == [b"first", b"second"]
    assert set(Board(data).run({"x": np.zeros((1, 16), np.float32)})) == {"first", "second"}


def test_an_output_that_is_an_input_or_another_output_is_copied() -> None:
    graph = build([node("Identity", ["x"], ["y"]), node("Identity", ["x"], ["z"])], {"x": (1, 3)}, ["y", "z"])
    row = np.asarray([[1, 2, 3]], np.float32)
    got = Board(write_tflite(graph, "float32", calibration={})[0]).run({"x": row})
    assert np.array_equal(got["y"], row)
    assert np.array_equal(got["z"], row)


def test_an_output_that_does_not_depend_on_the_input_is_written_all_the_same() -> None:
    nodes = [node("Relu", ["x"], ["y"]), node("Neg", ["c"], ["z"])]
    graph = build(nodes, {"x": (1, 2)}, ["y", "z"], c=np.asarray([1, 2], np.float32))
    got = Board(write_tflite(graph, "float32", calibration={})[0]).run({"x": np.zeros((1, 2), np.float32)})
    assert got["z"].tolist() == [-1, -2]


def test_integers_ask_for_kernels_that_know_them() -> None:
    rows = {"x": np.random.default_rng(2).normal(size=(20, 16)).astype(np.float32)}
    versions = {}
    for precision in ("float32", "int8", "int8-dynamic"):
        model = schema.Model.GetRootAs(write_tflite(_two_dense(), precision, calibration=rows)[0], 0)
        codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
        dense = next(each for each in codes if each.BuiltinCode() == schema.BuiltinOperator.FULLY_CONNECTED)
        versions[precision] = dense.Version()
    assert versions == {"float32": 1, "int8": 4, "int8-dynamic": 3}


def test_an_option_that_the_schema_does_not_have_is_an_error_of_ours() -> None:
    graph = Flat()
    index = graph.given("x", (1, 2), "float32")
    out = graph.tensor("y", (1, 2))
    graph.add("ABS", [index], [out], colour=1)
    graph.result("y", out)
    with pytest.raises(AttributeError, match="AbsOptionsT has no field colour"):
        emit(graph)
