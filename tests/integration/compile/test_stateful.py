"""A model with a state is measured sequence by sequence, each from a fresh session, and so are its golden vectors."""

from pathlib import Path

import numpy as np
import pytest

from control_plane.imports import split_rows
from converters.attempt import Trial, reference_outputs
from converters.cache import Cache
from converters.compile import compile_model
from converters.measure import Run, run_candidate
from converters.samples import Array, Rows
from converters.source import Source, import_model, run_reference
from firmware_profiles import load_profile
from skerry.runtimes import Refused, find_runtime, open_session
from skerry.runtimes.arrays import unpack
from tests.tflite_files import remembering_file

STEPS = 4


def _source() -> Source:
    source = import_model(remembering_file(steps=STEPS))
    assert source.stateful
    return source


def _values(rows: int) -> Array:
    return np.random.default_rng(5).normal(size=(rows, 2)).astype(np.float32)


def _sums(values: Array, starts: tuple[int, ...]) -> Array:
    """Return what the model gives by its definition: the sum over a row and those before it in its sequence."""
    ends = (*starts[1:], len(values))
    sums = [
        values[max(start, row - STEPS + 1) : row + 1].sum()
        for start, end in zip(starts, ends, strict=True)
        for row in range(start, end)
    ]
    return np.asarray(sums)


def test_every_sequence_begins_in_a_fresh_session() -> None:
    source, values = _source(), _values(30)
    for starts in ((0,), (0, 7), (0, 2, 3, 20)):
        ran = run_candidate("litert", source.data, {"x": values}, starts=starts)
        assert not isinstance(ran, Refused), ran
        assert np.allclose(ran.outputs["y"].ravel(), _sums(values, starts), atol=1e-5)
        assert np.array_equal(run_reference(source, {"x": values}, starts=starts)["y"], ran.outputs["y"])


@pytest.mark.parametrize("runtime", ["litert", "tflite-micro"])
def test_a_streaming_wake_word_begins_each_sequence_anew_on_either_runtime(runtime: str) -> None:
    wake_words = pytest.importorskip("pymicro_wakeword")
    if isinstance(missing := find_runtime(runtime), Refused):
        pytest.skip(missing.reason)
    data = (Path(wake_words.__file__).parent / "models" / "hey_mycroft.tflite").read_bytes()
    source = import_model(data)
    (spec,) = source.inputs
    walk = np.random.default_rng(1).normal(size=(40, *spec.shape[1:])).cumsum(axis=0) * 25 - 60
    rows = {spec.name: np.clip(walk, -128, 127).astype(np.int8)}
    ran = run_candidate(runtime, data, rows, starts=(0, 20))
    alone = run_candidate(runtime, data, {spec.name: rows[spec.name][20:]})
    without = run_candidate(runtime, data, rows)
    assert isinstance(ran, Run), ran.reason
    assert isinstance(alone, Run), alone.reason
    assert isinstance(without, Run), without.reason
    (name,) = ran.outputs
    assert np.array_equal(ran.outputs[name][20:], alone.outputs[name])
    assert not np.array_equal(without.outputs[name][20:], alone.outputs[name])


def test_the_rows_of_a_sequence_stay_together_and_in_order() -> None:
    rows = Rows({"x": np.arange(40, dtype=np.float32)[:, None]}, groups=np.arange(40) % 4)
    for half in split_rows(rows, stateful=True):
        assert half.groups is not None
        assert half.starts() == tuple(range(0, len(half), 10))
        for start in half.starts():
            sequence = half.inputs["x"][start : start + 10, 0]
            assert np.array_equal(np.diff(sequence), np.full(9, 4))
    first, second = split_rows(Rows({"x": np.arange(20, dtype=np.float32)[:, None]}), stateful=True)
    assert np.array_equal(np.concatenate([first.inputs["x"], second.inputs["x"]]).ravel(), np.arange(20))


def _compile(source: Source, halves: tuple[Rows, Rows], folder: Path) -> tuple[dict[str, bytes], float]:
    outcome = compile_model(
        source,
        load_profile("raspberry-pi-zero-2"),
        name="memory",
        version=1,
        created="2026-01-01T00:00:00Z",
        calibration=halves[0],
        holdout=halves[1],
        cache=Cache(folder / "cache"),
    )
    assert outcome.artifact is not None, outcome.report.reason
    assert outcome.report.winner is not None
    assert outcome.report.winner.output_error is not None
    assert outcome.report.winner.deterministic
    return outcome.artifact, outcome.report.winner.output_error


def test_golden_vectors_of_a_state_are_consecutive_rows_from_its_beginning(tmp_path: Path) -> None:
    source, values = _source(), _values(80)
    groups = np.repeat(np.arange(8), 10)
    halves = split_rows(Rows({"x": values}, groups=groups), stateful=True)
    files, error = _compile(source, halves, tmp_path)
    assert error < 1e-6
    golden = unpack(files["golden.npz"], what="golden vectors")
    # no more than the first sequence holds: a device replays them in one session
    assert np.array_equal(golden["x"], halves[0].inputs["x"][:10])
    assert np.allclose(golden["y"].ravel(), _sums(golden["x"], (0,)), atol=1e-5)
    (tmp_path / "model.tflite").write_bytes(files["model.tflite"])
    session = open_session("litert", tmp_path / "model.tflite")
    for x, y in zip(golden["x"], golden["y"], strict=True):
        assert np.array_equal(session.run({"x": x[None]})["y"], y[None])


def test_the_held_out_rows_do_not_remember_those_of_calibration() -> None:
    source = _source()
    halves = Rows({"x": np.full((20, 2), 100, dtype=np.float32)}), Rows({"x": _values(20)})
    expected = reference_outputs(source, halves, cache=None)
    trial = Trial(
        source, load_profile("raspberry-pi-zero-2"), *halves, field=None, expected=expected, runtime_version=""
    )
    for outputs in (expected, trial("float32").outputs):
        assert np.allclose(outputs["y"][20:].ravel(), _sums(halves[1].inputs["x"], (0,)), atol=1e-4)
