"""Tree ensembles as ONNX: scikit-learn's forests and boosters, and LightGBM's boosters, written as plain tables.

    from_trees(RandomForestClassifier().fit(rows, truth))                          # x -> probabilities
    from_trees(booster, window=WindowFeatures(100, ("ax", "ay"), ("mean", "mad")))  # window -> probabilities, features

A forest becomes a TreeEnsembleClassifier whose leaves hold shares, a booster a TreeEnsembleRegressor with a Sigmoid or
a Softmax behind it, a regressor a TreeEnsembleRegressor alone (ai.onnx.ml 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from converters.normalise import normalise
from converters.onnx_graph import IR_VERSION, ML_OPSET, OPSET
from converters.onnx_writer import GraphBuilder, add_features
from converters.samples import Array
from converters.source import Source, source_of
from converters.tree_tables import SIGMOID, SOFTMAX, VOTE, Ensemble, Tree, read_ensemble
from skerry.errors import Rejected

PREDICTION = "prediction"
PROBABILITIES = "probabilities"


@dataclass(frozen=True, slots=True)
class WindowFeatures:
    """Features over the windows (steps, channels) that stand before an estimator, as in `converters.network`."""

    steps: int
    channels: tuple[str, ...]
    features: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the features in order, such as `mean_ax`."""
        return tuple(f"{feature}_{channel}" for feature in self.features for channel in self.channels)


def from_trees(
    model: Any,
    *,
    labels: tuple[str, ...] = (),
    feature_names: tuple[str, ...] = (),
    window: WindowFeatures | None = None,
) -> Source:
    """Return a fitted tree ensemble (or a scikit-learn pipeline of scalers that ends in one) as a source.

    Args:
        model: RandomForest*, ExtraTrees*, DecisionTree*, GradientBoosting*, HistGradientBoosting* of scikit-learn, or
            lightgbm's Booster, LGBMClassifier, LGBMRegressor.
        labels: the names of the classes, in the order of `classes_`.
        feature_names: names of the columns, which are then an output `features` too; with `window`, its own names.
        window: features that the model itself shall compute from raw windows. The input is then `window`
            (1, steps, channels) and there is an output `features`; otherwise the input is `x` (1, columns).

    Raises:
        Rejected: the estimator, or an option of it, has no ONNX form here; says which.
    """
    *before, last = _steps(model)
    ensemble = read_ensemble(last)
    if labels and len(labels) != len(ensemble.classes):
        raise Rejected(f"labels: expected {len(ensemble.classes)}, one for each class, got {len(labels)}")
    columns = before[0].n_features_in_ if before else ensemble.inputs
    graph = GraphBuilder()
    if window is None:
        value, inputs = "x", [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, columns))]
        outputs = []
        if feature_names:
            features = graph.node("Identity", ["x"], "features")
            outputs = [helper.make_tensor_value_info(features, TensorProto.FLOAT, (1, columns))]
    else:
        if len(window.names) != columns:
            raise Rejected(f"features: expected {columns}, as the model was fitted on, got {len(window.names)}")
        shape = (1, window.steps, len(window.channels))
        inputs = [helper.make_tensor_value_info("window", TensorProto.FLOAT, shape)]
        value = add_features(graph, window.features, steps=window.steps)
        outputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, (1, columns))]
        feature_names = window.names
    for number, scaler in enumerate(before):
        value = _scale(graph, scaler, value, number)
    found = _add_ensemble(graph, ensemble, value)
    width = len(ensemble.classes) or ensemble.outputs
    outputs.insert(0, helper.make_tensor_value_info(found, TensorProto.FLOAT, (1, width)))
    body = helper.make_graph(graph.nodes, "skerry", inputs, outputs, initializer=graph.constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    data = helper.make_model(body, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()
    return source_of(
        normalise(data),
        labels=labels or ensemble.classes,
        probabilities=found if ensemble.classes else "",
        features="features" if feature_names else "",
        feature_names=feature_names,
    )


def _steps(model: Any) -> list[Any]:
    """Return the fitted steps of a pipeline that stand between the rows and the trees, and the trees."""
    if type(model).__name__ != "Pipeline":
        return [model]
    steps = [step for _, step in model.steps if step is not None and step != "passthrough"]
    # our own window features are written by `window`, not by the step that computed them
    return [step for step in steps if type(step).__name__ != "FunctionTransformer"]


def _scale(graph: GraphBuilder, scaler: Any, value: str, number: int) -> str:
    """Add a scaler as (x - shift) * slope."""
    kind = type(scaler).__name__
    width = int(scaler.n_features_in_)
    shift, slope = np.zeros(width), np.ones(width)
    if kind == "StandardScaler":
        shift = scaler.mean_ if scaler.with_mean else shift
        slope = 1 / scaler.scale_ if scaler.with_std else slope
    elif kind == "RobustScaler":
        shift = scaler.center_ if scaler.with_centering else shift
        slope = 1 / scaler.scale_ if scaler.with_scaling else slope
    elif kind == "MaxAbsScaler":
        slope = 1 / scaler.scale_
    elif kind == "MinMaxScaler" and not scaler.clip:
        shift, slope = -scaler.min_ / scaler.scale_, scaler.scale_
    else:
        known = "StandardScaler, MinMaxScaler without clip, MaxAbsScaler or RobustScaler"
        raise Rejected(f"pipeline: expected {known} before the trees, got {kind}")
    shifts = graph.constant(f"shift_{number}", np.asarray(shift, dtype=np.float32))
    slopes = graph.constant(f"slope_{number}", np.asarray(slope, dtype=np.float32))
    return graph.node("Mul", [graph.node("Sub", [value, shifts], f"shifted_{number}"), slopes], f"scaled_{number}")


def _add_ensemble(graph: GraphBuilder, ensemble: Ensemble, value: str) -> str:
    """Add the trees and what is behind them; returns the output."""
    tables = _tables(ensemble.trees)
    if ensemble.link == VOTE:
        leaves = _leaves(ensemble.trees, "class")
        numbers = list(range(len(ensemble.classes)))
        names = ["label", PROBABILITIES]
        options: dict[str, Any] = {"classlabels_int64s": numbers, "post_transform": "NONE"}
        graph.nodes.append(
            helper.make_node(
                "TreeEnsembleClassifier",
                [value],
                names,
                name="trees",
                domain="ai.onnx.ml",
                **tables,
                **leaves,
                **options,
            )
        )
        return PROBABILITIES
    single = not ensemble.classes
    summed = graph.node(
        "TreeEnsembleRegressor",
        [value],
        PREDICTION if single else "logits",
        domain="ai.onnx.ml",
        n_targets=ensemble.outputs,
        base_values=list(ensemble.base),
        aggregate_function="SUM",
        post_transform="NONE",
        **tables,
        **_leaves(ensemble.trees, "target"),
    )
    if ensemble.link == SOFTMAX:
        return graph.node("Softmax", [summed], PROBABILITIES, axis=1)
    if ensemble.link == SIGMOID:
        second = graph.node("Sigmoid", [summed], "second")
        first = graph.node("Sub", [graph.constant("one", np.ones((1, 1), dtype=np.float32)), second], "first")
        return graph.node("Concat", [first, second], PROBABILITIES, axis=1)
    return summed


def _tables(trees: Sequence[Tree]) -> dict[str, Any]:
    """Return the attributes that say how rows go through the trees."""
    counts = [len(tree.left) for tree in trees]
    leaves = [tree.left < 0 for tree in trees]
    return {
        "nodes_treeids": np.repeat(np.arange(len(trees)), counts).tolist(),
        "nodes_nodeids": _joined([np.arange(count) for count in counts]),
        "nodes_featureids": _joined([np.where(leaf, 0, t.feature) for t, leaf in zip(trees, leaves, strict=True)]),
        "nodes_values": _joined([np.where(leaf, 0.0, t.threshold) for t, leaf in zip(trees, leaves, strict=True)]),
        "nodes_modes": ["LEAF" if each else "BRANCH_LEQ" for leaf in leaves for each in leaf.tolist()],
        "nodes_truenodeids": _joined([np.maximum(tree.left, 0) for tree in trees]),
        "nodes_falsenodeids": _joined([np.maximum(tree.right, 0) for tree in trees]),
        "nodes_missing_value_tracks_true": _joined(
            [np.where(leaf, False, t.missing_left).astype(np.int64) for t, leaf in zip(trees, leaves, strict=True)]
        ),
    }


def _leaves(trees: Sequence[Tree], what: str) -> dict[str, Any]:
    """Return the attributes that say what each leaf adds to which column: `what` is `class` or `target`."""
    treeids, nodeids, ids, weights = [], [], [], []
    for number, tree in enumerate(trees):
        for node in np.flatnonzero(tree.left < 0).tolist():
            for column, weight in enumerate(tree.leaf[node].tolist()):
                treeids.append(number)
                nodeids.append(node)
                ids.append(tree.first + column)
                weights.append(weight)
    return {f"{what}_treeids": treeids, f"{what}_nodeids": nodeids, f"{what}_ids": ids, f"{what}_weights": weights}


def _joined(parts: Sequence[Array]) -> list[Any]:
    joined: list[Any] = np.concatenate(parts).tolist()
    return joined
