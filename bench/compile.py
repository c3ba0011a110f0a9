"""The compiler on models that mean something: what each profile's candidates came to, and what was chosen.

Models: the watch model (features and a dense net), a 1-D and a 2-D CNN (`bench.zoo`), a random forest over the same
features, and two that strangers made and that pip installs: riann (ONNX, a recurrent net that tells attitude from an
inertial sensor) and pymicro-wakeword (TFLite, int8, with a state). Those two are fed with the watch recording and with
seeded noise: there is no truth for them here, so they are gated by the error of their outputs.

Every chosen build is timed once more against the float model in ONNX Runtime, an inference of each in turn, in one
process. Absolute times are of this machine alone; the table of each build marks what is only a proxy with `~`.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.zoo import Exhibit, image_net, series_net
from control_plane.imports import split_rows
from control_plane.training import Recipe, split, train
from control_plane.tree_training import TreeRecipe, train_trees
from converters.cache import Cache
from converters.compile import BuildOutcome, compile_model
from converters.emulators import DEFAULT_FOLDER
from converters.gate import PASSED, Measurement, table
from converters.measure import Race, race_candidate, run_candidate
from converters.samples import Array, Rows, Samples
from converters.source import ONNX, Source, from_network, import_model, run_reference
from converters.tflite import Unsupported, write_tflite
from firmware_profiles import list_profiles, load_profile
from skerry.errors import Rejected
from skerry.runtimes import Refused, probe
from skerry.wire.profile import Profile

CREATED = "2026-01-01T00:00:00Z"
CHANNELS = ("ax", "ay", "az", "wx", "wy", "wz")
LABELS = ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")
QUICK_PROFILES = ("x86-64-gateway-vnni", "raspberry-pi-zero-2", "cortex-m4f-256kb")
QUICK_ROWS = 240
RIANN_STEPS = 16
SAMPLING_HZ = 50.0


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A model with the rows that it is compiled with."""

    name: str
    source: Source
    calibration: Rows
    holdout: Rows


def models(*, quick: bool) -> Iterator[Entry]:
    """Yield the models; in a hurry without the 2-D CNN and riann, and with fewer rows."""
    samples = watch_samples()
    recipe = Recipe(channels=CHANNELS)
    trained = train(recipe, samples.windows, samples.truth, samples.groups, labels=LABELS)
    learnt, held_out = split(trained.recipe, samples)
    yield _entry("watch", from_network(trained.network), learnt.rows(), held_out.rows(), quick=quick)

    yield _from_zoo(series_net(), quick=quick)
    if not quick:
        yield _from_zoo(image_net(), quick=quick)

    trees = TreeRecipe(channels=CHANNELS, trees=30, depth=8)
    bundle = train_trees(trees, samples.windows, samples.truth, samples.groups, labels=LABELS)
    yield _entry("random forest", bundle.source, learnt.rows(), held_out.rows(), quick=quick)

    if not quick:
        yield from _attitude(samples)
    yield from _wake_word(quick=quick)


def watch_samples() -> Samples:
    """Return the recording that ships with seglearn in windows of 2 s: wearers 1 to 7, the wrist coded 1."""
    from seglearn.datasets import load_watch

    data = load_watch()
    recordings = zip(data["X"], data["y"], data["subject"], data["side"], strict=True)
    rows = [
        (recording[start : start + 100], label, wearer)
        for recording, label, wearer, side in recordings
        if side == 1 and wearer <= 7
        for start in range(0, len(recording) - 99, 50)
    ]
    windows, truth, wearers = (np.asarray(column) for column in zip(*rows, strict=True))
    return Samples(windows.astype(np.float32), truth.astype(np.int64), wearers.astype(np.int64))


def _from_zoo(exhibit: Exhibit, *, quick: bool) -> Entry:
    source = import_model(exhibit.data, labels=exhibit.labels, boundary=exhibit.boundary)
    name = source.inputs[0].name
    calibration = Rows({name: exhibit.calibration[name]}, exhibit.calibration_truth, exhibit.calibration_groups)
    holdout = Rows({name: exhibit.holdout[name]}, exhibit.truth, exhibit.groups)
    return _entry(exhibit.name, source, calibration, holdout, quick=quick)


def _attitude(samples: Samples) -> Iterator[Entry]:
    try:
        import riann  # type: ignore[import-untyped,unused-ignore] # it has no types

        path = next(Path(riann.__file__).parent.rglob("*.onnx"))
        source = import_model(path.read_bytes(), shapes={"input": (1, RIANN_STEPS, 7)})
        rate = np.full((len(samples), RIANN_STEPS, 1), 1 / SAMPLING_HZ, dtype=np.float32)
        motion = np.concatenate([samples.windows[:, :RIANN_STEPS], rate], axis=2)
        yield _unlabelled("riann", source, motion, quick=False)
    except (ImportError, StopIteration, Rejected) as error:
        print(f"riann: not run: {error}")


def _wake_word(*, quick: bool) -> Iterator[Entry]:
    try:
        import pymicro_wakeword

        path = Path(pymicro_wakeword.__file__).parent / "models" / "hey_jarvis.tflite"
        source = import_model(path.read_bytes())
        spec = source.inputs[0]
        noise = np.random.default_rng(1).integers(-128, 128, size=(200, *spec.shape[1:])).astype(spec.dtype)
        yield _unlabelled("pymicro-wakeword", source, noise, quick=quick)
    except (ImportError, OSError, Rejected) as error:
        print(f"pymicro-wakeword: not run: {error}")


def _unlabelled(name: str, source: Source, values: Array, *, quick: bool) -> Entry:
    inputs = {
        spec.name: values if position == 0 else np.zeros((len(values), *spec.shape[1:]), dtype=spec.dtype)
        for position, spec in enumerate(source.inputs)
    }
    calibration, holdout = split_rows(Rows(inputs), stateful=source.stateful)
    return _entry(name, source, calibration, holdout, quick=quick)


def _entry(name: str, source: Source, calibration: Rows, holdout: Rows, *, quick: bool) -> Entry:
    if quick:
        calibration, holdout = (_thinned(rows, in_order=source.stateful) for rows in (calibration, holdout))
    return Entry(name=name, source=source, calibration=calibration, holdout=holdout)


def _thinned(rows: Rows, *, in_order: bool) -> Rows:
    if in_order:
        return rows.where(slice(0, QUICK_ROWS))
    return rows.where(np.unique(np.linspace(0, len(rows) - 1, min(QUICK_ROWS, len(rows))).round().astype(np.int64)))


def tflite_difference(entry: Entry) -> float | None:
    """Return the largest difference of the float TFLite form from ONNX Runtime; None where there is no such form."""
    if entry.source.format != ONNX or isinstance(probe("litert"), Refused):
        return None
    try:
        data, _ = write_tflite(entry.source, "float32", calibration={})
    except Unsupported as error:
        print(f"{entry.name}: no TFLite form: {error}")
        return None
    inputs = {name: array[:64] for name, array in entry.holdout.inputs.items()}
    got = run_candidate("litert", data, inputs)
    if isinstance(got, Refused):
        raise Rejected(f"{entry.name}: expected LiteRT to run its float form, got: {got.reason}")
    expected = run_reference(entry.source, inputs)
    return max(float(np.abs(expected[name] - got.outputs[name]).max()) for name in expected)


def against_float(entry: Entry, profile: Profile, outcome: BuildOutcome) -> str:
    """Return how the chosen build's latency stands against the float model in ONNX Runtime, in one process."""
    if outcome.artifact is None:
        return ""
    if entry.source.format != ONNX:
        return "against float ONNX Runtime: not run: there is no ONNX form"
    model = outcome.artifact.get("model.onnx") or outcome.artifact.get("model.tflite")
    if model is None:
        return "against float ONNX Runtime: not run: emitted C is timed on a device alone"
    if isinstance(missing := probe(profile.runtime), Refused):
        return f"against float ONNX Runtime: not run: {missing.reason}"
    inputs = {name: array[:64] for name, array in entry.holdout.inputs.items()}
    raced = race_candidate(
        profile.runtime, model, entry.source.data, inputs, rival_runtime="onnxruntime", rounds=1, seconds=0.3
    )
    if not isinstance(raced, Race):
        return f"against float ONNX Runtime: not run: {raced.reason}"
    span = f"{raced.low:.2f} to {raced.high:.2f}"
    return f"against float ONNX Runtime: {raced.median_us:.0f} us of {raced.rival_median_us:.0f} us, {span} of it"


class Tally:
    """The figures, as builds come in."""

    def __init__(self) -> None:
        self.slower = 0
        self.int8: list[float] = []
        self.mcu: list[bool] = []
        self.arm64: list[float] = []
        self.arm64_steps: list[float] = []
        self.arm64_flips: list[int] = []

    def add(self, outcome: BuildOutcome) -> None:
        """Count one build."""
        report = outcome.report
        self.slower += report.slower and not report.forced
        for candidate in report.candidates:
            measured = candidate.measurement
            if measured is None:
                continue
            if candidate.precision in report.kept and "int8" in candidate.precision and measured.agreement is not None:
                self.int8.append(measured.agreement)
            self._emulated(measured)

    def _emulated(self, measured: Measurement) -> None:
        for evidence in measured.evidence:
            if evidence.max_abs_diff is None:
                continue
            if evidence.emulator == "cortex-m":
                self.mcu.append(evidence.outcome == PASSED and evidence.max_abs_diff == 0)
            elif evidence.max_steps is None:
                self.arm64.append(evidence.max_abs_diff)
            else:
                self.arm64_steps.append(evidence.max_steps)
                self.arm64_flips.append(evidence.label_flips or 0)


def compile_all(
    entries: Iterator[Entry], profiles: list[Profile], *, folder: Path, quick: bool, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Compile every model for every profile; return the figures. In a hurry the first model alone is emulated."""
    tally, differences, names, second = Tally(), [0.0], [], []
    cache = Cache(folder / "cache")
    for entry in entries:
        names.append(entry.name)
        emulated = not quick or len(names) == 1
        difference = tflite_difference(entry)
        differences += [] if difference is None else [difference]
        apart = "" if difference is None else f", TFLite float within {difference:.2g} of ONNX Runtime"
        tell(f"\n=== {entry.name}: {len(entry.source.data)} bytes of {entry.source.format}{apart}")
        for profile in profiles:
            outcome = _compile(entry, profile, cache, emulated=emulated)
            tally.add(outcome)
            tell(table(outcome.report))
            tell(f"  {against_float(entry, profile, outcome)}")
        began = time.perf_counter()
        _compile(entry, profiles[0], cache, emulated=emulated)
        second.append(time.perf_counter() - began)
        tell(f"  {entry.name} for {profiles[0].name} a second time: {second[-1]:.2f} s")
    return {
        "profiles": len(profiles),
        "models": len(names),
        "chosen_slower_than_float_unforced": tally.slower,
        "tflite_float_max_abs_diff": max(differences),
        "min_accepted_int8_agreement": min(tally.int8, default=None),
        "emulated_mcu_bit_exact": all(tally.mcu) if tally.mcu else "not run",
        "emulated_arm64_max_abs_diff": max(tally.arm64) if tally.arm64 else "not run",
        # in steps of the integers behind an output: its value depends on what the output is
        "emulated_arm64_int8_max_abs_diff": round(max(tally.arm64_steps), 2) if tally.arm64_steps else "not run",
        "emulated_arm64_int8_label_flips": sum(tally.arm64_flips) if tally.arm64_flips else "not run",
        "second_compile_seconds": round(max(second), 2),
    }


def _compile(entry: Entry, profile: Profile, cache: Cache, *, emulated: bool) -> BuildOutcome:
    return compile_model(
        entry.source,
        profile,
        name=entry.name.replace(" ", "-").lower(),
        version=1,
        created=CREATED,
        calibration=entry.calibration,
        holdout=entry.holdout,
        parallel=2,
        cache=cache,
        emulators=DEFAULT_FOLDER.expanduser() if emulated else None,
    )


def main() -> None:
    """Compile, print for people, and end with one line for programs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rows and profiles; ends within 50 s on two cores")
    quick: bool = parser.parse_args().quick
    chosen = QUICK_PROFILES if quick else list_profiles()
    left_out = sorted(set(list_profiles()) - set(chosen))
    if left_out:
        print(f"left out for speed: the profiles {', '.join(left_out)}")
        print("left out for speed: the models 2-D CNN and riann; emulators for all but the first model")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="skerry-bench-") as folder:
        figures = compile_all(
            models(quick=quick),
            [load_profile(name) for name in chosen],
            folder=Path(folder),
            quick=quick,
            tell=lambda line: print(line, flush=True),
        )
    print(f"\n{time.perf_counter() - began:.0f} s")
    print(json.dumps({"bench": "compile", "quick": quick, "figures": figures}))


if __name__ == "__main__":
    main()
