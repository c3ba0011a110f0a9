"""Magnitude pruning: the smaller share of each dense and convolutional weight becomes zero.

Each weight tensor is pruned on its own, so that no layer is emptied for another. The file keeps its length, for zeros
take as much room as other numbers: what is won is what a compressed transport saves.
"""

import zlib

import numpy as np
import onnx
from onnx import numpy_helper

from converters.onnx_graph import ancestors, canonical, constants_of
from converters.samples import Array
from skerry.errors import Rejected

WEIGHT_OF = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
"""The input that is the weight, by operator; of a MatMul the other input may be it too."""


def prune(data: bytes, *, share: float, boundary: str = "") -> tuple[bytes, dict[str, str]]:
    """Return the model with a share of its weights zero, and the recipe; preprocessing before `boundary` is left alone.

    Raises:
        Rejected: it has no dense or convolutional weights.
    """
    model = onnx.ModelProto.FromString(data)
    constants = constants_of(model.graph)
    before = ancestors(model.graph, boundary) if boundary else set()
    weights = {
        node.input[WEIGHT_OF[node.op_type]]: None
        for node in model.graph.node
        if node.op_type in WEIGHT_OF and not set(node.output) & before
    }
    # TensorProto.FLOAT, and at least a matrix: a vector that happens to be multiplied is no layer
    names = [name for name in weights if name in constants and constants[name].data_type == 1]
    names = [name for name in names if len(constants[name].dims) >= 2]
    if not names:
        raise Rejected("pruned: expected Conv, Gemm or MatMul with constant weights, got none in it")
    for name in names:
        pruned = _smallest_to_zero(numpy_helper.to_array(constants[name]), share)
        constants[name].CopyFrom(numpy_helper.from_array(pruned, name))
    out = canonical(model)
    deflated = f"{len(zlib.compress(data, 9))} to {len(zlib.compress(out, 9))} bytes"
    return out, {"pruned": f"{share:g} of {len(names)} weights by magnitude", "deflated": deflated}


def _smallest_to_zero(weights: Array, share: float) -> Array:
    flat = weights.ravel().copy()
    # stable, so that of equal magnitudes always the same ones go
    order = np.argsort(np.abs(flat), kind="stable")
    flat[order[: int(share * flat.size)]] = 0
    return flat.reshape(weights.shape)
