"""Sticky quantisation: a new version keeps the grids of the one before wherever its ranges still fit them.

A weight that training did not change then stays the same integer, so a delta is what training changed, and the effect
of a new grid on accuracy is not mixed with that of training. A range fits a grid that it outgrew by at most `OUTGROWN`
of its span (the few values beyond are clipped to its end), and of which it still uses `USED`; the gate judges the
result as it judges any candidate.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from converters.tflite.ir import Quantisation

OUTGROWN = 0.02
USED = 0.75


def stick(old: Quantisation | None, new: Quantisation) -> Quantisation:
    """Return `new` with the scales of `old` in each channel that still fits them; int8 on both sides.

    A grid with a zero point of its own is kept as a whole or not at all.
    """
    if old is None or (len(old.scales), old.axis) != (len(new.scales), new.axis):
        return new
    fits = _fits(old, new)
    if len(new.scales) == 1 or old.zero_point != new.zero_point:
        return old if fits.all() else new
    pairs = zip(old.scales, new.scales, fits, strict=True)
    return replace(new, scales=tuple(before if fit else after for before, after, fit in pairs))


def kept(old: Mapping[str, Quantisation], made: Mapping[str, Quantisation]) -> tuple[int, int]:
    """Return (how many scales of `made` are those of `old`, how many there are)."""
    same = total = 0
    for name, grid in made.items():
        before = old.get(name)
        total += len(grid.scales)
        if before is not None and len(before.scales) == len(grid.scales) and before.zero_point == grid.zero_point:
            pairs = zip(before.scales, grid.scales, strict=True)
            same += sum(bool(np.float32(one) == np.float32(other)) for one, other in pairs)
    return same, total


def recipe_of(previous: bytes, made: bytes) -> dict[str, str]:
    """Return what a recipe says of the grids that were kept; nothing without a version before."""
    if not previous:
        return {}
    same, total = kept(grids_of(previous), grids_of(made))
    return {"sticky": f"{same} of {total} scales of {hashlib.sha256(previous).hexdigest()}"}


def grids_of(data: bytes) -> dict[str, Quantisation]:
    """Return the int8 grids of a TFLite or QDQ ONNX file by tensor name; none for a file without, or a broken one."""
    from google.protobuf.message import DecodeError

    from converters.checks_tflite import BROKEN

    try:
        return _tflite_grids(data) if data[4:8] == b"TFL3" else _onnx_grids(data)
    except (*BROKEN, DecodeError):
        return {}


def _fits(old: Quantisation, new: Quantisation) -> Any:
    low, high = _range(old)
    least, most = _range(new)
    span = high - low
    return (least >= low - OUTGROWN * span) & (most <= high + OUTGROWN * span) & (most - least >= USED * span)


def _range(grid: Quantisation) -> tuple[Any, Any]:
    scales = np.asarray(grid.scales, dtype=np.float64)
    return (-128 - grid.zero_point) * scales, (127 - grid.zero_point) * scales


def _tflite_grids(data: bytes) -> dict[str, Quantisation]:
    from ai_edge_litert import schema_py_generated as schema

    graph = schema.Model.GetRootAs(data, 0).Subgraphs(0)
    found = {}
    for index in range(graph.TensorsLength()):
        tensor = graph.Tensors(index)
        grid = tensor.Quantization()
        if tensor.Type() != schema.TensorType.INT8 or grid is None or not grid.ScaleLength():
            continue
        scales = tuple(float(each) for each in grid.ScaleAsNumpy())
        name = (tensor.Name() or b"").decode(errors="replace")
        found[name] = Quantisation(scales, int(grid.ZeroPoint(0)), grid.QuantizedDimension())
    return found


def _onnx_grids(data: bytes) -> dict[str, Quantisation]:
    import onnx
    from onnx import numpy_helper

    graph = onnx.ModelProto.FromString(data).graph
    held = {each.name: each for each in graph.initializer}
    found = {}
    for node in graph.node:
        # QuantizeLinear of an activation, DequantizeLinear of a weight: input, scale, zero point
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 3:
            continue
        scale, zero = (held.get(each) for each in node.input[1:3])
        if scale is None or zero is None or zero.data_type != onnx.TensorProto.INT8:
            continue
        name = node.input[1].removesuffix("_scale")
        axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
        scales = tuple(float(each) for each in numpy_helper.to_array(scale).reshape(-1))
        zeros = numpy_helper.to_array(zero).reshape(-1)
        if (zeros == zeros[0]).all():
            found[name] = Quantisation(scales, int(zeros[0]), axis)
    return found
