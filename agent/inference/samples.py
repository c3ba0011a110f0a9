"""Samples: the few inputs of a window that may leave the device, by the signed manifest and by its owner.

Which rows they are is drawn for each window anew, from the artifact and the window's number alone, so a restart draws
the same ones. A row whose inputs are not at hand when it is counted (another caller came before, or a program runs the
model itself) leaves its turn to the next one of its window whose inputs are. The class knows of no disk and no network:
what `offer` returns is put into the outbox as kind `sample`.
"""

import array
import random
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

from skerry.wire.manifest import SamplePolicy, TensorSpec
from skerry.wire.sample import Sample, encode_sample

# NumPy's names of types, and those of `array`
_CODES = {
    "float32": "f",
    "float64": "d",
    "bool": "B",
    "int8": "b",
    "uint8": "B",
    "int16": "h",
    "uint16": "H",
    "int32": "i",
    "uint32": "I",
    "int64": "q",
    "uint64": "Q",
}
Values = bytes | bytearray | memoryview | Sequence[float]


class Judged(Protocol):
    """What was seen of an inference; `agent.inference.observe.Seen` is one."""

    @property
    def prediction(self) -> str: ...
    @property
    def confidence(self) -> float: ...


class Samples:
    """Chooses rows of the windows of one artifact; `most_rows` and `most_bytes` are what its owner allows."""

    def __init__(
        self,
        policy: SamplePolicy,
        inputs: Sequence[TensorSpec],
        *,
        digest: str,
        most_rows: int,
        most_bytes: int,
    ) -> None:
        self._rows = min(policy.rows_per_window, most_rows)
        self._most_bytes = min(policy.max_bytes, most_bytes)
        self._inputs = {spec.name: spec.dtype for spec in inputs if spec.name in policy.inputs}
        self._digest = digest
        self._number = 0
        self._row = 0
        # positions that are still to come, the last one first; and how many of those that came found no inputs
        self._chosen: list[int] = []
        self._owed = 0
        self.left_out = 0

    @property
    def wanted(self) -> bool:
        """False where nothing may be kept: then nobody need gather inputs."""
        return bool(self._rows and self._inputs and self._most_bytes)

    def begin(self, number: int, *, window_rows: int, row: int = 0) -> None:
        """A window begins, or goes on at `row` after a restart."""
        self._number, self._row = number, row
        self._chosen, self._owed = [], 0
        if self.wanted:
            drawn = random.Random(f"{self._digest}:{number}")  # noqa: S311 -- spreads rows, guards nothing
            chosen = drawn.sample(range(window_rows), min(self._rows, window_rows))
            self._chosen = sorted((each for each in chosen if each >= row), reverse=True)

    @property
    def next_wanted(self) -> int | None:
        """How many rows come before the next one whose inputs are worth fetching; None where none is left."""
        if self._owed:
            return 0
        return self._chosen[-1] - self._row if self._chosen else None

    def offer(self, inputs: Mapping[str, Values] | None, seen: Judged) -> bytes | None:
        """Look at the next counted row; return the body of a `sample` entry, or None.

        `inputs` are tensors by name, as bytes (little-endian, of the manifest's dtype) or as flat lists of numbers;
        None where they are not at hand. A row that is too large, or lacks an input, is counted in `left_out`.
        """
        if self._chosen and self._chosen[-1] == self._row:
            self._chosen.pop()
            self._owed += 1
        self._row += 1
        if not self._owed or inputs is None:
            return None
        self._owed -= 1
        try:
            tensors = {name: _packed(inputs[name], dtype) for name, dtype in self._inputs.items()}
        except (KeyError, ValueError, TypeError, OverflowError):
            self.left_out += 1
            return None
        sample = Sample(self._digest[:16], self._number, seen.prediction, seen.confidence, tensors)
        if sample.size_bytes > self._most_bytes:
            self.left_out += 1
            return None
        return encode_sample(sample)


def _packed(values: Values, dtype: str) -> bytes:
    if isinstance(values, bytes | bytearray | memoryview):
        return bytes(values)
    code = _CODES.get(dtype, "d")
    numbers = values if code in "fd" else [int(value) for value in values]
    packed = array.array(code, numbers)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
