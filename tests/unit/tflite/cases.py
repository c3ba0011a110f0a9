"""One small graph for each operator and for each of its ways: the table that the writer's tests walk through."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.random import default_rng

from .graphs import Array, Graph, build, node

_RANDOM = default_rng(4_000)


def normal(*shape: int, scale: float = 1.0) -> Array:
    """Return seeded weights."""
    return (_RANDOM.normal(size=shape) * scale).astype(np.float32)


def integers(*values: int) -> Array:
    """Return int64, as ONNX has shapes and axes."""
    return np.asarray(values, dtype=np.int64)


def _one(
    kind: str, shape: tuple[int, ...] = (1, 6), *, constants: dict[str, Array] | None = None, **given: Any
) -> Graph:
    """Return x -> kind -> y, with constants as further inputs."""
    constants = constants or {}
    return build([node(kind, ["x", *constants], ["y"], **given)], {"x": shape}, ["y"], constants=constants)


def _conv(shape: tuple[int, ...], weights: tuple[int, ...], *, bias: bool = True, **given: Any) -> Graph:
    constants = {"w": normal(*weights, scale=0.4)} | ({"b": normal(weights[0])} if bias else {})
    return _one("Conv", shape, constants=constants, **given)


def _pool(kind: str, shape: tuple[int, ...], **given: Any) -> Graph:
    return _one(kind, shape, **given)


def _reduce(kind: str, shape: tuple[int, ...] = (1, 4, 5), axes: tuple[int, ...] = (1,), keepdims: int = 1) -> Graph:
    if kind == "ReduceSum":
        return _one(kind, shape, constants={"axes": integers(*axes)}, keepdims=keepdims)
    return _one(kind, shape, axes=list(axes), keepdims=keepdims)


def _positive(kind: str) -> Graph:
    """Return an operator of positive numbers, behind |x| + 0.5."""
    nodes = [node("Abs", ["x"], ["a"]), node("Add", ["a", "half"], ["p"]), node(kind, ["p"], ["y"])]
    return build(nodes, {"x": (1, 8)}, ["y"], half=0.5)


def _two(kind: str, left: tuple[int, ...] = (1, 3, 4), right: tuple[int, ...] = (1, 3, 4)) -> Graph:
    return build([node(kind, ["x", "z"], ["y"])], {"x": left, "z": right}, ["y"])


def _with(kind: str, values: Array, shape: tuple[int, ...] = (1, 3, 4)) -> Graph:
    return _one(kind, shape, constants={"c": values})


def _gemm(**given: Any) -> Graph:
    rows = (6, 4) if not given.get("transB") else (4, 6)
    left = (6, 1) if given.get("transA") else (1, 6)
    return _one("Gemm", left, constants={"w": normal(*rows), "b": normal(4)}, **given)


def _gemm_of_two() -> Graph:
    nodes = [node("Gemm", ["x", "z", "b"], ["y"], transB=1, alpha=0.5, beta=2.0)]
    return build(nodes, {"x": (3, 4), "z": (5, 4)}, ["y"], b=normal(5))


def _matmul_with_bias() -> Graph:
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Add", ["b", "m"], ["y"])]
    return build(nodes, {"x": (1, 3, 6)}, ["y"], w=normal(6, 4), b=normal(4))


def _normalised(first: str) -> Graph:
    shapes = {"Conv": (5, 3, 3, 3), "ConvTranspose": (3, 5, 2, 2), "Gemm": (12, 5)}
    entering = (1, 12) if first == "Gemm" else (1, 3, 6, 6)
    return build(
        [node(first, ["x", "w"], ["c"]), node("BatchNormalization", ["c", "g", "o", "m", "v"], ["y"], epsilon=1e-3)],
        {"x": entering},
        ["y"],
        w=normal(*shapes[first]),
        g=normal(5),
        o=normal(5),
        m=normal(5),
        v=np.abs(normal(5)) + 0.5,
    )


def _normalised_alone() -> Graph:
    statistics = {"g": normal(3), "o": normal(3), "m": normal(3), "v": np.abs(normal(3)) + 0.5}
    return _one("BatchNormalization", (1, 3, 5), constants=statistics)


def _gelu(*, halved_first: bool) -> Graph:
    last = (
        [node("Mul", ["x", "half"], ["h"]), node("Mul", ["h", "p"], ["y"])]
        if halved_first
        else [node("Mul", ["x", "p"], ["h"]), node("Mul", ["h", "half"], ["y"])]
    )
    start = [node("Div", ["x", "root"], ["d"]), node("Erf", ["d"], ["e"]), node("Add", ["e", "one"], ["p"])]
    return build([*start, *last], {"x": (1, 9)}, ["y"], root=np.sqrt(2), one=1.0, half=0.5)


def _flattened_by_shape() -> Graph:
    """Return a Flatten as PyTorch wrote it for years: Shape, Gather, Unsqueeze, Concat, Reshape."""
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Shape", ["r"], ["s"]),
        node("Gather", ["s", "zero"], ["n"], axis=0),
        node("Unsqueeze", ["n", "zeros"], ["u"]),
        node("Concat", ["u", "rest"], ["t"], axis=0),
        node("Reshape", ["r", "t"], ["y"]),
    ]
    return build(nodes, {"x": (1, 3, 4)}, ["y"], zero=np.asarray(0), zeros=integers(0), rest=integers(-1))


def _split(sizes: tuple[int, ...]) -> Graph:
    nodes = [node("Split", ["x", "s"], ["a", "b"], axis=1), node("Mul", ["a", "three"], ["y"])]
    return build(
        [*nodes, node("Abs", ["b"], ["z"])], {"x": (1, sum(sizes), 4)}, ["y", "z"], s=integers(*sizes), three=3.0
    )


def _slice(starts: tuple[int, ...], ends: tuple[int, ...], axes: tuple[int, ...], steps: tuple[int, ...]) -> Graph:
    named = {"starts": starts, "ends": ends, "axes": axes, "steps": steps}
    return _one("Slice", (1, 7, 6), constants={name: integers(*each) for name, each in named.items()})


def _pad(pads: tuple[int, ...], value: float | None = None, mode: str = "constant") -> Graph:
    constants: dict[str, Array] = {"pads": integers(*pads)}
    if value is not None:
        constants["value"] = np.asarray(value, np.float32)
    return _one("Pad", (1, 2, 5), constants=constants, mode=mode)


def _compared(kind: str) -> Graph:
    nodes = [node(kind, ["x", "z"], ["c"]), node("Where", ["c", "x", "z"], ["y"])]
    return build(nodes, {"x": (1, 5), "z": (1, 5)}, ["y"])


def _cast_and_back() -> Graph:
    nodes = [node("Mul", ["x", "ten"], ["t"]), node("Cast", ["t"], ["i"], to=6), node("Cast", ["i"], ["y"], to=1)]
    return build(nodes, {"x": (1, 5)}, ["y"], ten=10.0)


def _arg_max() -> Graph:
    return build([node("ArgMax", ["x"], ["y"], axis=1)], {"x": (1, 5, 3)}, ["y"], types={"y": "int64"})


def _layer_norm() -> Graph:
    return _one("LayerNormalization", (1, 4, 6), constants={"g": normal(6), "o": normal(6)}, axis=-1)


def _resized() -> Graph:
    nodes = [
        node(
            "Resize",
            ["x", "", "by"],
            ["y"],
            mode="nearest",
            nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        )
    ]
    return build(nodes, {"x": (1, 2, 3, 4)}, ["y"], by=np.asarray([1, 1, 2, 3], np.float32))


def _recurrent(kind: str, steps: int, **given: Any) -> Graph:
    """Return a recurrent layer of 5 units over x, with its state going in and coming out."""
    gates, hidden = (3, 5) if kind == "GRU" else (4, 5)
    weights = {"w": normal(1, gates * hidden, 4), "r": normal(1, gates * hidden, hidden)}
    weights["b"] = normal(1, 2 * gates * hidden)
    states = ["h"] if kind == "GRU" else ["h", "k"]
    outs = ["all", "y"] if kind == "GRU" else ["all", "y", "z"]
    layer = node(kind, ["x", "w", "r", "b", "", *states], outs, hidden_size=hidden, **given)
    shapes: dict[str, tuple[int, ...]] = {"x": (steps, 1, 4)}
    for state in states:
        shapes[state] = (1, 1, hidden)
    return build([layer], shapes, outs, constants=weights)


def _recurrent_from_rest(kind: str) -> Graph:
    gates = 3 if kind == "GRU" else 4
    layer = node(kind, ["x", "w", "r"], ["", "y"], hidden_size=3)
    weights = {"w": normal(1, gates * 3, 4), "r": normal(1, gates * 3, 3)}
    return build([layer], {"x": (4, 1, 4)}, ["y"], constants=weights)


def _scaler() -> Graph:
    graph = onnx.helper.make_graph(
        [node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[1.0, -2.0, 30.0], scale=[0.5, 2.0, 0.1])],
        "scaler",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 3])],
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("ai.onnx.ml", 3)]
    return Graph(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


IMAGE, SERIES = (1, 3, 8, 9), (1, 3, 11)
CASES: dict[str, Callable[[], Graph]] = {
    "Conv 2-D": lambda: _conv(IMAGE, (5, 3, 3, 3)),
    "Conv 2-D without bias": lambda: _conv(IMAGE, (5, 3, 3, 2), bias=False),
    "Conv 2-D padded as SAME": lambda: _conv(IMAGE, (5, 3, 3, 3), pads=[1, 1, 1, 1]),
    "Conv 2-D padded unevenly": lambda: _conv(IMAGE, (5, 3, 3, 3), pads=[2, 0, 1, 3]),
    "Conv 2-D strides and paddings that are not SAME": lambda: _conv(
        IMAGE, (5, 3, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2]
    ),
    "Conv 2-D dilated": lambda: _conv(IMAGE, (5, 3, 2, 2), dilations=[2, 3]),
    "Conv 2-D SAME_UPPER": lambda: _conv(IMAGE, (5, 3, 4, 4), auto_pad="SAME_UPPER", strides=[2, 2]),
    "Conv 2-D SAME_LOWER": lambda: _conv(IMAGE, (5, 3, 4, 4), auto_pad="SAME_LOWER"),
    "Conv 2-D VALID": lambda: _conv(IMAGE, (5, 3, 4, 4), auto_pad="VALID"),
    "Conv 2-D in groups": lambda: _conv((1, 4, 6, 6), (6, 2, 3, 3), group=2),
    "Conv 2-D depthwise": lambda: _conv(IMAGE, (3, 1, 3, 3), group=3, pads=[1, 1, 1, 1]),
    "Conv 2-D depthwise with a multiplier": lambda: _conv(IMAGE, (6, 1, 3, 3), group=3, strides=[1, 2]),
    "Conv 2-D of one channel": lambda: _conv((1, 1, 8, 8), (4, 1, 3, 3)),
    "Conv 1-D": lambda: _conv(SERIES, (5, 3, 4)),
    "Conv 1-D padded and strided": lambda: _conv(SERIES, (5, 3, 3), pads=[1, 1], strides=[2]),
    "Conv 1-D padded to one side": lambda: _conv(SERIES, (5, 3, 3), pads=[2, 0]),
    "Conv 1-D dilated": lambda: _conv(SERIES, (5, 3, 3), dilations=[3]),
    "Conv 1-D depthwise": lambda: _conv(SERIES, (3, 1, 3), group=3),
    "ConvTranspose": lambda: _one(
        "ConvTranspose", (1, 3, 4, 5), constants={"w": normal(3, 2, 3, 3), "b": normal(2)}, strides=[2, 2]
    ),
    "ConvTranspose cropped": lambda: _one(
        "ConvTranspose",
        (1, 3, 4, 4),
        constants={"w": normal(3, 2, 3, 3)},
        strides=[2, 2],
        pads=[1, 1, 1, 1],
        output_padding=[1, 1],
    ),
    "ConvTranspose 1-D": lambda: _one(
        "ConvTranspose", (1, 3, 5), constants={"w": normal(3, 2, 4)}, strides=[2], pads=[1, 1]
    ),
    "BatchNormalization after Conv": lambda: _normalised("Conv"),
    "BatchNormalization after ConvTranspose": lambda: _normalised("ConvTranspose"),
    "BatchNormalization after Gemm": lambda: _normalised("Gemm"),
    "BatchNormalization alone": _normalised_alone,
    "LayerNormalization": _layer_norm,
    "MaxPool 2-D": lambda: _pool("MaxPool", IMAGE, kernel_shape=[2, 2], strides=[2, 2]),
    "MaxPool 2-D padded": lambda: _pool("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "MaxPool 2-D that rounds up": lambda: _pool("MaxPool", IMAGE, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "MaxPool 1-D": lambda: _pool("MaxPool", SERIES, kernel_shape=[3], strides=[2]),
    "AveragePool 2-D": lambda: _pool("AveragePool", IMAGE, kernel_shape=[2, 3], strides=[2, 1]),
    "AveragePool 2-D padded, not counted": lambda: _pool("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "AveragePool 2-D padded unevenly, not counted": lambda: _pool(
        "AveragePool", IMAGE, kernel_shape=[3, 3], pads=[2, 0, 1, 1]
    ),
    "AveragePool 2-D padded, counted": lambda: _pool(
        "AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    "AveragePool 2-D that rounds up": lambda: _pool(
        "AveragePool", IMAGE, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1
    ),
    "AveragePool 1-D": lambda: _pool("AveragePool", SERIES, kernel_shape=[3]),
    "AveragePool 1-D padded, not counted": lambda: _pool(
        "AveragePool", SERIES, kernel_shape=[3], pads=[0, 2], strides=[2]
    ),
    "GlobalAveragePool": lambda: _pool("GlobalAveragePool", IMAGE),
    "GlobalAveragePool 1-D": lambda: _pool("GlobalAveragePool", SERIES),
    "GlobalMaxPool": lambda: _pool("GlobalMaxPool", IMAGE),
    "Resize": _resized,
    "Gemm": _gemm,
    "Gemm transB": lambda: _gemm(transB=1),
    "Gemm transA": lambda: _gemm(transA=1),
    "Gemm alpha beta": lambda: _gemm(alpha=0.3, beta=-2.0),
    "Gemm of two": _gemm_of_two,
    "MatMul by weights": lambda: _with("MatMul", normal(4, 5)),
    "MatMul by weights and bias": _matmul_with_bias,
    "MatMul of two": lambda: _two("MatMul", (1, 2, 3, 4), (1, 2, 4, 5)),
    "MatMul of two ranks": lambda: _two("MatMul", (2, 3, 4), (4, 5)),
    "Add of two": lambda: _two("Add"),
    "Add that broadcasts": lambda: _two("Add", (1, 3, 4), (3, 1)),
    "Add of a vector": lambda: _with("Add", normal(4)),
    "Sub of two": lambda: _two("Sub", (1, 3, 1), (1, 1, 4)),
    "Sub from a number": lambda: build([node("Sub", ["one", "x"], ["y"])], {"x": (1, 5)}, ["y"], one=1.0),
    "Mul of two": lambda: _two("Mul"),
    "Div by a vector": lambda: _with("Div", np.asarray([0.5, -2, 3, 4], np.float32)),
    "Div of two": lambda: build(
        [node("Exp", ["z"], ["e"]), node("Div", ["x", "e"], ["y"])], {"x": (1, 5), "z": (1, 5)}, ["y"]
    ),
    "Pow square": lambda: _with("Pow", np.asarray(2, np.float32)),
    "Pow cube": lambda: _with("Pow", np.asarray([3], np.float32)),
    "Pow by a whole number": lambda: _with("Pow", np.asarray(4, np.float32)),
    "Min": lambda: _two("Min"),
    "Max with a number": lambda: _with("Max", np.asarray(0.25, np.float32)),
    "Sum of three": lambda: build([node("Sum", ["x", "z", "x"], ["y"])], {"x": (1, 5), "z": (1, 5)}, ["y"]),
    "Mean of two": lambda: _two("Mean"),
    **{
        kind: partial(_one, kind)
        for kind in ("Neg", "Abs", "Exp", "Tanh", "Sigmoid", "Relu", "Sin", "Cos", "Floor", "Ceil", "Round", "Sign")
    },
    **{kind: partial(_positive, kind) for kind in ("Sqrt", "Log", "Reciprocal")},
    "LeakyRelu": lambda: _one("LeakyRelu", alpha=0.2),
    "PRelu by channel": lambda: _one("PRelu", (1, 3, 4, 4), constants={"s": normal(3, 1, 1)}),
    "Elu": lambda: _one("Elu"),
    "HardSigmoid": lambda: _one("HardSigmoid", alpha=0.25, beta=0.4),
    "HardSwish": lambda: _one("HardSwish"),
    "Softplus": lambda: _one("Softplus"),
    "Gelu halved first": lambda: _gelu(halved_first=True),
    "Gelu halved last": lambda: _gelu(halved_first=False),
    "Clip 0 to 6": lambda: _one(
        "Clip", constants={"low": np.asarray(0, np.float32), "high": np.asarray(6, np.float32)}
    ),
    "Clip from 0": lambda: _one("Clip", constants={"low": np.asarray(0, np.float32)}),
    "Clip -1 to 1": lambda: _one(
        "Clip", constants={"low": np.asarray(-1, np.float32), "high": np.asarray(1, np.float32)}
    ),
    "Softmax": lambda: _one("Softmax", axis=-1),
    "Softmax over channels": lambda: _one("Softmax", (1, 3, 4, 5), axis=1),
    "LogSoftmax": lambda: _one("LogSoftmax", axis=1),
    **{
        kind: partial(_reduce, kind)
        for kind in (
            "ReduceMean",
            "ReduceSum",
            "ReduceMax",
            "ReduceMin",
            "ReduceL1",
            "ReduceL2",
            "ReduceSumSquare",
            "ReduceProd",
        )
    },
    "ReduceMean without keeping": lambda: _reduce("ReduceMean", (1, 3, 4, 5), (2, 3), 0),
    "ReduceSum without keeping": lambda: _reduce("ReduceSum", (1, 4, 5), (-1,), 0),
    "ReduceMax of all": lambda: _reduce("ReduceMax", (1, 4, 5), (0, 1, 2), 1),
    "Reshape": lambda: _with("Reshape", integers(1, 2, -1), (1, 4, 3)),
    "Flatten": lambda: _one("Flatten", (1, 3, 4), axis=1),
    "Flatten by Shape and Concat": _flattened_by_shape,
    "Squeeze": lambda: _with("Squeeze", integers(1), (1, 1, 4)),
    "Unsqueeze": lambda: _with("Unsqueeze", integers(0, 2), (3, 4)),
    "Transpose": lambda: _one("Transpose", (1, 3, 4), perm=[0, 2, 1]),
    "Concat": lambda: build(
        [node("Concat", ["x", "z", "c"], ["y"], axis=1)], {"x": (1, 2, 3), "z": (1, 1, 3)}, ["y"], c=normal(1, 2, 3)
    ),
    "Split evenly": lambda: _split((3, 3)),
    "Split unevenly": lambda: _split((2, 4)),
    "Slice": lambda: _slice((1, 0), (-1, 5), (1, 2), (2, 1)),
    "Slice backwards": lambda: _slice((-1,), (-100,), (1,), (-1,)),
    "Slice backwards in part": lambda: _slice((5,), (1,), (1,), (-2,)),
    "Pad": lambda: _pad((0, 1, 2, 0, 0, 1)),
    "Pad by a number": lambda: _pad((0, 0, 1, 0, 0, 2), 1.5),
    "Pad by reflection": lambda: _pad((0, 0, 2, 0, 0, 3), mode="reflect"),
    "Gather": lambda: _one("Gather", (1, 5, 3), constants={"i": integers(4, -2, 0)}, axis=1),
    "Gather one": lambda: _one("Gather", (1, 5, 3), constants={"i": np.asarray(2)}, axis=1),
    "Expand": lambda: _with("Expand", integers(2, 3, 4), (1, 1, 4)),
    "Tile": lambda: _with("Tile", integers(1, 2, 1), (1, 2, 3)),
    "Identity": lambda: _one("Identity"),
    "Dropout": lambda: build([node("Dropout", ["x"], ["d"]), node("Abs", ["d"], ["y"])], {"x": (1, 4)}, ["y"]),
    "Cast": _cast_and_back,
    "ArgMax": _arg_max,
    "Scaler": _scaler,
    "GRU, one step": partial(_recurrent, "GRU", 1, linear_before_reset=1),
    "GRU over time, reset last": partial(_recurrent, "GRU", 6, linear_before_reset=1),
    "GRU over time, reset first": partial(_recurrent, "GRU", 6),
    "GRU from rest": partial(_recurrent_from_rest, "GRU"),
    "LSTM, one step": partial(_recurrent, "LSTM", 1),
    "LSTM over time": partial(_recurrent, "LSTM", 6),
    "LSTM from rest": partial(_recurrent_from_rest, "LSTM"),
    **{kind: partial(_compared, kind) for kind in ("Greater", "Less", "Equal", "GreaterOrEqual", "LessOrEqual")},
}
