"""Small tree ensembles as ONNX for tests, straight from the specification."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto, helper

WIDTH = 5


@dataclass(slots=True)
class Tables:
    """The attributes of an ensemble under construction, for `class` or `target` leaves."""

    kind: str
    attributes: dict[str, list[Any]] = field(default_factory=dict)

    def tree(self, rng: np.random.Generator, depth: int, targets: Sequence[int], *, mode: str = "BRANCH_LEQ") -> None:
        """Add a random tree; thresholds are multiples of .25, so that rows can lie exactly on them."""
        number = max(self.attributes.get("nodes_treeids", [-1])) + 1
        self._node(rng, number, depth, targets, mode)

    def _node(self, rng: np.random.Generator, tree: int, depth: int, targets: Sequence[int], mode: str) -> int:
        trees = self.attributes.setdefault("nodes_treeids", [])
        node = trees.count(tree)
        leaf = depth == 0 or (node > 0 and rng.random() < 0.2)
        row = {
            "nodes_treeids": tree,
            "nodes_nodeids": node,
            "nodes_featureids": 0 if leaf else int(rng.integers(WIDTH)),
            "nodes_modes": "LEAF" if leaf else mode,
            "nodes_values": 0.0 if leaf else float(rng.integers(-6, 7)) / 4,
            "nodes_missing_value_tracks_true": int(not leaf and rng.random() < 0.5),
            "nodes_truenodeids": 0,
            "nodes_falsenodeids": 0,
        }
        for name, value in row.items():
            self.attributes.setdefault(name, []).append(value)
        place = len(trees) - 1
        if leaf:
            for target in targets:
                weights = {"treeids": tree, "nodeids": node, "ids": target, "weights": float(np.float32(rng.normal()))}
                for name, value in weights.items():
                    self.attributes.setdefault(f"{self.kind}_{name}", []).append(value)
        else:
            self.attributes["nodes_truenodeids"][place] = self._node(rng, tree, depth - 1, targets, mode)
            self.attributes["nodes_falsenodeids"][place] = self._node(rng, tree, depth - 1, targets, mode)
        return node


def classifier(tables: Tables, classes: int, **more: Any) -> bytes:
    """Return a TreeEnsembleClassifier as a model."""
    labels = {"classlabels_int64s": list(range(classes))}
    return _model("TreeEnsembleClassifier", ["label", "scores"], {**tables.attributes, **labels, **more}, classes)


def regressor(tables: Tables, targets: int, **more: Any) -> bytes:
    """Return a TreeEnsembleRegressor as a model."""
    return _model("TreeEnsembleRegressor", ["scores"], {**tables.attributes, "n_targets": targets, **more}, targets)


def _model(operator: str, outputs: list[str], attributes: dict[str, Any], width: int) -> bytes:
    node = helper.make_node(operator, ["x"], outputs, domain="ai.onnx.ml", **attributes)
    shapes = {"label": (TensorProto.INT64, [1]), "scores": (TensorProto.FLOAT, [1, width])}
    graph = helper.make_graph(
        [node],
        "trees",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, WIDTH])],
        [helper.make_tensor_value_info(name, *shapes[name]) for name in outputs],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return data
