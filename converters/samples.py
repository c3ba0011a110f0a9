"""Labelled windows for training, and rows of any model's inputs for calibration, gates and golden vectors.

rows = samples.rows("window")                    # labelled windows as the rows of a model with that one input
rows = Rows({"left": a, "right": b})             # two inputs, no truth: agreement alone will gate
"""

import hashlib
from collections.abc import Mapping, Sequence
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

    def rows(self, name: str = "window") -> "Rows":
        """Return the windows as rows of the model input `name`."""
        return Rows(inputs={name: self.windows}, truth=self.truth, groups=self.groups)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows of a model's inputs: `inputs` by name, each (n, ...) without the batch of 1 that the model adds.

    `truth` int64 (n,) are indices into the labels, `groups` int64 (n,) say who or what each row is from; a model that
    was brought along may come without either, and is then gated by agreement and by the error of its outputs.
    """

    inputs: Mapping[str, Array]
    truth: Array | None = None
    groups: Array | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values()), ()))

    def where(self, mask: Array | slice) -> "Rows":
        """Return the rows that a mask, an index array or a slice selects."""
        return Rows(
            inputs={name: array[mask] for name, array in self.inputs.items()},
            truth=None if self.truth is None else self.truth[mask],
            groups=None if self.groups is None else self.groups[mask],
        )

    def starts(self) -> tuple[int, ...]:
        """Return where sequences begin: the first row, and each row whose group is not that of the row before."""
        if self.groups is None:
            return (0,)
        return (0, *(np.flatnonzero(self.groups[1:] != self.groups[:-1]) + 1).tolist())

    def digest(self) -> str:
        """Return the SHA-256 of everything in it."""
        digest = hashlib.sha256()
        for name, array in (*sorted(self.inputs.items()), ("/truth", self.truth), ("/groups", self.groups)):
            if array is not None:
                digest.update(f"{name} {array.dtype.str} {array.shape};".encode() + array.tobytes())
        return digest.hexdigest()


def join_inputs(*parts: Rows) -> dict[str, Array]:
    """Return the inputs of the parts by name, one part after the other."""
    return {name: np.concatenate([part.inputs[name] for part in parts]) for name in parts[0].inputs}


def join_starts(parts: Sequence[Rows]) -> tuple[int, ...]:
    """Return where sequences begin among the joined rows of parts; every part begins one."""
    before = np.cumsum([0, *(len(part) for part in parts)])
    return tuple(int(offset) + start for offset, part in zip(before, parts, strict=False) for start in part.starts())


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
