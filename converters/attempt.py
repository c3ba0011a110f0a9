"""One candidate from its writer to its figures: what the search does over and over, several at a time.

    trial = Trial(source=..., profile=..., ..., expected=reference_outputs(source, rows))
    trial("int8")          # Attempt: the candidate, what it gave for every row, and what was measured, or why not

What was made and measured before, of equal content and by equal tools, comes from the cache.
"""

import hashlib
import platform
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from converters.cache import Cache, key_of, tool_versions, writer_version
from converters.candidates import Candidate, write_candidate
from converters.checks import check_contents
from converters.emitted import C_FILE, FRONT_FILE, run_emitted
from converters.gate import FLOAT, Measurement, Reference
from converters.measure import (
    Race,
    Run,
    accuracy_by_group,
    accuracy_of,
    deflated,
    host_features,
    labels_of,
    measure,
    race_candidate,
    run_candidate,
)
from converters.network import array_json, json_array
from converters.samples import Array, Rows, join_inputs, join_starts
from converters.source import Source, run_reference
from skerry.errors import Rejected
from skerry.runtimes import Refused
from skerry.runtimes.arrays import pack, unpack
from skerry.wire import codec
from skerry.wire.manifest import Tolerance
from skerry.wire.profile import Profile

_OUTPUT, _EXTRA = "output ", "extra "
AGAIN_ROWS = 8
_WRITING = threading.Lock()
"""One writer at a time: quantisers change the process's loggers and warnings. Runs go on beside it, in children."""


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """What one precision came to: `measured` is the figures, or in one line why there are none.

    `outputs` by name are of every row: calibration, held out, field. Of one that keeps the grids of the version before,
    `free` is the same precision with grids of its own.
    """

    candidate: Candidate | None
    outputs: Mapping[str, Array]
    measured: Measurement | str
    cached: bool = False
    free: "Attempt | None" = None


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """Everything that attempts of one model for one profile share; `base` is the float form, once it is there.

    `previous` is the model file whose grids the quantiser keeps where they fit; empty for none.
    """

    source: Source
    profile: Profile
    calibration: Rows
    holdout: Rows
    field: Rows | None
    expected: Mapping[str, Array]
    runtime_version: str
    cache: Cache | None = None
    base: Candidate | None = None
    shared_key: str = ""
    previous: bytes = b""

    @property
    def source_digest(self) -> str:
        """The name of the source in the cache."""
        return hashlib.sha256(self.source.to_bytes()).hexdigest()

    def keyed(self) -> "Trial":
        """Return it with the key of all that its attempts share, so that their processes need not make it again."""
        parts = {
            "source": self.source_digest,
            "calibration": self.calibration.digest(),
            "holdout": self.holdout.digest(),
            "field": "" if self.field is None else self.field.digest(),
            "runtime": [self.profile.runtime, self.runtime_version],
            # all that a writer or a check takes from the profile: two profiles of one runtime share their attempts
            "vnni": self.profile.runtime == "onnxruntime" and "vnni" in self.profile.features,
            "opset": self.profile.opset,
            "machine": [platform.machine(), *host_features()],
            "tools": tool_versions(),
            "writer": writer_version(),
        }
        return replace(self, shared_key=key_of(parts))

    def __call__(self, precision: str) -> Attempt:
        """Write, check, run and measure one precision."""
        found = self.recall(precision)
        if found is not None:
            return found
        attempt, lasting = self._attempt(precision)
        if self.cache is not None and lasting:
            self.cache.put(self._key(precision), _packed(attempt))
        return attempt

    def recall(self, precision: str) -> Attempt | None:
        """Return an earlier attempt of equal content from the cache."""
        body = self.cache.get(self._key(precision)) if self.cache is not None else None
        if body is None:
            return None
        try:
            return _unpacked(body)
        except (Rejected, KeyError, TypeError, ValueError):
            return None  # of another version of us: measured anew

    def _attempt(self, precision: str) -> tuple[Attempt, bool]:
        """Return the attempt, and whether it would come to the same again: a crash or a timeout need not."""
        try:
            with _WRITING:
                candidate = self._write(precision)
                # what our own writers wrote passes the same checks as a stranger's file
                for data in _interpreted(candidate):
                    check_contents(data, self.profile)
        except Rejected as error:
            return Attempt(None, {}, str(error)), True
        inputs = join_inputs(*self._parts())
        run = self._run(candidate, inputs)
        if isinstance(run, Refused):
            return Attempt(candidate, {}, run.reason), False
        race = None
        if self.base is not None:
            # a race begins with a fresh session, and so compares what one sequence gives
            first = {name: array[: self._starts[1]] for name, array in inputs.items()} if self._starts[1:] else inputs
            raced = race_candidate(self.profile.runtime, candidate.data, self.base.data, first, run=run)
            if isinstance(raced, Refused):
                return Attempt(candidate, {}, raced.reason), False
            race = raced
        try:
            measured = self._measure(candidate, run, race)
        except Rejected as error:
            return Attempt(candidate, {}, str(error)), True
        return Attempt(candidate, {name: run.outputs[name] for name in self.expected}, measured), True

    def _run(self, candidate: Candidate, inputs: Mapping[str, Array]) -> Run | Refused:
        if candidate.file == C_FILE:
            return run_emitted(self.source, candidate.extras, inputs)
        rows = len(next(iter(inputs.values())))
        starts = [start for start in self._starts if start < rows]
        return run_candidate(self.profile.runtime, candidate.data, inputs, starts=starts)

    @property
    def _starts(self) -> tuple[int, ...]:
        """The rows that a fresh session begins with: of a stateful source, the first of every sequence of each part."""
        return join_starts(self._parts()) if self.source.stateful else (0,)

    def _write(self, precision: str) -> Candidate:
        spans = {
            name: float(np.ptp(array.astype(np.float64))) if array.size else 0.0
            for name, array in self.expected.items()
        }
        calibration = dict(self.calibration.inputs)
        return write_candidate(
            self.source, self.profile, precision, calibration=calibration, spans=spans, previous=self.previous
        )

    def _measure(self, candidate: Candidate, run: Run, race: Race | None) -> Measurement:
        held_out = slice(len(self.calibration), len(self.calibration) + len(self.holdout))
        return measure(
            run,
            candidate.data,
            holdout=self.holdout,
            expected=rows_of(self.expected, held_out),
            got=rows_of(run.outputs, held_out),
            probabilities=self.source.probabilities,
            race=race,
            deterministic=self._again(candidate, run) if race is None else None,
            field_accuracy=self.field_accuracy(run.outputs),
        )

    def _again(self, candidate: Candidate, run: Run) -> bool | None:
        """Say whether the first rows give equal bytes in another process."""
        first = {name: array[:AGAIN_ROWS] for name, array in join_inputs(*self._parts()).items()}
        other = self._run(candidate, first)
        if isinstance(other, Refused):
            return None
        return all(array.tobytes() == run.outputs[name][:AGAIN_ROWS].tobytes() for name, array in other.outputs.items())

    def field_accuracy(self, outputs: Mapping[str, Array]) -> float | None:
        """Return the share of right labels on the field's rows, which come last; None without field or labels."""
        if self.field is None or not self.source.probabilities:
            return None
        start = len(self.calibration) + len(self.holdout)
        labels = labels_of(outputs[self.source.probabilities][start : start + len(self.field)])
        return accuracy_of(labels, self.field)

    def _parts(self) -> tuple[Rows, ...]:
        return tuple(part for part in (self.calibration, self.holdout, self.field) if part is not None)

    def _key(self, precision: str) -> str:
        base = "" if self.base is None else self.base.digest
        previous = hashlib.sha256(self.previous).hexdigest() if self.previous else ""
        parts = {"shared": self.shared_key, "precision": precision, "base": base, "previous": previous}
        return key_of({"what": "attempt", **parts})


def reference_outputs(source: Source, parts: Sequence[Rows], *, cache: Cache | None) -> dict[str, Array]:
    """Return the float outputs for every row of parts, one after the other; raises `Rejected`.

    They are computed by a child process, or come from the cache. A stateful source begins each sequence anew.
    """
    inputs, starts = join_inputs(*parts), join_starts(parts)
    key = key_of(
        {
            "what": "reference",
            "source": hashlib.sha256(source.to_bytes()).hexdigest(),
            "rows": Rows(inputs).digest(),
            "starts": starts if source.stateful else (),
            "tools": tool_versions(),
        }
    )
    body = cache.get(key) if cache is not None else None
    if body is not None:
        try:
            return unpack(body, what="reference")
        except Rejected:
            pass  # of another version of us
    outputs = run_reference(source, inputs, starts=starts)
    if cache is not None:
        cache.put(key, pack(outputs))
    return outputs


def reference_of(trial: Trial, base: Attempt, *, previous: Source | None) -> Reference:
    """Return what the candidates of a trial are held against: the float model, and the version that the field runs."""
    source, holdout, field = trial.source, trial.holdout, trial.field
    # integers that were brought along are no float build, though they are what there is to be held against
    data = base.candidate.data if base.candidate is not None and base.candidate.precision == FLOAT else b""
    accuracy: float | None = None
    by_group: dict[str, float] = {}
    if source.probabilities:
        held_out = rows_of(trial.expected, slice(len(trial.calibration), len(trial.calibration) + len(holdout)))
        labels = labels_of(held_out[source.probabilities])
        accuracy, (by_group, _) = accuracy_of(labels, holdout), accuracy_by_group(labels, holdout)
    before = None
    if previous is not None and field is not None and previous.probabilities:
        outputs = reference_outputs(previous, [field], cache=trial.cache)
        before = accuracy_of(labels_of(outputs[previous.probabilities]), field)
    return Reference(
        accuracy=accuracy,
        float_size_bytes=len(data),
        field_rows=0 if field is None else len(field),
        field_accuracy=trial.field_accuracy(trial.expected),
        previous_field_accuracy=before,
        accuracy_by_group=by_group,
        float_deflated_bytes=deflated(data) if data else 0,
    )


def _interpreted(candidate: Candidate) -> tuple[bytes, ...]:
    """Return the files of a candidate that a runtime loads: of emitted C, what is before it."""
    if candidate.file == C_FILE:
        return tuple(data for name, data in candidate.extras.items() if name == FRONT_FILE)
    return (candidate.data,)


def rows_of(outputs: Mapping[str, Array], rows: "slice | Array") -> dict[str, Array]:
    """Return some rows of outputs."""
    return {name: array[rows] for name, array in outputs.items()}


def _packed(attempt: Attempt) -> bytes:
    candidate = attempt.candidate
    text = {
        "measured": attempt.measured if isinstance(attempt.measured, str) else asdict(attempt.measured),
        "candidate": None
        if candidate is None
        else {
            "precision": candidate.precision,
            "file": candidate.file,
            "recipe": dict(candidate.recipe),
            "tolerances": {name: asdict(each) for name, each in candidate.tolerances.items()},
        },
    }
    model = np.frombuffer(b"" if candidate is None else candidate.data, dtype=np.uint8)
    extras = {} if candidate is None else candidate.extras
    beside = {_EXTRA + name: np.frombuffer(data, dtype=np.uint8) for name, data in extras.items()}
    outputs = {_OUTPUT + name: array for name, array in attempt.outputs.items()}
    return pack({"attempt": json_array(text), "model": model, **beside, **outputs})


def _unpacked(body: bytes) -> Attempt:
    arrays = unpack(body, what="attempt")
    text = array_json(arrays["attempt"])
    measured, described = text["measured"], text["candidate"]
    candidate = None
    if described is not None:
        candidate = Candidate(
            precision=described["precision"],
            file=described["file"],
            data=arrays["model"].tobytes(),
            tolerances={name: codec.from_tree(Tolerance, tree) for name, tree in described["tolerances"].items()},
            recipe=described["recipe"],
            extras={n.removeprefix(_EXTRA): array.tobytes() for n, array in arrays.items() if n.startswith(_EXTRA)},
        )
    return Attempt(
        candidate=candidate,
        outputs={name.removeprefix(_OUTPUT): array for name, array in arrays.items() if name.startswith(_OUTPUT)},
        measured=measured if isinstance(measured, str) else codec.from_tree(Measurement, measured),
        cached=True,
    )
