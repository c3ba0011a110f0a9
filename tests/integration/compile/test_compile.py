"""Compiling any source: equal bytes, a cache that answers at once, a budget that is kept, and the mixed arrangement."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.ensemble import RandomForestClassifier

from control_plane.training import Recipe, Trained, split, train
from converters.cache import Cache
from converters.compile import BuildOutcome, compile_model
from converters.gate import replay
from converters.samples import Array, Rows, Samples
from converters.source import TFLITE, Source, from_network, import_model
from converters.tflite import write_tflite
from converters.trees import from_trees
from firmware_profiles import load_profile
from skerry.drift.monitor import Monitor
from skerry.wire import codec
from skerry.wire.manifest import Manifest
from skerry.wire.profile import Profile

LABELS = ("still", "slow", "fast")


def _moves(rows: int = 240) -> Samples:
    rng = np.random.default_rng(3)
    truth = np.arange(rows) % 3
    time_s = np.arange(20) / 20
    waves = np.sin(2 * np.pi * time_s[None, :, None] * (1 + 2 * truth[:, None, None])) * (0.2 + truth[:, None, None])
    windows = waves * [1.0, 40.0] + rng.normal(0, 0.05, (rows, 20, 2))
    return Samples(windows.astype(np.float32), truth.astype(np.int64), np.arange(rows) // 60)


@pytest.fixture(scope="module")
def moves() -> Samples:
    """Windows of two channels of unlike size."""
    return _moves()


@pytest.fixture(scope="module")
def trained(moves: Samples) -> Trained:
    """A small dense net over their features."""
    recipe = Recipe(hidden=(8, 6), max_iter=150, validation_groups=(2,), channels=("x", "y"))
    return train(recipe, moves.windows, moves.truth, moves.groups, labels=LABELS)


@pytest.fixture(scope="module")
def halves(trained: Trained, moves: Samples) -> tuple[Rows, Rows]:
    """Calibration and held-out rows."""
    learnt, held_out = split(trained.recipe, moves)
    return learnt.rows(), held_out.rows()


def _compile(source: Source, profile: Profile | str, halves: tuple[Rows, Rows], **options: object) -> BuildOutcome:
    return compile_model(
        source,
        load_profile(profile) if isinstance(profile, str) else profile,
        name="moves",
        version=1,
        created="2026-01-01T00:00:00Z",
        calibration=halves[0],
        holdout=halves[1],
        **options,  # type: ignore[arg-type] # named at the call
    )


def test_compiled_twice_the_model_and_its_vectors_are_the_same_bytes(
    trained: Trained, halves: tuple[Rows, Rows]
) -> None:
    source = from_network(trained.network)
    first, again = (_compile(source, "arm64-board", halves).artifact for _ in range(2))
    assert first is not None
    assert again is not None
    assert {name: first[name] for name in ("model.tflite", "golden.npz")} == {
        name: again[name] for name in ("model.tflite", "golden.npz")
    }


def test_a_second_compilation_comes_from_the_cache_byte_for_byte(
    trained: Trained, halves: tuple[Rows, Rows], tmp_path: Path
) -> None:
    source, cache = from_network(trained.network), Cache(tmp_path)
    first = _compile(source, "arm64-board", halves, cache=cache)
    lines: list[str] = []
    began = time.perf_counter()
    again = _compile(source, "arm64-board", halves, cache=cache, log=lines.append)
    measured = [line for line in lines if " of memory" in line]
    assert time.perf_counter() - began < 30
    assert measured
    assert all("from the cache" in line for line in measured)
    assert (again.artifact, again.report) == (first.artifact, first.report)


def test_c_from_the_cache_has_all_its_files(moves: Samples, tmp_path: Path) -> None:
    columns = moves.windows.std(axis=1).astype(np.float32)
    forest = RandomForestClassifier(3, max_depth=3, random_state=1).fit(columns, moves.truth)
    rows, cache = Rows({"x": columns}, moves.truth), Cache(tmp_path)
    first, again = (
        _compile(from_trees(forest, labels=LABELS), "cortex-m", (rows, rows), cache=cache).artifact for _ in range(2)
    )
    assert first is not None
    assert first == again


def test_damaged_results_are_measured_anew(trained: Trained, halves: tuple[Rows, Rows], tmp_path: Path) -> None:
    profile = replace(load_profile("x86-64-gateway"), precision=("float32",))
    source, cache = from_network(trained.network), Cache(tmp_path)
    first = _compile(source, profile, halves, cache=cache)
    for entry in tmp_path.iterdir():
        entry.write_bytes(entry.read_bytes()[:-7])
    again = _compile(source, profile, halves, cache=cache)
    assert again.report.verdict == first.report.verdict == "passed"


def test_what_the_budget_does_not_reach_is_not_run(trained: Trained, halves: tuple[Rows, Rows]) -> None:
    outcome = _compile(from_network(trained.network), "arm64-board", halves, budget_s=0.0)
    outcomes = {each.precision: each.outcome for each in outcome.report.candidates}
    assert outcomes.pop("float32") == "passed"
    assert set(outcomes.values()) == {"not run"}
    assert outcome.report.chosen == "float32"


def test_in_processes_of_its_own_the_search_finds_the_same(trained: Trained, halves: tuple[Rows, Rows]) -> None:
    source = from_network(trained.network)
    alone, side_by_side = (_compile(source, "arm64-board", halves, parallel=count) for count in (1, 2))
    assert alone.recipes == side_by_side.recipes
    assert [each.precision for each in alone.report.candidates] == [
        each.precision for each in side_by_side.report.candidates
    ]


def test_the_choice_replays_from_the_recorded_measurements(trained: Trained, halves: tuple[Rows, Rows]) -> None:
    outcome = _compile(from_network(trained.network), "arm64-board", halves)
    assert outcome.artifact is not None
    tree = json.loads(outcome.artifact["gate.json"])
    again = replay(tree)
    assert (again.verdict, again.chosen, again.kept) == (tree["verdict"], tree["chosen"], tuple(tree["kept"]))
    assert all(candidate["recipe"] for candidate in tree["candidates"])


def test_where_full_int8_falls_short_the_mixed_arrangement_is_tried(
    trained: Trained, halves: tuple[Rows, Rows]
) -> None:
    board = load_profile("arm64-board")
    strict = replace(board.budgets, agreement=1.0, slice_drop=1.0, accuracy_drop=1.0)
    profile = replace(board, precision=("int8", "float32"), budgets=strict)
    source = replace(from_network(trained.network), boundary="")
    # one channel is forty times the other: full int8 has one scale for both
    tried = {each.precision for each in _compile(source, profile, halves).report.candidates}
    full = next(
        each for each in _compile(source, profile, halves).report.candidates if each.precision == "int8"
    ).measurement
    assert full is not None
    assert full.agreement is not None
    assert ("int8-hybrid" in tried) == (full.agreement < 1.0)


def test_an_ensemble_of_trees_is_built_for_onnx_and_as_c_and_for_no_other_profile(moves: Samples) -> None:
    columns = moves.windows.std(axis=1)
    forest = RandomForestClassifier(5, max_depth=4, random_state=1).fit(columns, moves.truth)
    rows = Rows({"x": columns.astype(np.float32)}, moves.truth, moves.groups)
    halves = rows.where(slice(0, 120)), rows.where(slice(120, 240))
    gateway = replace(load_profile("x86-64-gateway"), precision=("float32",))
    source = from_trees(forest, labels=LABELS)
    assert _compile(source, gateway, halves).report.verdict == "passed"
    refused = _compile(source, "arm64-board", halves)
    assert refused.report.verdict == "refused"
    assert "TreeEnsemble" in refused.report.reason
    emitted = _compile(source, "cortex-m4f-256kb", halves)
    assert (emitted.report.verdict, emitted.report.chosen) == ("passed", "float32"), emitted.report.reason
    assert emitted.recipes["float32"]["form"] == "C99"
    assert emitted.artifact is not None
    manifest = codec.decode(Manifest, emitted.artifact["manifest.json"])
    assert manifest.model_file == "trees.c"
    assert {entry.name for entry in manifest.files} == {"trees.c", "trees.h", "golden.npz", "gate.json"}
    again = replay(json.loads(emitted.artifact["gate.json"]))
    assert (again.chosen, again.candidates) == (emitted.report.chosen, emitted.report.candidates)


def test_a_model_without_features_is_watched_by_its_row_of_inputs(moves: Samples) -> None:
    columns = moves.windows.std(axis=1).astype(np.float32)
    forest = RandomForestClassifier(3, max_depth=3, random_state=1).fit(columns, moves.truth)
    rows = Rows({"x": columns})
    profile = replace(load_profile("x86-64-gateway"), precision=("float32",))
    outcome = _compile(from_trees(forest, labels=LABELS), profile, (rows.where(slice(0, 99)), rows))
    assert outcome.artifact is not None
    manifest = codec.decode(Manifest, outcome.artifact["manifest.json"])
    assert manifest.observe == {"features": "x", "probabilities": "probabilities"}
    assert Monitor.from_json(manifest.monitor).names[:4] == ("x_0", "x_1", "prediction", "confidence")


def test_a_tflite_file_that_was_brought_along_is_a_candidate_as_it_is(
    trained: Trained, halves: tuple[Rows, Rows]
) -> None:
    data, _ = write_tflite(from_network(trained.network), "float32", calibration={})
    source = import_model(data, labels=LABELS)
    assert source.format == TFLITE
    outcome = _compile(source, "arm64-board", halves)
    assert outcome.artifact is not None
    assert outcome.artifact["model.tflite"] == data
    refused = _compile(source, "x86-64-gateway", halves)
    assert (refused.report.verdict, refused.artifact) == ("not run", None)
    assert "expected ONNX for x86-64-gateway, got TFLite" in refused.report.reason


def test_integers_that_were_brought_along_are_called_so_and_held_against_themselves(
    trained: Trained, halves: tuple[Rows, Rows]
) -> None:
    rows = dict(halves[0].inputs)
    data, _ = write_tflite(from_network(trained.network), "int8-hybrid", calibration=rows)
    # whatever the profile would have written by itself
    profile = replace(load_profile("cortex-m"), precision=("float32",))
    outcome = _compile(import_model(data, labels=LABELS), profile, halves)
    report = outcome.report
    assert (report.verdict, report.chosen) == ("passed", "int8-hybrid"), report.reason
    (candidate,) = report.candidates
    assert {check.name: check.outcome for check in candidate.checks}["compression"] == "not run"
    assert outcome.artifact is not None
    assert codec.decode(Manifest, outcome.artifact["manifest.json"]).lineage["precision"] == "int8-hybrid"
    assert replay(json.loads(outcome.artifact["gate.json"])).chosen == "int8-hybrid"


def test_microcontrollers_get_the_model_as_c_beside_the_flatbuffer(trained: Trained, halves: tuple[Rows, Rows]) -> None:
    outcome = _compile(from_network(trained.network), "cortex-m", halves)
    if outcome.report.verdict == "not run":
        pytest.skip(outcome.report.reason)
    assert outcome.artifact is not None
    manifest = codec.decode(Manifest, outcome.artifact["manifest.json"])
    assert {"model.c", "model.h", "model.tflite"} <= {entry.name for entry in manifest.files}
    evidence = [check for each in outcome.report.candidates for check in each.checks if check.name == "emulator"]
    assert {check.outcome for check in evidence} == {"not run"}  # no folder of emulators was given


def _regression() -> tuple[Source, Array]:
    rng = np.random.default_rng(1)
    weights = numpy_helper.from_array(rng.normal(size=(3, 8)).astype(np.float32), "weights")
    last = numpy_helper.from_array(rng.normal(size=(8, 1)).astype(np.float32), "last")
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["wide"]),
        helper.make_node("Relu", ["wide"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "last"], ["y"]),
    ]
    face = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, width)) for name, width in (("x", 3), ("y", 1))]
    graph = helper.make_graph(nodes, "regression", face[:1], face[1:], initializer=[weights, last])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return import_model(model.SerializeToString()), rng.normal(size=(120, 3)).astype(np.float32)


def test_a_model_that_is_no_classifier_is_gated_by_the_error_of_its_outputs() -> None:
    source, values = _regression()
    assert not source.probabilities
    name = source.inputs[0].name
    rows = Rows({name: values})
    profile = replace(load_profile("x86-64-gateway"), precision=("float32", "fp16"))
    outcome = _compile(source, profile, (rows.where(slice(0, 60)), rows.where(slice(60, 120))))
    assert outcome.report.verdict == "passed", outcome.report.reason
    assert outcome.report.winner is not None
    assert outcome.report.winner.agreement is None
    assert outcome.report.winner.output_error is not None
    assert outcome.artifact is not None
    assert codec.decode(Manifest, outcome.artifact["manifest.json"]).observe == {"features": name}


def test_a_model_may_put_out_flags() -> None:
    rng = np.random.default_rng(1)
    weights = numpy_helper.from_array(rng.normal(size=(3, 2)).astype(np.float32), "weights")
    zero = numpy_helper.from_array(np.float32(0), "zero")
    nodes = [helper.make_node("MatMul", ["x", "weights"], ["y"]), helper.make_node("Greater", ["y", "zero"], ["flag"])]
    kinds = {"x": (TensorProto.FLOAT, 3), "y": (TensorProto.FLOAT, 2), "flag": (TensorProto.BOOL, 2)}
    face = [helper.make_tensor_value_info(name, kind, (1, width)) for name, (kind, width) in kinds.items()]
    graph = helper.make_graph(nodes, "flags", face[:1], face[1:], initializer=[weights, zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    rows = Rows({"x": rng.normal(size=(60, 3)).astype(np.float32)})
    profile = replace(load_profile("x86-64-gateway"), precision=("float32",))
    outcome = _compile(import_model(model.SerializeToString()), profile, (rows, rows))
    assert outcome.report.verdict == "passed", outcome.report.reason
    assert outcome.artifact is not None
    assert [each.dtype for each in codec.decode(Manifest, outcome.artifact["manifest.json"]).outputs] == [
        "float32",
        "bool",
    ]
