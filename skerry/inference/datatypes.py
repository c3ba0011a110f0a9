"""The Open Inference Protocol's names of tensor types, beside NumPy's; nothing here imports NumPy.

https://github.com/kserve/open-inference-protocol, "Tensor Data Types". BF16 has no NumPy type and no runtime of ours.
"""

from skerry.errors import Rejected

BYTES = "BYTES"
"""Elements of any length: UTF-8 text in JSON; in the binary extension a length of 4 bytes, then the bytes."""

_BY_DTYPE = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    # what ONNX Runtime takes and gives strings as
    "object": BYTES,
}


def datatype_of(dtype: str) -> str:
    """Return the protocol's name of a NumPy dtype; raises `Rejected` for one that it cannot carry."""
    try:
        return _BY_DTYPE[dtype]
    except KeyError as error:
        raise Rejected(f"datatype: expected one of {', '.join(_BY_DTYPE)}, got {dtype[:40]}") from error
