"""A tree ensemble of ONNX as plain tables, checked to be trees, with the rule by which ONNX Runtime labels.

Only the forms whose labels and scores agree in ONNX Runtime are read. With two classes and weights for both, for
instance, it labels by the sign of the second sum alone: such a model is refused, not imitated.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.c.behind import PAIR, read_behind
from converters.samples import Array
from skerry.errors import Rejected

OPERATORS = ("TreeEnsembleClassifier", "TreeEnsembleRegressor")
COMPARISONS = {"BRANCH_LEQ": "<=", "BRANCH_LT": "<", "BRANCH_GTE": ">=", "BRANCH_GT": ">"}
LEAF = "LEAF"
MAX_WIDTH = 1 << 15


@dataclass(frozen=True, slots=True, eq=False)
class Ensemble:
    """The nodes of all trees in one table, leaves among them, and the rule from sums to scores and labels.

    At a leaf `yes` and `no` are the first and the past-the-last row of `weights` and `targets`; `feature` is -1 there.
    `rule` is sum or mean (regressors), half or sign (two classes, one sum: its bound is .5 or 0) or most; `transform`
    makes scores of sums: NONE, LOGISTIC, SOFTMAX, or PAIR, one sum's (1 - logistic, logistic). `output` is the tensor
    of the model that the scores are.
    """

    boundary: str
    output: str
    before: tuple[str, ...]
    width: int
    comparison: str
    feature: Array
    threshold: Array
    yes: Array
    no: Array
    nan_goes_yes: Array
    roots: Array
    weights: Array
    targets: Array
    base: Array
    outputs: int
    rule: str
    transform: str
    labels: tuple[str, ...]

    @property
    def sums(self) -> int:
        """How many sums there are: one for each output, or one for two classes."""
        return 1 if self.rule in {"half", "sign"} or self.transform == PAIR else self.outputs


def read_trees(onnx_model: bytes) -> Ensemble:
    """Read the one tree ensemble of an ONNX model; raises `Rejected`, naming what is not known."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.ModelProto.FromString(onnx_model)
    except DecodeError as error:
        raise Rejected(f"expected an ONNX model, got a file that begins with {onnx_model[:12]!r}") from error
    nodes = [node for node in model.graph.node if node.op_type in OPERATORS]
    if len(nodes) != 1:
        # a broken file may hold names that are no text
        kinds = sorted({str(node.op_type) for node in model.graph.node})
        raise Rejected(f"C emitter: expected one {' or '.join(OPERATORS)}, got the operators {', '.join(kinds)[:200]}")
    try:
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in nodes[0].attribute}
        return _ensemble(model.graph, nodes[0], attributes)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise Rejected(f"C emitter: expected a whole {nodes[0].op_type}, got one with a broken {error}") from error


def _ensemble(graph: Any, node: Any, attributes: dict[str, Any]) -> Ensemble:
    operator = node.op_type
    doubles = [name for name in attributes if name.endswith("_as_tensor")]
    if doubles:
        raise Rejected(f"C emitter: expected {operator} in float32, got {doubles[0]} in doubles")
    classifies = operator == OPERATORS[0]
    kind = "class" if classifies else "target"
    tables = _Nodes(attributes, operator)
    feature, threshold, yes, no, nan_goes_yes, weights, targets = tables.flat(kind)
    labels = _labels(attributes) if classifies else ()
    outputs = len(labels) if classifies else int(attributes.get("n_targets", 1))
    base = np.asarray(attributes.get("base_values", ()), dtype=np.float32)
    transform = attributes.get("post_transform", b"NONE").decode()
    if classifies:
        rule = _classifier_rule(outputs, weights, targets, base, transform)
    else:
        rule = _regressor_rule(attributes, transform)
    sums = 1 if rule in {"half", "sign"} else outputs
    behind, output = read_behind(graph, node.output[-1])
    if behind != "NONE":
        if classifies or (behind == PAIR and outputs != 1):
            raise Rejected(f"C emitter: expected {operator} of {outputs} outputs with nothing behind it, got {behind}")
        transform = behind
    if len(base) not in {0, sums} or len(targets) == 0 or targets.min() < 0 or targets.max() >= outputs:
        got = f"{len(base)} and ids up to {targets.max(initial=0)}"
        raise Rejected(f"C emitter: expected {operator} with no or {sums} base values, ids below {outputs}, got {got}")
    width = _width(graph, node.input[0], least=int(feature.max(initial=0)) + 1)
    # what a softmax or a pair is behind classifies, whoever calls it a regressor
    if behind in {"SOFTMAX", PAIR}:
        outputs = max(outputs, 2) if behind == PAIR else outputs
        labels = tuple(str(number) for number in range(outputs))
    return Ensemble(
        boundary=node.input[0],
        output=output,
        before=_before(graph, node.input[0]),
        width=width,
        comparison=tables.comparison,
        feature=feature,
        threshold=threshold,
        yes=yes,
        no=no,
        nan_goes_yes=nan_goes_yes,
        roots=tables.roots,
        weights=weights,
        targets=targets,
        base=base,
        outputs=outputs,
        rule=rule,
        transform=transform,
        labels=labels,
    )


def _labels(attributes: dict[str, Any]) -> tuple[str, ...]:
    strings = attributes.get("classlabels_strings") or ()
    numbers = attributes.get("classlabels_int64s") or ()
    return tuple(text.decode(errors="replace") for text in strings) or tuple(str(number) for number in numbers)


def _classifier_rule(outputs: int, weights: Array, targets: Array, base: Array, transform: str) -> str:
    """Return the rule of ONNX Runtime's TreeAggregatorClassifier (tree_ensemble_aggregator.h)."""
    operator = OPERATORS[0]
    if transform not in {"NONE", "LOGISTIC", "SOFTMAX"}:
        raise Rejected(f"C emitter: expected {operator} with NONE, LOGISTIC or SOFTMAX, got {transform}")
    if outputs > 2:
        return "most"
    if outputs != 2 or set(targets.tolist()) != {0} or len(base) > 1:
        got = f"{outputs} classes, ids {sorted(set(targets.tolist()))}, {len(base)} base values"
        raise Rejected(f"C emitter: expected {operator} of 3 classes or more, or of 2 with one sum of id 0, got {got}")
    rule = "half" if np.all(weights >= 0) else "sign"
    # here ONNX Runtime's label and the largest of its scores are two different classes
    if transform == "SOFTMAX" or (rule == "half" and transform == "LOGISTIC"):
        raise Rejected(f"C emitter: expected {operator} of 2 classes whose label is its best score, got {transform}")
    return rule


def _regressor_rule(attributes: dict[str, Any], transform: str) -> str:
    aggregate = attributes.get("aggregate_function", b"SUM").decode()
    if aggregate not in {"SUM", "AVERAGE"} or transform != "NONE":
        got = f"{aggregate} and {transform}"
        raise Rejected(f"C emitter: expected {OPERATORS[1]} with SUM or AVERAGE and no transform, got {got}")
    return "sum" if aggregate == "SUM" else "mean"


class _Nodes:
    """The node attributes of an ensemble, each checked to be in exactly one tree."""

    def __init__(self, attributes: dict[str, Any], operator: str) -> None:
        self._attributes = attributes
        self._trees = [int(tree) for tree in attributes["nodes_treeids"]]
        ids = [int(node) for node in attributes["nodes_nodeids"]]
        self._places = {key: place for place, key in enumerate(zip(self._trees, ids, strict=True))}
        self._modes = [mode.decode() for mode in attributes["nodes_modes"]]
        modes = sorted(set(self._modes) - {LEAF}) or ["BRANCH_LEQ"]
        if len(self._places) != len(self._trees) or len(self._modes) != len(self._trees):
            raise Rejected(f"C emitter: expected {operator} with each node once, got some twice")
        if len(modes) != 1 or modes[0] not in COMPARISONS:
            known = ", ".join(COMPARISONS)
            raise Rejected(f"C emitter: expected {operator} with one of {known}, got {', '.join(modes)}")
        self.comparison = COMPARISONS[modes[0]]
        starts = [i for i, tree in enumerate(self._trees) if i == 0 or self._trees[i - 1] != tree]
        if len(starts) != len(set(self._trees)):
            raise Rejected(f"C emitter: expected {operator} with the nodes of a tree together, got them scattered")
        self.roots = np.asarray(starts, dtype=np.int64)

    def flat(self, kind: str) -> tuple[Array, ...]:
        """Return feature, threshold, yes, no, where NaN goes, and the weights and targets of the leaves."""
        count = len(self._trees)
        branch = np.asarray([mode != LEAF for mode in self._modes])
        feature = np.where(branch, self._ints("nodes_featureids", count), -1)
        threshold = np.where(branch, self._floats("nodes_values", count), np.float32(0)).astype(np.float32)
        nan_goes_yes = np.zeros(count, dtype=np.int64)
        if self._attributes.get("nodes_missing_value_tracks_true"):
            nan_goes_yes = np.where(branch, self._ints("nodes_missing_value_tracks_true", count) == 1, 0)
        if branch.any() and feature[branch].min() < 0:
            raise ValueError("nodes_featureids")
        yes, no = self._ints("nodes_truenodeids", count), self._ints("nodes_falsenodeids", count)
        for place in np.flatnonzero(branch):
            yes[place] = self._places[self._trees[place], int(yes[place])]
            no[place] = self._places[self._trees[place], int(no[place])]
        self._check_trees(branch, yes, no)
        weights, targets = self._leaves(kind, branch, yes, no)
        return feature, threshold, yes, no, nan_goes_yes, weights, targets

    def _check_trees(self, branch: Array, yes: Array, no: Array) -> None:
        """Refuse what is not a tree from its first node on: a loop in it would be one in the device."""
        parents = np.zeros(len(branch), dtype=np.int64)
        np.add.at(parents, np.concatenate([yes[branch], no[branch]]), 1)
        expected = np.ones(len(branch), dtype=np.int64)
        expected[self.roots] = 0
        seen, waiting = 0, self.roots.tolist()
        while waiting and seen <= len(branch):
            place = waiting.pop()
            seen += 1
            if branch[place]:
                waiting += [int(yes[place]), int(no[place])]
        if not np.array_equal(parents, expected) or seen != len(branch):
            raise Rejected("C emitter: expected trees that begin with their root, got nodes with other parents")

    def _leaves(self, kind: str, branch: Array, yes: Array, no: Array) -> tuple[Array, Array]:
        """Sort the weights by leaf, and let `yes` and `no` of each leaf bound its own."""
        by_leaf: dict[int, list[tuple[float, int]]] = {}
        columns = (self._attributes[f"{kind}_{name}"] for name in ("treeids", "nodeids", "ids", "weights"))
        for tree, node, target, weight in zip(*columns, strict=True):
            by_leaf.setdefault(self._places[int(tree), int(node)], []).append((float(weight), int(target)))
        rows: list[tuple[float, int]] = []
        for place in np.flatnonzero(~branch):
            yes[place] = len(rows)
            rows += by_leaf.get(int(place), [])
            no[place] = len(rows)
        weights, targets = zip(*rows, strict=True)
        return np.asarray(weights, dtype=np.float32), np.asarray(targets, dtype=np.int64)

    def _ints(self, name: str, count: int) -> Array:
        return self._column(name, count, np.dtype(np.int64))

    def _floats(self, name: str, count: int) -> Array:
        return self._column(name, count, np.dtype(np.float32))

    def _column(self, name: str, count: int, dtype: np.dtype[Any]) -> Array:
        values = np.array(self._attributes[name], dtype=dtype)
        if values.shape != (count,):
            raise ValueError(name)
        return values


def _before(graph: Any, boundary: str) -> tuple[str, ...]:
    """Return the operators before the ensemble, in order: what the caller of the C has to compute."""
    wanted = {boundary}
    found: list[str] = []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            found.insert(0, node.op_type)
            wanted |= set(node.input)
    return tuple(found)


def _width(graph: Any, name: str, *, least: int) -> int:
    """Return the number of features: as declared for the tensor, or as many as the nodes read."""
    declared: Iterable[Any] = (*graph.input, *graph.value_info)
    for value in declared:
        if value.name == name:
            shape = [each.dim_value for each in value.type.tensor_type.shape.dim]
            if len(shape) == 2 and shape[1] >= least:
                least = int(shape[1])
    if least > MAX_WIDTH:
        raise Rejected(f"C emitter: expected at most {MAX_WIDTH} features, got {least}")
    return least
