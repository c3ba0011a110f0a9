"""One artifact, loaded into this process: what a call of `skerry.Model` runs, marks and counts.

Crashes are attributed by this file's name in a trace (`marker`): whatever calls a runtime stands here.
"""

import math
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from skerry.errors import Rejected
from skerry.local.committed import Committed
from skerry.local.marker import Inside, Marker
from skerry.local.tally import Tally
from skerry.runtimes import open_session
from skerry.runtimes.session import Bound
from skerry.wire.manifest import TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Arrays = dict[str, Array]

T = TypeVar("T")
# one label, or for a batch one per row
Truth = str | Sequence[str | None] | None


class Loaded:
    """A session with its manifest, its record in the marker and its tally; a call is one artifact's from end to end."""

    def __init__(self, committed: Committed, *, threads: int, marker: Marker | None, wake: Callable[[], None]) -> None:
        import numpy as np

        self.manifest = manifest = committed.manifest
        self.digest = committed.digest
        self.tally = Tally(manifest, wake=wake)
        self._inside = Inside(bytearray(1), 0)
        if marker is not None:
            self._inside = marker.record(committed.digest)
            # when the last call that holds this has ended
            weakref.finalize(self, marker.forget, self._inside).atexit = False
        self._inside.enter()  # a model may also bring its runtime down while it is loaded
        try:
            self._session = open_session(manifest.runtime, committed.model, threads=threads)
        finally:
            self._inside.leave()
        # ONNX Runtime's sessions take several threads at once; an interpreter of TFLite is one place for one inference
        several = manifest.runtime == "onnxruntime"
        self._turn: AbstractContextManager[Any] = nullcontext() if several else threading.Lock()
        self._specs = {spec.name: (spec, spec.shape, np.dtype(spec.dtype)) for spec in manifest.inputs}
        self._only = manifest.inputs[0].name if len(manifest.inputs) == 1 else ""
        found = {tensor.name: tensor.shape for tensor in self._session.signature().inputs}
        self._open_batch = all(found.get(spec.name, (1,))[:1] == (-1,) for spec in manifest.inputs)

    def run(self, given: "Array | Mapping[str, Array]", *, truth: Truth) -> "Arrays":
        """Run one inference, or one per row of a batch, and keep what is to be counted.

        Raises:
            Rejected: the inputs are not what the model takes.
        """
        inputs = self.named(given)
        exact = truth is None or type(truth) is str
        for name, array in inputs.items():
            _, shape, dtype = self._specs[name]
            exact = exact and array.shape == shape and array.dtype == dtype
        if not exact:
            return self._run_rows(inputs, truth)
        outputs, took_us = self._timed(self._session.run, inputs)
        self.tally.add(inputs, outputs, truth=self.tally.position(truth), latency_us=took_us)  # type: ignore[arg-type]
        return outputs

    def bind(self, inputs: "Arrays") -> Bound:
        """Join arrays of exactly the model's shapes to the session; raises `Rejected` for others."""
        for name, array in self.named(inputs).items():
            spec, shape, dtype = self._specs[name]
            if array.shape != shape or array.dtype != dtype:
                raise _unfit(spec, array)
        return self._timed(self._session.bind, inputs)[0]

    def run_bound(self, inputs: "Arrays", bound: Bound, *, truth: str | None) -> "Arrays":
        """Run one inference on arrays that are bound to this session."""
        if truth is not None:
            truth = _label(truth)
        _, took_us = self._timed(bound.run)
        outputs = bound.outputs
        self.tally.add(inputs, outputs, truth=self.tally.position(truth), latency_us=took_us)
        return outputs

    def _timed(self, run: Callable[..., T], *given: Any) -> tuple[T, float]:
        """Call into the runtime, marked; return what it gave, and the microseconds that it took."""
        inside = self._inside
        with self._turn:
            inside.enter()
            began = time.perf_counter_ns()
            try:
                return run(*given), (time.perf_counter_ns() - began) / 1000
            finally:
                inside.leave()

    def named(self, given: "Array | Mapping[str, Array]") -> "Arrays":
        """Return the inputs by name; raises `Rejected` when they are not the model's."""
        if type(given) is not dict and not isinstance(given, Mapping):
            if not self._only:
                raise Rejected(f"inputs: expected them by name ({', '.join(self._specs)}), got one array")
            given = {self._only: given}
        if given.keys() != self._specs.keys():
            raise Rejected(f"inputs: expected {', '.join(self._specs)}, got {', '.join(map(str, given)) or 'none'}")
        for name, array in given.items():
            if not hasattr(array, "dtype"):
                spec = self._specs[name][0]
                raise Rejected(
                    f"input {name}: expected a NumPy array of {spec.dtype} {_shown(spec.shape)}, "
                    f"got {type(array).__name__}"
                )
        return given if isinstance(given, dict) else dict(given)

    def _run_rows(self, given: "Arrays", truth: Truth) -> "Arrays":
        """Run a batch: at once where the model's first dimension is open, else row by row."""
        import numpy as np

        inputs, count = self._by_rows(given)
        truths = _truths(truth, count)
        if count > 1 and self._open_batch:
            outputs = self._run_at_once(inputs, truths)
            if outputs is not None:
                return outputs
        results = [
            self.run({name: rows[at : at + 1] for name, rows in inputs.items()}, truth=each)
            for at, each in enumerate(truths)
        ]
        return {
            # an output of one number has no axis to count rows along
            name: np.concatenate([result[name] if result[name].ndim else result[name][None] for result in results])
            for name in results[0]
        }

    def _by_rows(self, inputs: "Arrays") -> "tuple[Arrays, int]":
        """Return inputs with rows first, each row as the model takes it, and how many rows there are."""
        rows: dict[str, Any] = {}
        for name, array in inputs.items():
            spec, shape, dtype = self._specs[name]
            # one row may come without its batch of one
            batch = array[None] if array.shape == shape[1:] else array
            fits = shape[:1] == (1,) and batch.shape[1:] == shape[1:] and len(batch) > 0
            if array.dtype != dtype or not (fits or array.shape == shape):
                raise _unfit(spec, array)
            rows[name] = batch
        counts = {len(array) for array in rows.values()}
        if len(counts) != 1:
            raise Rejected(f"inputs: expected equally many rows of each, got {sorted(counts)}")
        return rows, counts.pop()

    def _run_at_once(self, inputs: "Arrays", truths: list[str | None]) -> "Arrays | None":
        """Run all rows as one; None when what came out has not one row for each."""
        count = len(truths)
        outputs, took_us = self._timed(self._session.run, inputs)
        if any(array.ndim == 0 or len(array) != count for array in outputs.values()):
            return None
        for at, truth in enumerate(truths):
            one = slice(at, at + 1)
            self.tally.add(
                {name: array[one] for name, array in inputs.items()},
                {name: array[one] for name, array in outputs.items()},
                truth=self.tally.position(truth),
                latency_us=took_us / count,
            )
        return outputs


def _truths(truth: Truth, count: int) -> list[str | None]:
    if truth is None:
        return [None] * count
    several = [truth] if isinstance(truth, str) or not isinstance(truth, Iterable) else list(truth)
    if len(several) != count:
        raise Rejected(f"truth: expected {count} labels, one per row, got {len(several)}")
    # NumPy's strings are str, and not its type
    return [None if each is None else str(_label(each)) for each in several]


def _label(truth: Any) -> str:
    if not isinstance(truth, str):
        raise Rejected(f"truth: expected a label as a string, got {type(truth).__name__} {truth!r:.40}")
    return truth


def _unfit(spec: TensorSpec, array: "Array") -> Rejected:
    expected = f"{spec.dtype} {_shown(spec.shape)}"
    if spec.shape[:1] == (1,) and math.prod(spec.shape) > 1:
        expected += " or rows of it"
    return Rejected(
        f"input {spec.name}: expected {expected}, got {array.dtype} {_shown(array.shape)}; convert it first"
    )


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
