"""Two versions of real models, for the delta benchmark: trained, then trained on, in NumPy alone, from fixed seeds.

A convolutional net reads handwritten digits (8 x 8, shipped with scikit-learn); version 1 learns the first 1,000,
version 2 goes on with others: by SGD, by Adam, its head alone, or from another start. A dense net and boosted trees
learn the same. Each is written by the converters as users get them: float32, float16, int8 ONNX, int8 TFLite.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

Array = np.ndarray[Any, np.dtype[Any]]
Weights = dict[str, Array]

SEED = 20260
BATCH = 64
LEARNT = 1000


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a net: channels of its two convolutions, and of the dense layer behind them."""

    first: int
    second: int
    hidden: int


FULL = Shape(first=32, second=64, hidden=1024)
QUICK = Shape(first=16, second=32, hidden=256)


@cache
def digits() -> tuple[Array, Array]:
    """Return images (1797, 1, 8, 8) float32 in [0, 1] and labels (1797,)."""
    data = load_digits()
    return (data.images[:, None] / 16).astype(np.float32), data.target.astype(np.int64)


def start(shape: Shape, seed: int) -> Weights:
    """Draw the weights of a new net."""
    random = np.random.default_rng(seed)

    def draw(*sizes: int) -> Array:
        drawn: Array = random.normal(size=sizes) * np.sqrt(2 / np.prod(sizes[1:]))
        return drawn.astype(np.float32)

    return {
        "conv1.weight": draw(shape.first, 1, 3, 3),
        "conv1.bias": np.zeros(shape.first, np.float32),
        "conv2.weight": draw(shape.second, shape.first, 3, 3),
        "conv2.bias": np.zeros(shape.second, np.float32),
        "dense1.weight": draw(shape.hidden, shape.second * 16),
        "dense1.bias": np.zeros(shape.hidden, np.float32),
        "dense2.weight": draw(10, shape.hidden),
        "dense2.bias": np.zeros(10, np.float32),
    }


def learn(weights: Weights, rows: Array, *, steps: int, by: str, rate: float, seed: int, only: str = "") -> Weights:
    """Train on the digits at `rows`, by `adam` or `sgd` (with momentum); `only` names the layer that may move."""
    images, labels = digits()
    random = np.random.default_rng(seed)
    weights = {name: values.copy() for name, values in weights.items()}
    mean = {name: np.zeros_like(values) for name, values in weights.items()}
    square = {name: np.zeros_like(values) for name, values in weights.items()}
    for step in range(1, steps + 1):
        chosen = random.choice(rows, BATCH)
        for name, slope in _slopes(weights, images[chosen], labels[chosen], only).items():
            if by == "adam":
                mean[name] = 0.9 * mean[name] + 0.1 * slope
                square[name] = 0.999 * square[name] + 0.001 * slope * slope
                scaled = mean[name] / (1 - 0.9**step) / (np.sqrt(square[name] / (1 - 0.999**step)) + 1e-8)
            else:
                mean[name] = 0.9 * mean[name] + slope
                scaled = mean[name]
            weights[name] = (weights[name] - rate * scaled).astype(np.float32)
    return weights


def accuracy(weights: Weights, rows: Array) -> float:
    """Return the share of right labels among the digits at `rows`."""
    images, labels = digits()
    return float((_forward(weights, images[rows])[-1].argmax(axis=1) == labels[rows]).mean())


def to_onnx(weights: Weights, *, producer: str = "1") -> bytes:
    """Return the net as ONNX, opset 17, batch 1; `producer` is its producer's version, metadata alone."""
    layers: list[tuple[str, str, dict[str, Any]]] = [
        ("Conv", "conv1", {"pads": [1, 1, 1, 1]}),
        ("Relu", "", {}),
        ("Conv", "conv2", {"pads": [1, 1, 1, 1]}),
        ("Relu", "", {}),
        ("MaxPool", "", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Flatten", "", {"axis": 1}),
        ("Gemm", "dense1", {"transB": 1}),
        ("Relu", "", {}),
        ("Gemm", "dense2", {"transB": 1}),
        ("Softmax", "", {"axis": 1}),
    ]
    nodes, name = [], "x"
    for number, (kind, layer, attributes) in enumerate(layers):
        out = "probabilities" if number == len(layers) - 1 else f"{kind.lower()}_{number}"
        given = [name, *([f"{layer}.weight", f"{layer}.bias"] if layer else [])]
        nodes.append(helper.make_node(kind, given, [out], name=out, **attributes))
        name = out
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(values, each) for each, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.producer_name, model.producer_version = "skerry-pairs", producer
    return bytes(onnx.shape_inference.infer_shapes(model).SerializeToString(deterministic=True))


def _forward(weights: Weights, images: Array) -> list[Array]:
    """Return the activations on the way, the last of them the logits (n, 10)."""
    first, columns1 = _convolve(images, weights["conv1.weight"], weights["conv1.bias"])
    active1 = np.maximum(first, 0)
    second, columns2 = _convolve(active1, weights["conv2.weight"], weights["conv2.bias"])
    active2 = np.maximum(second, 0)
    pooled = active2.reshape(*active2.shape[:2], 4, 2, 4, 2).max(axis=(3, 5))
    flat = pooled.reshape(len(images), -1)
    active3 = np.maximum(flat @ weights["dense1.weight"].T + weights["dense1.bias"], 0)
    logits = active3 @ weights["dense2.weight"].T + weights["dense2.bias"]
    return [columns1, active1, columns2, active2, pooled, flat, active3, logits]


def _slopes(weights: Weights, images: Array, labels: Array, only: str) -> Weights:
    """Return the gradient of the mean cross-entropy in each weight."""
    columns1, active1, columns2, active2, pooled, flat, active3, logits = _forward(weights, images)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    error = powers / powers.sum(axis=1, keepdims=True)
    error[np.arange(len(labels)), labels] -= 1
    error /= len(labels)
    slopes = {"dense2.weight": error.T @ active3, "dense2.bias": error.sum(axis=0)}
    if only == "dense2":
        return slopes
    error = (error @ weights["dense2.weight"]) * (active3 > 0)
    slopes |= {"dense1.weight": error.T @ flat, "dense1.bias": error.sum(axis=0)}
    error = (error @ weights["dense1.weight"]).reshape(pooled.shape)
    wide = np.repeat(np.repeat(error, 2, axis=2), 2, axis=3)
    won = active2 == np.repeat(np.repeat(pooled, 2, axis=2), 2, axis=3)
    error = wide * won * (active2 > 0)
    slopes |= _conv_slopes("conv2", error, columns2, weights["conv2.weight"].shape)
    error = _back(error, weights["conv2.weight"]) * (active1 > 0)
    return slopes | _conv_slopes("conv1", error, columns1, weights["conv1.weight"].shape)


def _convolve(images: Array, kernel: Array, bias: Array) -> tuple[Array, Array]:
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = sliding_window_view(padded, (3, 3), axis=(2, 3))
    columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, kernel[0].size)
    out = (columns @ kernel.reshape(len(kernel), -1).T + bias).reshape(len(images), 8, 8, len(kernel))
    return out.transpose(0, 3, 1, 2), columns


def _conv_slopes(name: str, error: Array, columns: Array, shape: tuple[int, ...]) -> Weights:
    flat = error.transpose(0, 2, 3, 1).reshape(-1, shape[0])
    return {f"{name}.weight": (flat.T @ columns).reshape(shape), f"{name}.bias": flat.sum(axis=0)}


def _back(error: Array, kernel: Array) -> Array:
    turned = kernel[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    return _convolve(error, turned, np.zeros(len(turned), np.float32))[0]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two versions of a model file; `kind` groups the figures."""

    name: str
    kind: str
    old: bytes
    new: bytes


def pairs(shape: Shape) -> list[Pair]:
    """Return all pairs for nets of a size."""
    made = [*_cnn_pairs(shape), *_dense_pairs(shape), *_tree_pairs(shape)]
    return [Pair(name, kind, old, new) for name, kind, (old, new) in made]


def versions(shape: Shape) -> dict[str, Weights]:
    """Return version 1 of the convolutional net, and each way that version 2 comes from it."""
    learnt, more = np.arange(LEARNT), np.arange(600, 1600)
    first = learn(start(shape, SEED), learnt, steps=150, by="adam", rate=1e-3, seed=1)
    return {
        "first": first,
        "sgd": learn(first, more, steps=60, by="sgd", rate=1e-3, seed=2),
        "adam": learn(first, more, steps=60, by="adam", rate=1e-3, seed=2),
        "gentle": learn(first, more, steps=60, by="adam", rate=1e-4, seed=2),
        "head": learn(first, more, steps=60, by="adam", rate=1e-3, seed=2, only="dense2"),
        "anew": learn(start(shape, SEED + 1), more, steps=150, by="adam", rate=1e-3, seed=3),
    }


def _cnn_pairs(shape: Shape) -> list[tuple[str, str, tuple[bytes, bytes]]]:
    nets = versions(shape)
    rows = {"x": digits()[0][:256]}
    forms: dict[str, Callable[[bytes], bytes]] = {
        "fp32": lambda data: data,
        "fp16": _half,
        "int8 ONNX": lambda data: _int8_onnx(data, rows),
        "int8 TFLite": lambda data: _int8_tflite(data, rows),
    }
    written = {(form, way): write(to_onnx(weights)) for form, write in forms.items() for way, weights in nets.items()}
    ways = {
        "head": "head only",
        "sgd": "fine-tuned by SGD",
        "adam": "fine-tuned by Adam",
        "gentle": "fine-tuned by Adam, a tenth of the rate",
        "anew": "retrained",
    }
    made = [
        (f"CNN {form}, {title}", f"{form} {way}", (written[form, "first"], written[form, way]))
        for form in forms
        for way, title in ways.items()
    ]
    same = to_onnx(nets["first"])
    sticky = {"int8 ONNX": _int8_onnx, "int8 TFLite": _int8_tflite}
    for form, quantise in sticky.items():
        old = written[form, "first"]
        for way in ("sgd", "adam"):
            new = quantise(to_onnx(nets[way]), rows, old)
            made.append((f"CNN {form}, {ways[way]}, sticky", f"{form} {way} sticky", (old, new)))
    if shape is QUICK:
        made = [each for each in made if each[1] not in ("fp16 head", "fp16 gentle", "fp16 anew", "int8 ONNX anew")]
    return [*made, ("CNN fp32, metadata only", "metadata", (same, to_onnx(nets["first"], producer="2")))]


def _dense_pairs(shape: Shape) -> list[tuple[str, str, tuple[bytes, bytes]]]:
    from skl2onnx import to_onnx as sklearn_to_onnx
    from sklearn.neural_network import MLPClassifier

    images, labels = digits()
    flat = images.reshape(len(images), -1)
    net = MLPClassifier((shape.hidden, shape.hidden // 4), random_state=SEED, max_iter=1, solver="adam")
    for _ in range(12):
        net.partial_fit(flat[:LEARNT], labels[:LEARNT], classes=np.arange(10))
    options = {"zipmap": False}
    old = sklearn_to_onnx(net, flat[:1], options=options, target_opset=17).SerializeToString(deterministic=True)
    net.partial_fit(flat[600:1600], labels[600:1600])
    new = sklearn_to_onnx(net, flat[:1], options=options, target_opset=17).SerializeToString(deterministic=True)
    return [("dense net fp32, continued", "fp32 adam", (old, new))]


def _tree_pairs(shape: Shape) -> list[tuple[str, str, tuple[bytes, bytes]]]:
    from skl2onnx import to_onnx as sklearn_to_onnx
    from sklearn.ensemble import GradientBoostingClassifier

    images, labels = digits()
    flat = images.reshape(len(images), -1)
    rounds = 40 if shape is FULL else 10
    trees = GradientBoostingClassifier(n_estimators=rounds, max_depth=4, random_state=SEED, warm_start=True)
    trees.fit(flat[:LEARNT], labels[:LEARNT])
    options = {"zipmap": False}
    old = sklearn_to_onnx(trees, flat[:1], options=options, target_opset={"": 17, "ai.onnx.ml": 3}).SerializeToString()
    trees.set_params(n_estimators=rounds + 6).fit(flat[:LEARNT], labels[:LEARNT])
    new = sklearn_to_onnx(trees, flat[:1], options=options, target_opset={"": 17, "ai.onnx.ml": 3}).SerializeToString()
    return [("boosted trees, six rounds more", "trees", (old, new))]


def _half(data: bytes) -> bytes:
    from converters.half import store_half

    return store_half(data)[0]


def _int8_onnx(data: bytes, rows: Mapping[str, Array], previous: bytes = b"") -> bytes:
    from converters import onnx_quantise

    quantised = onnx_quantise.static(data, form="int8-qdq", calibration=rows, boundary="", vnni=True, previous=previous)
    return quantised[0]


def _int8_tflite(data: bytes, rows: Mapping[str, Array], previous: bytes = b"") -> bytes:
    from converters.source import source_of
    from converters.tflite import write_tflite

    return write_tflite(source_of(data), "int8", calibration=rows, dense_per_channel=True, previous=previous)[0]
