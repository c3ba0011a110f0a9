"""A version that follows another: each int8 form that the other has is also written on its grids, and measured beside.

    tried = Following(trial, before={"int8": model_file_of_the_version_before})
    attempt = tried("int8")             # on the grids of the version before; `attempt.free` has grids of its own
    report = with_deltas(report, attempts, before=..., cache=...)

The gate judges the form that keeps the grids; where it refuses it, the free one takes its place (`freed`). The report
has the figures of both, and what each costs a device that has the version before.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from converters.attempt import Attempt, Trial
from converters.cache import Cache, key_of, writer_version
from converters.gate import REFUSED, GateReport, Measurement
from converters.gate_report import Sticky
from converters.tensor_map import tensor_map
from converters.tflite.sticky import grids_of, kept
from skerry.delivery.delta import make_delta

STICKY = frozenset({"int8", "int8-hybrid", "int8-qdq", "pruned-50+int8-qdq"})
"""The forms whose writers keep grids."""
MOST_DELTA_BYTES = 8 << 20
"""A delta of a larger file takes longer to make than a report is worth; the server makes it when it is released."""


@dataclass(frozen=True, slots=True, eq=False)
class Following:
    """A trial of a version that follows another; `before` has the other's model files by precision."""

    trial: Trial
    before: Mapping[str, bytes]

    def __call__(self, precision: str) -> Attempt:
        """Attempt one precision, and where the version before has it, on that one's grids as well."""
        free = self.trial(precision)
        trial = self._on_grids(precision)
        return free if trial is None else _joined(trial(precision), free, before=trial.previous)

    def recall(self, precision: str) -> Attempt | None:
        """Return an earlier attempt of equal content, and of the same version before, from the cache."""
        free, trial = self.trial.recall(precision), self._on_grids(precision)
        if free is None or trial is None:
            return free
        found = trial.recall(precision)
        return None if found is None else replace(_joined(found, free, before=trial.previous), cached=True)

    def _on_grids(self, precision: str) -> Trial | None:
        before = self.before.get(precision, b"") if precision in STICKY else b""
        return replace(self.trial, previous=before) if before else None


def freed(report: GateReport, attempts: Mapping[str, Attempt]) -> dict[str, Attempt]:
    """Return the free forms of those whose grids were kept and that the gate refused; by precision."""
    refused = (each.precision for each in report.candidates if each.outcome == REFUSED)
    return {name: free for name in refused if name in attempts and (free := attempts[name].free) is not None}


def with_deltas(
    report: GateReport, attempts: Mapping[str, Attempt], *, before: Mapping[str, bytes], cache: Cache | None
) -> GateReport:
    """Return the report with the lengths of the deltas from the version before, of what stays in the release."""
    candidates = list(report.candidates)
    for at, each in enumerate(candidates):
        measured, attempt = each.measurement, attempts.get(each.precision)
        if each.precision not in report.kept or measured is None or measured.sticky is None or attempt is None:
            continue
        old = before[each.precision]
        on_grids, free = (attempt, attempt.free) if measured.sticky.taken else (None, attempt)
        sticky = replace(
            measured.sticky,
            delta_bytes=_delta_bytes(old, on_grids, cache=cache),
            free_delta_bytes=_delta_bytes(old, free, cache=cache),
        )
        candidates[at] = replace(each, measurement=replace(measured, sticky=sticky))
    return replace(report, candidates=tuple(candidates))


def _joined(on_grids: Attempt, free: Attempt, *, before: bytes) -> Attempt:
    """Return what the gate judges first; the free form alone where no grid was kept, or it came to nothing."""
    one, other = on_grids.measured, free.measured
    if on_grids.candidate is None or not isinstance(one, Measurement):
        return free
    same, total = kept(grids_of(before), grids_of(on_grids.candidate.data))
    if not same:
        return free
    beside = other if isinstance(other, Measurement) else None
    sticky = Sticky(
        before=hashlib.sha256(before).hexdigest(),
        kept=same,
        scales=total,
        taken=True,
        accuracy=one.accuracy,
        free_accuracy=None if beside is None else beside.accuracy,
        agreement=one.agreement,
        free_agreement=None if beside is None else beside.agreement,
        output_error=one.output_error,
        free_output_error=None if beside is None else beside.output_error,
    )
    judged = replace(on_grids, measured=replace(one, sticky=sticky))
    if beside is None:
        return judged
    return replace(judged, free=replace(free, measured=replace(beside, sticky=replace(sticky, taken=False))))


def _delta_bytes(before: bytes, attempt: Attempt | None, *, cache: Cache | None) -> int | None:
    if attempt is None or attempt.candidate is None:
        return None
    data = attempt.candidate.data
    if max(len(before), len(data)) > MOST_DELTA_BYTES:
        return None
    digests = [hashlib.sha256(each).hexdigest() for each in (before, data)]
    key = key_of({"what": "delta length", "writer": writer_version(), "files": digests})
    found = cache.get(key) if cache is not None else None
    if found is not None:
        try:
            return int(json.loads(found))
        except (ValueError, TypeError):
            pass  # of another version of us
    delta = make_delta(before, data, source_tensors=tensor_map(before), target_tensors=tensor_map(data))
    if delta is None:
        return None
    if cache is not None:
        cache.put(key, json.dumps(len(delta)).encode())
    return len(delta)
