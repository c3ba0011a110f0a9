"""Measuring a candidate: every row through the profile's own runtime, in a child process."""

import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.gate import Measurement
from converters.network import Outputs
from converters.samples import Array, Samples
from skerry.runtimes import Refused, run_in_child


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What a candidate gave for rows in order, and what it cost; latencies in microseconds."""

    outputs: Outputs
    ram_bytes: int
    latency_p50_us: int
    latency_p99_us: int


def run_candidate(runtime: str, data: bytes, windows: Array) -> Run | Refused:
    """Run a model file over windows (n, T, C), one by one, in a child process."""
    with tempfile.TemporaryDirectory(prefix="skerry-measure-") as folder:
        file = Path(folder) / "model"
        file.write_bytes(data)
        ran = run_in_child(runtime, file, {"window": windows})
    if isinstance(ran, Refused):
        return ran
    shapes = {name: (array.dtype.name, array.shape[:1]) for name, array in ran.outputs.items()}
    expected = ("float32", (len(windows),))
    if shapes.get("probabilities") != expected or shapes.get("features") != expected:
        return Refused(f"expected probabilities and features as {expected}, got {shapes}")
    outputs = Outputs(probabilities=ran.outputs["probabilities"], features=ran.outputs["features"])
    if not (np.isfinite(outputs.probabilities).all() and np.isfinite(outputs.features).all()):
        return Refused("expected finite outputs, got NaN or infinity")
    return Run(
        outputs=outputs,
        ram_bytes=ran.peak_rss_bytes if ran.arena_bytes is None else ran.arena_bytes,
        latency_p50_us=ran.latency_p50_us,
        latency_p99_us=ran.latency_p99_us,
    )


def measure(
    run: Run, data: bytes, *, holdout: Samples, expected: Outputs, got: Outputs, field_accuracy: float | None
) -> Measurement:
    """Return the figures of a run: `expected` and `got` are the float network's and its held-out outputs."""
    right = got.labels == holdout.truth
    return Measurement(
        size_bytes=len(data),
        rows=len(holdout),
        accuracy=float(right.mean()),
        accuracy_by_group={
            str(group): float(right[holdout.groups == group].mean()) for group in np.unique(holdout.groups)
        },
        agreement=float(np.mean(got.labels == expected.labels)),
        probability_error=float(np.abs(got.probabilities - expected.probabilities).max()),
        ram_bytes=run.ram_bytes,
        latency_p50_us=run.latency_p50_us,
        latency_p99_us=run.latency_p99_us,
        architecture=platform.machine(),
        field_accuracy=field_accuracy,
    )


def rows_of(outputs: Outputs, rows: slice | Array) -> Outputs:
    """Return some rows of outputs."""
    return Outputs(probabilities=outputs.probabilities[rows], features=outputs.features[rows])
