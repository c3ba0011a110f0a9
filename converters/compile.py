"""The compiler's one verb: a source and a profile in, a gate report and (when passed) the files of an artifact out.

    learnt, held_out = training.split(trained.recipe, samples)
    outcome = compile_model(from_network(trained.network), load_profile("x86-64-gateway"), name="watch", version=1,
                            created="2026-01-01T00:00:00Z", calibration=learnt.rows(), holdout=held_out.rows())
    outcome.report.verdict          # passed, refused or "not run"
    outcome.artifact                # {"manifest.json": bytes, "model.onnx": bytes, ...}, None unless passed

    float form first -> the others, best first, within the budget -> full int8 fell short? the mixed arrangement
    -> the gate -> refused on the grids of the version before? the same on grids of its own, and the gate again
    -> what an emulator says of those that stay -> the gate again -> the artifact

Arguments and outcome can be pickled, so it can be handed to a process pool; every candidate is run in child processes,
`parallel` of them at once. With a cache, what was measured before is not measured again: the gate judges what was
recorded then.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from converters import artifact, history
from converters.attempt import Attempt, Trial, reference_of, reference_outputs, rows_of
from converters.cache import Cache
from converters.candidates import FULL, HYBRID, precisions_of
from converters.emulated import evidence_for, extras_of
from converters.gate import (
    NOT_RUN,
    PASSED,
    CandidateReport,
    Check,
    GateReport,
    Measurement,
    Reference,
    judge,
    not_run,
)
from converters.gate_report import FIELD
from converters.predecessor import Following, freed, with_deltas
from converters.samples import Array, Rows, join_inputs
from converters.search import best_first, search
from converters.source import TFLITE, Source
from converters.watching import watch, watched_by
from skerry.errors import Rejected
from skerry.runtimes import Refused
from skerry.runtimes.environments import find_runtime
from skerry.wire.profile import Profile

BUDGET_S = 600.0
Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BuildOutcome:
    """What compiling for one profile came to: the gate's report, and the artifact's files by name when it passed.

    `recipes` has the knobs of every candidate that was written. `second` is the artifact of the other build that stays
    in the release where latency was only a proxy, so that the first devices can measure both.
    """

    report: GateReport
    artifact: dict[str, bytes] | None
    recipes: Mapping[str, Mapping[str, str]]
    second: dict[str, bytes] | None = None


def compile_model(
    source: Source,
    profile: Profile,
    *,
    name: str,
    version: int,
    created: str,
    calibration: Rows,
    holdout: Rows,
    field: Rows | None = None,
    previous: Source | None = None,
    before: Mapping[str, bytes] | None = None,
    field_of: str = FIELD,
    ungated: str = "",
    lineage: Mapping[str, str] | None = None,
    window_n: int = 100,
    budget_s: float = BUDGET_S,
    parallel: int = 1,
    cache: Cache | None = None,
    emulators: Path | None = None,
    log: Log = lambda _: None,
) -> BuildOutcome:
    """Write the candidates of a profile, measure them on its runtime, gate them, and assemble the artifact.

    Args:
        source: the model.
        profile: the class of device.
        name: the model's name, as in TUF target paths.
        version: the model's version.
        created: the time to record (ISO 8601, UTC); an argument, so that equal inputs give equal bytes.
        calibration: rows of the training groups: quantiser ranges, and the monitor's baseline.
        holdout: rows of the groups that were not learnt from: accuracy, agreement, golden vectors.
        field: labelled windows from the field; they gate against `previous`, and neither train nor calibrate.
        previous: the version that the field runs now; it takes the same rows and has the same labels.
        before: the model files by precision that devices of this profile run now; int8 forms keep their grids where
            they fit, under the same gate.
        field_of: what those windows are, for the report.
        ungated: why there are none although a version runs in the field, for the report.
        lineage: recorded in the manifest.
        window_n: rows of one window of the monitor.
        budget_s: seconds for the search; candidates that it does not reach are reported as not run.
        parallel: how many candidates are made and measured at once.
        cache: earlier results by content.
        emulators: the folder that `skerry emulator prepare` filled; without it emulators are "not run".
        log: is given one line per step.

    Raises:
        Rejected: the samples do not fit the model, or there is nothing in it to watch.
    """
    parts = tuple(part for part in (calibration, holdout, field) if part is not None)
    for part in parts:
        _check_fits(source, part)
    watched_by(source)  # before anything is measured for it
    try:
        precisions = precisions_of(source, profile)
    except Rejected as error:
        return _not_run(profile, str(error), log)
    found = find_runtime(profile.runtime)
    if isinstance(found, Refused):
        return _not_run(profile, found.reason, log)

    inputs = join_inputs(*parts)
    trial = Trial(
        source=source,
        profile=profile,
        calibration=calibration,
        holdout=holdout,
        field=field,
        expected=reference_outputs(source, parts, cache=cache),
        runtime_version=found.version,
        cache=cache,
    ).keyed()
    attempts, missed = _attempts(trial, precisions, before=before or {}, budget_s=budget_s, parallel=parallel, log=log)
    reference = reference_of(trial, attempts[precisions[0]], previous=previous)
    reference = replace(reference, field_of=field_of, ungated=ungated)
    golden = _golden_rows(source, calibration, holdout)
    golden_inputs = Rows({each: array[golden] for each, array in inputs.items()})

    def ask(attempt: Attempt) -> Attempt:
        return evidence_for(
            attempt, profile, source=source, rows=golden_inputs, at=golden, folder=emulators, cache=cache
        )

    report = _with_missed(_judged(trial, attempts, reference, ask=ask), missed)
    report = with_deltas(report, attempts, before=before or {}, cache=cache)
    history.record(cache, trial.source_digest, report)
    log(f"{profile.name}: {report.verdict}: {report.chosen or report.reason}")
    recipes = {each: dict(a.candidate.recipe) for each, a in attempts.items() if a.candidate is not None}

    def assemble(precision: str) -> dict[str, bytes]:
        attempt = attempts[precision]
        assert attempt.candidate is not None  # noqa: S101 -- what passed the gate was written
        held_out = rows_of(attempt.outputs, slice(len(calibration), len(calibration) + len(holdout)))
        return artifact.assemble(
            source,
            profile,
            replace(attempt.candidate, extras=extras_of(attempt.candidate, profile, labels=source.labels)),
            name=name,
            version=version,
            created=created,
            report=report,
            recipes=recipes,
            golden=artifact.golden_vectors(golden_inputs, rows_of(attempt.outputs, golden)),
            watch=watch(
                source,
                learnt=calibration,
                held_out=holdout,
                learnt_outputs=rows_of(attempt.outputs, slice(0, len(calibration))),
                held_out_outputs=held_out,
                window_n=window_n,
            ),
            lineage=lineage or {},
        )

    artifacts = [assemble(each) for each in report.kept] if report.verdict == PASSED else []
    first, second = [*artifacts, None, None][:2]
    return BuildOutcome(report=report, artifact=first, recipes=recipes, second=second)


def _attempts(
    trial: Trial,
    precisions: tuple[str, ...],
    *,
    before: Mapping[str, bytes],
    budget_s: float,
    parallel: int,
    log: Log,
) -> tuple[dict[str, Attempt], tuple[str, ...]]:
    """Return what was attempted, the first form before the others, and what the budget did not reach."""
    name = trial.profile.name

    def told(precision: str, attempt: Attempt, left: tuple[str, ...]) -> None:
        log(f"{name}: {precision}: {_line(attempt)}" + (f" (to go: {', '.join(left)})" if left else ""))

    first = precisions[0]
    attempts = {first: trial(first)}
    told(first, attempts[first], precisions[1:])
    tried = Following(replace(trial, base=attempts[first].candidate), before)
    for precision in precisions[1:]:
        found = tried.recall(precision)
        if found is not None:
            attempts[precision] = found
            told(precision, found, tuple(each for each in precisions if each not in attempts))
    left = tuple(each for each in precisions if each not in attempts)
    order = best_first(left, history.recall(trial.cache, trial.source_digest, but=name))
    searched = search(tried, order, budget_s=budget_s, parallel=parallel, told=told)
    attempts |= searched.found
    written = trial.source.format != TFLITE and HYBRID not in (*attempts, *searched.missed)
    if written and _falls_short(attempts.get(FULL), trial.profile):
        log(f"{name}: {FULL} falls short of the floor: trying {HYBRID}")
        attempts[HYBRID] = tried(HYBRID)
        told(HYBRID, attempts[HYBRID], ())
    return attempts, searched.missed


def _judged(
    trial: Trial, attempts: dict[str, Attempt], reference: Reference, *, ask: Callable[[Attempt], Attempt]
) -> GateReport:
    """Judge, ask the emulator about those that would stay, and judge again until it was asked about all of them.

    What was refused on the grids of the version before is judged again on grids of its own.
    """
    profile = trial.profile
    listed = list(profile.precision)
    if trial.source.format == TFLITE:
        listed += [each for each in attempts if each not in listed]  # the file as it was brought along
    elif HYBRID in attempts and HYBRID not in listed:
        listed.insert(listed.index(FULL) + 1, HYBRID)  # it stands in for the form behind which it stands
    profile = replace(profile, precision=tuple(listed))
    asked: set[str] = set()
    while True:
        # in the order of the profile, whatever order they were searched in: equal results, equal report
        named = [each for each in dict.fromkeys((*profile.precision, *attempts)) if each in attempts]
        measured = [(each, attempts[each].measured) for each in named]
        report = judge(measured, profile, reference=reference, runtime_version=trial.runtime_version)
        free = freed(report, attempts)
        if free:
            attempts |= free
            asked -= set(free)
            continue
        fresh = [each for each in report.kept if each not in asked]
        if not fresh:
            return report
        attempts |= {each: ask(attempts[each]) for each in fresh}
        asked |= set(fresh)


def _golden_rows(source: Source, calibration: Rows, holdout: Rows) -> Array:
    """Return the positions of the golden vectors among all rows; of a state, consecutive ones from its beginning."""
    if source.stateful:
        return np.arange(min([*calibration.starts()[1:2], len(calibration), artifact.GOLDEN_ROWS]))
    return artifact.golden_rows(len(holdout)) + len(calibration)


def _check_fits(source: Source, rows: Rows) -> None:
    for spec in source.inputs:
        array = rows.inputs.get(spec.name)
        if array is None or not len(rows) or array.shape[1:] != spec.shape[1:] or array.dtype != np.dtype(spec.dtype):
            got = "none" if array is None else f"{array.dtype} {array.shape}"
            raise Rejected(f"samples: expected {spec.dtype} rows of {spec.shape[1:]} for {spec.name}, got {got}")
    if rows.truth is not None and source.labels and not 0 <= rows.truth.min() <= rows.truth.max() < len(source.labels):
        got = f"{rows.truth.min()} to {rows.truth.max()}"
        raise Rejected(f"samples: expected truth from 0 to {len(source.labels) - 1}, got {got}")


def _not_run(profile: Profile, reason: str, log: Log) -> BuildOutcome:
    log(f"{profile.name}: not run: {reason}")
    return BuildOutcome(report=not_run(profile, reason), artifact=None, recipes={})


def _falls_short(attempt: Attempt | None, profile: Profile) -> bool:
    """Say whether full int8 was made and keeps too few labels, or departs too far."""
    measured = None if attempt is None else attempt.measured
    if not isinstance(measured, Measurement):
        return False
    if measured.agreement is not None:
        return measured.agreement < profile.budgets.agreement
    return measured.output_error is not None and measured.output_error > profile.budgets.output_error


def _with_missed(report: GateReport, missed: tuple[str, ...]) -> GateReport:
    check = Check("search", NOT_RUN, "an attempt within the budget", "none: give the search more seconds")
    left = [CandidateReport(each, NOT_RUN, measurement=None, checks=(check,)) for each in missed]
    return replace(report, candidates=(*report.candidates, *left))


def _line(attempt: Attempt) -> str:
    measured = attempt.measured
    if isinstance(measured, str):
        return measured
    words = [
        "" if measured.accuracy is None else f"accuracy {measured.accuracy:.3f}",
        "" if measured.agreement is None else f"agreement {measured.agreement:.4f}",
        "" if measured.output_error is None else f"error {measured.output_error:.4f}",
        f"{measured.size_bytes} bytes",
        f"{measured.ram_bytes} bytes of memory",
        "" if measured.latency_p99_us is None else f"p99 {measured.latency_p99_us} us",
        "" if measured.sticky is None else f"{measured.sticky.kept} of {measured.sticky.scales} scales kept",
        "from the cache" if attempt.cached else "",
    ]
    return ", ".join(word for word in words if word)
