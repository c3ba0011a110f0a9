"""A candidate is measured in children: outputs, determinism, memory, and its speed against the float build."""

import numpy as np
import pytest

from converters.measure import Race, Run, contents_of, host_features, measure, race_candidate, run_candidate
from converters.samples import Rows
from skerry.runtimes import Refused

from .conftest import dense, onnx_model, tflite_add

ROWS = {"x": np.random.default_rng(5).normal(size=(40, 64)).astype(np.float32)}


def _run(data: bytes) -> Run:
    run = run_candidate("onnxruntime", data, ROWS)
    assert isinstance(run, Run), run.reason
    return run


def _race(data: bytes, rival: bytes, *, run: Run | None = None) -> Race:
    race = race_candidate("onnxruntime", data, rival, ROWS, run=run, seconds=0.5)
    assert isinstance(race, Race), race.reason
    return race


def test_a_model_is_not_a_step_slower_or_faster_than_itself() -> None:
    data = dense(4)
    race = race_candidate("onnxruntime", data, data, ROWS, rounds=3, seconds=0.5)
    assert isinstance(race, Race), race.reason
    # how often it is surely slower by a hair is a figure of ADR 0701, and no test: it depends on the machine
    assert race.low < 1.05
    assert race.high > 0.95
    assert race.pairs >= 60


def test_thirty_times_the_work_is_surely_slower_and_the_other_way_round() -> None:
    slow, fast = _race(dense(60), dense(2)), _race(dense(2), dense(60))
    assert slow.low > 1
    assert fast.high < 1
    assert slow.median_us > slow.rival_median_us


def test_a_race_of_models_that_take_other_inputs_is_refused() -> None:
    assert isinstance(race_candidate("onnxruntime", dense(2, width=32), dense(2), ROWS), Refused)
    assert isinstance(race_candidate("onnxruntime", dense(2), b"no model", ROWS), Refused)


def test_two_runs_of_one_model_give_equal_bytes_and_of_another_do_not() -> None:
    data = dense(3)
    run = _run(data)
    assert _race(data, data, run=run).deterministic is True
    assert _race(dense(3, seed=2), data, run=run).deterministic is False


def test_a_classifier_has_agreement_accuracy_and_slices() -> None:
    data, other = dense(2), dense(2, seed=2)
    expected, run = _run(data).outputs, _run(other)
    truth = expected["y"].argmax(axis=1)
    holdout = Rows(ROWS, truth=truth, groups=np.arange(40) % 2)
    figures = measure(_run(data), data, holdout=holdout, expected=expected, got=expected, probabilities="y")
    assert (figures.agreement, figures.accuracy, figures.output_error) == (1.0, 1.0, 0.0)
    assert (figures.accuracy_by_group, figures.rows_by_group) == ({"0": 1.0, "1": 1.0}, {"0": 20, "1": 20})
    assert figures.ram_bytes < figures.resident_bytes
    assert figures.features == host_features()
    assert (figures.operators, figures.opset) == (("MatMul",), 17)
    wrong = measure(run, other, holdout=holdout, expected=expected, got=run.outputs, probabilities="y")
    assert wrong.agreement is not None
    assert wrong.agreement < 0.5
    assert wrong.agreement == wrong.accuracy


def test_what_is_no_classifier_has_an_error_for_each_output_and_no_agreement() -> None:
    data = dense(2)
    run = _run(data)
    noisy = {"y": run.outputs["y"] * 1.1}
    figures = measure(run, data, holdout=Rows(ROWS), expected=run.outputs, got=noisy, race=_race(data, data, run=run))
    assert (figures.agreement, figures.accuracy) == (None, None)
    assert figures.output_errors == {"y": pytest.approx(0.1, rel=0.05)}
    assert figures.output_error == figures.output_errors["y"]
    assert figures.deterministic is True
    assert figures.latency_ratio_low is not None
    assert figures.latency_ratio_high is not None
    assert 0 < figures.latency_ratio_low <= figures.latency_ratio_high


def test_outputs_that_are_not_finite_are_refused() -> None:
    from onnx import TensorProto, helper

    shape = (TensorProto.FLOAT, [1, 64])
    model = onnx_model([helper.make_node("Sqrt", ["x"], ["y"])], {"x": shape}, {"y": shape})
    refused = run_candidate("onnxruntime", model, ROWS)
    assert refused == Refused("output y: expected finite numbers, got NaN or infinity")


def test_the_operators_of_a_flatbuffer_are_named() -> None:
    assert contents_of(tflite_add("int8")) == (("ADD",), 0)
