"""A hostile or broken model file is refused in one line before a runtime sees it."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema

from control_plane.training import Trained
from converters import onnx_writer
from converters.checks import check_model_file
from firmware_profiles import load_profile
from skerry.errors import Rejected
from tests.tflite_files import FlatGraph, float_file

GATEWAY, BOARD, MCU = load_profile("x86-64-gateway"), load_profile("arm64-board"), load_profile("cortex-m")


def test_our_own_models_are_accepted_and_named(trained: Trained) -> None:
    assert check_model_file(onnx_writer.write_float(trained.network), GATEWAY) == "ONNX opset 17"
    assert check_model_file(float_file(trained.network), MCU) == "TFLite version 3"


@pytest.mark.parametrize("profile", [GATEWAY, BOARD, MCU], ids=lambda profile: profile.runtime)
@pytest.mark.parametrize("data", [b"", b"hello, I am not a model", b"PK\x03\x04" + bytes(100), bytes(4000)])
def test_a_file_that_is_not_a_model_is_refused_in_one_line(profile: object, data: bytes) -> None:
    with pytest.raises(Rejected, match="model file: expected") as caught:
        check_model_file(data, profile)  # type: ignore[arg-type] # the ids above want an object
    assert "\n" not in str(caught.value)


def test_a_model_of_the_other_format_is_refused(trained: Trained) -> None:
    with pytest.raises(Rejected, match="expected"):
        check_model_file(float_file(trained.network), GATEWAY)
    with pytest.raises(Rejected, match="expected TFLite"):
        check_model_file(onnx_writer.write_float(trained.network), BOARD)


def test_every_truncation_is_refused(trained: Trained) -> None:
    for data, profile in (
        (onnx_writer.write_float(trained.network), GATEWAY),
        (float_file(trained.network), BOARD),
    ):
        for length in range(0, len(data), 97):
            with pytest.raises(Rejected):
                check_model_file(data[:length], profile)


def test_a_model_beyond_the_profiles_flash_is_refused(trained: Trained) -> None:
    data = float_file(trained.network)
    with pytest.raises(Rejected, match="expected at most 262144 bytes for cortex-m"):
        check_model_file(data + bytes(MCU.budgets.size_bytes), MCU)


def _external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def _custom_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.evil"


def _custom_opset(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="com.evil", version=1)


def _control_flow(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Loop"


def _inner_graph(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.add(name="body", type=onnx.AttributeProto.GRAPH).g.name = "inner"


def _function(model: onnx.ModelProto) -> None:
    model.functions.add(name="f")


def _invalid(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nowhere"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_external, "external data"),
        (_custom_domain, "com.evil"),
        (_custom_opset, "com.evil"),
        (_control_flow, "Loop"),
        (_inner_graph, "no graph inside an operator"),
        (_function, "functions"),
        (_invalid, "expected valid ONNX"),
    ],
)
def test_what_onnx_could_smuggle_is_refused(
    trained: Trained, change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    model = onnx.ModelProto.FromString(onnx_writer.write_float(trained.network))
    change(model)
    with pytest.raises(Rejected, match=message):
        check_model_file(model.SerializeToString(), GATEWAY)


def _dense(*, inputs: list[int], operator: str = "FULLY_CONNECTED") -> FlatGraph:
    graph = FlatGraph()
    graph.tensor("window", (1, 4))
    graph.constant("weights", np.zeros((4, 4), dtype=np.float32))
    graph.tensor("probabilities", (1, 4))
    graph.operator(operator, inputs, 2)
    return graph


def test_a_tflite_operator_that_is_not_allowed_is_refused() -> None:
    data = _dense(inputs=[0, 1, -1], operator="CUSTOM").to_bytes(inputs={"window": 0}, outputs={"probabilities": 2})
    with pytest.raises(Rejected, match="operators that Skerry allows, got CUSTOM"):
        check_model_file(data, BOARD)


def test_a_tflite_operator_on_a_tensor_that_does_not_exist_is_refused() -> None:
    data = _dense(inputs=[0, 10**6, -1]).to_bytes(inputs={"window": 0}, outputs={"probabilities": 2})
    with pytest.raises(Rejected, match="expected indices below 3"):
        check_model_file(data, MCU)


def test_a_tflite_constant_shorter_than_its_shape_is_refused() -> None:
    graph = _dense(inputs=[0, 1, -1])
    graph._graph.tensors[1].shape = np.asarray([900_000, 4], dtype=np.int32)
    data = graph.to_bytes(inputs={"window": 0}, outputs={"probabilities": 2})
    with pytest.raises(Rejected, match="expected a constant of shape"):
        check_model_file(data, MCU)


def test_a_tflite_model_of_two_graphs_is_refused(trained: Trained) -> None:
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(float_file(trained.network), 0))
    model.subgraphs.append(model.subgraphs[0])
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    with pytest.raises(Rejected, match="expected one graph, got 2"):
        check_model_file(bytes(builder.Output()), BOARD)
