"""Which output is the probabilities, and what the labels are called, is found out or asked for."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from converters.classifier import classified
from converters.fold import run
from converters.normalise import normalise
from skerry.errors import Rejected

Build = Callable[..., bytes]
node = helper.make_node
WEIGHTS = {"w": np.random.default_rng(5).normal(size=(4, 3)).astype(np.float32)}
ROW = {"x": np.random.default_rng(6).normal(size=(1, 4)).astype(np.float32)}


def _dense(build: Build, *behind: Any, out: str = "y", columns: int = 3) -> bytes:
    nodes = [node("MatMul", ["x", "w"], ["dense" if behind else out]), *behind]
    return normalise(build(nodes, {"x": ("n", 4)}, {out: None}, {"w": WEIGHTS["w"][:, :columns]}))


def _outputs(data: bytes) -> dict[str, Any]:
    return run(onnx.ModelProto.FromString(data), ROW)


def test_a_softmax_at_the_end_makes_a_classifier_of_numbered_labels(build: Build) -> None:
    data = _dense(build, node("Softmax", ["dense"], ["y"]))
    assert classified(data, labels=(), probabilities="") == (data, ("0", "1", "2"), "y")


def test_without_labels_and_softmax_a_model_is_no_classifier(build: Build) -> None:
    data = _dense(build)
    assert classified(data, labels=(), probabilities="") == (data, (), "")


def test_labels_on_logits_add_the_softmax(build: Build) -> None:
    data = _dense(build)
    out, labels, name = classified(data, labels=("a", "b", "c"), probabilities="")
    logits, probabilities = _outputs(data)["y"], _outputs(out)[name]
    assert (labels, name) == (("a", "b", "c"), "probabilities")
    assert np.allclose(probabilities, np.exp(logits) / np.exp(logits).sum(), atol=1e-6)
    assert classified(out, labels=labels, probabilities=name) == (out, labels, name)


def test_the_taken_name_is_kept_when_the_softmax_is_added(build: Build) -> None:
    out, _, name = classified(_dense(build, out="probabilities"), labels=("a", "b", "c"), probabilities="")
    assert name == "probabilities"
    assert _outputs(out)[name].sum() == pytest.approx(1, abs=1e-6)


def test_two_labels_on_one_sigmoid_add_the_other_column(build: Build) -> None:
    data = _dense(build, node("Sigmoid", ["dense"], ["y"]), columns=1)
    out, labels, name = classified(data, labels=("no", "yes"), probabilities="")
    second = float(_outputs(data)["y"][0, 0])
    assert labels == ("no", "yes")
    assert np.allclose(_outputs(out)[name], [[1 - second, second]], atol=1e-6)
    assert classified(out, labels=(), probabilities="")[2] == name  # and it is known again as a pair


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        (("a", "b"), "", "expected one output of 2 probabilities"),
        (("a", "b"), "y", "expected 3, one for each column"),
        ((), "z", "expected one of the outputs y"),
    ],
)
def test_labels_that_no_output_fits_are_refused(
    build: Build, labels: tuple[str, ...], probabilities: str, message: str
) -> None:
    with pytest.raises(Rejected, match=message):
        classified(_dense(build), labels=labels, probabilities=probabilities)


def test_of_two_outputs_of_that_width_one_must_be_named(build: Build) -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Neg", ["a"], ["b"])]
    data = normalise(build(nodes, {"x": ("n", 4)}, {"a": None, "b": None}, WEIGHTS))
    with pytest.raises(Rejected, match="say which are the probabilities"):
        classified(data, labels=("p", "q", "r"), probabilities="")
    assert classified(data, labels=("p", "q", "r"), probabilities="b")[2] == "probabilities"
