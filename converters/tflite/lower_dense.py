"""Dense layers and matrix products: FULLY_CONNECTED where one side is constant, BATCH_MATMUL where none is.

A dense layer behind a flattened image takes the image as it is stored and permutes its weights instead.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from converters.samples import Array
from converters.tflite.layout import Value, plain
from converters.tflite.lowering import Lowering


def gemm(low: Lowering) -> Value:
    """Gemm: alpha * A' B' + beta * C."""
    attributes = low.node.attributes
    alpha, beta = float(attributes.get("alpha", 1.0)), float(attributes.get("beta", 1.0))
    right = low.operand(1)
    if isinstance(right, Value):
        return _product_of_two(low, alpha, beta)
    weights = (right if attributes.get("transB", 0) else right.T) * np.float32(alpha)
    bias = None
    addend = low.operand(2) if low.given(2) else None
    if addend is not None and not isinstance(addend, Value) and prod(addend.shape) in (1, len(weights)):
        bias = np.broadcast_to(addend.reshape(-1) * np.float32(beta), (len(weights),))
    flattened = low.flattened.get(low.node.inputs[0])
    if flattened is not None:
        return _finish_gemm(low, _dense_of_image(low, flattened, weights, bias), addend, bias, beta)
    left = low.value(0)
    index = low.place(left, (1, 0) if attributes.get("transA", 0) else plain(2))
    return _finish_gemm(low, _dense(low, index, weights, bias), addend, bias, beta)


def _finish_gemm(low: Lowering, result: Value, addend: object, bias: Array | None, beta: float) -> Value:
    if addend is None or bias is not None:
        return result
    return _add(low, result, beta)


def _add(low: Lowering, result: Value, beta: float) -> Value:
    addend = low.operand(2)
    if beta != 1.0:
        addend = low.scale(addend, beta) if isinstance(addend, Value) else addend * np.float32(beta)
    return low.combine("ADD", result, addend)


def _product_of_two(low: Lowering, alpha: float, beta: float) -> Value:
    attributes = low.node.attributes
    sides = [low.plain(low.operand(0)), low.plain(low.operand(1))]
    adjoint: dict[str, Any] = {"adjX": bool(attributes.get("transA", 0)), "adjY": bool(attributes.get("transB", 0))}
    result = low.emit("BATCH_MATMUL", sides, plain(2), low.shape_out(), **adjoint)
    if alpha != 1.0:
        result = low.scale(result, alpha)
    return _add(low, result, beta) if low.given(2) else result


def matmul(low: Lowering) -> Value:
    """MatMul; a third input, which `tidy` adds, is a constant bias."""
    left, right = low.node.inputs[0], low.operand(1)
    shape = low.shape_out()
    bias = low.known(2, "bias").reshape(-1) if low.given(2) else None
    if not isinstance(right, Value) and right.ndim == 2:
        weights = right.T
        flattened = low.flattened.get(left)
        if flattened is not None:
            return _dense_of_image(low, flattened, weights, bias)
        return _dense(low, low.plain(low.operand(0)), weights, bias)
    operands = [low.operand(0), right]
    if any(len(each.shape) < 2 for each in operands):
        raise low.node.refuse("matrices", " and ".join(str(list(each.shape)) for each in operands))
    sides = []
    for each in operands:
        # BATCH_MATMUL wants both sides of one rank on TFLite Micro
        more = (1,) * (len(shape) - len(each.shape))
        wide = each.widened(len(shape)) if isinstance(each, Value) else each.reshape(more + each.shape)
        sides.append(low.plain(wide))
    return low.emit("BATCH_MATMUL", sides, plain(len(shape)), shape, adjX=False, adjY=False)


def _dense(low: Lowering, index: int, weights: Array, bias: Array | None) -> Value:
    """Add a dense layer with weights (outputs, inputs) over the last axis."""
    shape = low.shape_out()
    if bias is None:
        bias = np.zeros(len(weights), dtype=np.float32)
    inputs = [index, low.floats(np.ascontiguousarray(weights), "weights"), low.floats(bias, "bias")]
    return low.emit("FULLY_CONNECTED", inputs, plain(len(shape)), shape, keepNumDims=len(shape) > 2)


def _dense_of_image(low: Lowering, image: Value, weights: Array, bias: Array | None) -> Value:
    """Add a dense layer over an image that ONNX flattens: the columns of the weights go into the stored order."""
    natural = np.arange(prod(image.shape)).reshape(image.shape)
    stored = low.graph.tensors[image.index].shape
    order = natural.transpose(image.order + tuple(axis for axis in range(natural.ndim) if axis not in image.order))
    flat = low.arrange.reshape(image.index, (1, prod(stored)), node=low.node.title)
    return _dense(low, flat, weights[:, order.reshape(-1)], bias)


OPERATORS: dict[str, Callable[[Lowering], Value]] = {"Gemm": gemm, "MatMul": matmul}
