"""What a newer opset says, opset 17 says too: compared with ONNX Runtime on the file as it was."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from converters.fold import run
from converters.normalise import normalise
from skerry.errors import Rejected

Build = Callable[..., bytes]
node = helper.make_node
RNG = np.random.default_rng(3)


def _ints(*values: int) -> Any:
    return np.asarray(values, dtype=np.int64)


def _floats(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


CASES: dict[str, tuple[int, list[Any], dict[str, Any]]] = {
    "gelu": (20, [node("Gelu", ["x"], ["y"])], {}),
    "gelu by tanh": (20, [node("Gelu", ["x"], ["y"], approximate="tanh")], {}),
    "mish": (18, [node("Mish", ["x"], ["y"])], {}),
    "group normalisation": (
        21,
        [node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=2)],
        {"s": _floats(4), "b": _floats(4)},
    ),
    "mean over axes": (18, [node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)], {"axes": _ints(2, -1)}),
    "maximum over everything": (20, [node("ReduceMax", ["x"], ["y"])], {}),
    "mean over no axes": (18, [node("ReduceMean", ["x"], ["y"], noop_with_empty_axes=1)], {}),
    "padding of some axes": (
        18,
        [node("Pad", ["x", "pads", "", "axes"], ["y"])],
        {"pads": _ints(1, 0, 2, 3), "axes": _ints(-1, 1)},
    ),
    "padding with a value": (
        19,
        [node("Pad", ["x", "pads", "value"], ["y"])],
        {"pads": _ints(0, 1, 0, 0, 0, 0, 2, 0), "value": np.float32(1.5)},
    ),
    "uneven split": (
        18,
        [node("Split", ["x"], ["a", "b"], axis=3, num_outputs=2), node("Concat", ["b", "a"], ["y"], axis=3)],
        {},
    ),
    "resize": (
        19,
        [node("Resize", ["x", "", "scales"], ["y"], mode="nearest", antialias=0)],
        {"scales": np.asarray([1, 1, 2, 2], dtype=np.float32)},
    ),
    "average pool": (19, [node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[1, 1])], {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_newer_operator_computes_the_same_in_opset_17(build: Build, case: str) -> None:
    opset, nodes, constants = CASES[case]
    data = build(nodes, {"x": (1, 4, 6, 5)}, {"y": None}, constants, opset=opset)
    out = normalise(data)
    row = {"x": _floats(1, 4, 6, 5)}
    expected = run(onnx.ModelProto.FromString(data), row)["y"]
    got = run(onnx.ModelProto.FromString(out), row)["y"]
    assert got.size == expected.size
    assert np.allclose(got.reshape(expected.shape), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("opset", "nodes", "message"),
    [
        (19, [node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 2])], "dilations in AveragePool"),
        (18, [node("Resize", ["x", "", "k"], ["y"], mode="linear", antialias=1)], "antialias in Resize"),
        (18, [node("Abs", ["x"], ["a"]), node("ReduceMax", ["a", "i"], ["y"])], "constant axes, got computed"),
    ],
)
def test_what_opset_17_cannot_say_is_refused_by_name(build: Build, opset: int, nodes: list[Any], message: str) -> None:
    constants = {"k": np.asarray([1, 1, 2, 2], dtype=np.float32)}
    inputs: dict[str, tuple[int, ...]] = {"x": (1, 4, 6, 5), "i": (1,)}
    data = build(nodes, inputs, {"y": None}, constants, opset=opset, kinds={"i": onnx.TensorProto.INT64})
    with pytest.raises(Rejected, match=message):
        normalise(data)
