"""What the C emitters write and refuse: faces, names, arrays, and the operator that is in the way."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.c.ensemble import read_trees
from converters.c.exponential import exponential
from converters.c.face import face_of, float_literal, quoted
from converters.c.net import quantised_multiplier
from converters.c_source import c_array, dense_core, emit_dense, emit_trees
from skerry.errors import Rejected
from tests.unit.emulators.ensembles import Tables, classifier, regressor
from tests.unit.emulators.nets import Graph, Layer, random_net

RNG = 20260131


def _net(*, ends: str = "softmax") -> bytes:
    return random_net(np.random.default_rng(RNG), 6, [Layer(5, activation="RELU"), Layer(3)], ends=ends)


def _trees(kind: str = "class", *, targets: tuple[int, ...] = (0, 1, 2)) -> Tables:
    tables = Tables(kind)
    for _ in range(3):
        tables.tree(np.random.default_rng(RNG), 3, targets)
    return tables


def test_a_model_as_a_c_array_has_every_byte_in_order() -> None:
    model = _net()
    files = c_array(model, "watch")
    text = files["watch.c"].decode()
    numbers = text.split("{\n")[1].split("\n}")[0]
    assert bytes(int(cell, 16) for cell in numbers.split(",")) == model
    assert f"watch_len = {len(model)}u;" in text
    assert "aligned(16)" in text


def test_equal_models_give_equal_text() -> None:
    assert emit_dense(_net(), "watch") == emit_dense(_net(), "watch")
    tables = classifier(_trees(), 3)
    assert emit_trees(tables, "watch") == emit_trees(tables, "watch")


def test_the_face_of_a_dense_net_is_read_back_from_its_header() -> None:
    face = face_of(emit_dense(_net(), "watch", labels=("a", "b", "c")))
    assert (face.name, face.element, face.width, face.outputs) == ("watch", "int8", 6, 3)
    assert (face.boundary, face.classifies) == ("real_input", True)


def test_the_face_of_a_regressor_has_no_label() -> None:
    face = face_of(emit_trees(regressor(_trees("target", targets=(0,)), 1), "level"))
    assert (face.element, face.width, face.outputs, face.classifies) == ("float32", 5, 1, False)


def test_the_core_of_a_net_has_integers_on_both_sides_and_gives_the_same_c() -> None:
    whole, core = emit_dense(_net(), "watch"), emit_dense(dense_core(_net()), "watch")
    assert face_of(core).boundary == "input"
    strip = "void watch_predict_float"
    assert whole["watch.c"].decode().split(strip)[0] == core["watch.c"].decode().split(strip)[0]


@pytest.mark.parametrize("name", ["", "Watch", "9lives", "a-b", "../x", "x" * 41, "a\nb"])
def test_a_name_that_is_no_identifier_is_refused(name: str) -> None:
    with pytest.raises(Rejected, match="identifier"):
        emit_dense(_net(), name)
    with pytest.raises(Rejected, match="identifier"):
        c_array(_net(), name)


@given(st.text(max_size=200))
def test_text_of_a_model_cannot_leave_its_string_or_comment(text: str) -> None:
    inside = quoted(text)[1:-1]
    assert not set(inside) & set('"\\\n*')
    assert len(inside) <= 80


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float_literal_reads_back_to_the_same_bits(value: float) -> None:
    assert np.float32(float_literal(value).removesuffix("f")).tobytes() == np.float32(value).tobytes()


@given(st.floats(min_value=1e-8, max_value=1e8))
def test_a_multiplier_and_its_shift_are_the_real_to_31_bits(real: float) -> None:
    multiplier, shift = quantised_multiplier(real)
    assert 1 << 30 <= multiplier < 1 << 31
    assert multiplier * 2.0 ** (shift - 31) == pytest.approx(real, rel=2**-30)


def test_a_convolution_is_named_when_it_is_in_the_way() -> None:
    graph = Graph()
    first = graph.tensor("x", (1, 4), "INT8", ([0.1], [0]))
    middle = graph.tensor("h", (1, 4), "INT8", ([0.1], [0]))
    graph.operator("CONV_2D", [first], middle, None)
    weights = np.ones((2, 4), dtype=np.int8)
    matrix = graph.tensor("w", (2, 4), "INT8", ([0.1], [0]), weights)
    last = graph.tensor("y", (1, 2), "INT8", ([0.1], [0]))
    from ai_edge_litert import schema_py_generated as schema

    graph.operator("FULLY_CONNECTED", [middle, matrix], last, schema.FullyConnectedOptionsT())
    with pytest.raises(Rejected, match="CONV_2D"):
        emit_dense(graph.to_bytes(first, last))


def test_a_float_net_is_refused_by_its_operator() -> None:
    from ai_edge_litert import schema_py_generated as schema

    graph = Graph()
    first, last = graph.tensor("x", (1, 4), "FLOAT32"), graph.tensor("y", (1, 2), "FLOAT32")
    matrix = graph.tensor("w", (2, 4), "FLOAT32", None, np.ones((2, 4), dtype=np.float32))
    graph.operator("FULLY_CONNECTED", [first, matrix], last, schema.FullyConnectedOptionsT())
    with pytest.raises(Rejected, match=r"FULLY_CONNECTED.*FLOAT32"):
        emit_dense(graph.to_bytes(first, last))


def test_sums_that_could_leave_32_bits_are_refused() -> None:
    from ai_edge_litert import schema_py_generated as schema

    graph = Graph()
    first = graph.tensor("x", (1, 2), "INT8", ([0.1], [0]))
    last = graph.tensor("y", (1, 1), "INT8", ([0.1], [0]))
    matrix = graph.tensor("w", (1, 2), "INT8", ([0.1], [0]), np.ones((1, 2), dtype=np.int8))
    bias = graph.tensor("b", (1,), "INT32", ([0.01], [0]), np.asarray([2**31 - 1], dtype=np.int32))
    graph.operator("FULLY_CONNECTED", [first, matrix, bias], last, schema.FullyConnectedOptionsT())
    with pytest.raises(Rejected, match="32 bits"):
        emit_dense(graph.to_bytes(first, last))


def test_cut_and_flipped_models_are_refused_or_emitted_and_nothing_else() -> None:
    rng = np.random.default_rng(RNG)
    dense, trees = _net(), classifier(_trees(), 3)
    for emit, model in ((emit_dense, dense), (emit_trees, trees)):
        for _ in range(150):
            broken = bytearray(model[: int(rng.integers(1, len(model)))] if rng.random() < 0.5 else model)
            for place in rng.integers(0, len(broken), 3):
                broken[place] ^= 1 << int(rng.integers(8))
            try:
                emit(bytes(broken), "x")
            except Rejected:
                continue


def test_a_model_without_trees_is_refused_with_its_operators() -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], []))
    with pytest.raises(Rejected, match="TreeEnsembleClassifier or TreeEnsembleRegressor, got the operators Relu"):
        emit_trees(model.SerializeToString())


def test_trees_with_a_loop_are_refused() -> None:
    tables = _trees()
    branch = tables.attributes["nodes_modes"].index("BRANCH_LEQ", 1)
    tables.attributes["nodes_truenodeids"][branch] = 0
    with pytest.raises(Rejected, match="trees that begin with their root"):
        emit_trees(classifier(tables, 3))


@pytest.mark.parametrize(
    ("classes", "targets", "more", "message"),
    [
        (3, (0, 1, 2), {"post_transform": "PROBIT"}, "PROBIT"),
        (2, (0, 1), {}, "2 with one sum"),
        (2, (0,), {"post_transform": "SOFTMAX"}, "SOFTMAX"),
        (3, (0, 1, 2), {"base_values": [1.0]}, "base values"),
    ],
)
def test_forms_whose_labels_and_scores_may_differ_are_refused(
    classes: int, targets: tuple[int, ...], more: dict[str, object], message: str
) -> None:
    with pytest.raises(Rejected, match=message):
        emit_trees(classifier(_trees(targets=targets), classes, **more))


@pytest.mark.parametrize("aggregate", ["MIN", "MAX"])
def test_aggregates_other_than_sums_are_refused(aggregate: str) -> None:
    with pytest.raises(Rejected, match=aggregate):
        emit_trees(regressor(_trees("target", targets=(0,)), 1, aggregate_function=aggregate))


def test_categories_are_refused_by_their_mode() -> None:
    tables = Tables("class")
    tables.tree(np.random.default_rng(RNG), 2, (0, 1, 2), mode="BRANCH_EQ")
    with pytest.raises(Rejected, match="BRANCH_EQ"):
        emit_trees(classifier(tables, 3))


def _behind(*nodes: onnx.NodeProto, output: str, kind: str = "target", **more: object) -> bytes:
    tables = _trees(kind, targets=(0, 1, 2))
    model = onnx.ModelProto.FromString(regressor(tables, 3) if kind == "target" else classifier(tables, 3))
    model.graph.node.extend(nodes)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((1, 1), dtype=np.float32), "one"))
    model.graph.ClearField("output")
    model.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, [1, 3]))
    data: bytes = model.SerializeToString()
    return data


def test_a_softmax_behind_the_trees_is_emitted_with_them() -> None:
    model = _behind(onnx.helper.make_node("Softmax", ["scores"], ["p"], axis=-1), output="p")
    ensemble = read_trees(model)
    assert (ensemble.transform, ensemble.output, ensemble.labels) == ("SOFTMAX", "p", ("0", "1", "2"))
    files = emit_trees(model, "x", labels=("low", "mid", "high"))
    assert face_of(files).classifies
    assert b'class 2: "high"' in files["x.h"]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([("Exp", ["scores"], ["p"])], "got Exp"),
        ([("Softmax", ["scores"], ["s"]), ("Neg", ["s"], ["p"])], "got Neg"),
        ([("Sigmoid", ["scores"], ["s"]), ("Sub", ["s", "one"], ["d"]), ("Concat", ["d", "s"], ["p"])], "difference"),
        ([("Sigmoid", ["scores"], ["s"]), ("Sub", ["one", "s"], ["d"]), ("Concat", ["s", "d"], ["p"])], "order"),
        ([("Sigmoid", ["scores"], ["s"]), ("Sub", ["one", "s"], ["d"]), ("Concat", ["d", "s"], ["p"])], "3 outputs"),
    ],
)
def test_another_end_behind_the_trees_is_refused_by_its_name(
    nodes: list[tuple[str, list[str], list[str]]], message: str
) -> None:
    made = [
        onnx.helper.make_node(kind, before, after, **({"axis": 1} if kind in {"Softmax", "Concat"} else {}))
        for kind, before, after in nodes
    ]
    with pytest.raises(Rejected, match=message):
        emit_trees(_behind(*made, output="p"))


def test_the_exponential_is_near_the_real_one_and_zero_far_below() -> None:
    x = -np.abs(np.random.default_rng(RNG).normal(size=10_000) * 25).astype(np.float32)
    inside = x > -87
    assert np.abs(exponential(x)[inside] / np.exp(x[inside].astype(np.float64)) - 1).max() < 2e-7
    assert not exponential(x)[~inside].any()
    assert exponential(np.zeros(1, dtype=np.float32))[0] == 1


def test_files_that_are_not_emitted_have_no_face(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="a header that Skerry emitted"):
        face_of({"x.h": b"#define X_INPUTS 3\n"})
