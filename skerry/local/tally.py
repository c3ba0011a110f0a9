"""The rows of one artifact that wait to be counted by the agent: bounded, and dropped rows are counted too.

`add` is called inside the user's loop, so it copies the watched bytes and nothing more; what they mean is worked out in
`take`, by the thread that sends them.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from skerry.errors import Rejected
from skerry.wire.manifest import Manifest, TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

MAX_ROWS = 8192
MAX_BYTES = 4 << 20
# half a batch and more is worth a request; fewer wait for the tick
BATCH_ROWS = 512
_BATCH_BYTES = 1 << 20
_UNKNOWN = -1.0
_TRAILING = 4


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows as the agent takes them: `width` little-endian float64 each; features, prediction, confidence, truth, us."""

    width: int
    rows: int
    data: bytes


@dataclass(frozen=True, slots=True)
class _Watched:
    """A tensor that is watched: its name, whether the model puts it out, elements of a row, and its dtype."""

    name: str
    is_output: bool
    size: int
    dtype: str


class Tally:
    """What one artifact's inferences showed and was not sent yet; safe for several threads."""

    def __init__(self, manifest: Manifest, *, wake: Callable[[], None]) -> None:
        self._labels = {label: position for position, label in enumerate(manifest.labels)}
        self._features = _watched(manifest, "features")
        self._chances = _watched(manifest, "probabilities")
        if self._chances is not None and self._chances.size != len(manifest.labels):
            raise Rejected(
                f"model: expected {len(manifest.labels)} probabilities, one per label, got {self._chances.size}"
            )
        self.width = (self._features.size if self._features else 0) + _TRAILING
        self._room = max(1, min(MAX_ROWS, MAX_BYTES // (8 * self.width)))
        self._batch = max(1, min(BATCH_ROWS, _BATCH_BYTES // (8 * self.width), self._room))
        self._rows: deque[tuple[bytes, bytes, float, float]] = deque()
        self._wake = wake
        self._taken: Batch | None = None
        self._dropping = threading.Lock()
        self.dropped = 0
        # no more rows will come
        self.is_ending = False

    @property
    def is_due(self) -> bool:
        """True when what is left should not wait for the next tick: a whole batch, or the rest of it all."""
        return len(self._rows) >= (1 if self.is_ending else self._batch)

    def position(self, truth: str | None) -> float:
        """Return a label's position; one that the model does not know is beyond its last, and counts as wrong."""
        return _UNKNOWN if truth is None else float(self._labels.get(truth, len(self._labels)))

    def add(
        self, inputs: "Mapping[str, Array]", outputs: "Mapping[str, Array]", *, truth: float, latency_us: float
    ) -> None:
        """Keep what one inference of one row showed."""
        rows = self._rows
        if len(rows) >= self._room:
            self.drop(1)
            return
        features, chances = self._features, self._chances
        rows.append(
            (
                (outputs if features.is_output else inputs)[features.name].tobytes() if features else b"",
                (outputs if chances.is_output else inputs)[chances.name].tobytes() if chances else b"",
                truth,
                latency_us,
            )
        )
        if len(rows) % self._batch == 0:
            self._wake()

    def drop(self, rows: int) -> None:
        """Note rows that will never be counted."""
        with self._dropping:
            self.dropped += rows

    def take(self) -> Batch | None:
        """Return the oldest rows as a batch, the same one until `settle`; None when there are none. For one thread."""
        if self._taken is None and self._rows:
            self._taken = self._pack(min(len(self._rows), self._batch))
        return self._taken

    def settle(self, *, counted: bool) -> None:
        """Forget the batch that was taken: it was counted, or never will be."""
        if self._taken is not None and not counted:
            self.drop(self._taken.rows)
        self._taken = None

    def _pack(self, count: int) -> Batch:
        import numpy as np

        taken = [self._rows.popleft() for _ in range(count)]
        table = np.full((count, self.width), _UNKNOWN)
        table[:, -3] = 0.0
        table[:, -2] = [row[2] for row in taken]
        table[:, -1] = [row[3] for row in taken]
        fit = np.ones(count, dtype=bool)
        if self._features:
            parts = [row[0] for row in taken]
            fit &= _whole(parts, self._features)
            table[fit, :-_TRAILING] = _read(parts, self._features, fit)
        if self._chances:
            parts = [row[1] for row in taken]
            fit &= _whole(parts, self._chances)
            chances = np.full((count, self._chances.size), np.nan)
            chances[fit] = _read(parts, self._chances, fit)
            # a row without a finite probability says nothing of what the model thinks: it is none
            fit &= np.isfinite(chances).all(axis=1)
            table[fit, -_TRAILING] = chances[fit].argmax(axis=1)
            table[fit, -3] = chances[fit].max(axis=1)
        self.drop(int(count - fit.sum()))
        kept = table[fit].astype("<f8", copy=False)
        return Batch(self.width, len(kept), kept.tobytes())


def _watched(manifest: Manifest, what: str) -> _Watched | None:
    name = manifest.observe.get(what)
    if not name:
        return None
    specs: list[tuple[TensorSpec, bool]] = [(spec, True) for spec in manifest.outputs]
    specs += [(spec, False) for spec in manifest.inputs]
    for spec, is_output in specs:
        if spec.name == name:
            return _Watched(name, is_output, math.prod(abs(size) for size in spec.shape), spec.dtype)
    raise Rejected(f"model: expected a tensor named {name!r} to watch, got none")


def _whole(parts: list[bytes], watched: _Watched) -> Any:
    """Say for each row whether the tensor had the size that the manifest promised."""
    import numpy as np

    expected = watched.size * np.dtype(watched.dtype).itemsize
    return np.fromiter((len(part) == expected for part in parts), dtype=bool, count=len(parts))


def _read(parts: list[bytes], watched: _Watched, fit: Any) -> Any:
    import numpy as np

    data = b"".join(part for part, fits in zip(parts, fit, strict=True) if fits)
    return np.frombuffer(data, watched.dtype).reshape(-1, watched.size)
