"""Sticky quantisation: a grid is kept where it fits, channel by channel, and never where precision would be lost."""

import numpy as np
import pytest

from bench.zoo import dense_net, image_net
from converters.onnx_quantise import static
from converters.source import source_of
from converters.tflite import write_tflite
from converters.tflite.ir import Quantisation
from converters.tflite.sticky import grids_of, kept, stick


@pytest.mark.parametrize(
    ("old", "new", "kept_scales"),
    [
        ((1.0,), (1.0,), (1.0,)),
        ((1.0,), (0.9,), (1.0,)),
        ((1.0,), (1.019,), (1.0,)),
        ((1.0,), (1.05,), (1.05,)),  # outgrown: too much would be clipped
        ((1.0,), (0.5,), (0.5,)),  # half of the grid would lie idle
        ((1.0, 1.0, 1.0), (0.9, 2.0, 1.01), (1.0, 2.0, 1.0)),
        ((1.0, 1.0), (1.0,), (1.0,)),
    ],
)
def test_a_grid_is_kept_where_its_range_fits(
    old: tuple[float, ...], new: tuple[float, ...], kept_scales: tuple[float, ...]
) -> None:
    assert stick(Quantisation(old), Quantisation(new)).scales == kept_scales


def test_a_grid_with_a_zero_point_is_kept_whole_or_not_at_all() -> None:
    old = Quantisation((1.0,), -128)
    assert stick(old, Quantisation((0.9,), -120)) == Quantisation((0.9,), -120)  # it reaches below the old one
    assert stick(old, Quantisation((0.95,), -128)) == old
    assert stick(None, old) == old


def test_the_same_weights_on_kept_grids_are_the_same_file() -> None:
    net = image_net()
    source = source_of(net.data)
    rows = {"x": net.calibration["x"][:64]}
    first, _ = write_tflite(source, "int8", calibration=rows)
    other = {"x": net.calibration["x"][64:128]}
    free, _ = write_tflite(source, "int8", calibration=other)
    again, recipe = write_tflite(source, "int8", calibration=other, previous=first)
    same, total = kept(grids_of(first), grids_of(again))
    assert same > kept(grids_of(first), grids_of(free))[0]
    assert recipe["sticky"].startswith(f"{same} of {total} scales of ")


def test_qdq_weights_that_moved_a_little_keep_their_grids() -> None:
    import onnx
    from onnx import numpy_helper

    net = dense_net()
    rows = {"x": net.calibration["x"]}
    first, _ = static(net.data, form="int8-qdq", calibration=rows, boundary="", vnni=True)
    model = onnx.ModelProto.FromString(net.data)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("gemm") and len(tensor.dims) == 2:
            values = numpy_helper.to_array(tensor) * np.float32(1.01)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    moved = model.SerializeToString()
    free, plain = static(moved, form="int8-qdq", calibration=rows, boundary="", vnni=True)
    again, recipe = static(moved, form="int8-qdq", calibration=rows, boundary="", vnni=True, previous=first)
    assert "sticky" not in plain
    before = grids_of(first)
    assert kept(before, grids_of(again))[0] > kept(before, grids_of(free))[0]
    assert " of " in recipe["sticky"]
