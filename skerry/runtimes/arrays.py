"""Named arrays as bytes: deterministic npz out, and a reader that neither unpickles nor inflates without a cap.

NumPy is imported inside the functions, so that importing this module costs a device nothing.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from skerry.errors import Rejected

if TYPE_CHECKING:
    import numpy as np

    Arrays = dict[str, np.ndarray[Any, Any]]

MAX_BYTES = 1 << 30
# what a malformed archive, or a header that claims more than memory holds, makes zipfile, zlib and NumPy raise
_MALFORMED = (
    ValueError,
    OSError,
    EOFError,
    KeyError,
    MemoryError,
    SyntaxError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)


def pack(arrays: "Mapping[str, np.ndarray[Any, Any]]") -> bytes:
    """Write arrays as an npz; the same arrays in the same order give the same bytes."""
    import numpy as np

    out = io.BytesIO()
    # as `numpy.savez` does, which would take an array named `file` for its own argument: members stored as they are,
    # under the fixed date of 1980, so nothing depends on the clock
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
    return out.getvalue()


def unpack(data: bytes, *, what: str, limit: int = MAX_BYTES) -> "Arrays":
    """Read an npz without pickle; `what` names it in messages.

    Raises:
        Rejected: it is not an npz of plain arrays, or would take more than `limit` bytes of memory.
    """
    import numpy as np

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > limit:
            raise Rejected(f"{what}: expected at most {limit} bytes of arrays, got {size}")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except _MALFORMED as error:
        raise Rejected(f"{what}: expected an npz of plain arrays, got {data[:12]!r}") from error
