"""The compiler's one verb: a network and a profile in, a gate report and (when passed) the files of an artifact out.

    learnt, held_out = training.split(trained.recipe, samples)
    outcome = compile_model(trained.network, load_profile("x86-64-gateway"), name="watch", version=1,
                            created="2026-01-01T00:00:00Z", calibration=learnt, holdout=held_out, log=print)
    outcome.report.verdict          # passed, refused or "not run"
    outcome.artifact                # {"manifest.json": bytes, "model.onnx": bytes, ...}, None unless passed

Arguments and outcome can be pickled, so it can be handed to a process pool.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from converters import artifact
from converters.candidates import Candidate, write_candidates
from converters.checks import check_contents
from converters.gate import FLOAT, PASSED, GateReport, Measurement, Reference, judge, not_run
from converters.measure import Run, measure, rows_of, run_candidate
from converters.network import Network
from converters.samples import Array, Samples
from skerry.errors import Rejected
from skerry.runtimes import Refused, probe
from skerry.wire.profile import Profile


@dataclass(frozen=True, slots=True)
class BuildOutcome:
    """What compiling for one profile came to: the gate's report, and the artifact's files by name when it passed."""

    report: GateReport
    artifact: dict[str, bytes] | None


def compile_model(
    network: Network,
    profile: Profile,
    *,
    name: str,
    version: int,
    created: str,
    calibration: Samples,
    holdout: Samples,
    field: Samples | None = None,
    previous: Network | None = None,
    lineage: Mapping[str, str] | None = None,
    window_n: int = 100,
    log: Callable[[str], None] = lambda _: None,
) -> BuildOutcome:
    """Write the candidates of a profile, measure them on its runtime, gate them, and assemble the artifact.

    Args:
        network: what was trained.
        profile: the class of device.
        name: the model's name, as in TUF target paths.
        version: the model's version.
        created: the time to record (ISO 8601, UTC); an argument, so that equal inputs give equal bytes.
        calibration: rows of the training groups: quantiser ranges, and the monitor's baseline.
        holdout: rows of the groups that were not learnt from: accuracy, agreement, golden vectors.
        field: labelled windows from the field; they gate against `previous`, and neither train nor calibrate.
        previous: the network of the version that the field runs now.
        lineage: recorded in the manifest.
        window_n: rows of one window of the monitor.
        log: is given one line per step.

    Raises:
        Rejected: the samples do not fit the network.
    """
    parts = (calibration, holdout) if field is None else (calibration, holdout, field)
    for part in parts:
        _check_fits(network, part)
    found = probe(profile.runtime)
    if isinstance(found, Refused):
        log(f"{profile.name}: not run: {found.reason}")
        return BuildOutcome(report=not_run(profile, found.reason), artifact=None)

    candidates = write_candidates(network, profile, calibration=calibration.windows)
    reference = _reference(network, candidates, holdout=holdout, field=field, previous=previous)
    rows = np.concatenate([part.windows for part in parts])
    runs: dict[str, Run] = {}
    measured: list[tuple[str, Measurement | str]] = []
    for candidate in candidates:
        run = _try(candidate, profile, rows)
        if isinstance(run, Refused):
            measured.append((candidate.precision, run.reason))
        else:
            runs[candidate.precision] = run
            figures = _figures(network, candidate, run, calibration=calibration, holdout=holdout, field=field)
            measured.append((candidate.precision, figures))
        log(f"{profile.name}: {candidate.precision}: {_line(measured[-1][1])}")

    report = judge(measured, profile, reference=reference, runtime_version=found.version)
    log(f"{profile.name}: {report.verdict}: {report.chosen or report.reason}")
    if report.verdict != PASSED:
        return BuildOutcome(report=report, artifact=None)
    winner = next(candidate for candidate in candidates if candidate.precision == report.chosen)
    outputs = runs[winner.precision].outputs
    held_out = rows_of(outputs, slice(len(calibration), len(calibration) + len(holdout)))
    golden = artifact.golden_rows(len(holdout))
    files = artifact.assemble(
        network,
        profile,
        winner,
        name=name,
        version=version,
        created=created,
        report=report,
        golden=artifact.golden_vectors(holdout.windows[golden], rows_of(held_out, golden)),
        monitor=artifact.watch(
            network,
            learnt=rows_of(outputs, slice(0, len(calibration))),
            held_out=held_out,
            holdout=holdout,
            window_n=window_n,
        ),
        lineage=lineage or {},
    )
    return BuildOutcome(report=report, artifact=files)


def _try(candidate: Candidate, profile: Profile, rows: Array) -> Run | Refused:
    """Run a candidate; what our own writers wrote passes the same checks as a stranger's file."""
    try:
        check_contents(candidate.data, profile)
    except Rejected as error:
        return Refused(str(error))
    return run_candidate(profile.runtime, candidate.data, rows)


def _check_fits(network: Network, samples: Samples) -> None:
    expected = (network.steps, len(network.channels))
    if not len(samples) or samples.windows.shape[1:] != expected or samples.windows.dtype != np.float32:
        got = f"{samples.windows.dtype} {samples.windows.shape}"
        raise Rejected(f"samples: expected float32 windows of {expected}, one or more, got {got}")
    if samples.truth.min() < 0 or samples.truth.max() >= len(network.labels):
        got = f"{samples.truth.min()} to {samples.truth.max()}"
        raise Rejected(f"samples: expected truth from 0 to {len(network.labels) - 1}, got {got}")


def _accuracy(network: Network, samples: Samples) -> float:
    return float(np.mean(network.forward(samples.windows).labels == samples.truth))


def _reference(
    network: Network,
    candidates: tuple[Candidate, ...],
    *,
    holdout: Samples,
    field: Samples | None,
    previous: Network | None,
) -> Reference:
    return Reference(
        accuracy=_accuracy(network, holdout),
        float_size_bytes=next(len(each.data) for each in candidates if each.precision == FLOAT),
        field_rows=0 if field is None else len(field),
        field_accuracy=None if field is None else _accuracy(network, field),
        previous_field_accuracy=None if field is None or previous is None else _accuracy(previous, field),
    )


def _figures(
    network: Network, candidate: Candidate, run: Run, *, calibration: Samples, holdout: Samples, field: Samples | None
) -> Measurement:
    start, end = len(calibration), len(calibration) + len(holdout)
    field_accuracy = None
    if field is not None:
        field_accuracy = float(np.mean(rows_of(run.outputs, slice(end, end + len(field))).labels == field.truth))
    return measure(
        run,
        candidate.data,
        holdout=holdout,
        expected=network.forward(holdout.windows),
        got=rows_of(run.outputs, slice(start, end)),
        field_accuracy=field_accuracy,
    )


def _line(measured: Measurement | str) -> str:
    if isinstance(measured, str):
        return measured
    return (
        f"accuracy {measured.accuracy:.3f}, agreement {measured.agreement:.4f}, {measured.size_bytes} bytes, "
        f"{measured.ram_bytes} bytes of memory, p99 {measured.latency_p99_us} us"
    )
