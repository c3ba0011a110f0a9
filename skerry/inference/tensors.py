"""One tensor of the Open Inference Protocol to and from a NumPy array: as JSON numbers, or as raw bytes.

What a request claims allocates nothing: sizes are compared with the data that came, before an array is made. Arrays
made here are aligned, contiguous, writable and nobody else's, whatever the offset of their bytes in the body.
"""

import math
import struct
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from skerry.errors import Rejected
from skerry.inference.datatypes import BYTES, datatype_of

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_LENGTH = struct.Struct("<I")
_IS_LITTLE = sys.byteorder == "little"


def from_binary(data: memoryview, *, shape: Sequence[int], dtype: str, what: str) -> "Array":
    """Read little-endian elements in row-major order; raises `Rejected` when they are not as many as the shape has."""
    import numpy as np

    if datatype_of(dtype) == BYTES:
        return _strings(_split(data, what=what), shape=shape, what=what)
    kind = np.dtype(dtype)
    if len(data) != math.prod(shape) * kind.itemsize:
        expected = math.prod(shape) * kind.itemsize
        raise Rejected(f"{what}: expected {expected} bytes for the shape {list(shape)}, got {len(data)}")
    if kind.kind == "b":
        octets = np.frombuffer(data, np.uint8)
        if octets.size and octets.max() > 1:
            raise Rejected(f"{what}: expected bytes 0 or 1 for BOOL, got {octets.max()}")
        return octets.astype(bool).reshape(shape)
    # astype copies, and so aligns; on a big-endian machine it also swaps
    return np.frombuffer(data, kind.newbyteorder("<")).astype(kind).reshape(shape)


def from_json(data: Any, *, shape: Sequence[int], dtype: str, what: str) -> "Array":
    """Read a flat or nested JSON list; raises `Rejected` on other values than the dtype's, and on too few or many."""
    import numpy as np

    datatype = datatype_of(dtype)
    if not isinstance(data, list):
        raise Rejected(f"{what}: expected data as a list, got {type(data).__name__}")
    if datatype == BYTES:
        return _strings(_flat(data, shape=shape, what=what), shape=shape, what=what)
    try:
        # without a dtype: given one, NumPy would make numbers of strings, and cut fractions off
        found = np.array(data)
    except (ValueError, OverflowError, RecursionError) as error:
        raise Rejected(f"{what}: expected a flat list or one nested as its shape, got a ragged one") from error
    if found.shape not in ((math.prod(shape),), tuple(shape)):
        raise Rejected(f"{what}: expected {math.prod(shape)} elements for the shape {list(shape)}, got {found.shape}")
    return _convert(found, data, dtype=dtype, what=what).reshape(shape)


def to_binary(array: "Array") -> bytes:
    """Return an array's elements as the binary extension writes them."""
    if datatype_of_array(array) == BYTES:
        elements = [str(element).encode() for element in array.ravel()]
        return b"".join(_LENGTH.pack(len(element)) + element for element in elements)
    if not _IS_LITTLE or array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return array.tobytes()


def datatype_of_array(array: "Array") -> str:
    """Return the protocol's name of an array's dtype; raises `Rejected` for one that it cannot carry."""
    return _datatype(array.dtype)


@lru_cache(64)
def _datatype(dtype: "np.dtype[Any]") -> str:
    # NumPy takes microseconds to say how a dtype is called
    return datatype_of(str(dtype))


def to_json(array: "Array", *, what: str) -> list[Any]:
    """Return an array's elements as one flat list; raises `Rejected` where JSON has no number for one."""
    import numpy as np

    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Rejected(f"{what}: expected finite numbers for JSON, got NaN or infinity: ask for it with binary_data")
    if array.dtype == object:
        return [str(element) for element in array.ravel()]
    elements: list[Any] = array.ravel().tolist()
    return elements


def _convert(found: "Array", data: list[Any], *, dtype: str, what: str) -> "Array":
    """Make the array that JSON's own types gave one of `dtype`, exactly or, for floats, rounded."""
    import numpy as np

    kind = np.dtype(dtype)
    if kind.kind == "b":
        if found.dtype.kind != "b":
            raise Rejected(f"{what}: expected true and false for BOOL, got other values")
        return found
    if kind.kind == "f":
        if found.dtype.kind not in "iuf":
            raise Rejected(f"{what}: expected numbers, got other values")
        with np.errstate(over="ignore"):
            numbers = found.astype(kind)
        if not np.isfinite(numbers).all():
            raise Rejected(f"{what}: expected finite numbers that fit {datatype_of(dtype)}, got larger ones")
        return numbers
    if found.dtype.kind not in "iu":
        # integers beyond 63 bits beside small ones: NumPy made floats or objects of them
        found = np.array(data, dtype=object)
        if not all(type(element) is int for element in found.ravel()):
            raise Rejected(f"{what}: expected integers, got other values")
    limits = np.iinfo(kind)
    if found.size and not limits.min <= found.min() <= found.max() <= limits.max:
        raise Rejected(f"{what}: expected integers of {limits.min} to {limits.max}, got others")
    return found.astype(kind)


def _flat(data: list[Any], *, shape: Sequence[int], what: str) -> list[Any]:
    """Return a flat list as it is, and one nested as `shape` unfolded."""
    if len(data) == math.prod(shape) and not any(isinstance(each, list) for each in data):
        return data
    for size in shape[:-1]:
        if len(data) != size or not all(isinstance(each, list) for each in data):
            raise Rejected(f"{what}: expected data nested as the shape {list(shape)}, got another nesting")
        data = [element for each in data for element in each]
        shape = (size * shape[1], *shape[2:])
    return data


def _split(data: memoryview, *, what: str) -> list[str]:
    elements, at = [], 0
    try:
        while at < len(data):
            (length,) = _LENGTH.unpack_from(data, at)
            at += _LENGTH.size + length
            if at > len(data):
                raise Rejected(f"{what}: expected {length} bytes of an element, got the end of the data")
            elements.append(str(data[at - length : at], "utf-8"))
    except (struct.error, UnicodeDecodeError) as error:
        raise Rejected(f"{what}: expected elements of a length and UTF-8 text, got others") from error
    return elements


def _strings(elements: list[Any], *, shape: Sequence[int], what: str) -> "Array":
    import numpy as np

    if len(elements) != math.prod(shape):
        raise Rejected(f"{what}: expected {math.prod(shape)} elements for {list(shape)}, got {len(elements)}")
    try:
        for element in elements:
            if not isinstance(element, str):
                raise Rejected(f"{what}: expected strings for BYTES, got {type(element).__name__}")
            element.encode()
    except UnicodeEncodeError as error:
        raise Rejected(f"{what}: expected text, got half of a surrogate pair") from error
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(shape)
