"""Where a worker's rows come from: recordings that are replayed in a seeded random order for ever, and lines of JSON.

A recording is an npz of plain arrays: `X` (n, ...) for a model of one input, or an array for each input by its
name, rows first; and optionally `y` (class numbers, the truth known on the device) with `labels` (names of the
classes). Or it is a CSV with a header row: columns `NAME.0`, `NAME.1`, ... (or one column NAME) for each input, in the
order of its elements, or just any columns, in order, for a model of one input; and optionally `y`. When the file is
replaced, between two inferences, the replay goes on with the new one: the watch has moved.

A line of JSON is an object with a list (or a number) for each input by its name, or `X`, and optionally `y`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from skerry.errors import Rejected
from skerry.wire.manifest import TensorSpec

ONE = "X"
"""The name under which a recording holds the input of a model that has one, whatever the model calls it."""
TRUTH = "y"
NO_INPUTS = frozenset({TRUTH, "labels", "group"})
MAX_TABLE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One row of inputs by name, with a leading batch of 1, and its class: a name, a number, or None when nobody knows.

    `X` alone stands for the one input of a model, whatever its name.
    """

    values: Mapping[str, Any]
    truth: str | int | None

    def inputs(self, specs: Sequence[TensorSpec]) -> dict[str, Any]:
        """Return the row as a model takes it; raises `Rejected`, naming the inputs that the source does not have so."""
        names = [spec.name for spec in specs]
        if len(names) == 1 and names[0] not in self.values and ONE in self.values:
            return {names[0]: _fitted(self.values[ONE], specs[0])}
        missing = [name for name in names if name not in self.values]
        if missing:
            got = ", ".join(sorted(self.values)) or "nothing"
            raise Rejected(f"input: expected an array for each input, {', '.join(missing)} too, got {got}: add it")
        return {spec.name: _fitted(self.values[spec.name], spec) for spec in specs}


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """What a file holds: arrays by input, rows first, and where known the class of each row."""

    rows: Mapping[str, Any]
    truths: Sequence[str] | Sequence[int] | None

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def sample(self, row: int) -> Sample:
        """Return one row."""
        values = {name: array[row : row + 1] for name, array in self.rows.items()}
        return Sample(values=values, truth=self.truths[row] if self.truths else None)


def _fitted(array: Any, spec: TensorSpec) -> Any:
    """Return an array in an input's own dtype: what does not fit is no input, and says nothing about the model."""
    wanted = f"input: expected {spec.name} of shape {spec.shape} (-1: any) and {spec.dtype}, got"
    if len(array.shape) != len(spec.shape) or any(
        size not in (-1, got) for size, got in zip(spec.shape, array.shape, strict=True)
    ):
        raise Rejected(f"{wanted} shape {array.shape}")
    try:
        return _converted(array, spec.dtype)
    except ValueError as error:
        raise Rejected(f"{wanted} {array.dtype}: {error}") from error


def _converted(array: Any, dtype: str) -> Any:
    """Return numbers in another dtype; floats may be rounded, integers are neither cut nor wrapped (`ValueError`)."""
    import numpy as np

    if array.dtype == dtype:
        return array
    with np.errstate(invalid="ignore", over="ignore"):
        converted = array.astype(dtype)
    if converted.dtype.kind in "iub" and not np.array_equal(converted, array):
        raise ValueError(f"it has other values than {dtype} has")
    return converted


def shuffled(count: int, *, seed: int, epoch: int) -> list[int]:
    """Return the order of rows in an epoch: the same for the same seed, on every machine and Python."""
    import random

    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)  # noqa: S311 -- an order, not a secret
    return order


class ReplaySource:
    """Replays a recording; whoever asks counts the rows, so that a worker goes on where another one stood."""

    def __init__(self, path: Path, *, seed: int = 0, specs: Sequence[TensorSpec] = ()) -> None:
        self._path = path
        self._seed = seed
        self._specs = specs
        self._recording: Recording | None = None
        self._epoch = -1
        self._order: list[int] = []
        self._stamp: tuple[int, ...] = ()
        self.problem = ""
        self._follow()

    def row(self, number: int) -> Sample:
        """Return the row of a number, from 0 on for ever; raises `Rejected` while there is no recording."""
        if self._stamp != self._look():
            self._follow()
        recording = self._recording
        if recording is None:
            raise Rejected(self.problem)
        epoch, at = divmod(number, len(recording))
        if epoch != self._epoch:
            self._order, self._epoch = shuffled(len(recording), seed=self._seed, epoch=epoch), epoch
        return recording.sample(self._order[at])

    def _follow(self) -> None:
        """Go on with the new file; while it is half-written or gone, with the old rows."""
        # before reading: a file that changes meanwhile is read again
        self._stamp = self._look()
        try:
            self._recording, self._epoch = read_recording(self._path, self._specs), -1
            self.problem = ""
        except Rejected as error:
            self.problem = str(error)

    def _look(self) -> tuple[int, ...]:
        try:
            status = self._path.stat()
        except OSError:
            return ()
        return (status.st_mtime_ns, status.st_ino, status.st_size)


def read_recording(path: Path, specs: Sequence[TensorSpec] = ()) -> Recording:
    """Read a recording, by its name a CSV or an npz; raises `Rejected` for a file that is none."""
    try:
        if path.suffix == ".csv":
            return _read_table(path, specs)
        return _read_arrays(path)
    except OSError as error:
        raise Rejected(f"{path}: expected a recording (npz or CSV), got: {error.strerror}") from error


def _read_arrays(path: Path) -> Recording:
    from skerry.runtimes.arrays import unpack

    arrays = unpack(path.read_bytes(), what=str(path))
    rows = {name: array for name, array in arrays.items() if name not in NO_INPUTS}
    if not rows:
        raise Rejected(f"{path}: expected an array X (n, ...), or one for each input, got none")
    for name, array in rows.items():
        if array.dtype.kind not in "fiub" or not array.ndim or not len(array):
            raise Rejected(f"{path}: expected an array {name} of numbers (n, ...), got {array.dtype} {array.shape}")
    lengths = {name: len(array) for name, array in rows.items()}
    count = next(iter(lengths.values()))
    if set(lengths.values()) != {count}:
        raise Rejected(f"{path}: expected equally many rows of each input, got {lengths}")
    truths = arrays.get(TRUTH)
    if truths is None:
        return Recording(rows, None)
    if truths.shape != (count,) or truths.dtype.kind not in "iu":
        raise Rejected(f"{path}: expected an array y of {count} integers, got {truths.dtype} {truths.shape}")
    names = arrays.get("labels")
    classes: list[int] = truths.tolist()
    if names is None:
        return Recording(rows, classes)
    if names.ndim != 1:
        raise Rejected(f"{path}: expected labels in one dimension, got an array of shape {names.shape}")
    if not 0 <= min(classes) <= max(classes) < len(names):
        raise Rejected(f"{path}: expected classes of 0 to {len(names) - 1} in y, got {min(classes)} to {max(classes)}")
    return Recording(rows, [str(names[each]) for each in classes])


def _read_table(path: Path, specs: Sequence[TensorSpec]) -> Recording:
    import csv

    import numpy as np

    if path.stat().st_size > MAX_TABLE_BYTES:
        raise Rejected(f"{path}: expected at most {MAX_TABLE_BYTES} bytes, got {path.stat().st_size}")
    truths: list[str] = []
    at_line = 1
    try:
        # spreadsheets begin a file with the mark of its byte order
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, strict=True)
            header = [name.strip() for name in next(lines, [])]
            if not header or all(map(_is_number, header)):
                raise ValueError("no header with names")
            columns = _columns(header, specs, path)
            # what else a table has, such as the time, may be anything
            numbers = sorted({at for each in columns.values() for at in each})
            truth_at = header.index(TRUTH) if TRUTH in header else None
            table = []
            for line in lines:
                if not line:
                    continue  # an empty one, at the end as a rule
                at_line = lines.line_num
                if len(line) != len(header):
                    raise ValueError(f"{len(line)} of {len(header)}")
                table.append([float(line[at]) for at in numbers])
                if truth_at is not None:
                    truths.append(line[truth_at].strip())
    except (ValueError, csv.Error) as error:
        raise Rejected(f"{path}, line {at_line}: expected a number in each column, got: {error}") from error
    if not table:
        raise Rejected(f"{path}: expected a header row and lines of numbers, got the header alone")
    values = np.asarray(table)
    rows = {
        # integers stay as they were written: what is none is no input, row by row
        spec.name: values[:, np.searchsorted(numbers, each)]
        .astype(spec.dtype if spec.dtype.startswith("float") else values.dtype)
        .reshape(len(table), *_row_shape(spec))
        for spec, each in columns.items()
    }
    return Recording(rows, _classes(truths) if truths else None)


def _columns(header: Sequence[str], specs: Sequence[TensorSpec], path: Path) -> dict[TensorSpec, list[int]]:
    """Return which columns an input is, by its name or, for the only input, simply all."""
    found = {
        spec: sorted(
            (at for at, name in enumerate(header) if spec.name == name or _element_of(name) == spec.name),
            # some programs sort columns by name: 10 before 2
            key=lambda at: int(header[at].rpartition(".")[2]) if header[at] != spec.name else 0,
        )
        for spec in specs
    }
    if len(specs) == 1 and not found[specs[0]]:
        found = {specs[0]: [at for at, name in enumerate(header) if name != TRUTH]}
    for spec, columns in found.items():
        if len(columns) != math.prod(_row_shape(spec)):
            wanted = math.prod(_row_shape(spec))
            raise Rejected(
                f"{path}: expected {wanted} columns for the input {spec.name}, got {len(columns)}: name them"
            )
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _element_of(column: str) -> str:
    name, dot, number = column.rpartition(".")
    return name if dot and number.isdecimal() else ""


def _row_shape(spec: TensorSpec) -> tuple[int, ...]:
    return spec.shape[1:]


def _classes(truths: Sequence[str]) -> list[str] | list[int]:
    if all(each.removeprefix("-").isdecimal() and each.isascii() for each in truths):
        return [int(each) for each in truths]
    return list(truths)


def read_line(line: bytes | memoryview, specs: Sequence[TensorSpec]) -> Sample:
    """Read a row from a line of JSON; raises `Rejected` when it is not one for these inputs."""
    import numpy as np

    try:
        tree = json.loads(bytes(line))
    except (ValueError, RecursionError) as error:
        raise Rejected(f"input: expected a line of JSON, got {bytes(line[:40])!r}") from error
    if not isinstance(tree, dict):
        raise Rejected(f"input: expected an object with a list for each input, got {type(tree).__name__}")
    if len(specs) == 1 and specs[0].name not in tree and ONE in tree:
        tree = {specs[0].name: tree[ONE], **tree}
    values = {}
    for spec in specs:
        if spec.name not in tree:
            continue
        try:
            is_float = spec.dtype.startswith("float")
            array = np.asarray(tree[spec.name], dtype=spec.dtype if is_float else None)
            values[spec.name] = _converted(array, spec.dtype).reshape(1, *_row_shape(spec))
        except (ValueError, TypeError, OverflowError) as error:
            raise Rejected(
                f"input: expected {spec.name} of shape {spec.shape} and {spec.dtype}, got: {error}"
            ) from error
    truth = tree.get(TRUTH)
    known = isinstance(truth, str) or (isinstance(truth, int) and not isinstance(truth, bool))
    return Sample(values=values, truth=truth if known else None)


class Source(Protocol):
    """Something that yields the next input."""

    def next(self) -> Sample:
        """Return the next sample; raises `Rejected` when there is none to be had."""
