"""Small nets on real data, for benchmarks and tests: a dense net, a 1-D CNN, a 2-D CNN and a residual net.

They are trained without a deep-learning framework: convolution filters are drawn from a seed and stay as they are,
every BatchNormalization takes its statistics from the training rows, and only the dense head is fitted, by
scikit-learn's MLPClassifier. That is the whole shape of an exported CNN (filters, normalisation, depthwise and
pointwise layers, residual sums, pooling) with labels that mean something, in a few seconds of one core.

    net = image_net()                 # handwritten digits, 8 x 8, that ship with scikit-learn
    net.data                          # ONNX, opset 17, batch 1
    net.calibration, net.holdout      # rows by input name, rows first; net.truth are the holdout's labels
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

Array = np.ndarray[Any, np.dtype[Any]]
INPUT, PROBABILITIES = "x", "probabilities"
SERIES_STEPS, SERIES_HOP = 100, 50
SERIES_LABELS = ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")


@dataclass(frozen=True, slots=True, eq=False)
class Exhibit:
    """One net of the zoo: an ONNX classifier with the input `x`, and the rows it is calibrated and judged with.

    `truth` and `groups` belong to `holdout`: indices into `labels`, and who or what a row was recorded from;
    `calibration_truth` and `calibration_groups` are those of the calibration rows. `boundary` is the tensor at which
    float preprocessing ends, where there is any.
    """

    name: str
    data: bytes
    labels: tuple[str, ...]
    calibration: dict[str, Array]
    holdout: dict[str, Array]
    truth: Array
    groups: Array
    calibration_truth: Array
    calibration_groups: Array
    boundary: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Rows to learn from and rows to judge with, their labels and groups."""

    learnt: Array
    learnt_truth: Array
    learnt_groups: Array
    held: Array
    held_truth: Array
    held_groups: Array
    labels: tuple[str, ...]


class _Net:
    """A net that grows layer by layer over its training rows, so that a normalisation knows what enters it."""

    def __init__(self, rows: Array, seed: int) -> None:
        self.rows, self.name = rows, INPUT
        self.boundary = ""
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.random = np.random.default_rng(seed)

    def add(self, kind: str, *others: str | Array, **attributes: Any) -> str:
        """Add a layer behind the last one and return the name of its output."""
        out, names = f"{kind.lower()}_{len(self.nodes)}", []
        for number, other in enumerate(others):
            names.append(other if isinstance(other, str) else f"{out}_{number}")
            if not isinstance(other, str):
                self.constants.append(numpy_helper.from_array(other, names[-1]))
        self.nodes.append(helper.make_node(kind, [self.name, *names], [out], name=out, **attributes))
        self.name = out
        return out

    def filters(self, outputs: int, inputs: int, *reach: int, **attributes: Any) -> None:
        """Add a convolution with drawn filters, its BatchNormalization and a Relu."""
        scale = np.sqrt(2 / (inputs * np.prod(reach)))
        weights = (self.random.normal(size=(outputs, inputs, *reach)) * scale).astype(np.float32)
        self.add("Conv", weights, **attributes)
        self.normalise()
        self.add("Relu")

    def scale_input(self) -> None:
        """Normalise what enters the net; here float preprocessing ends."""
        self.normalise()
        self.boundary = self.name

    def normalise(self) -> None:
        """Add a BatchNormalization with the statistics of the training rows."""
        entering = self.outputs(self.rows)
        over = tuple(axis for axis in range(entering.ndim) if axis != 1)
        ones = np.ones(entering.shape[1], dtype=np.float32)
        statistics = [entering.mean(axis=over), entering.var(axis=over) + np.float32(1e-3)]
        self.add("BatchNormalization", ones, np.zeros_like(ones), *(each.astype(np.float32) for each in statistics))

    def fit_head(self, truth: Array, hidden: int) -> None:
        """Fit two dense layers on what the net gives so far, and end in a softmax."""
        self.add("Flatten", axis=1)
        head = MLPClassifier((hidden,), random_state=0, max_iter=120, alpha=1e-3, early_stopping=len(truth) > 500)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a longer fit is not what a benchmark is for
            head.fit(self.outputs(self.rows), truth)
        for number, (weights, bias) in enumerate(zip(head.coefs_, head.intercepts_, strict=True)):
            self.add("Gemm", weights.astype(np.float32), bias.astype(np.float32))
            if number == 0:
                self.add("Relu")
        self.add("Softmax", axis=1)
        self.nodes[-1].output[0] = self.name = PROBABILITIES

    def outputs(self, rows: Array) -> Array:
        """Return what the net gives so far for rows."""
        if not self.nodes:
            return rows
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(self.to_bytes(batch="n"), options, providers=["CPUExecutionProvider"])
        result: Array = session.run(None, {INPUT: rows})[0]
        return result

    def to_bytes(self, batch: int | str = 1) -> bytes:
        """Return the net as ONNX."""
        given = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [batch, *self.rows.shape[1:]])
        result = helper.make_tensor_value_info(self.name, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "zoo", [given], [result], self.constants)
        opset = helper.make_opsetid("", 17)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=8, producer_name="skerry-zoo")
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))


@cache
def dense_net() -> Exhibit:
    """Return a dense net on the chemistry of 178 wines, behind a scaling of its raw columns."""
    wine = load_wine()
    values, truth = wine.data.astype(np.float32), wine.target.astype(np.int64)
    held = np.arange(len(values)) % 3 == 0
    rows = _split(values, truth, np.arange(len(values)) % 3, held, tuple(map(str, wine.target_names)))
    net = _Net(rows.learnt, seed=1)
    net.scale_input()
    return _exhibit("dense net", net, rows, hidden=24)


@cache
def series_net() -> Exhibit:
    """Return a 1-D CNN on the watch recording (100 steps of 6 channels): wearers 1 to 7 learnt, 8 to 10 held out."""
    rows = _watch()
    net = _Net(rows.learnt, seed=2)
    net.add("Transpose", perm=[0, 2, 1])
    net.scale_input()
    net.filters(24, 6, 7, pads=[3, 3], strides=[2])
    net.filters(32, 24, 5, pads=[2, 2], strides=[2])
    net.add("MaxPool", kernel_shape=[2], strides=[2])
    net.filters(32, 1, 3, pads=[1, 1], group=32)
    net.filters(48, 32, 1)
    net.add("AveragePool", kernel_shape=[3], strides=[3])
    return _exhibit("1-D CNN", net, rows, hidden=48)


@cache
def image_net() -> Exhibit:
    """Return a 2-D CNN on handwritten digits: a convolution, a depthwise and a pointwise one, and pooling."""
    rows = _digits()
    net = _Net(rows.learnt, seed=3)
    net.filters(16, 1, 3, 3, pads=[1, 1, 1, 1])
    net.filters(16, 1, 3, 3, pads=[1, 1, 1, 1], group=16)
    net.filters(32, 16, 1, 1)
    net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    return _exhibit("2-D CNN", net, rows, hidden=48)


@cache
def residual_net() -> Exhibit:
    """Return a residual net on handwritten digits: two blocks with identity paths, and a global pool per quadrant."""
    rows = _digits()
    net = _Net(rows.learnt, seed=4)
    net.filters(24, 1, 3, 3, pads=[1, 1, 1, 1])
    for _ in range(2):
        before = net.name
        net.filters(24, 24, 3, 3, pads=[1, 1, 1, 1])
        net.add("Add", before)
    net.add("AveragePool", kernel_shape=[2, 2], strides=[2, 2])
    return _exhibit("residual net", net, rows, hidden=48)


EXHIBITS: dict[str, Callable[[], Exhibit]] = {
    "dense net": dense_net,
    "1-D CNN": series_net,
    "2-D CNN": image_net,
    "residual net": residual_net,
}


def _exhibit(name: str, net: _Net, rows: _Rows, *, hidden: int) -> Exhibit:
    net.fit_head(rows.learnt_truth, hidden)
    return Exhibit(
        name=name,
        data=net.to_bytes(),
        labels=rows.labels,
        calibration={INPUT: rows.learnt},
        holdout={INPUT: rows.held},
        truth=rows.held_truth,
        groups=rows.held_groups,
        calibration_truth=rows.learnt_truth,
        calibration_groups=rows.learnt_groups,
        boundary=net.boundary,
    )


def _digits() -> _Rows:
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    # the recording is ordered by writer: a block at the end holds writers that the rest has not seen
    held = np.arange(len(images)) >= 1200
    return _split(images, digits.target.astype(np.int64), np.arange(len(images)) // 100, held, tuple("0123456789"))


def _watch() -> _Rows:
    from seglearn.datasets import load_watch

    data = load_watch()
    recordings = zip(data["X"], data["y"], data["subject"], data["side"], strict=True)
    rows = [
        (recording[start : start + SERIES_STEPS], label, wearer)
        for recording, label, wearer, side in recordings
        if side == 1
        for start in range(0, len(recording) - SERIES_STEPS + 1, SERIES_HOP)
    ]
    windows, truth, wearers = (np.asarray(column) for column in zip(*rows, strict=True))
    return _split(windows.astype(np.float32), truth.astype(np.int64), wearers, wearers >= 8, SERIES_LABELS)


def _split(values: Array, truth: Array, groups: Array, held: Array, labels: tuple[str, ...]) -> _Rows:
    return _Rows(
        learnt=values[~held],
        learnt_truth=truth[~held],
        learnt_groups=groups[~held].astype(np.int64),
        held=values[held],
        held_truth=truth[held],
        held_groups=groups[held].astype(np.int64),
        labels=labels,
    )
