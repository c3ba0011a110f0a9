"""Operators that slide a window: convolutions in one and two dimensions, transposed ones, and pooling.

ONNX states paddings; TFLite knows SAME and VALID. Where neither says the same, a PAD goes before the kernel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.samples import Array
from converters.tflite.layout import Value, channels_last
from converters.tflite.lowering import Lowering

LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True, slots=True)
class _Window:
    """A window in two dimensions; for a series, the first of them is 1."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]
    size_in: tuple[int, int]
    size_out: tuple[int, int]

    @property
    def padding(self) -> str:
        """SAME or VALID where TFLite's own padding is this one, else empty."""
        if not any(self.before + self.needed_after):
            return "VALID"
        same_out = tuple(-(-size // stride) for size, stride in zip(self.size_in, self.strides, strict=True))
        total = self._total
        same = tuple(each // 2 for each in total), tuple(each - each // 2 for each in total)
        return "SAME" if same_out == self.size_out and same == (self.before, self.needed_after) else ""

    @property
    def reach(self) -> tuple[int, int]:
        """How far one window extends."""
        return _pair((size - 1) * dilation + 1 for size, dilation in zip(self.kernel, self.dilations, strict=True))

    @property
    def needed_after(self) -> tuple[int, int]:
        """The padding at the end that some window reaches."""
        return _pair(max(0, total - before) for total, before in zip(self._total, self.before, strict=True))

    @property
    def _total(self) -> tuple[int, int]:
        each = zip(self.size_out, self.strides, self.reach, self.size_in, strict=True)
        return _pair(max(0, (out - 1) * stride + reach - size) for out, stride, reach, size in each)


def _pair(values: Any) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)


def _flat(values: Any, rank: int) -> tuple[int, int]:
    """Return sizes of the spatial axes as two: a series has a height of 1."""
    return _pair(values) if rank == 4 else (1, int(values[0]))


def _window(low: Lowering, rank: int, kernel: tuple[int, ...]) -> _Window:
    node, spatial = low.node, rank - 2
    shape_in, shape_out = low.operand(0).shape, low.shape_out()
    strides = [int(each) for each in node.attributes.get("strides", [1] * spatial)]
    dilations = [int(each) for each in node.attributes.get("dilations", [1] * spatial)]
    pads = [int(each) for each in node.attributes.get("pads", [0] * 2 * spatial)]
    auto = node.attributes.get("auto_pad", "NOTSET")
    if auto == "VALID":
        pads = [0] * 2 * spatial
    elif auto.startswith("SAME"):
        totals = [
            max(0, (out - 1) * stride + (size - 1) * dilation + 1 - have)
            for out, stride, size, dilation, have in zip(
                shape_out[2:], strides, kernel, dilations, shape_in[2:], strict=True
            )
        ]
        smaller, larger = [each // 2 for each in totals], [each - each // 2 for each in totals]
        pads = smaller + larger if auto == "SAME_UPPER" else larger + smaller
    if any(each < 0 for each in pads):
        raise node.refuse("paddings of 0 or more", pads)
    before, after = pads[:spatial], pads[spatial:]
    zeros = (0, *before) if rank == 3 else before
    ends = (0, *after) if rank == 3 else after
    return _Window(
        kernel=_flat(kernel, rank),
        strides=_flat(strides, rank),
        dilations=_flat(dilations, rank),
        before=_pair(zeros),
        after=_pair(ends),
        size_in=_flat(shape_in[2:], rank),
        size_out=_flat(shape_out[2:], rank),
    )


def _check_rank(low: Lowering, shape: tuple[int, ...]) -> int:
    if len(shape) not in (3, 4):
        raise low.node.refuse("one or two spatial dimensions", f"{len(shape) - 2} ({list(shape)})")
    return len(shape)


def _padded(low: Lowering, value: Value, window: _Window, *, fill: float = 0.0) -> tuple[int, str]:
    """Return the input in NHWC, padded where TFLite's own paddings will not do, and the padding that is left."""
    rank = len(value.shape)
    index = low.place(value, channels_last(rank))
    if window.padding:
        return index, window.padding
    return _pad(low, index, window.before, window.needed_after, fill=fill), "VALID"


def _pad(low: Lowering, index: int, before: tuple[int, int], after: tuple[int, int], *, fill: float = 0.0) -> int:
    batch, height, width, channels = low.graph.tensors[index].shape
    sizes = (batch, height + before[0] + after[0], width + before[1] + after[1], channels)
    pads = low.integers([[0, 0], [before[0], after[0]], [before[1], after[1]], [0, 0]])
    out = low.graph.tensor(f"{low.node.outputs[0]}/padded", sizes)
    if fill == 0.0:
        low.graph.add("PAD", [index, pads], [out], node=low.node.title)
    else:
        low.graph.add("PADV2", [index, pads, low.floats(np.asarray(fill), "fill")], [out], node=low.node.title)
    return out


def _strides(window: _Window) -> dict[str, Any]:
    return {"strideH": window.strides[0], "strideW": window.strides[1]}


def _dilations(window: _Window) -> dict[str, Any]:
    return {"dilationHFactor": window.dilations[0], "dilationWFactor": window.dilations[1]}


def _bias(low: Lowering, outputs: int) -> int:
    values = low.known(2, "biases") if low.given(2) else np.zeros(outputs, dtype=np.float32)
    return low.floats(values.reshape(-1), "bias")


def conv(low: Lowering) -> Value:
    """Conv -> CONV_2D or DEPTHWISE_CONV_2D."""
    value, weights = low.value(0), low.known(1, "weights")
    rank = _check_rank(low, value.shape)
    window = _window(low, rank, weights.shape[2:])
    groups = int(low.node.attributes.get("group", 1))
    if rank == 3:
        weights = weights[:, :, None, :]
    index, padding = _padded(low, value, window)
    outputs = weights.shape[0]
    shared: dict[str, Any] = {"padding": padding, **_strides(window), **_dilations(window)}
    axes, shape = channels_last(rank), low.shape_out()
    if groups == value.shape[1] and groups > 1:
        # one input channel for each group: (O, 1, h, w) -> (1, h, w, O)
        kernel = low.floats(weights.transpose(1, 2, 3, 0), "weights")
        multiplier = outputs // groups
        inputs = [index, kernel, _bias(low, outputs)]
        return low.emit("DEPTHWISE_CONV_2D", inputs, axes, shape, depthMultiplier=multiplier, **shared)
    kernel = low.floats(weights.transpose(0, 2, 3, 1), "weights")
    return low.emit("CONV_2D", [index, kernel, _bias(low, outputs)], axes, shape, **shared)


def conv_transpose(low: Lowering) -> Value:
    """ConvTranspose -> TRANSPOSE_CONV without padding, cropped to what ONNX pads away."""
    value, weights = low.value(0), low.known(1, "weights")
    rank = _check_rank(low, value.shape)
    attributes, spatial = low.node.attributes, rank - 2
    if int(attributes.get("group", 1)) != 1 or any(each != 1 for each in attributes.get("dilations", [])):
        raise low.node.refuse("one group and no dilation", f"{attributes.get('group', 1)} groups or a dilation")
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or "output_shape" in attributes:
        raise low.node.refuse("explicit paddings", "auto_pad or output_shape")
    kernel = weights[:, :, None, :] if rank == 3 else weights
    strides = _flat(attributes.get("strides", [1] * spatial), rank)
    pads = attributes.get("pads", [0] * 2 * spatial)
    before = (0, *pads[:spatial])[-2:]
    shape, axes = low.shape_out(), channels_last(rank)
    batch, height, width, channels = (shape[0], *_flat(shape[2:], rank), shape[1])
    size_in = _flat(value.shape[2:], rank)
    full = _pair(
        (size - 1) * stride + reach for size, stride, reach in zip(size_in, strides, kernel.shape[2:], strict=True)
    )
    if before[0] + height > full[0] or before[1] + width > full[1]:
        raise low.node.refuse("an output within what the kernel reaches", f"output_padding beyond it ({list(shape)})")
    out = low.graph.tensor(f"{low.node.outputs[0]}/full", (batch, *full, channels))
    inputs = [
        low.integers((batch, *full, channels)),
        low.floats(kernel.transpose(1, 2, 3, 0), "weights"),
        low.place(value, axes),
        _bias(low, channels),
    ]
    low.graph.add(
        "TRANSPOSE_CONV", inputs, [out], node=low.node.title, padding="VALID", strideH=strides[0], strideW=strides[1]
    )
    if full == (height, width):
        return Value(out, axes, shape)
    bounds = [low.integers([0, *before, 0]), low.integers([batch, before[0] + height, before[1] + width, channels])]
    return low.emit("STRIDED_SLICE", [out, *bounds, low.integers([1, 1, 1, 1])], axes, shape)


def max_pool(low: Lowering) -> Value:
    """MaxPool -> MAX_POOL_2D."""
    value, window = _pool(low)
    if len([name for name in low.node.outputs if name]) > 1:
        raise low.node.refuse("the maxima alone", "their indices too")
    index, padding = _padded(low, value, window, fill=LOWEST)
    return _emit_pool(low, "MAX_POOL_2D", index, window, padding=padding)


def average_pool(low: Lowering) -> Value:
    """AveragePool -> AVERAGE_POOL_2D, whose own padding does not count what is padded."""
    value, window = _pool(low)
    counted = bool(low.node.attributes.get("count_include_pad", 0))
    padding = window.padding
    if padding == "VALID" or (padding == "SAME" and not counted):
        return _emit_pool(
            low, "AVERAGE_POOL_2D", low.place(value, channels_last(len(value.shape))), window, padding=padding
        )
    index = low.place(value, channels_last(len(value.shape)))
    padded = _pad(low, index, window.before, window.needed_after)
    pooled = _emit_pool(low, "AVERAGE_POOL_2D", padded, window, padding="VALID")
    share = np.multiply.outer(_share(window, 0, counted=counted), _share(window, 1, counted=counted))
    if np.all(share == 1):
        return pooled
    image = share[None, None] if len(value.shape) == 4 else share[None, :, :].reshape(1, 1, -1)
    return low.combine("MUL", pooled, image.astype(np.float32))


def _share(window: _Window, axis: int, *, counted: bool) -> Array:
    """Return, for each place of a window along an axis, its length over the number of elements that count."""
    before, size = window.before[axis], window.size_in[axis]
    low, high = (-before, size + window.after[axis]) if counted else (0, size)
    starts = np.arange(window.size_out[axis]) * window.strides[axis] - before
    counts = np.minimum(starts + window.kernel[axis], high) - np.maximum(starts, low)
    return window.kernel[axis] / counts


def _pool(low: Lowering) -> tuple[Value, _Window]:
    value = low.value(0)
    rank = _check_rank(low, value.shape)
    window = _window(low, rank, tuple(low.node.attributes["kernel_shape"]))
    if window.dilations != (1, 1):
        raise low.node.refuse("pooling without dilation", list(low.node.attributes["dilations"]))
    return value, window


def _emit_pool(low: Lowering, kind: str, index: int, window: _Window, *, padding: str) -> Value:
    shape = low.shape_out()
    sizes: dict[str, Any] = {"filterHeight": window.kernel[0], "filterWidth": window.kernel[1]}
    return low.emit(kind, [index], channels_last(len(shape)), shape, padding=padding, **sizes, **_strides(window))


def resize(low: Lowering) -> Value:
    """Resize to the nearest neighbour by whole factors -> RESIZE_NEAREST_NEIGHBOR."""
    value, shape, attributes = low.value(0), low.shape_out(), low.node.attributes
    whole = (
        len(shape) == 4
        and shape[:2] == value.shape[:2]
        and all(new % old == 0 for new, old in zip(shape[2:], value.shape[2:], strict=True))
    )
    mode = (attributes.get("mode", "nearest"), attributes.get("coordinate_transformation_mode", "half_pixel"))
    rounding = attributes.get("nearest_mode", "round_prefer_floor")
    usual = mode[1] == "asymmetric" and rounding == "floor"
    if not whole or mode[0] != "nearest" or not (usual or mode[1] == "half_pixel"):
        raise low.node.refuse("nearest neighbours by whole factors", f"{mode[0]}, {mode[1]}, {rounding}")
    index = low.place(value, channels_last(4))
    return low.emit("RESIZE_NEAREST_NEIGHBOR", [index, low.integers(shape[2:])], channels_last(4), shape)


OPERATORS: dict[str, Callable[[Lowering], Value]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "Resize": resize,
}
