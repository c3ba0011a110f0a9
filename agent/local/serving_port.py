"""What the local HTTP face knows of the models on this device: `Models`, and the values that cross it.

The engine implements it; the tests of the face have a fake. Nothing here imports NumPy: tensors pass as the bytes of
an Open Inference Protocol request, which the worker reads (`skerry.inference.oip`), and observations as `Rows`.

An answer names the manifest that made it (`Reply.manifest`), so that nobody has to guess what ran during a swap.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from skerry.wire.manifest import TensorSpec

UNKNOWN = -1.0
"""Stands for a class that there is not: the prediction of a model that is no classifier, a truth that nobody knows."""
TRAILING = 4
"""How many numbers follow the features of a row: prediction, confidence, truth, latency in microseconds."""
MAX_ROWS_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Served:
    """A model that can be asked here: `version` is the manifest's, as text, `manifest` its SHA-256 in hexadecimal.

    Shapes have -1 where a dimension is open. `ready` is False while its worker is being started. `stateful` is True
    unless it is known that equal inputs give equal outputs; only then may results be kept.
    """

    name: str
    version: str
    manifest: str
    runtime: str
    ready: bool
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    stateful: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """One inference to be counted; `prediction` and `truth` are positions in the manifest's labels, or -1.

    `latency_us` is that of the session's run alone.
    """

    features: tuple[float, ...]
    prediction: int
    confidence: float
    truth: int
    latency_us: float


@dataclass(frozen=True, slots=True)
class Rows:
    """Inferences to be counted, packed: little-endian float64, `width` to a row.

    A row is `features..., prediction, confidence, truth, latency_us`; so `width` is the number of features and 4. A
    model that is no classifier has prediction -1 and confidence 0. `dropped` is how many more there were that the
    sender had no room for.
    """

    width: int = TRAILING
    data: bytes = b""
    dropped: int = 0

    def __post_init__(self) -> None:
        if not TRAILING <= self.width <= MAX_ROWS_BYTES // 8:
            raise ValueError(f"rows: expected a width of {TRAILING} or more, got {self.width}")
        if len(self.data) > MAX_ROWS_BYTES:
            raise ValueError(f"rows: expected at most {MAX_ROWS_BYTES} bytes, got {len(self.data)}: send fewer at once")
        if len(self.data) % (8 * self.width):
            raise ValueError(f"rows: expected a multiple of {8 * self.width} bytes, got {len(self.data)}")
        if self.dropped < 0:
            raise ValueError(f"rows: expected 0 dropped or more, got {self.dropped}")

    def __len__(self) -> int:
        return len(self.data) // (8 * self.width)

    def __iter__(self) -> Iterator[Row]:
        for *features, prediction, confidence, truth, latency_us in struct.iter_unpack(f"<{self.width}d", self.data):
            yield Row(
                features=tuple(features),
                prediction=_position(prediction),
                confidence=confidence,
                truth=_position(truth),
                latency_us=latency_us,
            )


@dataclass(frozen=True, slots=True)
class Reply:
    """What an inference request is answered: an HTTP status, headers (lower-case names) and a body.

    `manifest` is the digest of what made it, empty when nothing ran. `rows` is what the engine has counted for it
    already; a result that is kept is counted again each time it is given.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    manifest: str = ""
    rows: Rows = field(default_factory=Rows)


class Models(Protocol):
    """The models on this device; called from the face's threads, several at once."""

    def serving(self) -> tuple[Served, ...]:
        """Return what can be asked, of each name what a request without a version gets first; cheap."""

    def infer(self, name: str, version: str, *, head: Mapping[str, str], body: bytes) -> Reply:
        """Answer one inference request; an empty `version` stands for whatever runs.

        `head` is what `skerry.inference.oip.answer_request` wants of the request's headers.

        Raises:
            Rejected: there is no such model or version, or it refuses this request.
            Unavailable: nothing can answer it now (no room, being restarted); the client may try again.
        """

    def observe(self, manifest: str, rows: Rows) -> bool:
        """Count what a program that runs the model itself has seen; False when `manifest` is not what is committed.

        Raises:
            Rejected: the rows do not fit the manifest's monitor.
        """

    def crashed(self, manifest: str, *, reason: str) -> None:
        """Hear that a user's program died inside the model: rolls back when the other slot is fit."""


def _position(value: float) -> int:
    """Return a class's position; NaN, infinity and what no list of labels is long enough for are not one."""
    return int(value) if 0 <= value < 1 << 31 else -1
