"""Trees compiled for a microcontroller: emitted C in the artifact, and a Cortex-M3's word for it, to the bit."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier

from converters.attempt import Attempt, Trial
from converters.c.ensemble import read_trees
from converters.c.evaluate import hard_rows
from converters.c.trees import flash_bytes
from converters.c_source import emit_trees, face_of
from converters.cache import Cache
from converters.compile import BuildOutcome, compile_model
from converters.emulated import evidence_for
from converters.emulators import run_cortex_m
from converters.gate import FLOAT
from converters.network import extract
from converters.samples import Array, Rows
from converters.source import Source
from converters.trees import WindowFeatures, from_trees
from firmware_profiles import load_profile
from skerry.runtimes.arrays import unpack
from skerry.wire import codec
from skerry.wire.manifest import Manifest

pytestmark = pytest.mark.emulator
LABELS = ("still", "slow", "fast")
FEATURES = ("mean", "mad", "max")


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Windows of three movements, two channels."""
    draw = np.random.default_rng(3)
    truth = np.arange(180) % 3
    waves = np.sin(np.arange(20)[None, :, None] * (1 + truth[:, None, None]) / 3) * (0.2 + truth[:, None, None])
    windows = waves * [1.0, 3.0] + draw.normal(0, 0.2, (180, 20, 2))
    return Rows({"window": windows.astype(np.float32)}, truth.astype(np.int64), np.arange(180) // 60)


def _source(estimator: object, rows: Rows) -> Source:
    columns = extract(rows.inputs["window"], FEATURES).astype(np.float32)
    fitted = estimator.fit(columns, rows.truth)  # type: ignore[attr-defined] # an estimator of scikit-learn
    return from_trees(fitted, labels=LABELS, window=WindowFeatures(20, ("x", "y"), FEATURES))


@pytest.fixture(scope="module")
def forest(rows: Rows) -> Source:
    """A small forest over features of those windows."""
    return _source(RandomForestClassifier(8, max_depth=4, random_state=1), rows)


def _compile(source: Source, rows: Rows, profile: str, **options: object) -> BuildOutcome:
    return compile_model(
        source,
        load_profile(profile),
        name="moves",
        version=1,
        created="2026-01-01T00:00:00Z",
        calibration=rows.where(slice(0, 120)),
        holdout=rows.where(slice(120, 180)),
        **options,  # type: ignore[arg-type] # named at the call
    )


@pytest.mark.parametrize("kind", ["forest", "booster"])
def test_trees_are_chosen_as_c_with_the_word_of_an_emulated_cortex_m(
    kind: str, forest: Source, rows: Rows, cortex_m: Path
) -> None:
    booster = GradientBoostingClassifier(n_estimators=6, max_depth=3, random_state=1)
    source = forest if kind == "forest" else _source(booster, rows)
    outcome = _compile(source, rows, "cortex-m4f-256kb", emulators=cortex_m)
    report = outcome.report
    assert (report.verdict, report.chosen) == ("passed", FLOAT), report.reason
    assert report.winner is not None
    (evidence,) = report.winner.evidence
    assert (evidence.outcome, evidence.max_abs_diff) == ("passed", 0.0)
    assert evidence.rows >= 80
    assert {check.name: check.outcome for check in report.candidates[0].checks}["latency"] == "not run"


def test_the_artifact_is_enough_to_get_its_golden_vectors_on_a_device(
    forest: Source, rows: Rows, cortex_m: Path
) -> None:
    files = _compile(forest, rows, "cortex-m").artifact
    assert files is not None
    manifest = codec.decode(Manifest, files["manifest.json"])
    assert manifest.model_file == "trees.c"
    assert {"trees.c", "trees.h", "front.tflite", "front.c", "front.h"} <= {entry.name for entry in manifest.files}
    golden = unpack(files["golden.npz"], what="golden vectors")
    # the features are an output of the model, and what the C takes
    c_files = {name: files[name] for name in ("trees.c", "trees.h")}
    assert face_of(c_files).boundary == "features"
    ended = run_cortex_m(cortex_m, c_files, golden["features"])
    assert isinstance(ended, dict), ended
    assert ended["output"].tobytes() == golden["probabilities"].tobytes()
    assert np.array_equal(ended["label"], golden["probabilities"].argmax(axis=1))


def _attempt(source: Source, rows: Rows) -> Attempt:
    half = rows.where(slice(0, 90))
    trial = Trial(source, load_profile("cortex-m"), half, half, None, _outputs(source, half), "any")
    return trial(FLOAT)


def _outputs(source: Source, rows: Rows) -> dict[str, Array]:
    from converters.source import run_reference

    return {name: np.concatenate([array] * 2) for name, array in run_reference(source, rows.inputs).items()}


def test_c_that_gives_another_score_is_refused_and_without_an_emulator_it_is_not_run(
    forest: Source, rows: Rows, cortex_m: Path, tmp_path: Path
) -> None:
    attempt = _attempt(forest, rows)
    assert attempt.candidate is not None
    table = re.search(rb"float threshold\[\d+\] = \{\n\s+(-?[0-9.e-]+f)", attempt.candidate.data)
    assert table is not None
    start, end = table.span(1)
    changed = attempt.candidate.data[:start] + b"1000.0f" + attempt.candidate.data[end:]
    for candidate, folder, outcome in (
        (attempt.candidate, cortex_m, "passed"),
        (replace(attempt.candidate, data=changed), cortex_m, "refused"),
        (attempt.candidate, None, "not run"),
    ):
        asked = evidence_for(
            replace(attempt, candidate=candidate),
            load_profile("cortex-m"),
            source=forest,
            rows=rows.where(slice(0, 16)),
            at=np.arange(16),
            folder=folder,
            cache=Cache(tmp_path),
        )
        assert not isinstance(asked.measured, str)
        assert [each.outcome for each in asked.measured.evidence] == [outcome]


@pytest.mark.parametrize("core", [["-mcpu=cortex-m0"], ["-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"]])
@pytest.mark.parametrize("kind", ["forest", "booster", "pair"])
def test_what_is_said_to_be_needed_of_flash_is_what_a_compiler_makes_of_it(
    kind: str, core: list[str], rows: Rows, forest: Source, cortex_m: Path, tmp_path: Path
) -> None:
    source = forest
    if kind != "forest":
        assert rows.truth is not None
        truth = np.minimum(rows.truth, 1) if kind == "pair" else rows.truth
        columns = extract(rows.inputs["window"], FEATURES).astype(np.float32)
        source = from_trees(GradientBoostingClassifier(n_estimators=4, random_state=1).fit(columns, truth))
    for name, text in emit_trees(source.data, "trees").items():
        (tmp_path / name).write_bytes(text)
    compiler, size = (shutil.which(f"arm-none-eabi-{name}") for name in ("gcc", "size"))
    assert compiler
    assert size
    built = [compiler, "-std=c99", "-O2", "-mthumb", *core, "-c", "-o", "trees.o", "trees.c"]
    subprocess.run(built, cwd=tmp_path, check=True)
    said = subprocess.run([size, "trees.o"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    code, data, zeros = map(int, said.splitlines()[1].split()[:3])
    expected = flash_bytes(read_trees(source.data))
    assert expected - 1024 < code + data <= expected
    assert zeros == 0


def test_of_the_hard_rows_many_values_lie_on_thresholds(forest: Source) -> None:
    ensemble = read_trees(forest.data)
    rows = hard_rows(ensemble, 64)
    assert np.isin(rows, ensemble.threshold).mean() > 0.3
