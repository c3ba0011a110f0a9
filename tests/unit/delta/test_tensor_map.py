"""Where the weights stand: for our own files every large tensor at its place, for a stranger's no more than is true."""

from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.zoo import dense_net, image_net
from converters.onnx_quantise import static
from converters.source import source_of
from converters.tensor_map import tensor_map
from converters.tflite import write_tflite
from skerry.delivery.delta import make_delta
from tests.tflite_files import FlatGraph, Quantisation

SEED = 3


def _weights() -> np.ndarray:
    return np.random.default_rng(SEED).normal(size=(32, 16)).astype(np.float32)


def _model(*tensors: TensorProto, nodes: tuple[onnx.NodeProto, ...] = ()) -> bytes:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [*nodes, helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
        list(tensors),
    )
    return bytes(helper.make_model(graph).SerializeToString(deterministic=True))


def test_every_large_initializer_of_a_float_net_is_found_at_its_place() -> None:
    net = dense_net()
    graph = onnx.ModelProto.FromString(net.data).graph
    expected = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    found = tensor_map(net.data)
    assert [each.offset for each in found] == sorted(each.offset for each in found)
    large = {name for name, values in expected.items() if values.nbytes >= 64}
    assert {each.name for each in found} >= large
    for tensor in found:
        assert net.data[tensor.offset : tensor.offset + tensor.length] == expected[tensor.name].tobytes()
        assert tensor.floating is (expected[tensor.name].dtype.kind == "f")


def test_quantised_onnx_weights_come_with_the_scales_of_their_channels() -> None:
    net = dense_net()
    data, _ = static(net.data, form="int8-qdq", calibration=net.calibration, boundary="", vnni=True)
    scaled = [each for each in tensor_map(data) if each.width == 1 and not each.floating]
    assert scaled
    for tensor in scaled:
        assert tensor.scales is not None
        assert len(tensor.scales) in (1, tensor.channels)
        assert tensor.length % (tensor.channels * tensor.inner) == 0


def test_tflite_weights_come_with_place_channels_and_scales() -> None:
    net = image_net()
    data, _ = write_tflite(source_of(net.data), "int8", calibration={"x": net.calibration["x"][:32]})
    found = tensor_map(data)
    assert any(each.scales is not None and len(each.scales) == each.channels > 1 for each in found)
    for one, other in pairwise(found):
        assert one.offset + one.length <= other.offset
    assert found[-1].offset + found[-1].length <= len(data)


@pytest.mark.parametrize("data", [b"", b"TFL3", b"    TFL3", b"    TFL3" + bytes(60), b"\x08\x07no model", bytes(300)])
def test_other_files_have_no_tensors(data: bytes) -> None:
    assert tensor_map(data) == []


def test_values_that_are_not_what_a_shape_says_are_left_out() -> None:
    cut = numpy_helper.from_array(_weights(), "cut")
    cut.raw_data = cut.raw_data[:-4]
    huge = numpy_helper.from_array(_weights(), "huge")
    huge.dims[0] = 1 << 40
    good = numpy_helper.from_array(_weights() + 1, "good")
    assert [each.name for each in tensor_map(_model(cut, huge, good))] == ["good"]


def test_values_in_another_file_are_never_read() -> None:
    outside = numpy_helper.from_array(_weights(), "outside")
    outside.ClearField("raw_data")
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="/etc/hostname")
    scale = numpy_helper.from_array(np.float32(1), "scale")
    scale.data_location = TensorProto.EXTERNAL
    scale.external_data.add(key="location", value="/etc/hostname")
    reads = helper.make_node("DequantizeLinear", ["good", "scale"], ["out"])
    good = numpy_helper.from_array(np.arange(100, dtype=np.int8), "good")
    (found,) = tensor_map(_model(outside, scale, good, nodes=(reads,)))
    assert (found.name, found.scales) == ("good", None)


def test_a_tflite_tensor_with_a_shape_of_its_own_is_left_out() -> None:
    graph = FlatGraph()
    graph.constant("good", _weights())
    wrong = graph.constant("wrong", np.arange(200, dtype=np.int8), quantisation=Quantisation((1.0,)))
    graph._graph.tensors[wrong].shape = [7, 31]
    negative = graph.constant("negative", _weights())
    graph._graph.tensors[negative].shape = [-32, -16]
    y = graph.tensor("y", (32, 16))
    data = graph.to_bytes(inputs={"x": graph.tensor("x", (32, 16))}, outputs={"y": y})
    assert [each.name for each in tensor_map(data)] == ["good"]


def test_damaged_files_still_have_a_delta() -> None:
    """Whatever a map says of a damaged file, what is made of it gives the file, or nothing is made."""
    net = dense_net()
    quantised, _ = static(net.data, form="int8-qdq", calibration=net.calibration, boundary="", vnni=True)
    lite, _ = write_tflite(source_of(net.data), "int8", calibration=net.calibration)
    random = np.random.default_rng(SEED)
    for good in (quantised, lite):
        for _ in range(60):
            damaged = bytearray(good)
            for at in random.integers(len(damaged), size=8):
                damaged[at] = int(random.integers(256))
            tensor_map(bytes(damaged))
        assert make_delta(
            good, bytes(damaged), source_tensors=tensor_map(good), target_tensors=tensor_map(bytes(damaged))
        )
