"""What an emulated arm64 says of a build is told in what its readers compare: values, steps of integers, labels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from converters.attempt import Attempt
from converters.candidates import Candidate
from converters.emulated import evidence_for
from converters.gate import Evidence, Measurement
from converters.samples import Array, Rows
from converters.source import ONNX, Source
from firmware_profiles import load_profile
from skerry.wire.manifest import TensorSpec, Tolerance

PROFILE = replace(load_profile("raspberry-pi-zero-2"), architecture="an architecture that this machine is not")
SOURCE = Source(
    ONNX,
    b"",
    inputs=(TensorSpec("x", (1, 1), "float32"),),
    outputs=(TensorSpec("p", (1, 2), "float32"), TensorSpec("f", (1, 1), "float32")),
    labels=("a", "b"),
    probabilities="p",
)
HERE = {
    "p": np.asarray([[0.9, 0.1], [0.1, 0.9], [0.52, 0.48]], dtype=np.float32),
    "f": np.asarray([[0.0], [51.0], [25.5]], dtype=np.float32),
}
MEASURED = Measurement(1, 3, None, {}, None, None, 1, 1, 1, "x86_64")


def _said(there: dict[str, Array], precision: str, recipe: dict[str, str], patch: pytest.MonkeyPatch) -> Evidence:
    patch.setattr("converters.emulated.run_arm64", lambda *_: there)
    tolerances = {name: Tolerance(1.0, 0.0) for name in HERE}
    candidate = Candidate(precision, "model.tflite", b"", tolerances=tolerances, recipe=recipe)
    rows = Rows({"x": np.zeros((3, 1), dtype=np.float32)})
    asked = evidence_for(
        Attempt(candidate, HERE, MEASURED),
        PROFILE,
        source=SOURCE,
        rows=rows,
        at=np.arange(3),
        folder=Path("emulators"),
        cache=None,
    )
    assert isinstance(asked.measured, Measurement)
    (evidence,) = asked.measured.evidence
    return evidence


def test_integers_are_told_in_steps_of_their_outputs_and_in_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"p": HERE["p"] - np.asarray([[0, 0], [0, 0], [0.06, -0.06]]), "f": HERE["f"] + np.float32(0.5)}
    said = _said(there, "int8-hybrid", {"step:p": "0.02"}, monkeypatch)
    # .06 is three steps of .02; .5 of a span of 51 is two and a half steps of 1/255
    assert said.max_steps == pytest.approx(3.0)
    assert (said.label_flips, said.outcome) == (1, "passed")
    assert said.max_abs_diff == pytest.approx(0.5)
    assert _said(there, "int8", {"step:p": "1.0"}, monkeypatch).max_steps == pytest.approx(2.5)


def test_floats_are_told_in_values_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    said = _said({name: array + np.float32(1e-6) for name, array in HERE.items()}, "float32", {}, monkeypatch)
    assert (said.max_steps, said.label_flips) == (None, 0)
    assert said.max_abs_diff == pytest.approx(1e-6, rel=0.5, abs=4e-6)
