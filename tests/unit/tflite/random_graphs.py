"""Random small graphs: nets over images, over series and over rows, grown operator by operator."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st

from .graphs import Array, Graph, build, node

Draw = Callable[[Any], Any]
SHAPES = {
    "image": ((1, 3, 7, 8), (1, 4, 6, 6), (1, 1, 9, 5)),
    "series": ((1, 4, 12), (1, 6, 9)),
    "row": ((1, 12), (1, 7)),
}


class Growing:
    """A graph under construction whose last tensor is `name`, of `shape`."""

    def __init__(self, shape: tuple[int, ...], seed: int) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Array] = {}
        self.given, self.shape, self.name = shape, shape, "x"
        self.random = np.random.default_rng(seed)

    def weights(self, *shape: int, scale: float = 0.5) -> str:
        """Add seeded weights and return their name."""
        name = f"c{len(self.constants)}"
        self.constants[name] = (self.random.normal(size=shape) * scale).astype(np.float32)
        return name

    def whole(self, *values: int) -> str:
        """Add int64 and return their name."""
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(values, np.int64)
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> None:
        """Add an operator of the last tensor and of further ones; its output becomes the last."""
        out = f"t{len(self.nodes)}"
        self.nodes.append(node(kind, [self.name, *inputs], [out], name=f"n{len(self.nodes)}", **attributes))
        self.name = out
        model = onnx.load_model_from_string(self.graph().data)
        self.shape = tuple(size.dim_value for size in model.graph.output[0].type.tensor_type.shape.dim)

    def graph(self) -> Graph:
        """Return what has grown."""
        return build(self.nodes, {"x": self.given}, [self.name], constants=self.constants)


def _convolve(growing: Growing, draw: Draw) -> None:
    spatial, channels = len(growing.shape) - 2, growing.shape[1]
    reach = [draw(st.integers(1, min(3, size))) for size in growing.shape[2:]]
    depthwise = draw(st.booleans())
    outputs = channels if depthwise else draw(st.sampled_from((2, 4, 5)))
    weights = growing.weights(outputs, 1 if depthwise else channels, *reach)
    pads = [draw(st.integers(0, 1)) for _ in range(2 * spatial)]
    strides = [draw(st.integers(1, 2)) for _ in range(spatial)]
    bias = growing.weights(outputs)
    growing.add("Conv", weights, bias, pads=pads, strides=strides, group=channels if depthwise else 1)


def _normalise(growing: Growing, draw: Draw) -> None:
    channels = growing.shape[1]
    variance = growing.weights(channels)
    growing.constants[variance] = np.abs(growing.constants[variance]) + np.float32(0.5)
    growing.add("BatchNormalization", *(growing.weights(channels) for _ in range(3)), variance)


def _pool(growing: Growing, draw: Draw) -> None:
    kernel = [draw(st.integers(1, min(3, size))) for size in growing.shape[2:]]
    pads = [draw(st.integers(0, max(0, each - 1))) if each > 1 else 0 for each in kernel] * 2
    strides = [draw(st.integers(1, 2)) for _ in kernel]
    growing.add(draw(st.sampled_from(("MaxPool", "AveragePool"))), kernel_shape=kernel, strides=strides, pads=pads)


def _activate(growing: Growing, draw: Draw) -> None:
    growing.add(draw(st.sampled_from(("Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSwish", "Abs", "Neg", "Elu"))))


def _combine(growing: Growing, draw: Draw) -> None:
    """Add, subtract, multiply or compare with a constant, or with the tensor itself (a residual)."""
    shape = tuple(size if draw(st.booleans()) else 1 for size in growing.shape)
    other = growing.name if draw(st.booleans()) else growing.weights(*shape)
    growing.add(draw(st.sampled_from(("Add", "Sub", "Mul", "Min", "Max"))), other)


def _branch(growing: Growing, draw: Draw) -> None:
    """Join the tensor with an activation of itself."""
    before = growing.name
    growing.add(draw(st.sampled_from(("Relu", "Tanh"))))
    if draw(st.booleans()):
        growing.add("Add", before)
    else:
        growing.add("Concat", before, axis=draw(st.integers(1, len(growing.shape) - 1)))


def _reduce(growing: Growing, draw: Draw) -> None:
    kind = draw(st.sampled_from(("ReduceMean", "ReduceMax", "ReduceMin")))
    growing.add(kind, axes=[draw(st.integers(1, len(growing.shape) - 1))], keepdims=1)


def _move(growing: Growing, draw: Draw) -> None:
    inner = draw(st.permutations(range(1, len(growing.shape))))
    growing.add("Transpose", perm=[0, *inner])


def _fold(growing: Growing, draw: Draw) -> None:
    """Give the tensor another shape of the same rank."""
    *front, last = growing.shape
    if len(front) > 1:
        growing.add("Reshape", growing.whole(*front[:-1], last, front[-1]))


def _cut(growing: Growing, draw: Draw) -> None:
    axis = draw(st.integers(1, len(growing.shape) - 1))
    start = draw(st.integers(0, growing.shape[axis] - 1))
    growing.add("Slice", growing.whole(start), growing.whole(1 << 40), growing.whole(axis))


def _dense(growing: Growing, draw: Draw) -> None:
    outputs = draw(st.integers(2, 6))
    if len(growing.shape) > 2 and draw(st.booleans()):
        growing.add("MatMul", growing.weights(growing.shape[-1], outputs))
        return
    if len(growing.shape) > 2:
        growing.add("Flatten", axis=1)
    growing.add("Gemm", growing.weights(outputs, growing.shape[1]), growing.weights(outputs), transB=1)


_ANYWHERE = (_activate, _combine, _branch, _reduce, _move, _fold, _cut, _dense)
_WINDOWS = (_convolve, _convolve, _normalise, _pool)


@st.composite
def graphs(draw: Draw) -> Graph:
    """Return a random graph with the input x and one output."""
    shape = draw(st.sampled_from(SHAPES[draw(st.sampled_from(sorted(SHAPES)))]))
    growing = Growing(shape, draw(st.integers(0, 10_000)))
    for _ in range(draw(st.integers(1, 6))):
        layers = _ANYWHERE + (_WINDOWS if len(growing.shape) in (3, 4) else ())
        draw(st.sampled_from(layers))(growing, draw)
    if not growing.nodes:
        growing.add("Relu")
    if len(growing.shape) == 2 and draw(st.booleans()):
        growing.add("Softmax", axis=1)
    return growing.graph()
