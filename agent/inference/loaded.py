"""A loaded artifact inside a worker: what it gives for an input, row by row, and what of that is to be counted.

Whose fault something is, is told by the kind of exception: `NoInput` says nothing about the model, `AtFault` is the
model's, `Rejected` the sender's. Here, and nowhere else on the device's own side, are NumPy and the runtime.
"""

import contextlib
import hashlib
import json
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from agent.inference.frames import MAX_BODY_BYTES, NO_SAMPLE, Answer, Sampled
from agent.inference.golden import compare, golden_vectors
from agent.inference.source import ReplaySource, Sample, read_line
from agent.local.serving_port import MAX_ROWS_BYTES, TRAILING, UNKNOWN, Rows
from skerry.errors import Rejected
from skerry.inference.oip import Codec
from skerry.runtimes.resident import bare_rss_bytes, import_runtime
from skerry.runtimes.session import Described, Signature, Tensor, read_model
from skerry.seen import Seen, read_seen
from skerry.wire.manifest import Manifest

if TYPE_CHECKING:
    import numpy as np

    Arrays = dict[str, np.ndarray[Any, Any]]

OpenSession = Callable[[str, bytes], Described]


class AtFault(Exception):
    """The model could not judge an input that was good."""


class NoInput(Exception):
    """There was nothing to infer on, or what there was is no number."""


class TooManyRows(Rejected):
    """A batch that would take so long that the daemon took it for a hang."""


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """The golden vectors, until they were replayed."""

    inputs: "Arrays"
    outputs: "Arrays"


class Judged(NamedTuple):
    """What an inference gave, and its rows packed to be counted."""

    outputs: "Arrays"
    rows: bytes


class Model:
    """A loaded artifact."""

    def __init__(self, manifest: Manifest, given: Mapping[str, Any], opening: OpenSession) -> None:
        self._manifest = manifest
        self._opening = opening
        self._file = Path(given["model"])
        import_runtime(manifest.runtime)
        # all that is not the model's is in memory before the model is: its growth is what the gate measured
        self._golden = self._read_golden(given.get("golden", ""))
        recording = given.get("recording")
        self._source = (
            ReplaySource(Path(recording["file"]), seed=recording["seed"], specs=manifest.inputs) if recording else None
        )
        self._bare = bare_rss_bytes()
        self._session = self._open()
        signature = self._session.signature()
        self._splits = _is_single(signature)
        self._batch_s = float(given.get("batch_s", "inf"))
        # a model of one row takes any number of them here, one after the other
        self._signature = _opened(signature) if self._splits else signature
        self._codec = Codec(self._signature, name=manifest.model, version=str(manifest.version))
        # how the last request was headed, as it came and as what it says: most are headed like the one before
        self._headed: tuple[bytes, dict[str, str]] = (b"", {})
        self._positions = {label: position for position, label in enumerate(manifest.labels)}

    def _open(self) -> Described:
        data = read_model(self._file)
        entry = self._manifest.file(self._manifest.model_file)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise Rejected(f"expected {entry.name} as signed, got other bytes; assign it again")
        return self._opening(self._manifest.runtime, data)

    def _read_golden(self, file: str) -> Golden | None:
        if not file:
            return None
        data = Path(file).read_bytes()
        entry = self._manifest.file(self._manifest.golden_file)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise Rejected(f"expected {entry.name} as signed, got other bytes; assign it again")
        return Golden(*golden_vectors(data, self._manifest))

    # --- the verbs

    def loaded(self) -> Answer:
        """Say what was loaded."""
        return Answer(said={"bare_rss_bytes": self._bare, "signature": asdict(self._signature)})

    def replay(self, *, keep: bool) -> Answer:
        """Replay the golden vectors row by row; afterwards the session is a fresh one.

        A streaming model has the golden rows in its state by then, and what goes live begins without them. Unless they
        are to be kept for another time, so does this process.
        """
        golden = self._golden
        if golden is None:
            raise Rejected("expected golden vectors to replay, got none")
        if not keep:
            self._golden = None
        rows = []
        for row in range(len(next(iter(golden.inputs.values())))):
            given = {name: values[row : row + 1] for name, values in golden.inputs.items()}
            judged = self._judge(given, truth=None)
            compare(
                judged.outputs,
                {name: each[row : row + 1] for name, each in golden.outputs.items()},
                self._manifest.tolerances,
            )
            rows.append(judged.rows)
        self._session.close()
        self._session = self._open()
        return Answer(rows=Rows(self._width, b"".join(rows)))

    def next(self, number: int, *, sample: int = NO_SAMPLE) -> Answer:
        """Infer on a row of the recording."""
        if self._source is None:
            raise NoInput("expected a recording, got none")
        try:
            row = self._source.row(number)
        except Rejected as error:
            raise NoInput(str(error)) from error
        # it goes on with the old rows while the new file is half-written, and says so
        return self._infer_row(row, problem=self._source.problem, sample=sample)

    def row(self, line: bytes | memoryview, *, sample: int = NO_SAMPLE) -> Answer:
        """Infer on a line of JSON."""
        try:
            row = read_line(line, self._manifest.inputs)
        except Rejected as error:
            raise NoInput(str(error)) from error
        return self._infer_row(row, problem="", sample=sample)

    def infer(self, head: bytes, body: bytes | memoryview, *, sample: int = NO_SAMPLE) -> Answer:
        """Answer a request of the Open Inference Protocol."""
        rows = b""
        inputs: Arrays = {}

        def run(arrays: "Arrays") -> "Arrays":
            nonlocal rows, inputs
            if self._splits:
                _check_equally_many(arrays)
            inputs = arrays
            outputs, latency_us = self._timed(arrays)
            # the caller may want to know what the model makes of NaN; nobody counts it
            with contextlib.suppress(NoInput):
                rows = self._watched(arrays, outputs, UNKNOWN, latency_us)
            return outputs

        if head != self._headed[0]:
            self._headed = head, json.loads(head)
        said = self._codec.answer(run, head=self._headed[1], body=body)
        counted = Rows(self._width, rows)
        return Answer(
            said={"status": said.status, "headers": said.headers},
            rows=counted,
            body=said.body,
            sample=self._sample(inputs, counted, sample, room=MAX_BODY_BYTES - len(said.body)),
        )

    # --- inference

    def _infer_row(self, row: Sample, *, problem: str, sample: int) -> Answer:
        try:
            inputs = row.inputs(self._manifest.inputs)
        except Rejected as error:
            raise NoInput(str(error)) from error
        judged = self._judge(inputs, truth=row.truth)
        rows = Rows(self._width, judged.rows)
        return Answer(
            said={"problem": problem} if problem else {}, rows=rows, sample=self._sample(inputs, rows, sample)
        )

    def _sample(self, inputs: "Arrays", rows: Rows, row: int, *, room: int = MAX_BODY_BYTES) -> Sampled | None:
        """Return the inputs of a counted row that the manifest lets leave the device; None where there are none."""
        # nobody asks, nearly always
        if row >= len(rows):
            return None
        import numpy as np

        policy = self._manifest.samples
        one = _slice(inputs, row, _count(inputs))
        named = [spec for spec in self._manifest.inputs if spec.name in policy.inputs and spec.name in one]
        kinds = {spec.name: np.dtype(spec.dtype).newbyteorder("<") for spec in named}
        size = sum(one[name].size * kind.itemsize for name, kind in kinds.items())
        if not named or size > min(policy.max_bytes, room):
            return None
        return Sampled(
            row, {name: np.ascontiguousarray(one[name], dtype=kind).tobytes() for name, kind in kinds.items()}
        )

    def _judge(self, inputs: "Arrays", *, truth: str | int | None) -> Judged:
        """Run the model and read what is watched; raises `AtFault`, or `NoInput` where the input is no number."""
        outputs, latency_us = self._timed(inputs)
        return Judged(outputs, self._watched(inputs, outputs, self._position(truth), latency_us))

    def _timed(self, inputs: "Arrays") -> "tuple[Arrays, float]":
        began = time.perf_counter_ns()
        try:
            outputs = self._run(inputs)
        except TooManyRows:
            raise
        except Rejected as error:
            raise _whose_fault(inputs, error) from error
        return outputs, (time.perf_counter_ns() - began) / 1000

    def _watched(self, inputs: "Arrays", outputs: "Arrays", truth: float, latency_us: float) -> bytes:
        try:
            return self._pack(inputs, outputs, truth, latency_us)
        except Rejected as error:
            raise _whose_fault(inputs, error) from error

    def _run(self, inputs: "Arrays") -> "Arrays":
        count = _count(inputs) if self._splits else 1
        if count == 1:
            return self._session.run(inputs)
        import numpy as np

        end = time.monotonic() + self._batch_s
        rows = []
        for row in range(count):
            rows.append(self._session.run(_slice(inputs, row, count)))
            if time.monotonic() > end:
                problem = (
                    f"expected rows for at most {self._batch_s:g} s, got {count}, of which {row + 1} took that long"
                )
                raise TooManyRows(f"inputs: {problem}: ask for fewer at once")
        return {name: np.concatenate([each[name] for each in rows]) for name in rows[0]}

    @property
    def _width(self) -> int:
        return self._features + TRAILING

    _features = 0

    def _pack(self, inputs: "Arrays", outputs: "Arrays", truth: float, latency_us: float) -> bytes:
        tensors = {**inputs, **outputs}
        count = _count(inputs)
        if count == 1:
            return self._pack_row(read_seen(self._manifest, tensors), truth, latency_us)
        packed = []
        for row in range(count):
            seen = read_seen(self._manifest, _slice(tensors, row, count))
            packed.append(self._pack_row(seen, truth, latency_us / count))
            if (len(packed) + 1) * len(packed[0]) > MAX_ROWS_BYTES:
                break  # what a huge batch has beyond that goes uncounted
        return b"".join(packed)

    def _pack_row(self, seen: Seen, truth: float, latency_us: float) -> bytes:
        self._features = len(seen.features)
        prediction = self._positions[seen.prediction] if seen.prediction else UNKNOWN
        return struct.pack(f"<{self._width}d", *seen.features, prediction, seen.confidence, truth, latency_us)

    def _position(self, truth: str | int | None) -> float:
        """Return a class's position; one that the model does not know is beyond its last: that counts as wrong."""
        if truth is None:
            return UNKNOWN
        if isinstance(truth, str):
            return self._positions.get(truth, len(self._positions))
        return truth if 0 <= truth < len(self._manifest.labels) else UNKNOWN


def _is_single(signature: Signature) -> bool:
    """True when a model takes one row and no more, and says so by a leading 1 everywhere."""
    tensors = (*signature.inputs, *signature.outputs)
    return all(tensor.shape[:1] == (1,) for tensor in tensors)


def _opened(signature: Signature) -> Signature:
    """Return a signature with any number of rows."""

    def opened(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(replace(tensor, shape=(-1, *tensor.shape[1:])) for tensor in tensors)

    return Signature(inputs=opened(signature.inputs), outputs=opened(signature.outputs))


def _count(arrays: "Arrays") -> int:
    """Return how many rows there are: the length of all inputs, where that is one; else one row."""
    lengths = {len(array) if array.ndim else 1 for array in arrays.values()}
    return lengths.pop() if len(lengths) == 1 else 1


def _check_equally_many(arrays: "Arrays") -> None:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise Rejected(f"inputs: expected equally many rows of each, got {lengths}")


def _slice(arrays: "Arrays", row: int, count: int) -> "Arrays":
    return {
        name: array[row : row + 1] if array.ndim and len(array) == count else array for name, array in arrays.items()
    }


def _whose_fault(inputs: "Arrays", error: Rejected) -> AtFault | NoInput:
    if _finite(inputs):
        return AtFault(str(error))
    return NoInput(f"input: expected finite values, got NaN or infinity; {error}")


def _finite(arrays: "Arrays") -> bool:
    import numpy as np

    return all(bool(np.isfinite(array).all()) for array in arrays.values() if array.dtype.kind in "fc")
