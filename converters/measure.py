"""Measuring a candidate: every row through the profile's own runtime, in child processes, against the float model.

    run = run_candidate("litert", data, rows)                      # outputs, memory, latency alone; or Refused
    raced = race_candidate("litert", data, float_data, rows)       # against the float build, in turn; or Refused
    figures = measure(run, data, holdout=holdout, expected=float_outputs, got=held_out_outputs, race=raced, ...)

What is compared, for any outputs by name, rows first:

- the label, argmax of the output `probabilities` (a lone column of probabilities: above one half), where there is one;
- each output's error: sqrt(mean((got - float)^2)) / sqrt(mean((float - mean of its column)^2)), over all rows and
  elements; its square is 1 - R2. Where the float output does not vary, its root mean square stands for the spread,
  and 1 where that is 0 too;
- latency: medians of interleaved inferences of candidate and float build in one child, warm, one thread; who goes first
  changes with every pair. The ratio of the medians has a 95 % interval from a seeded bootstrap over the pairs. That is
  done in several children, which load the two in either order, because where a model happens to lie in memory moves
  its speed by more than the interval is wide; the interval that counts reaches from the lowest end of any child's to
  the highest. ADR 0701 has what that is worth.
"""

import platform
import re
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from converters.gate_report import NOT_RUN, PASSED, REFUSED, Evidence, Measurement
from converters.samples import Array, Rows
from skerry.errors import Rejected
from skerry.runtimes import Limits, Refused, Signature, race_in_child, run_in_child
from skerry.wire.manifest import Tolerance

Outputs = Mapping[str, Array]
RESAMPLES = 1000
SEED = 7
ROUNDS = 2
# as Linux calls them on x86-64 and on arm64
CPU_FEATURES = {
    "avx512_vnni": "vnni", "avx_vnni": "vnni", "avx2": "avx2", "asimddp": "dotprod", "asimdhp": "fp16", "i8mm": "i8mm",
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What a candidate gave for rows in order, and what it cost; latencies in microseconds.

    `ram_bytes` is the arena on TFLite Micro, elsewhere the growth of the process over the bare runtime. Latencies are
    None where nothing was timed. `size_bytes` is what it takes of flash where that is not the length of its file.
    """

    outputs: dict[str, Array]
    ram_bytes: int
    latency_p50_us: int | None
    latency_p99_us: int | None
    resident_bytes: int = 0
    signature: Signature | None = None
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Race:
    """A candidate against the float build: ratio of median latencies with its 95 % interval, medians, and pairs.

    `deterministic` says whether the candidate gave, for the first rows, the bytes that it gave in `run_candidate`.
    """

    ratio: float
    low: float
    high: float
    median_us: float
    p99_us: float
    rival_median_us: float
    pairs: int
    deterministic: bool | None = None


def run_candidate(
    runtime: str,
    data: bytes,
    inputs: Mapping[str, Array],
    *,
    starts: Sequence[int] = (0,),
    limits: Limits | None = None,
) -> Run | Refused:
    """Run a model file over rows, one by one, in a child process; refuses outputs that are not finite numbers.

    `starts` are the rows that a fresh session begins with: of a model with a state, the first of each sequence.
    """
    with tempfile.TemporaryDirectory(prefix="skerry-measure-") as folder:
        file = Path(folder) / "model"
        file.write_bytes(data)
        ran = run_in_child(runtime, file, inputs, starts=starts, limits=limits)
    if isinstance(ran, Refused):
        return ran
    rows = len(next(iter(inputs.values()), ()))
    for name, array in ran.outputs.items():
        if array.dtype.kind not in "fiub" or len(array) != rows:
            return Refused(f"output {name}: expected {rows} rows of numbers, got {array.dtype} {array.shape}")
        if not np.isfinite(array).all():
            return Refused(f"output {name}: expected finite numbers, got NaN or infinity")
    return Run(
        outputs=ran.outputs,
        ram_bytes=ran.growth_bytes if ran.arena_bytes is None else ran.arena_bytes,
        latency_p50_us=ran.latency_p50_us,
        latency_p99_us=ran.latency_p99_us,
        resident_bytes=ran.peak_rss_bytes,
        signature=ran.signature,
    )


def race_candidate(
    runtime: str,
    data: bytes,
    rival: bytes,
    inputs: Mapping[str, Array],
    *,
    run: Run | None = None,
    rival_runtime: str = "",
    rounds: int = ROUNDS,
    pairs: int = 400,
    seconds: float = 1.0,
    limits: Limits | None = None,
) -> Race | Refused:
    """Time a candidate against the float build, an inference of each in turn, in `rounds` children of `seconds` each.

    `run` is what `run_candidate` gave for the same inputs: its first outputs are compared for determinism. The
    rival's runtime is the candidate's unless said otherwise.
    """
    raced = []
    with tempfile.TemporaryDirectory(prefix="skerry-race-") as folder:
        file, other = Path(folder) / "model", Path(folder) / "rival"
        file.write_bytes(data)
        other.write_bytes(rival)
        for number in range(rounds):
            one = race_in_child(
                runtime,
                file,
                other,
                inputs,
                rival_runtime=rival_runtime,
                rival_first=number % 2 == 1,
                pairs=pairs,
                seconds=seconds,
                limits=limits,
            )
            if isinstance(one, Refused):
                return one
            raced.append(one)
    intervals = [interval(one.model_us, one.rival_us, seed=SEED + number) for number, one in enumerate(raced)]
    model_us = np.concatenate([one.model_us for one in raced])
    rival_us = np.concatenate([one.rival_us for one in raced])
    same = None
    if run is not None:
        same = all(_equal_bytes(one.outputs, run.outputs) for one in raced)
    return Race(
        # of each child by itself: one that ran at another clock speed must not tip the others
        ratio=round(float(np.mean([np.median(one.model_us) / np.median(one.rival_us) for one in raced])), 4),
        low=min(low for low, _ in intervals),
        high=max(high for _, high in intervals),
        median_us=float(np.median(model_us)),
        p99_us=float(np.quantile(model_us, 0.99)),
        rival_median_us=float(np.median(rival_us)),
        pairs=len(model_us),
        deterministic=same,
    )


def interval(model_us: Array, rival_us: Array, *, seed: int = SEED) -> tuple[float, float]:
    """Return the bootstrap 95 % interval of the ratio of medians; pairs are drawn together, from the seed."""
    drawn = np.random.default_rng(seed).integers(0, len(model_us), size=(RESAMPLES, len(model_us)))
    ratios = np.median(model_us[drawn], axis=1) / np.median(rival_us[drawn], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return round(float(low), 4), round(float(high), 4)


def measure(
    run: Run,
    data: bytes,
    *,
    holdout: Rows,
    expected: Outputs,
    got: Outputs,
    probabilities: str = "",
    race: Race | None = None,
    deterministic: bool | None = None,
    field_accuracy: float | None = None,
    evidence: tuple[Evidence, ...] = (),
) -> Measurement:
    """Return the figures of a run: `expected` and `got` are the float model's and the candidate's held-out outputs.

    Args:
        run: of the candidate.
        data: the candidate's file.
        holdout: the held-out rows; their truth gives accuracy, their groups are the slices.
        expected: the float model's outputs for them, by name.
        got: the candidate's.
        probabilities: the output whose argmax is the label; empty for a model that is no classifier.
        race: against the float build; None for the float build itself, and where none was run.
        deterministic: overrides what the race says of it.
        field_accuracy: of the candidate, on labelled field windows.
        evidence: what emulators said.

    Raises:
        Rejected: the candidate lacks an output of the float model, or gives it in another shape.
    """
    errors = {name: output_error(expected[name], _same_shape(name, expected[name], got)) for name in sorted(expected)}
    agreement = probability_error = accuracy = None
    by_group: dict[str, float] = {}
    rows_by_group: dict[str, int] = {}
    if probabilities:
        labels = labels_of(got[probabilities])
        agreement = float(np.mean(labels == labels_of(expected[probabilities])))
        difference = np.abs(got[probabilities].astype(np.float64) - expected[probabilities])
        probability_error = float(difference.max())
        accuracy = accuracy_of(labels, holdout)
        by_group, rows_by_group = accuracy_by_group(labels, holdout)
    operators, opset = contents_of(data)
    return Measurement(
        size_bytes=run.size_bytes or len(data),
        rows=len(holdout),
        accuracy=accuracy,
        accuracy_by_group=by_group,
        agreement=agreement,
        probability_error=probability_error,
        ram_bytes=run.ram_bytes,
        latency_p50_us=run.latency_p50_us,
        latency_p99_us=run.latency_p99_us,
        architecture=platform.machine(),
        field_accuracy=field_accuracy,
        rows_by_group=rows_by_group,
        output_error=max(errors.values(), default=0.0),
        output_errors=errors,
        deterministic=race.deterministic if deterministic is None and race is not None else deterministic,
        latency_ratio=None if race is None else race.ratio,
        latency_ratio_low=None if race is None else race.low,
        latency_ratio_high=None if race is None else race.high,
        resident_bytes=run.resident_bytes,
        deflated_bytes=deflated(data),
        features=host_features(),
        operators=operators,
        opset=opset,
        evidence=evidence,
    )


def labels_of(probabilities: Array) -> Array:
    """Return the label of each row; one column is the probability of the second of two labels."""
    flat = probabilities.reshape(len(probabilities), -1)
    return (flat[:, 0] > 0.5).astype(np.int64) if flat.shape[1] == 1 else flat.argmax(axis=1)


def accuracy_of(labels: Array, rows: Rows) -> float | None:
    """Return the share of right labels, None where the rows have no truth."""
    return None if rows.truth is None else float(np.mean(labels == rows.truth))


def accuracy_by_group(labels: Array, rows: Rows) -> tuple[dict[str, float], dict[str, int]]:
    """Return the share of right labels in each group, and its rows; both empty without truth or groups."""
    if rows.truth is None or rows.groups is None:
        return {}, {}
    right = labels == rows.truth
    masks = {str(group): rows.groups == group for group in np.unique(rows.groups)}
    return {g: float(right[m].mean()) for g, m in masks.items()}, {g: int(m.sum()) for g, m in masks.items()}


def output_error(expected: Array, got: Array) -> float:
    """Return the root mean squared difference as a share of the float output's spread: the formula above."""
    wanted = expected.reshape(len(expected), -1).astype(np.float64)
    difference = got.reshape(len(got), -1).astype(np.float64) - wanted
    spread = float(np.sqrt(np.mean((wanted - wanted.mean(axis=0)) ** 2)))
    # a constant column leaves rounding behind, which is no spread
    scale = float(np.sqrt(np.mean(wanted**2)))
    if spread <= 1e-9 * scale or not spread:
        spread = scale or 1.0
    return float(np.sqrt(np.mean(difference**2))) / spread


def compare(
    emulator: str, expected: Outputs, got: Outputs, *, tolerances: Mapping[str, Tolerance] | None = None
) -> Evidence:
    """Return what an emulated run says: every output within its tolerance, or bit for bit without tolerances."""
    rows = len(next(iter(expected.values()), ()))
    missing = sorted(set(expected) - set(got))
    if missing or not rows:
        return Evidence(emulator, REFUSED, f"no output {', '.join(missing)}" if missing else "no rows", rows)
    apart, wrong = 0.0, []
    for name, wanted in expected.items():
        other = got[name]
        if other.shape != wanted.shape:
            return Evidence(emulator, REFUSED, f"output {name} of shape {other.shape}, not {wanted.shape}", rows)
        difference = np.abs(other.astype(np.float64) - wanted.astype(np.float64))
        apart = max(apart, float(difference.max(initial=0.0)))
        limit: Array | float = 0.0
        if tolerances is not None:
            limit = tolerances[name].atol + tolerances[name].rtol * np.abs(wanted.astype(np.float64))
        # not `difference > limit`: a NaN must count as wrong
        if not np.all(difference <= limit):
            wrong.append(name)
    if not np.isfinite(apart):
        return Evidence(emulator, REFUSED, f"outputs {', '.join(wrong)} that are not finite", rows)
    reason = f"{', '.join(wrong)} up to {apart:.3g} apart on {rows} rows" if wrong else ""
    return Evidence(emulator, REFUSED if wrong else PASSED, reason, rows, apart)


def without_run(emulator: str, reason: str) -> Evidence:
    """Return what an emulator says that is not there."""
    return Evidence(emulator, NOT_RUN, reason)


def contents_of(data: bytes) -> tuple[tuple[str, ...], int]:
    """Return the operators of a model file, each once, in order of name, and its ONNX opset (0 for TFLite).

    Emitted C has none: no interpreter needs to know any.
    """
    if data.startswith(b"#include"):
        return (), 0
    if data[4:8] == b"TFL3":
        from ai_edge_litert import schema_py_generated as schema

        names = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
        model = schema.Model.GetRootAs(data, 0)
        codes = [model.OperatorCodes(index) for index in range(model.OperatorCodesLength())]
        # two fields since the code outgrew a byte; the larger one holds (schema, comment on OperatorCode)
        return tuple(sorted({names.get(max(c.BuiltinCode(), c.DeprecatedBuiltinCode()), "?") for c in codes})), 0
    import onnx

    parsed = onnx.ModelProto.FromString(data)
    versions = [entry.version for entry in parsed.opset_import if entry.domain in ("", "ai.onnx")]
    return tuple(sorted({node.op_type for node in parsed.graph.node})), max(versions, default=0)


def deflated(data: bytes) -> int:
    """Return how many bytes a file takes on its way: zeros and repeats cost nothing there."""
    return len(zlib.compress(data, 6))


@cache
def host_features() -> tuple[str, ...]:
    """Return what this machine's processor can, in the words of profiles, as far as Linux says."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, flags=re.MULTILINE)
    words = found[1].split() if found else []
    return tuple(sorted({CPU_FEATURES[word] for word in words if word in CPU_FEATURES}))


def _same_shape(name: str, expected: Array, got: Outputs) -> Array:
    if name not in got or got[name].shape != expected.shape:
        found = got[name].shape if name in got else "none"
        raise Rejected(f"output {name}: expected shape {expected.shape}, got {found}")
    return got[name]


def _equal_bytes(some: Outputs, whole: Outputs) -> bool:
    return set(some) == set(whole) and all(
        array.tobytes() == whole[name][: len(array)].tobytes() for name, array in some.items()
    )
