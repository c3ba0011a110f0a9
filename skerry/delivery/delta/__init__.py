"""Deltas between two versions of a model file: made on the server, applied on the device, never trusted.

    delta = make_delta(old, new, source_tensors=tensor_map(old), target_tensors=tensor_map(new))
    digest = apply_delta(delta, Path("model.onnx"), out, length=signed_length)

What comes out is hashed by whoever asked for it: a delta is bytes from a network that must reproduce a signed target.
"""

from skerry.delivery.delta.decode import apply_delta
from skerry.delivery.delta.encode import make_delta
from skerry.delivery.delta.form import DELTA_MEMORY_BYTES, Header, read_header
from skerry.delivery.delta.grid import Tensor

__all__ = ["DELTA_MEMORY_BYTES", "Header", "Tensor", "apply_delta", "make_delta", "read_header"]
