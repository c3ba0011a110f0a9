"""Tree ensembles give in ONNX what they gave where they were trained."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from sklearn.ensemble import (
    AdaBoostClassifier,
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    PowerTransformer,
    RobustScaler,
    StandardScaler,
)
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from converters.fold import run
from converters.network import extract
from converters.onnx_candidates import write_onnx
from converters.samples import Array
from converters.source import Source
from converters.tree_tables import to_float32_below
from converters.trees import WindowFeatures, from_trees
from skerry.errors import Rejected

RNG = np.random.default_rng(4)
ROWS = RNG.normal(size=(300, 5)).astype(np.float32)
FRESH = RNG.normal(size=(60, 5)).astype(np.float32)
SCORE = ROWS[:, 0] + ROWS[:, 1] * ROWS[:, 2]
THREE = (SCORE > 0).astype(int) + (ROWS[:, 3] > 0.8)
TRUTHS = {"two": (THREE > 0).astype(int), "three": THREE, "names": np.array(["n", "p", "q"])[THREE]}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """LightGBM warns of columns without names when scikit-learn's wrapper predicts; no concern of the trees'."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="X does not have valid feature names")
        yield


def _lightgbm(kind: str, **options: Any) -> Any:
    lightgbm = pytest.importorskip("lightgbm")
    return getattr(lightgbm, kind)(n_estimators=8, num_leaves=8, n_jobs=1, verbose=-1, **options)


def _run(source: Source, rows: Array) -> dict[str, Array]:
    model = onnx.ModelProto.FromString(source.data)
    name = source.inputs[0].name
    results = [run(model, {name: rows[i : i + 1]}) for i in range(len(rows))]
    return {key: np.concatenate([result[key] for result in results]) for key in results[0]}


CLASSIFIERS = {
    "forest": lambda: RandomForestClassifier(6, random_state=1),
    "extra trees": lambda: ExtraTreesClassifier(6, random_state=1),
    "one tree": lambda: DecisionTreeClassifier(random_state=1),
    "boosting": lambda: GradientBoostingClassifier(n_estimators=6, random_state=1),
    "boosting from zero": lambda: GradientBoostingClassifier(n_estimators=6, init="zero", random_state=1),
    "histogram boosting": lambda: HistGradientBoostingClassifier(max_iter=6),
    "lightgbm": lambda: _lightgbm("LGBMClassifier"),
    "lightgbm forest": lambda: _lightgbm(
        "LGBMClassifier", boosting_type="rf", bagging_freq=1, bagging_fraction=0.6, random_state=1
    ),
}


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifier_gives_the_probabilities_that_it_was_trained_to(kind: str, truth: str) -> None:
    model = CLASSIFIERS[kind]().fit(ROWS, TRUTHS[truth])
    source = from_trees(model)
    got = _run(source, FRESH)["probabilities"]
    assert source.labels == tuple(map(str, model.classes_))
    assert np.abs(got - model.predict_proba(FRESH)).max() < 2e-6


@pytest.mark.parametrize(
    "model",
    [
        RandomForestRegressor(6, random_state=1),
        ExtraTreesRegressor(6, random_state=1),
        DecisionTreeRegressor(max_depth=1),
        GradientBoostingRegressor(n_estimators=6, random_state=1),
        HistGradientBoostingRegressor(max_iter=6),
        "LGBMRegressor",
    ],
    ids=lambda model: model if isinstance(model, str) else type(model).__name__,
)
def test_a_regressor_gives_the_numbers_that_it_was_trained_to(model: Any) -> None:
    fitted = (_lightgbm(model) if isinstance(model, str) else model).fit(ROWS, SCORE)
    source = from_trees(fitted)
    assert (source.labels, source.probabilities) == ((), "")
    assert np.abs(_run(source, FRESH)["prediction"][:, 0] - fitted.predict(FRESH)).max() < 2e-6


@pytest.mark.parametrize("kind", ["forest", "histogram boosting", "lightgbm"])
def test_a_missing_value_goes_where_it_went_in_training(kind: str) -> None:
    holes = RNG.random(ROWS.shape) < 0.15
    model = CLASSIFIERS[kind]().fit(np.where(holes, np.nan, ROWS).astype(np.float32), THREE)
    rows = np.where(holes[: len(FRESH)], np.nan, FRESH).astype(np.float32)
    assert np.abs(_run(from_trees(model), rows)["probabilities"] - model.predict_proba(rows)).max() < 2e-6


def test_a_threshold_is_rounded_down_so_that_no_row_changes_sides() -> None:
    thresholds = np.asarray([0.1, -0.1, 1 / 3, 1e300, -1e300, 2.0])
    rounded = to_float32_below(thresholds)
    assert rounded.dtype == np.float32
    for threshold, near in zip(thresholds[[0, 1, 2, 5]], rounded[[0, 1, 2, 5]], strict=True):
        above = np.nextafter(near, np.float32(np.inf))
        assert float(near) <= threshold < float(above)


def test_rows_that_lie_on_the_thresholds_take_the_branches_of_training() -> None:
    grid = (np.arange(400).reshape(-1, 1) % 20 / 10).astype(np.float32)
    model = DecisionTreeClassifier(random_state=0).fit(grid, np.arange(400) % 20 % 3)
    assert np.array_equal(_run(from_trees(model), grid[:40])["probabilities"], model.predict_proba(grid[:40]))


def test_scalers_before_the_trees_travel_in_the_model() -> None:
    scalers = (StandardScaler(), MinMaxScaler(), RobustScaler(), MaxAbsScaler(), StandardScaler(with_mean=False))
    model = make_pipeline(*scalers, RandomForestClassifier(4, random_state=1)).fit(ROWS, THREE)
    got = _run(from_trees(model), FRESH)["probabilities"]
    # scaled in float32 here, in float64 there: a row beside a threshold may go the other way
    assert np.mean(np.abs(got - model.predict_proba(FRESH)).max(axis=1) < 1e-5) >= 0.98


def test_window_features_before_the_trees_are_computed_and_shown() -> None:
    window = WindowFeatures(steps=12, channels=("x", "y"), features=("mean", "mad", "max"))
    windows = RNG.normal(size=(200, 12, 2)).astype(np.float32)
    features = extract(windows, window.features)
    truth = (features[:, 0] > 0).astype(int)
    model = make_pipeline(
        FunctionTransformer(extract, kw_args={"features": window.features}), RandomForestClassifier(4, random_state=1)
    ).fit(windows, truth)
    source = from_trees(model, labels=("low", "high"), window=window)
    got = _run(source, windows[:50])
    assert source.inputs[0].shape == (1, 12, 2)
    assert (source.features, source.feature_names[:3]) == ("features", ("mean_x", "mean_y", "mad_x"))
    assert np.allclose(got["features"], features[:50], atol=1e-5)
    assert np.mean(got["probabilities"].argmax(1) == truth[:50]) > 0.9


def test_named_columns_are_an_output_to_watch() -> None:
    names = ("a", "b", "c", "d", "e")
    source = from_trees(DecisionTreeClassifier(max_depth=2).fit(ROWS, THREE), feature_names=names)
    assert (source.features, source.feature_names) == ("features", names)
    assert np.array_equal(_run(source, FRESH[:5])["features"], FRESH[:5])


@pytest.mark.parametrize("precision", ["fp16", "int8-qdq", "int8-dynamic", "pruned-50"])
def test_trees_have_no_other_precision_than_their_own(precision: str) -> None:
    source = from_trees(DecisionTreeClassifier(max_depth=2).fit(ROWS, THREE))
    with pytest.raises(Rejected, match="expected"):
        write_onnx(source, precision, calibration={"x": FRESH}, vnni=True)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (LogisticRegression(), "got sklearn.LogisticRegression"),
        (AdaBoostClassifier(n_estimators=2), "got sklearn.AdaBoostClassifier"),
        (make_pipeline(PowerTransformer(), DecisionTreeClassifier()), "got PowerTransformer"),
        (make_pipeline(MinMaxScaler(clip=True), DecisionTreeClassifier()), "MinMaxScaler without clip"),
        (GradientBoostingClassifier(n_estimators=2, loss="exponential"), "expected the loss log_loss"),
        (
            GradientBoostingClassifier(n_estimators=2, init=DecisionTreeClassifier(max_depth=1)),
            "expected a constant init",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_has_no_form_here_is_named(model: Any, message: str) -> None:
    with pytest.raises(Rejected, match=message):
        from_trees(model.fit(ROWS, TRUTHS["two"]))


def test_categories_are_named_too() -> None:
    rows = np.column_stack([ROWS[:, 0], RNG.integers(0, 4, len(ROWS))])
    truth = (rows[:, 1] % 2).astype(int)
    model = HistGradientBoostingClassifier(max_iter=2, categorical_features=[1]).fit(rows, truth)
    with pytest.raises(Rejected, match="categorical"):
        from_trees(model)
    boosted = _lightgbm("LGBMClassifier").fit(rows, truth, categorical_feature=[1])
    with pytest.raises(Rejected, match="expected splits on numbers"):
        from_trees(boosted)
    poisson = _lightgbm("LGBMRegressor", objective="poisson").fit(ROWS, np.abs(SCORE))
    with pytest.raises(Rejected, match="expected the objective"):
        from_trees(poisson)
