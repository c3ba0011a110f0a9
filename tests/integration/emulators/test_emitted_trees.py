"""Tree ensembles as C, on this machine: the labels and the sums of ONNX Runtime, to the last bit."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from sklearn.ensemble import GradientBoostingClassifier

from converters.c.ensemble import read_trees
from converters.c.evaluate import evaluate, hard_rows
from converters.c_source import emit_trees
from converters.samples import Array
from converters.trees import from_trees
from tests.integration.emulators.emitted import compiled
from tests.unit.emulators.ensembles import WIDTH, Tables, classifier, regressor


def runtime(model: bytes, rows: Array) -> list[Array]:
    """Return the outputs of ONNX Runtime on one thread, row by row."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    each = [session.run(None, {name: row[None]}) for row in rows]
    return [np.concatenate([np.asarray(outputs[i]).reshape(1, -1) for outputs in each]) for i in range(len(each[0]))]


def rows_of(rng: np.random.Generator, count: int) -> Array:
    """Return rows of which many values lie on thresholds, and some are missing."""
    on_thresholds, off_them = rng.integers(-6, 7, (count, WIDTH)) / 4, rng.normal(size=(count, WIDTH))
    rows = np.where(rng.random((count, WIDTH)) < 0.5, on_thresholds, off_them)
    rows[rng.random(rows.shape) < 0.03] = np.nan
    return rows.astype(np.float32)


def ensemble(rng: np.random.Generator, kind: str, targets: tuple[int, ...], mode: str, *, trees: int = 12) -> Tables:
    """Return random trees."""
    tables = Tables(kind)
    for _ in range(trees):
        tables.tree(rng, int(rng.integers(1, 6)), targets, mode=mode)
    return tables


@pytest.mark.parametrize("mode", ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT"])
@pytest.mark.parametrize(
    ("classes", "more"),
    [
        (2, {}),
        (2, {"base_values": [0.25], "post_transform": "LOGISTIC"}),
        (3, {}),
        (4, {"base_values": [0.1, -0.2, 0.3, 0.0], "post_transform": "SOFTMAX"}),
        (5, {"post_transform": "LOGISTIC"}),
    ],
)
def test_random_classifiers_label_and_score_as_onnx_runtime(
    classes: int, more: dict[str, Any], mode: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    targets = (0,) if classes == 2 else tuple(range(classes))
    model = classifier(ensemble(rng, "class", targets, mode), classes, **more)
    emitted = compiled(emit_trees(model, "trees"), tmp_path)
    rows = rows_of(rng, 400)
    labels, scores = runtime(model, rows)
    assert np.array_equal(emitted.labels(rows), labels[:, 0])
    assert len(np.unique(labels)) > 1, "expected rows that tell something apart"
    assert emitted.predict(rows).tobytes() == evaluate(read_trees(model), rows).tobytes()
    if "post_transform" in more:
        assert np.abs(emitted.predict(rows) - scores).max() < 1e-6
    else:
        assert emitted.predict(rows).tobytes() == scores.tobytes()


@pytest.mark.parametrize("more", [{}, {"aggregate_function": "AVERAGE"}, {"base_values": [0.5]}])
def test_random_regressors_sum_as_onnx_runtime(more: dict[str, Any], rng: np.random.Generator, tmp_path: Path) -> None:
    model = regressor(ensemble(rng, "target", (0,), "BRANCH_LEQ", trees=40), 1, **more)
    emitted = compiled(emit_trees(model, "trees"), tmp_path)
    rows = rows_of(rng, 400)
    assert emitted.predict(rows).tobytes() == runtime(model, rows)[0].tobytes()
    assert emitted.predict(rows).tobytes() == evaluate(read_trees(model), rows).tobytes()


def test_several_targets_are_summed_each(rng: np.random.Generator, tmp_path: Path) -> None:
    model = regressor(ensemble(rng, "target", (0, 1, 2), "BRANCH_LEQ"), 3, base_values=[1.0, 2.0, 3.0])
    emitted = compiled(emit_trees(model, "trees"), tmp_path)
    rows = rows_of(rng, 200)
    assert emitted.predict(rows).tobytes() == runtime(model, rows)[0].tobytes()


@pytest.mark.parametrize("classes", [2, 3])
def test_boosters_with_their_end_behind_the_trees_label_and_score_as_onnx_runtime(classes: int, tmp_path: Path) -> None:
    values = np.random.default_rng(3).normal(size=(300, 6)).astype(np.float32)
    truth = (values[:, 0] * values[:, 1] > 0).astype(int) + (values[:, 2] > 1) * (classes - 2)
    model = from_trees(GradientBoostingClassifier(n_estimators=12, random_state=0).fit(values, truth)).data
    ensemble = read_trees(model)
    assert ensemble.transform == ("PAIR" if classes == 2 else "SOFTMAX")
    emitted = compiled(emit_trees(model, "trees"), tmp_path)
    rows = np.concatenate([values, hard_rows(ensemble, 200)])
    (scores,) = runtime(model, rows)
    assert np.abs(emitted.predict(rows) - scores).max() < 1e-6
    assert emitted.predict(rows).tobytes() == evaluate(ensemble, rows).tobytes()
    assert np.array_equal(emitted.labels(rows), scores.argmax(axis=1))
    assert len(np.unique(scores.argmax(axis=1))) == classes


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("estimator", ["RandomForestClassifier", "GradientBoostingClassifier"])
def test_ensembles_of_scikit_learn_label_as_onnx_runtime(classes: int, estimator: str, tmp_path: Path) -> None:
    skl2onnx = pytest.importorskip("skl2onnx")
    from sklearn import ensemble as estimators
    from sklearn.datasets import make_classification

    rows, truth = make_classification(500, 10, n_informative=6, n_classes=classes, random_state=1)
    rows = rows.astype(np.float32)
    fitted = getattr(estimators, estimator)(n_estimators=30, max_depth=5, random_state=0).fit(rows[:300], truth[:300])
    opsets = {"": 17, "ai.onnx.ml": 3}
    model = skl2onnx.to_onnx(fitted, rows[:1], options={"zipmap": False}, target_opset=opsets).SerializeToString()
    emitted = compiled(emit_trees(model, "trees"), tmp_path)
    labels, scores = runtime(model, rows)
    assert np.array_equal(emitted.labels(rows), labels[:, 0])
    assert np.abs(emitted.predict(rows) - scores).max() < 1e-6
