"""Data sets: labelled windows, uploaded in parts; each part is an npz of plain arrays and is checked before it is kept.

A part holds `X` (float32, rows x steps x channels), `y` (the class of each row), `group` (who or what each row comes
from, so that validation can leave whole groups out) and `labels` (the names of the classes). Parts of the role `train`
may be learnt from; parts of the role `gate` were labelled in the field and only judge.
"""

import hashlib
import io
import lzma
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane.schema.models import DatasetPart
from control_plane.store import Blobs
from skerry.errors import Rejected
from skerry.wire.topics import check_name

MAX_UPLOAD_BYTES = 64 << 20
MAX_ARRAY_BYTES = 256 << 20
MAX_CLASSES = 256
ROLES = ("train", "gate")
MAX_LABEL = 100
_ARRAYS = ("X", "y", "group", "labels")
# zipfile (RuntimeError: encrypted), its decompressors and NumPy each have their own words for a file that is not what
# it says; a shape that no machine holds is a MemoryError or an OverflowError
_UNREADABLE = (
    zipfile.BadZipFile,
    ValueError,
    EOFError,
    OSError,
    KeyError,
    RuntimeError,
    MemoryError,
    OverflowError,
    zlib.error,
    lzma.LZMAError,
)


@dataclass(frozen=True, slots=True)
class Rows:
    """Labelled windows: `x` float32 (rows, steps, channels), `y` and `group` int64 (rows,), names of the classes."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    group: NDArray[np.int64]
    labels: tuple[str, ...]


def parse_part(data: bytes) -> Rows:
    """Read an uploaded npz; nothing in it is unpickled, and its arrays are measured before they are unpacked.

    Raises:
        Rejected: it is too long, no npz, lacks an array, or an array has another shape, type or range.
    """
    if len(data) > MAX_UPLOAD_BYTES:
        raise Rejected(f"data: expected at most {MAX_UPLOAD_BYTES} bytes, got {len(data)}; upload it in several parts")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > MAX_ARRAY_BYTES:
            raise Rejected(f"data: expected at most {MAX_ARRAY_BYTES} bytes of arrays, got {unpacked}; split it")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            missing = [name for name in _ARRAYS if name not in arrays]
            if missing:
                raise Rejected(f"data: expected the arrays {', '.join(_ARRAYS)}, got no {', '.join(missing)}")
            found = [arrays[name] for name in _ARRAYS]
    except _UNREADABLE as error:
        raise Rejected(f"data: expected an npz with plain arrays, got one that cannot be read ({error})") from error
    # a member that is not in NumPy's format comes back as its bytes
    if not all(isinstance(array, np.ndarray) for array in found):
        raise Rejected("data: expected an npz with plain arrays, got one with other files; write it with numpy.savez")
    x, y, group, labels = found
    return _checked(x, y, group, labels)


def add_part(session: Session, blobs: Blobs, *, dataset: str, role: str, data: bytes, now: datetime) -> DatasetPart:
    """Check and keep one part; the same bytes again are the same part.

    Raises:
        Rejected: the data is not what a part is, or does not fit the parts that the data set already has.
    """
    check_name(dataset, "data set")
    if role not in ROLES:
        raise Rejected(f"role: expected {' or '.join(ROLES)}, got {role!r:.40}")
    rows = parse_part(data)
    sha256 = hashlib.sha256(data).hexdigest()
    earlier = parts(session, dataset)
    for part in earlier:
        if part.sha256 == sha256:
            if part.role != role:
                raise Rejected(
                    f"data set {dataset}: expected rows that are not there yet, got a part that is {part.role}"
                )
            return part
        _check_fits(part, rows)
    blobs.put(data)
    part = DatasetPart(
        dataset=dataset, role=role, sha256=sha256, rows=len(rows.y), summary=_summary(rows), added_at=now
    )
    session.add(part)
    session.flush()
    return part


def parts(session: Session, dataset: str, *, role: str | None = None) -> list[DatasetPart]:
    """Return the parts of a data set in the order of their arrival."""
    query = select(DatasetPart).where(DatasetPart.dataset == dataset).order_by(DatasetPart.id)
    return list(session.scalars(query if role is None else query.where(DatasetPart.role == role)))


def load(blobs: Blobs, digests: Sequence[str]) -> Rows:
    """Join the rows of parts, in the order given; raises `Rejected` when there are none."""
    if not digests:
        raise Rejected("data: expected at least one part, got none; upload one with: skerry data add")
    loaded = [parse_part(blobs.get(digest)) for digest in digests]
    return Rows(
        x=np.concatenate([one.x for one in loaded]),
        y=np.concatenate([one.y for one in loaded]),
        group=np.concatenate([one.group for one in loaded]),
        labels=loaded[0].labels,
    )


def _checked(x: NDArray[Any], y: NDArray[Any], group: NDArray[Any], labels: NDArray[Any]) -> Rows:
    if x.ndim != 3 or x.dtype != np.float32 or 0 in x.shape:
        raise Rejected(f"X: expected float32 (rows, steps, channels), got {x.dtype} {x.shape}")
    if not np.isfinite(x).all():
        raise Rejected("X: expected finite numbers, got NaN or infinity; leave such rows out")
    for name, array in (("y", y), ("group", group)):
        if array.shape != (len(x),) or array.dtype.kind not in "iu":
            raise Rejected(f"{name}: expected {len(x)} whole numbers, got {array.dtype} {array.shape}")
    names = _names(labels)
    if not 2 <= len(set(names)) == len(names) <= MAX_CLASSES or not all(_is_name(name) for name in names):
        raise Rejected(
            f"labels: expected 2 to {MAX_CLASSES} different names of 1 to {MAX_LABEL} printable characters, "
            f"got {labels.dtype} {labels.shape}"
        )
    if y.min() < 0 or y.max() >= len(names):
        raise Rejected(f"y: expected classes 0 to {len(names) - 1}, got {y.min()} to {y.max()}")
    if group.dtype == np.uint64 and group.max() > np.iinfo(np.int64).max:
        raise Rejected(f"group: expected numbers below 2**63, got {group.max()}")
    return Rows(x=x, y=y.astype(np.int64), group=group.astype(np.int64), labels=tuple(names))


def _names(labels: NDArray[Any]) -> list[str]:
    if labels.ndim != 1 or labels.dtype.kind != "U":
        return []
    try:
        return [str(name) for name in labels.tolist()]
    except SystemError:
        # NumPy keeps any 32 bits as a character, Python does not
        return []


def _is_name(text: str) -> bool:
    return 0 < len(text) <= MAX_LABEL and text.isprintable()


def _check_fits(part: DatasetPart, rows: Rows) -> None:
    shape, labels = list(rows.x.shape[1:]), list(rows.labels)
    if part.summary["shape"] != shape:
        raise Rejected(
            f"X: expected windows of {part.summary['shape']} as in {part.dataset}'s other parts, got {shape}"
        )
    if part.summary["labels"] != labels:
        raise Rejected(f"labels: expected {part.summary['labels']} as in {part.dataset}'s other parts, got {labels}")


def _summary(rows: Rows) -> dict[str, Any]:
    groups, counts = np.unique(rows.group, return_counts=True)
    return {
        "shape": list(rows.x.shape[1:]),
        "labels": list(rows.labels),
        "classes": np.bincount(rows.y, minlength=len(rows.labels)).tolist(),
        "groups": {str(group): int(count) for group, count in zip(groups[:1000], counts[:1000], strict=True)},
    }
