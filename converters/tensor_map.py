"""Where the weights of a model file stand, for deltas: the bytes of each tensor in an ONNX or TFLite file.

An initializer's bytes are looked for in the file itself, for protobuf's reader tells values and not places; what cannot
be found as it is (values written one by one, as exporters of trees do) is left to the plain diff of the rest.
A stranger's file may say anything of its tensors: what does not fit the bytes that are there is left out.
"""

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from skerry.delivery.delta import Tensor
from skerry.errors import Rejected

Array = np.ndarray[Any, np.dtype[Any]]

_LEAST_BYTES = 64
_MOST_MISSED_BYTES = 1 << 30
"""How far the file is searched for values that are not in it, all tensors together: no more than about a second."""


def tensor_map(data: bytes) -> list[Tensor]:
    """Return the tensors of a model file in the order of their places; none for a file of another kind."""
    if data[4:8] == b"TFL3":
        return sorted(_tflite(data), key=lambda tensor: tensor.offset)
    try:
        return sorted(_onnx(data), key=lambda tensor: tensor.offset)
    except Rejected:
        return []


def _onnx(data: bytes) -> list[Tensor]:
    import onnx

    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's exceptions share no root with others
        raise Rejected(f"expected an ONNX model, got: {' '.join(str(error).split())[:200]}") from error
    held = {each.name: each for each in model.graph.initializer}
    grids = _onnx_grids(model.graph, held)
    found: list[Tensor] = []
    at = missed = 0
    for name, values, raw in _values(model.graph):
        if missed > _MOST_MISSED_BYTES:
            break
        # tensors stand in the file as in the list, so the search goes on behind the last one
        place = data.find(raw, at)
        place = place if place >= 0 else data.find(raw)
        if place < 0:
            missed += 2 * len(data)
            continue
        at = place + len(raw)
        scales, axis = grids.get(name, (None, 0))
        tensor = _tensor(name, place, values.shape, values.dtype, scales, axis, held=len(raw))
        found += [tensor] if tensor is not None else []
    return found


def _values(graph: Any) -> Iterator[tuple[str, Array, bytes]]:
    """Give name, values and bytes of each constant and initializer that has its values in the file."""
    from onnx import TensorProto, numpy_helper

    constants = [(node.name or node.output[0], node) for node in graph.node if node.op_type == "Constant"]
    inner = [(name, each.t) for name, node in constants for each in node.attribute if each.name == "value"]
    for name, tensor in [*inner, *((each.name, each) for each in graph.initializer)]:
        # values in another file are not read: its path is a stranger's
        if tensor.data_location == TensorProto.EXTERNAL or tensor.data_type == TensorProto.STRING:
            continue
        try:
            values = numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError):
            continue
        raw = tensor.raw_data or values.tobytes()
        if len(raw) >= _LEAST_BYTES and values.dtype.itemsize * values.size == len(raw):
            yield name, values, raw


def _onnx_grids(graph: Any, held: dict[str, Any]) -> dict[str, tuple[Array, int]]:
    """Return scales and channel axis of each quantised initializer, as the nodes that read it say."""
    from onnx import TensorProto, numpy_helper

    grids = {}
    # which inputs hold (weights, scales) in the operators that read quantised weights
    places = {"DequantizeLinear": (0, 1), "QLinearConv": (3, 4), "QLinearMatMul": (3, 4), "QGemm": (3, 4)}
    for node in graph.node:
        pair = places.get(node.op_type)
        if pair is None or len(node.input) <= pair[1] or node.input[pair[1]] not in held:
            continue
        axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
        axis = 0 if node.op_type == "QLinearConv" else axis
        scales = held[node.input[pair[1]]]
        if scales.data_type == TensorProto.FLOAT and scales.data_location != TensorProto.EXTERNAL:
            try:
                grids[node.input[pair[0]]] = (numpy_helper.to_array(scales).reshape(-1), axis)
            except ValueError:
                continue  # other values than its shape says
    return grids


def _tflite(data: bytes) -> list[Tensor]:
    from ai_edge_litert import schema_py_generated as schema

    from converters.checks_tflite import BROKEN

    try:
        model = schema.Model.GetRootAs(data, 0)
        graph = model.Subgraphs(0)
        start = np.frombuffer(data, dtype=np.uint8).__array_interface__["data"][0]
        types = {code: name for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
        found = {}
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            values = model.Buffers(tensor.Buffer()).DataAsNumpy()
            if isinstance(values, int) or len(values) < _LEAST_BYTES or tensor.Buffer() in found:
                continue
            dtype = _TFLITE_TYPES.get(types.get(tensor.Type(), ""))
            if dtype is None:
                continue
            shape = tuple(int(size) for size in tensor.ShapeAsNumpy()) if tensor.ShapeLength() else ()
            grid = tensor.Quantization()
            scales = grid.ScaleAsNumpy() if grid is not None and grid.ScaleLength() else None
            offset = values.__array_interface__["data"][0] - start
            name = (tensor.Name() or b"").decode(errors="replace")
            axis = grid.QuantizedDimension() if grid is not None else 0
            placed = _tensor(name, offset, shape, np.dtype(dtype), scales, axis, held=len(values))
            if placed is not None:
                found[tensor.Buffer()] = placed
    except BROKEN:
        return []
    return list(found.values())


_TFLITE_TYPES = {"FLOAT32": "<f4", "FLOAT16": "<f2", "INT32": "<i4", "INT16": "<i2", "INT8": "i1", "UINT8": "u1"}


def _tensor(
    name: str, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], scales: Array | None, axis: int, *, held: int
) -> Tensor | None:
    """Return where a tensor stands; None when its shape is not that of the `held` bytes."""
    if any(size < 1 for size in shape) or prod(shape) * dtype.itemsize != held:
        return None
    axis = axis % len(shape) if shape else 0
    return Tensor(
        name=name,
        offset=offset,
        length=held,
        width=dtype.itemsize,
        floating=dtype.kind == "f",
        channels=shape[axis] if shape else 1,
        inner=prod(shape[axis + 1 :]),
        scales=scales,
    )
