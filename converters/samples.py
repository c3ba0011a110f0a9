"""Labelled windows: what training, calibration, gates and golden vectors are made of."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from skerry.errors import Rejected

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """`windows` float32 (n, T, C), `truth` int (n,) indices into the labels, `groups` int (n,), such as wearers."""

    windows: Array
    truth: Array
    groups: Array

    def __len__(self) -> int:
        return len(self.windows)

    def where(self, mask: Array) -> "Samples":
        """Return the rows that a mask or an index array selects."""
        return Samples(windows=self.windows[mask], truth=self.truth[mask], groups=self.groups[mask])


def check_samples(windows: Array, truth: Array, groups: Array, *, labels: int, what: str = "samples") -> Samples:
    """Return the arrays as `Samples` of the right dtypes; raises `Rejected` when shapes, labels or values are wrong."""
    if windows.ndim != 3 or windows.dtype.kind not in "fiu" or not windows.size:
        got = f"{windows.dtype} {windows.shape}"
        raise Rejected(f"{what}: expected windows as numbers of shape (rows, time, channels), got {got}")
    rows = len(windows)
    for name, column in (("truth", truth), ("groups", groups)):
        if column.shape != (rows,) or column.dtype.kind not in "iu":
            raise Rejected(f"{what}: expected {rows} whole numbers as {name}, got {column.dtype} {column.shape}")
    low, high = int(truth.min()), int(truth.max())
    if low < 0 or high >= labels:
        raise Rejected(f"{what}: expected truth from 0 to {labels - 1} ({labels} labels), got {low} to {high}")
    numbers = np.ascontiguousarray(windows, dtype=np.float32)
    bad = int(np.count_nonzero(~np.isfinite(numbers).all(axis=(1, 2))))
    if bad:
        raise Rejected(f"{what}: expected finite numbers, got {bad} windows with NaN or infinity: drop or repair them")
    return Samples(windows=numbers, truth=truth.astype(np.int64), groups=groups.astype(np.int64))


def join_samples(*parts: Samples) -> Samples:
    """Return the parts one after the other; raises `Rejected` when their windows have unlike shapes."""
    shapes = {part.windows.shape[1:] for part in parts}
    if len(shapes) != 1:
        raise Rejected(f"samples: expected windows of one shape, got {sorted(shapes)}")
    return Samples(
        windows=np.concatenate([part.windows for part in parts]),
        truth=np.concatenate([part.truth for part in parts]),
        groups=np.concatenate([part.groups for part in parts]),
    )
