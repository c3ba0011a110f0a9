"""Operators that move or cut elements and change none: most of them emit nothing until an order is asked for."""

from collections.abc import Callable
from math import prod

import numpy as np

from converters.tflite.layout import Value, holds, order_of, plain, stored_shape
from converters.tflite.lowering import Lowering, shared_axes

DENSE = ("Gemm", "MatMul")


def reshape(low: Lowering) -> Value:
    """Reshape and Flatten; behind an image that only dense layers read, the layers take it as it is stored."""
    value, shape = low.value(0), low.shape_out()
    if prod(shape) != prod(value.shape):
        raise low.node.refuse(f"a shape of {prod(value.shape)} elements", list(shape))
    if value.order == order_of(plain(len(value.shape)), value.shape):
        index = low.arrange.reshape(value.index, shape, node=low.node.title)
        return Value(index, plain(len(shape)), shape)
    if len(shape) == 2 and shape[0] == 1 and _only_dense(low):
        low.flattened[low.node.outputs[0]] = value
        return value
    index = low.arrange.reshape(low.plain(value), shape, node=low.node.title)
    return Value(index, plain(len(shape)), shape)


def _only_dense(low: Lowering) -> bool:
    name = low.node.outputs[0]
    readers = low.consumers.get(name, [])
    return (
        name not in low.model.outputs
        and name not in low.boundaries
        and bool(readers)
        and all(
            reader.kind in DENSE
            and reader.inputs[0] == name
            and name not in reader.inputs[1:]
            and np.ndim(low.model.constants.get(reader.inputs[1], 0)) == 2
            and not reader.attributes.get("transA", 0)
            for reader in readers
        )
    )


def transpose(low: Lowering) -> Value:
    """Transpose renames axes; whoever needs another order asks for it."""
    value = low.value(0)
    rank = len(value.shape)
    order = [int(axis) for axis in low.node.attributes.get("perm", range(rank - 1, -1, -1))]
    axes = tuple(order.index(axis) if axis >= 0 else axis for axis in value.axes)
    return Value(value.index, axes, tuple(value.shape[axis] for axis in order))


def squeeze(low: Lowering) -> Value:
    """Squeeze turns axes into dimensions that ONNX does not have."""
    value = low.value(0)
    rank = len(value.shape)
    axes = low.whole(1, "axes")
    gone = {axis % rank for axis in axes} if axes else {axis for axis in range(rank) if value.shape[axis] == 1}
    left = [axis for axis in range(rank) if axis not in gone]
    if any(value.shape[axis] != 1 for axis in gone):
        raise low.node.refuse("axes of size 1", list(value.shape))
    return _renamed(low, value, {axis: place for place, axis in enumerate(left)}, len(left))


def unsqueeze(low: Lowering) -> Value:
    """Unsqueeze adds axes that are stored nowhere."""
    value = low.value(0)
    axes = low.whole(1, "axes") or []
    rank = len(value.shape) + len(axes)
    new = {axis % rank for axis in axes}
    old = [axis for axis in range(rank) if axis not in new]
    return _renamed(low, value, dict(enumerate(old)), rank)


def _renamed(low: Lowering, value: Value, names: dict[int, int], rank: int) -> Value:
    shape = [1] * rank
    for before, after in names.items():
        shape[after] = value.shape[before]
    axes = tuple(names.get(axis, -1) for axis in value.axes)
    if value.order == order_of(plain(len(value.shape)), value.shape):
        # nothing is out of order: a plain shape is what everything else expects
        return Value(low.arrange.reshape(value.index, tuple(shape), node=low.node.title), plain(rank), tuple(shape))
    return Value(value.index, axes, tuple(shape))


def concat(low: Lowering) -> Value:
    """Concat along an axis, wherever it is stored."""
    operands = [low.operand(number) for number in range(len(low.node.inputs))]
    shape = low.shape_out()
    axis = int(low.node.attributes["axis"]) % len(shape)
    axes = shared_axes([each for each in operands if isinstance(each, Value)], shape)
    if axis not in axes:
        axes = plain(len(shape))
    return low.emit("CONCATENATION", [low.place(each, axes) for each in operands], axes, shape, axis=axes.index(axis))


def split(low: Lowering) -> tuple[Value, ...]:
    """Split into equal parts, or into parts of given sizes."""
    value = low.value(0)
    rank = len(value.shape)
    axis = int(low.node.attributes.get("axis", 0)) % rank
    if axis not in value.axes:
        value = Value(low.plain(value), plain(rank), value.shape)
    shapes = [low.shape_out(number) for number in range(len(low.node.outputs))]
    outs = [low.tensor(stored_shape(value.axes, shape)) for shape in shapes]
    place = value.axes.index(axis)
    sizes = [shape[axis] for shape in shapes]
    if len(set(sizes)) == 1:
        low.graph.add("SPLIT", [low.integers(place), value.index], outs, node=low.node.title, numSplits=len(outs))
    else:
        inputs = [value.index, low.integers(sizes), low.integers(place)]
        low.graph.add("SPLIT_V", inputs, outs, node=low.node.title, numSplits=len(outs))
    return tuple(Value(out, value.axes, shape) for out, shape in zip(outs, shapes, strict=True))


def cut(low: Lowering) -> Value:
    """Slice -> STRIDED_SLICE."""
    value = low.value(0)
    rank = len(value.shape)
    starts, ends = (low.whole(number, what) or [] for number, what in ((1, "starts"), (2, "ends")))
    axes = [axis % rank for axis in (low.whole(3, "axes") or range(len(starts)))]
    steps = low.whole(4, "steps") or [1] * len(starts)
    if not holds(value.axes, value.shape) or any(axis not in value.axes for axis in axes):
        value = Value(low.plain(value), plain(rank), value.shape)
    begin, end, stride = [0] * len(value.axes), list(stored_shape(value.axes, value.shape)), [1] * len(value.axes)
    open_ended = 0
    shape = list(value.shape)
    for axis, first, last, step in zip(axes, starts, ends, steps, strict=True):
        place = value.axes.index(axis)
        taken = range(*slice(first, last, step).indices(value.shape[axis]))
        begin[place], stride[place] = taken.start, step
        after = taken.start + len(taken) * step
        end[place] = max(0, min(after, value.shape[axis]))
        if after < 0:
            open_ended |= 1 << place  # counted backwards through the first element, which no end can name
        shape[axis] = len(taken)
    inputs = [value.index, low.integers(begin), low.integers(end), low.integers(stride)]
    if not all(shape):
        raise low.node.refuse("an output with elements", shape)
    return low.emit("STRIDED_SLICE", inputs, value.axes, tuple(shape), endMask=open_ended)


def pad(low: Lowering) -> Value:
    """Pad with a constant or by reflection."""
    value, mode = low.value(0), low.node.attributes.get("mode", "constant")
    rank = len(value.shape)
    given = low.whole(1, "pads") or [0] * 2 * rank
    axes = [axis % rank for axis in (low.whole(3, "axes") or range(rank))]
    if any(each < 0 for each in given) or mode not in ("constant", "reflect"):
        raise low.node.refuse("pads of 0 or more by a constant or by reflection", f"{mode} {given}")
    pads = {axis: (given[place], given[place + len(axes)]) for place, axis in enumerate(axes)}
    if any(any(each) and axis not in value.axes for axis, each in pads.items()):
        value = Value(low.plain(value), plain(rank), value.shape)
    table = low.integers([pads.get(axis, (0, 0)) for axis in value.axes])
    shape = tuple(size + sum(pads.get(axis, (0, 0))) for axis, size in enumerate(value.shape))
    if mode == "reflect":
        return low.emit("MIRROR_PAD", [value.index, table], value.axes, shape, mode="REFLECT")
    fill = float(low.known(2, "fill").reshape(-1)[0]) if low.given(2) else 0.0
    if fill == 0.0:
        return low.emit("PAD", [value.index, table], value.axes, shape)
    return low.emit("PADV2", [value.index, table, low.floats(np.asarray(fill), "fill")], value.axes, shape)


def gather(low: Lowering) -> Value:
    """Gather by constant indices."""
    value, indices = low.value(0), low.known(1, "indices")
    rank = len(value.shape)
    axis = int(low.node.attributes.get("axis", 0)) % rank
    positive = np.where(indices < 0, indices + value.shape[axis], indices)
    shape = low.shape_out()
    inputs = [low.plain(value), low.integers(positive)]
    return low.emit("GATHER", inputs, plain(len(shape)), shape, axis=axis, batchDims=0)


def expand(low: Lowering) -> Value:
    """Expand -> BROADCAST_TO."""
    value, shape = low.value(0), low.shape_out()
    if value.shape == shape:
        return value
    wide = value.widened(len(shape))
    return low.emit("BROADCAST_TO", [low.plain(wide), low.integers(shape)], plain(len(shape)), shape)


def tile(low: Lowering) -> Value:
    """Tile."""
    value, shape = low.value(0), low.shape_out()
    repeats = low.whole(1, "repeats") or []
    return low.emit("TILE", [low.plain(value), low.integers(repeats)], plain(len(shape)), shape)


def identity(low: Lowering) -> Value:
    """Identity and Dropout: the value itself."""
    return low.value(0)


OPERATORS: dict[str, Callable[[Lowering], Value]] = {
    "Reshape": reshape,
    "Flatten": reshape,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Concat": concat,
    "Slice": cut,
    "Pad": pad,
    "Gather": gather,
    "Expand": expand,
    "Tile": tile,
    "Identity": identity,
    "Dropout": identity,
}
SPLITS: dict[str, Callable[[Lowering], tuple[Value, ...]]] = {"Split": split}
