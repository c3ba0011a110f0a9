"""Where a device's inputs come from: here, a recording that is replayed in a seeded random order, for ever.

The file is an npz of plain arrays: `X` float32 (n, ...) for a model of one input, or an array for each input by its
name, rows first; and optionally `y` (class numbers, the truth known on the device) with `labels` (names of the
classes). When the file is replaced, between two inferences, the replay goes on with the new one: the watch has moved.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from skerry.errors import Rejected
from skerry.wire.manifest import TensorSpec

ONE = "X"
"""The name under which a recording holds the input of a model that has one, whatever the model calls it."""
NO_INPUTS = frozenset({"y", "labels", "group"})


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One row of inputs by name, with a leading batch of 1, and its class: a name, a number, or None when nobody knows.

    `X` alone stands for the one input of a model, whatever its name.
    """

    values: Mapping[str, Any]
    truth: str | int | None

    def inputs(self, specs: Sequence[TensorSpec]) -> dict[str, Any]:
        """Return the row as a model takes it; raises `Rejected`, naming the inputs that the source does not have."""
        names = [spec.name for spec in specs]
        if len(names) == 1 and names[0] not in self.values and ONE in self.values:
            return {names[0]: self.values[ONE]}
        missing = [name for name in names if name not in self.values]
        if missing:
            got = ", ".join(sorted(self.values)) or "nothing"
            raise Rejected(f"input: expected an array for each input, {', '.join(missing)} too, got {got}: add it")
        return {name: self.values[name] for name in names}


class Source(Protocol):
    """Something that yields the next input."""

    def next(self) -> Sample:
        """Return the next sample; raises `Rejected` when there is none to be had."""


def shuffled(count: int, *, seed: int, epoch: int) -> list[int]:
    """Return the order of rows in an epoch: the same for the same seed, on every machine and Python."""
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)  # noqa: S311 -- an order, not a secret
    return order


class ReplaySource:
    """Replays an npz file."""

    def __init__(self, path: Path, *, seed: int = 0) -> None:
        self._path = path
        self._seed = seed
        self._stamp: tuple[int, ...] = ()
        self.problem = ""
        self._order: list[int] = []
        self._at = self._epoch = 0
        self._load()

    def next(self) -> Sample:
        """Return the next row of the current file."""
        if self._stamp != self._look():
            self._follow()
        if self._at == len(self._order):
            self._epoch += 1
            self._order = shuffled(len(self._order), seed=self._seed, epoch=self._epoch)
            self._at = 0
        row = self._order[self._at]
        self._at += 1
        values = {name: array[row : row + 1] for name, array in self._rows.items()}
        return Sample(values=values, truth=self._truths[row] if self._truths else None)

    def _follow(self) -> None:
        """Go on with the new file; while it is half-written or gone, with the old rows."""
        try:
            self._load()
            self.problem = ""
        except Rejected as error:
            self.problem = str(error)

    def _look(self) -> tuple[int, ...]:
        try:
            status = self._path.stat()
        except OSError:
            return ()
        return (status.st_mtime_ns, status.st_ino, status.st_size)

    def _load(self) -> None:
        # before reading: a file that changes meanwhile is read again
        self._stamp = self._look()
        self._rows, self._truths = read_recording(self._path)
        self._epoch = 0
        self._order = shuffled(len(next(iter(self._rows.values()))), seed=self._seed, epoch=0)
        self._at = 0


def read_recording(path: Path) -> tuple[dict[str, Any], list[str] | list[int] | None]:
    """Return the rows by input and, where known, their classes; raises `Rejected` for a file that is no recording."""
    from skerry.runtimes.arrays import unpack

    try:
        data = path.read_bytes()
    except OSError as error:
        raise Rejected(f"{path}: expected a recording (npz), got: {error.strerror}") from error
    arrays = unpack(data, what=str(path))
    rows = {name: array for name, array in arrays.items() if name not in NO_INPUTS}
    if not rows:
        raise Rejected(f"{path}: expected an array X of float32 (n, ...), or one for each input, got none")
    for name, array in rows.items():
        right = array.ndim > 1 and str(array.dtype) == "float32" if name == ONE else array.dtype.kind in "fiub"
        if not right or not array.ndim or not len(array):
            kind = "float32" if name == ONE else "numbers"
            raise Rejected(f"{path}: expected an array {name} of {kind} (n, ...), got {array.dtype} {array.shape}")
    lengths = {name: len(array) for name, array in rows.items()}
    count = next(iter(lengths.values()))
    if set(lengths.values()) != {count}:
        raise Rejected(f"{path}: expected equally many rows of each input, got {lengths}")
    truths = arrays.get("y")
    if truths is None:
        return rows, None
    if truths.shape != (count,) or truths.dtype.kind not in "iu":
        raise Rejected(f"{path}: expected an array y of {count} integers, got {truths.dtype} {truths.shape}")
    names = arrays.get("labels")
    classes: list[int] = truths.tolist()
    if names is None:
        return rows, classes
    if names.ndim != 1:
        raise Rejected(f"{path}: expected labels in one dimension, got an array of shape {names.shape}")
    if not 0 <= min(classes) <= max(classes) < len(names):
        raise Rejected(f"{path}: expected classes of 0 to {len(names) - 1} in y, got {min(classes)} to {max(classes)}")
    return rows, [str(names[each]) for each in classes]
