"""What an emulated device says of a candidate, and the forms that a microcontroller takes beside the flatbuffer.

arm64: the golden rows through the runtime's own aarch64 build, within the tolerances of the manifest. cortex-m: the
emitted C of the int8 dense layers against TFLite Micro on the same integers, bit for bit; of trees, against what was
computed here, for the golden rows and for rows on their thresholds, bit for bit. Where there is no emulator, or nothing
that it could run, the evidence is "not run" and says why; it is never "passed".
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from converters.attempt import Attempt
from converters.c_source import c_array, dense_core, emit_dense, face_of
from converters.cache import Cache, key_of, tool_versions, writer_version
from converters.candidates import Candidate
from converters.emitted import C_FILE, NAME, rows_for_c
from converters.emulators import NotRun, run_arm64, run_cortex_m
from converters.gate import NOT_RUN, REFUSED, Evidence
from converters.measure import compare, labels_of, run_candidate, without_run
from converters.samples import Array, Rows
from converters.source import Source
from skerry.errors import Rejected
from skerry.runtimes import Refused
from skerry.wire import codec
from skerry.wire.profile import Profile

CORE_ROWS = 64
NAME_OF_DENSE = "dense"


def extras_of(candidate: Candidate, profile: Profile, *, labels: tuple[str, ...]) -> dict[str, bytes]:
    """Return the files beside a microcontroller's model: the flatbuffer as C, and int8 dense layers as plain C."""
    if profile.runtime != "tflite-micro" or candidate.file == C_FILE:
        return dict(candidate.extras)
    files = c_array(candidate.data, "model")
    try:
        return files | emit_dense(candidate.data, NAME_OF_DENSE, labels=labels)
    except Rejected:
        return files  # no dense net: the flatbuffer is the only form


def evidence_for(
    attempt: Attempt,
    profile: Profile,
    *,
    source: Source,
    rows: Rows,
    at: Array,
    folder: Path | None,
    cache: Cache | None,
) -> Attempt:
    """Return the attempt with what the profile's emulator says of it, if the profile has one and needs it.

    `source` is what it was made from, `rows` are the golden rows, `at` their positions among those of its outputs.
    """
    measured, candidate = attempt.measured, attempt.candidate
    if isinstance(measured, str) or candidate is None or not profile.emulator:
        return attempt
    if profile.architecture == platform.machine():
        return attempt
    if folder is None:
        reason = f"no emulator was asked for: skerry emulator prepare {profile.emulator}"
        evidence = without_run(profile.emulator, reason)
    else:
        evidence = _cached(candidate, profile, source, rows, attempt.outputs, at=at, folder=folder, cache=cache)
    return replace(attempt, measured=replace(measured, evidence=(evidence,)))


def _cached(
    candidate: Candidate,
    profile: Profile,
    source: Source,
    rows: Rows,
    outputs: Mapping[str, Array],
    *,
    at: Array,
    folder: Path,
    cache: Cache | None,
) -> Evidence:
    golden = {name: array[at] for name, array in outputs.items()}
    key = key_of(
        {
            "what": "evidence",
            "emulator": profile.emulator,
            "runtime": profile.runtime,
            "model": candidate.digest,
            "beside": {name: hashlib.sha256(data).hexdigest() for name, data in candidate.extras.items()},
            "rows": rows.digest(),
            "tolerances": {name: asdict(each) for name, each in candidate.tolerances.items()},
            "tools": tool_versions(),
            "writer": writer_version(),
        }
    )
    try:
        body = cache.get(key) if cache is not None else None
        if body is not None:
            return codec.decode(Evidence, body)
    except Rejected:
        pass  # of another version of us
    if profile.emulator == "arm64":
        spans = {name: float(np.ptp(array)) for name, array in outputs.items()}
        evidence = _arm64(candidate, profile, source, rows, golden, folder=folder, spans=spans)
    elif candidate.file == C_FILE:
        evidence = _trees(candidate, source, rows, folder=folder)
    else:
        evidence = _cortex_m(candidate, folder=folder)
    # what was not run may be run tomorrow, when the emulator is there
    if cache is not None and evidence.outcome != NOT_RUN:
        cache.put(key, json.dumps(asdict(evidence)).encode())
    return evidence


def _arm64(
    candidate: Candidate,
    profile: Profile,
    source: Source,
    rows: Rows,
    golden: Mapping[str, Array],
    *,
    folder: Path,
    spans: Mapping[str, float],
) -> Evidence:
    got = run_arm64(folder, profile.runtime, candidate.data, rows.inputs)
    if isinstance(got, NotRun):
        return without_run("arm64", got.reason)
    if isinstance(got, Refused):
        return Evidence("arm64", REFUSED, reason=got.reason)
    found = compare("arm64", golden, got, tolerances=candidate.tolerances)
    if found.max_abs_diff is None:
        return found
    flips = steps = None
    if source.probabilities:
        labels, others = (labels_of(each[source.probabilities]) for each in (golden, got))
        flips = int(np.count_nonzero(labels != others))
    if "int8" in candidate.precision:
        # what a step is worth: the writer's word where it knows, else 1/255 of what the output spans
        worth = {name: float(candidate.recipe.get(f"step:{name}", 0)) or span / 255 for name, span in spans.items()}
        apart = {name: float(np.abs(got[name].astype(float) - golden[name].astype(float)).max()) for name in golden}
        steps = max((apart[name] / step for name, step in worth.items() if step), default=0.0)
    return replace(found, max_steps=steps, label_flips=flips)


def _trees(candidate: Candidate, source: Source, rows: Rows, *, folder: Path) -> Evidence:
    asked = rows_for_c(source, candidate.extras, rows.inputs, hard=CORE_ROWS)
    if isinstance(asked, Refused):
        return without_run("cortex-m", f"no rows for the C: {asked.reason}")
    given, scores = asked
    expected = {"output": scores}
    if source.probabilities:
        expected["label"] = scores.argmax(axis=1).astype(np.int32)
    files = {candidate.file: candidate.data, **candidate.extras}
    got = run_cortex_m(folder, {name: files[name] for name in (C_FILE, f"{NAME}.h")}, given)
    if isinstance(got, NotRun):
        return without_run("cortex-m", got.reason)
    if isinstance(got, Refused):
        return Evidence("cortex-m", REFUSED, reason=got.reason)
    return compare("cortex-m", expected, got)


def _cortex_m(candidate: Candidate, *, folder: Path) -> Evidence:
    try:
        files = emit_dense(candidate.data, NAME_OF_DENSE)
        core = dense_core(candidate.data)
    except Rejected as error:
        return without_run("cortex-m", f"no C form to run: {error}")
    width = face_of(files).width
    rows = np.random.default_rng(1).integers(-128, 128, size=(CORE_ROWS, width), dtype=np.int8)
    expected = run_candidate("tflite-micro", core, {"input": rows})
    if isinstance(expected, Refused):
        return without_run("cortex-m", f"nothing to compare with: {expected.reason}")
    got = run_cortex_m(folder, files, rows)
    if isinstance(got, NotRun):
        return without_run("cortex-m", got.reason)
    if isinstance(got, Refused):
        return Evidence("cortex-m", REFUSED, reason=got.reason)
    logits = expected.outputs["logits"].reshape(CORE_ROWS, -1)
    return compare("cortex-m", {"output": logits}, got)
