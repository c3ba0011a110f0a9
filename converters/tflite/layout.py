"""Which axis of an ONNX tensor is stored where: the reason why converted nets are not full of transposes.

A value's `axes` names, for each stored dimension, the ONNX axis that it holds, or -1 for a dimension of 1 that ONNX
does not have; ONNX axes of size 1 may be missing. An NCHW image kept as NHWC has the axes (0, 2, 3, 1); a series
(N, C, T) kept for a 2-D kernel has (0, -1, 2, 1). Transpose, Squeeze and Unsqueeze only rename axes: nothing is moved
until an operator asks for another order, and where only axes of size 1 change place, what is emitted is a RESHAPE.
"""

from dataclasses import dataclass

import numpy as np

from converters.samples import Array
from converters.tflite.ir import Graph

Axes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the graph that holds an ONNX tensor of the given shape in the given order."""

    index: int
    axes: Axes
    shape: tuple[int, ...]

    @property
    def order(self) -> Axes:
        """The ONNX axes that are larger than 1, in the order in which they are stored."""
        return order_of(self.axes, self.shape)

    def widened(self, rank: int) -> "Value":
        """Return the value with leading axes of 1, as broadcasting aligns shapes."""
        more = rank - len(self.shape)
        axes = tuple(axis + more if axis >= 0 else axis for axis in self.axes)
        return Value(self.index, axes, (1,) * more + self.shape)


def plain(rank: int) -> Axes:
    """Return the axes of a tensor that is stored as ONNX has it."""
    return tuple(range(rank))


def channels_last(rank: int) -> Axes:
    """Return the axes of NCHW (rank 4) or NCT (rank 3) as TFLite's 2-D kernels want it."""
    return (0, 2, 3, 1) if rank == 4 else (0, -1, 2, 1)


def stored_shape(axes: Axes, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the stored shape of an ONNX shape."""
    return tuple(shape[axis] if axis >= 0 else 1 for axis in axes)


def order_of(axes: Axes, shape: tuple[int, ...]) -> Axes:
    """Return the axes that are larger than 1, in the order in which they are stored."""
    return tuple(axis for axis in axes if axis >= 0 and shape[axis] != 1)


def holds(axes: Axes, shape: tuple[int, ...]) -> bool:
    """Say whether every axis that is larger than 1 has a place."""
    return sorted(order_of(axes, shape)) == [axis for axis, size in enumerate(shape) if size != 1]


def arrange(values: Array, axes: Axes) -> Array:
    """Return a constant with its dimensions in the order of `axes`."""
    natural = order_of(plain(values.ndim), values.shape)
    narrow = values.reshape([values.shape[axis] for axis in natural])
    moved = narrow.transpose([natural.index(axis) for axis in order_of(axes, values.shape)])
    return np.ascontiguousarray(moved).reshape(stored_shape(axes, values.shape))


class Arranger:
    """Emits what brings a value into another order, once for each order that is asked for."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._done: dict[tuple[int, Axes, Axes], int] = {}

    def __call__(self, value: Value, axes: Axes, *, node: str) -> int:
        """Return the tensor that holds a value in the order of `axes`."""
        key = (value.index, value.axes, axes)
        if key not in self._done:
            self._done[key] = self._arrange(value, axes, node)
        return self._done[key]

    def reshape(self, index: int, shape: tuple[int, ...], *, node: str) -> int:
        """Return the tensor with the same elements in another shape."""
        source = self._graph.tensors[index]
        if source.shape == shape:
            return index
        out = self._graph.tensor(f"{source.name}/reshaped", shape, source.dtype)
        sizes = self._graph.constant("shape", np.asarray(shape, dtype=np.int32))
        self._graph.add("RESHAPE", [index, sizes], [out], node=node, newShape=np.asarray(shape, dtype=np.int32))
        return out

    def _arrange(self, value: Value, axes: Axes, node: str) -> int:
        target = stored_shape(axes, value.shape)
        before, after = value.order, order_of(axes, value.shape)
        if before == after:
            return self.reshape(value.index, target, node=node)
        if sorted(value.axes) == sorted(axes) and axes.count(-1) <= 1:
            return self._transpose(value.index, [value.axes.index(axis) for axis in axes], node)
        # what has no place on the other side has size 1: dropped before, added after
        shared = [axis for axis in value.axes if axis >= 0 and axis in axes]
        wanted = [axis for axis in axes if axis in shared]
        narrow = self.reshape(value.index, tuple(value.shape[axis] for axis in shared), node=node)
        moved = self._transpose(narrow, [shared.index(axis) for axis in wanted], node)
        return self.reshape(moved, target, node=node)

    def _transpose(self, index: int, order: list[int], node: str) -> int:
        source = self._graph.tensors[index]
        out = self._graph.tensor(
            f"{source.name}/transposed", tuple(source.shape[place] for place in order), source.dtype
        )
        places = self._graph.constant("order", np.asarray(order, dtype=np.int32))
        self._graph.add("TRANSPOSE", [index, places], [out], node=node)
        return out
