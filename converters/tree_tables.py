"""Tree ensembles in one neutral form, read from scikit-learn and LightGBM without either's ONNX exporter.

Every tree is a set of parallel arrays. A row goes left where `value <= threshold`, compared in float32: thresholds are
rounded down to float32, so that a float32 row takes exactly the branches that it took in training.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.samples import Array
from skerry.errors import Rejected

SUM, SIGMOID, SOFTMAX, VOTE = "sum", "sigmoid", "softmax", "vote"
"""What becomes of the summed leaves: nothing, a sigmoid of one column, a softmax, or they are shares already."""


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """One tree: `left` is -1 at a leaf; `leaf` (nodes, columns) is what it adds to the columns from `first` on."""

    feature: Array
    threshold: Array
    left: Array
    right: Array
    missing_left: Array
    leaf: Array
    first: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Ensemble:
    """Trees over `inputs` columns whose leaves and `base` sum to `outputs` columns; `classes` as they were learnt."""

    trees: tuple[Tree, ...]
    inputs: int
    outputs: int
    base: tuple[float, ...]
    link: str
    classes: tuple[str, ...] = ()


def read_ensemble(model: Any) -> Ensemble:
    """Return a fitted estimator in the neutral form.

    Raises:
        Rejected: it is none of the kinds that are known, or uses an option without an ONNX form; says which.
    """
    kind = type(model).__name__
    package = type(model).__module__.split(".")[0]
    if package == "lightgbm":
        classes = tuple(map(str, getattr(model, "classes_", ())))
        return _read_lightgbm(getattr(model, "booster_", model), classes)
    if package == "sklearn":
        if kind in {"RandomForestClassifier", "ExtraTreesClassifier", "RandomForestRegressor", "ExtraTreesRegressor"}:
            return _read_forest(model, model.estimators_)
        if kind in {"DecisionTreeClassifier", "DecisionTreeRegressor", "ExtraTreeClassifier", "ExtraTreeRegressor"}:
            return _read_forest(model, [model])
        if kind in {"GradientBoostingClassifier", "GradientBoostingRegressor"}:
            return _read_boosting(model)
        if kind in {"HistGradientBoostingClassifier", "HistGradientBoostingRegressor"}:
            return _read_histogram_boosting(model)
    raise Rejected(f"trees: expected a tree ensemble of scikit-learn or LightGBM, got {package}.{kind}")


def to_float32_below(thresholds: Array) -> Array:
    """Return the largest float32 numbers that are not above: `x <= t` then says the same for every float32 x."""
    with np.errstate(over="ignore"):
        near = thresholds.astype(np.float32)
    below = np.nextafter(near, np.float32(-np.inf))
    rounded: Array = np.where(near.astype(np.float64) > thresholds, below, near)
    # an infinite threshold, as LightGBM writes for "anything", keeps to what a file of numbers can hold
    limit = np.finfo(np.float32).max
    return np.clip(rounded, -limit, limit).astype(np.float32)


def _read_forest(model: Any, estimators: Iterable[Any]) -> Ensemble:
    if getattr(model, "n_outputs_", 1) != 1:
        raise Rejected(f"trees: expected one output, got {model.n_outputs_}: train one model for each")
    classes = tuple(map(str, getattr(model, "classes_", ())))
    parts = list(estimators)
    trees = []
    for each in parts:
        values = each.tree_.value[:, 0, :]
        if classes:
            values = values / values.sum(axis=1, keepdims=True)
        trees.append(_sklearn_tree(each.tree_, values / len(parts)))
    outputs = len(classes) or 1
    return Ensemble(
        trees=tuple(trees),
        inputs=int(model.n_features_in_),
        outputs=outputs,
        base=(0.0,) * outputs,
        link=VOTE if classes else SUM,
        classes=classes,
    )


def _sklearn_tree(tree: Any, leaf: Array, *, first: int = 0) -> Tree:
    missing = getattr(tree, "missing_go_to_left", np.zeros(tree.node_count, dtype=np.uint8))
    return Tree(
        feature=np.maximum(tree.feature, 0),
        threshold=to_float32_below(tree.threshold),
        left=tree.children_left,
        right=tree.children_right,
        missing_left=missing.astype(bool),
        leaf=leaf,
        first=first,
    )


def _read_boosting(model: Any) -> Ensemble:
    classes = tuple(map(str, getattr(model, "classes_", ())))
    init = model.init_
    if init != "zero" and type(init).__name__ not in {"DummyClassifier", "DummyRegressor"}:
        raise Rejected(f"trees: expected a constant init, got {type(init).__name__}")
    if classes and model.loss != "log_loss":
        raise Rejected(f"trees: expected the loss log_loss, got {model.loss!r}")
    columns = model.estimators_.shape[1]
    # constant, whatever the row: that is what the check above is for
    row = np.zeros((1, model.n_features_in_), dtype=np.float32)
    base = np.asarray(model._raw_predict_init(row), dtype=np.float64).ravel()  # noqa: SLF001 # scikit-learn has no public name for it
    trees = [
        _sklearn_tree(each.tree_, each.tree_.value[:, 0, :] * model.learning_rate, first=column)
        for stage in model.estimators_
        for column, each in enumerate(stage)
    ]
    return _boosted(trees, int(model.n_features_in_), base=base, columns=columns, classes=classes)


def _read_histogram_boosting(model: Any) -> Ensemble:
    classes = tuple(map(str, getattr(model, "classes_", ())))
    if getattr(model, "is_categorical_", None) is not None:
        raise Rejected("trees: expected numbers alone, got categorical features: encode them before the model")
    if model.loss not in {"log_loss", "squared_error", "absolute_error", "quantile"}:
        raise Rejected(f"trees: expected a loss without a link, got {model.loss!r}")
    trees = []
    for stage in model._predictors:  # noqa: SLF001 # scikit-learn has no public name for its trees
        for column, predictor in enumerate(stage):
            nodes = predictor.nodes
            leaves = nodes["is_leaf"].astype(bool)
            trees.append(
                Tree(
                    feature=np.where(leaves, 0, nodes["feature_idx"]),
                    threshold=to_float32_below(nodes["num_threshold"]),
                    left=np.where(leaves, -1, nodes["left"].astype(np.int64)),
                    right=np.where(leaves, -1, nodes["right"].astype(np.int64)),
                    missing_left=nodes["missing_go_to_left"].astype(bool),
                    leaf=nodes["value"][:, None],
                    first=column,
                )
            )
    base = np.asarray(model._baseline_prediction, dtype=np.float64).ravel()  # noqa: SLF001 # as above
    return _boosted(trees, int(model.n_features_in_), base=base, columns=len(base), classes=classes)


def _boosted(trees: list[Tree], inputs: int, *, base: Array, columns: int, classes: tuple[str, ...]) -> Ensemble:
    link = SUM if not classes else SIGMOID if columns == 1 else SOFTMAX
    return Ensemble(
        trees=tuple(trees),
        inputs=inputs,
        outputs=columns,
        base=tuple(base.tolist()),
        link=link,
        classes=classes,
    )


def _read_lightgbm(booster: Any, classes: tuple[str, ...]) -> Ensemble:
    dump = booster.dump_model()
    objective, *options = str(dump.get("objective", "")).split()
    columns = int(dump["num_tree_per_iteration"])
    links = {"binary": SIGMOID, "multiclass": SOFTMAX, "regression": SUM, "regression_l1": SUM, "huber": SUM}
    links |= {"quantile": SUM, "fair": SUM, "mape": SUM}
    if objective not in links or "sqrt" in options:
        raise Rejected(f"trees: expected the objective {', '.join(sorted(links))}, got {dump.get('objective')!r}")
    slope = next((float(each.split(":")[1]) for each in options if each.startswith("sigmoid:")), 1.0)
    rounds = max(1, len(dump["tree_info"]) // columns)
    factor = slope / rounds if dump.get("average_output") else slope
    trees = [
        _lightgbm_tree(each["tree_structure"], factor, first=number % columns)
        for number, each in enumerate(dump["tree_info"])
    ]
    count = 2 if links[objective] == SIGMOID else columns
    if links[objective] != SUM and not classes:
        classes = tuple(str(number) for number in range(count))
    return Ensemble(
        trees=tuple(trees),
        inputs=int(dump["max_feature_idx"]) + 1,
        outputs=columns,
        base=(0.0,) * columns,
        link=links[objective],
        classes=classes if links[objective] != SUM else (),
    )


def _lightgbm_tree(root: dict[str, Any], factor: float, *, first: int) -> Tree:
    rows: list[tuple[int, float, int, int, bool, float]] = []
    waiting: list[tuple[dict[str, Any], int, str]] = [(root, -1, "")]
    children: dict[tuple[int, str], int] = {}
    while waiting:
        node, parent, side = waiting.pop()
        index = len(rows)
        children[parent, side] = index
        if "split_feature" not in node:
            if "leaf_coeff" in node or "leaf_const" in node:
                raise Rejected("trees: expected constant leaves, got linear trees of LightGBM")
            rows.append((0, 0.0, -1, -1, False, float(node["leaf_value"]) * factor))
            continue
        if node["decision_type"] != "<=" or node["missing_type"] == "Zero":
            got = f"decision {node['decision_type']!r}, missing {node['missing_type']!r}"
            raise Rejected(f"trees: expected splits on numbers, got {got}: encode categories before the model")
        threshold = float(node["threshold"])
        # where nothing was missing in training, LightGBM takes a missing value for 0
        missing_left = bool(node["default_left"]) if node["missing_type"] == "NaN" else threshold >= 0
        rows.append((int(node["split_feature"]), threshold, 0, 0, missing_left, 0.0))
        waiting += [(node["right_child"], index, "right"), (node["left_child"], index, "left")]
    split = [row[2] >= 0 for row in rows]
    return Tree(
        feature=np.asarray([row[0] for row in rows]),
        threshold=to_float32_below(np.asarray([row[1] for row in rows])),
        left=np.asarray([children[i, "left"] if split[i] else -1 for i in range(len(rows))]),
        right=np.asarray([children[i, "right"] if split[i] else -1 for i in range(len(rows))]),
        missing_left=np.asarray([row[4] for row in rows]),
        leaf=np.asarray([[row[5]] for row in rows]),
        first=first,
    )
