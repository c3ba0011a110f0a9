"""Rewrites of the ONNX graph before it is lowered: what trains as several operators infers as one.

    Conv, BatchNormalization -> Conv       Gemm, BatchNormalization -> Gemm       MatMul, Add -> MatMul with a bias
    Div, Erf, Add, Mul, Mul  -> Gelu       Identity, Dropout -> nothing

A node is only taken in when nobody else reads its input, and never across a graph output or a boundary.
"""

from collections.abc import Callable
from dataclasses import replace
from math import sqrt

import numpy as np

from converters.samples import Array
from converters.tflite.lower_math import normalisation
from converters.tflite.reader import Model, Node


def tidy(model: Model, *, boundaries: frozenset[str]) -> Model:
    """Return the model with every rewrite done."""
    rewriting = _Rewriting(model, boundaries)
    rewriting.drop_identities()
    for rewrite in (rewriting.take_normalisation_in, rewriting.take_bias_in, rewriting.take_gelu_in):
        rewriting.everywhere(rewrite)
    return model.with_nodes(rewriting.nodes, rewriting.constants)


class _Rewriting:
    """The nodes under change; `everywhere` tries a rewrite at each node until none applies."""

    def __init__(self, model: Model, boundaries: frozenset[str]) -> None:
        self.nodes = list(model.nodes)
        self.constants = dict(model.constants)
        self.protected = boundaries | set(model.outputs)
        self.shapes = model.shapes

    def everywhere(self, rewrite: Callable[[Node], list[Node] | None]) -> None:
        """Apply a rewrite, which returns the nodes that it took in with its result as the last, or None."""
        for node in list(self.nodes):
            if node not in self.nodes:
                continue
            found = rewrite(node)
            if found is not None:
                *taken, result = found
                last = max(self.nodes.index(each) for each in taken)
                self.nodes[last] = result
                self.nodes = [each for each in self.nodes if each not in taken]

    def drop_identities(self) -> None:
        """Let the readers of an Identity or a Dropout read its input."""
        names: dict[str, str] = {}
        kept = []
        for old in self.nodes:
            node = replace(old, inputs=tuple(names.get(name, name) for name in old.inputs))
            mask_is_read = any(name in each.inputs for name in node.outputs[1:] if name for each in self.nodes)
            passes_on = node.kind == "Identity" or (node.kind == "Dropout" and not mask_is_read)
            if passes_on and node.outputs[0] not in self.protected:
                names[node.outputs[0]] = node.inputs[0]
            else:
                kept.append(node)
        self.nodes = kept

    def reader(self, name: str) -> Node | None:
        """Return the only node that reads a tensor, if nobody else wants it."""
        found = [node for node in self.nodes if name in node.inputs]
        return found[0] if len(found) == 1 and name not in self.protected else None

    def constant(self, name: str) -> Array | None:
        """Return the values of a constant."""
        return self.constants.get(name)

    def add(self, name: str, values: Array) -> str:
        """Add a constant under a new name."""
        while name in self.constants or name in self.shapes:
            name += "'"
        self.constants[name] = values
        return name

    def take_normalisation_in(self, node: Node) -> list[Node] | None:
        """Fold a BatchNormalization into the weights before it."""
        if node.kind not in ("Conv", "ConvTranspose", "Gemm"):
            return None
        after = self.reader(node.outputs[0])
        if after is None or after.kind != "BatchNormalization" or after.inputs[0] != node.outputs[0]:
            return None
        weights = self.constant(node.inputs[1])
        statistics = [self.constant(name) for name in after.inputs[1:5]]
        bias_name = node.inputs[2] if len(node.inputs) > 2 else ""
        known = [each for each in statistics if each is not None]
        if weights is None or len(known) < 4 or (bias_name and self.constant(bias_name) is None):
            return None
        slope, shift = normalisation(known, after.attributes)
        bias = self.constants[bias_name].astype(np.float64) if bias_name else np.zeros(1)
        if bias.size not in (1, slope.size):
            return None
        groups = int(node.attributes.get("group", 1))
        spread = _spread(node, weights, slope, groups)
        if spread is None:
            return None
        alpha, beta = (float(node.attributes.get(name, 1.0)) for name in ("alpha", "beta"))
        folded = {
            "weights": weights.astype(np.float64) * alpha * spread,
            "bias": bias.reshape(-1) * beta * slope + shift,
        }
        names = [self.add(f"{after.outputs[0]}/{what}", each.astype(np.float32)) for what, each in folded.items()]
        attributes = {name: each for name, each in node.attributes.items() if name not in ("alpha", "beta")}
        inputs = (node.inputs[0], *names)
        return [node, after, replace(node, inputs=inputs, outputs=after.outputs[:1], attributes=attributes)]

    def take_bias_in(self, node: Node) -> list[Node] | None:
        """Give a MatMul by constant weights the vector that is added behind it as a third input."""
        if node.kind != "MatMul" or len(node.inputs) != 2:
            return None
        weights = self.constant(node.inputs[1])
        after = self.reader(node.outputs[0])
        if weights is None or weights.ndim != 2 or after is None or after.kind != "Add":
            return None
        other = next((name for name in after.inputs if name != node.outputs[0]), "")
        bias = self.constant(other)
        # a bias of more axes than the product would widen the result
        if bias is None or bias.size != weights.shape[1] or bias.shape[-1:] != weights.shape[1:]:
            return None
        if self.shapes.get(after.outputs[0]) != self.shapes.get(node.outputs[0], ()):
            return None
        return [node, after, replace(node, inputs=(*node.inputs, other), outputs=after.outputs)]

    def take_gelu_in(self, node: Node) -> list[Node] | None:
        """Tell x / 2 (1 + erf(x / sqrt 2)), in the orders that exporters multiply it in."""
        if node.kind != "Erf":
            return None
        before = next((each for each in self.nodes if node.inputs[0] in each.outputs), None)
        if before is None or self.reader(before.outputs[0]) is not node:
            return None
        source = self._scaled(before, 1 / sqrt(2))
        one = self.reader(node.outputs[0])
        if source is None or one is None or one.kind != "Add" or self._number(one, node.outputs[0]) != 1.0:
            return None
        taken, current, half, whole = [before, node, one], one, False, False
        for _ in range(2):
            following = self.reader(current.outputs[0])
            if following is None or following.kind != "Mul":
                return None
            other = next((name for name in following.inputs if name != current.outputs[0]), "")
            halved = next(
                (each for each in self.nodes if other in each.outputs and self._scaled(each, 0.5) == source), None
            )
            if other == source:
                whole = True
            elif self._number(following, current.outputs[0]) == 0.5:
                half = True
            elif halved is not None and self.reader(other) is following:
                taken.append(halved)
                half = whole = True
            else:
                return None
            taken.append(following)
            current = following
            if half and whole:
                break
        if not (half and whole):
            return None
        result = Node("Gelu", node.name, node.number, (source,), current.outputs)
        return [*taken, result]

    def _scaled(self, node: Node, factor: float) -> str | None:
        """Return what a node multiplies by a number, when it is this one."""
        for name in node.inputs:
            number = self._number(node, name)
            if number is None or name in self.constants:
                continue
            if node.kind == "Mul" and np.isclose(number, factor, rtol=1e-6):
                return name
            if node.kind == "Div" and node.inputs[0] == name and np.isclose(number, 1 / factor, rtol=1e-6):
                return name
        return None

    def _number(self, node: Node, beside: str) -> float | None:
        """Return the constant number that stands beside an input of a node of two."""
        others = [name for name in node.inputs if name != beside]
        values = self.constant(others[0]) if len(node.inputs) == 2 and len(others) == 1 else None
        return float(values.reshape(-1)[0]) if values is not None and values.size == 1 else None


def _spread(node: Node, weights: Array, slope: Array, groups: int) -> Array | None:
    """Return the slope of each output in the shape that multiplies the weights; None where it would not fit."""
    if node.kind == "Conv":
        return slope.reshape((-1,) + (1,) * (weights.ndim - 1)) if len(weights) == slope.size else None
    if node.kind == "ConvTranspose":
        fits = groups == 1 and weights.shape[1] == slope.size
        return slope.reshape((1, -1) + (1,) * (weights.ndim - 2)) if fits else None
    rows = bool(node.attributes.get("transB", 0))
    if weights.shape[0 if rows else 1] != slope.size:
        return None
    return slope[:, None] if rows else slope[None, :]
