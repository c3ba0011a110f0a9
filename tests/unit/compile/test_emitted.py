"""Trees on a microcontroller: their one form is C, with a flatbuffer before it where something is computed there."""

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper
from sklearn.ensemble import RandomForestClassifier

from converters.candidates import precisions_of, write_candidate
from converters.emitted import C_FILE, FRONT_FILE, emit, run_emitted, wants_c
from converters.gate import FLOAT
from converters.samples import Array
from converters.source import Source, source_of
from converters.trees import WindowFeatures, from_trees
from firmware_profiles import load_profile
from skerry.errors import Rejected
from skerry.runtimes import Refused

LABELS = ("low", "mid", "high")


def _rows() -> Array:
    return np.random.default_rng(2).normal(size=(90, 4)).astype(np.float32)


def _forest(rows: Array) -> RandomForestClassifier:
    truth = (rows[:, 0] > 0).astype(int) + (rows[:, 1] > 0.5)
    return RandomForestClassifier(6, max_depth=4, random_state=1).fit(rows, truth)


def test_trees_have_one_form_on_a_microcontroller_and_none_of_it_elsewhere() -> None:
    source = from_trees(_forest(_rows()), labels=LABELS)
    micro, board = load_profile("cortex-m4f-256kb"), load_profile("arm64-board")
    assert wants_c(source, micro)
    assert not wants_c(source, board)
    assert precisions_of(source, micro) == (FLOAT,)
    candidate = write_candidate(source, micro, FLOAT, calibration={}, spans={"probabilities": 1.0})
    assert (candidate.file, set(candidate.extras)) == (C_FILE, {"trees.h"})
    assert candidate.recipe["form"] == "C99"
    assert candidate.recipe["front"] == "none"
    assert b'class 1: "mid"' in candidate.extras["trees.h"]


def test_trees_over_the_models_own_input_need_no_runtime_and_give_what_the_forest_gives() -> None:
    rows = _rows()
    forest = _forest(rows)
    source = from_trees(forest, labels=LABELS, feature_names=("a", "b", "c", "d"))
    run = run_emitted(source, emit(source).files, {"x": rows})
    assert not isinstance(run, Refused)
    assert np.abs(run.outputs["probabilities"] - forest.predict_proba(rows)).max() < 1e-6
    assert np.array_equal(run.outputs["features"], rows)
    assert (run.latency_p50_us, run.latency_p99_us) == (None, None)
    assert 0 < run.ram_bytes < 1024


def test_what_it_takes_of_flash_is_its_tables_and_its_code_and_not_the_length_of_its_text() -> None:
    rows = _rows()
    source = from_trees(_forest(rows), labels=LABELS)
    emitted = emit(source)
    run = run_emitted(source, emitted.files, {"x": rows})
    assert not isinstance(run, Refused)
    nodes, trees = int(emitted.recipe["nodes"]), int(emitted.recipe["trees"])
    # a feature, a threshold and two places for each node; then a share for each class of each leaf
    assert run.size_bytes > nodes * (1 + 4 + 1 + 1) + trees + nodes // 2 * 3 * 4
    assert run.size_bytes < len(emitted.files[C_FILE])


def test_features_before_the_trees_become_a_flatbuffer_of_their_own() -> None:
    draw = np.random.default_rng(4)
    windows = (draw.normal(size=(60, 1, 2)) + draw.normal(size=(60, 10, 2)) / 4).astype(np.float32)
    forest = _forest(np.concatenate([windows.mean(axis=1), windows.max(axis=1)], axis=1))
    window = WindowFeatures(steps=10, channels=("x", "y"), features=("mean", "max"))
    emitted = emit(from_trees(forest, labels=LABELS, window=window))
    assert {C_FILE, "trees.h", FRONT_FILE, "front.c", "front.h"} == set(emitted.files)
    assert emitted.recipe["boundary"] == "features"
    assert emit(from_trees(forest, labels=LABELS, window=window)).files == emitted.files


def _with_another_output(source: Source) -> Source:
    model = ModelProto.FromString(source.data)
    model.graph.node.append(helper.make_node("Neg", ["probabilities"], ["negated"]))
    model.graph.output.append(helper.make_tensor_value_info("negated", TensorProto.FLOAT, (1, 3)))
    return source_of(model.SerializeToString(), labels=LABELS, probabilities="probabilities")


def test_a_second_output_behind_the_trees_is_refused_by_its_name() -> None:
    source = _with_another_output(from_trees(_forest(_rows()), labels=LABELS))
    with pytest.raises(Rejected, match="one output behind the trees, probabilities, got probabilities, negated"):
        emit(source)
