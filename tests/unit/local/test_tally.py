"""The rows that wait to be counted."""

import struct

import numpy as np
import pytest

from skerry.errors import Rejected
from skerry.local import tally
from skerry.local.tally import Tally
from skerry.wire.manifest import Manifest, TensorSpec

LABELS = ("rest", "lift")


def make_manifest(**changes: object) -> Manifest:
    fields: dict[str, object] = {
        "model": "watch",
        "version": 1,
        "profile": "gateway",
        "runtime": "onnxruntime",
        "model_file": "model.onnx",
        "golden_file": "golden.npz",
        "gate_file": "gate.json",
        "inputs": (TensorSpec("x", (1, 3), "float32"),),
        "outputs": (TensorSpec("y", (1, 2), "float32"),),
        "labels": LABELS,
        "tolerances": {},
        "observe": {"features": "x", "probabilities": "y"},
        "monitor": {},
        "files": (),
        "latency_budget_ms": 1.0,
        "created": "2026-01-01T00:00:00Z",
    }
    return Manifest(**{**fields, **changes})  # type: ignore[arg-type]


def make_tally(**changes: object) -> Tally:
    return Tally(make_manifest(**changes), wake=lambda: None)


def add(tallied: Tally, x: list[float], y: list[float], *, truth: str | None = None, us: float = 5.0) -> None:
    inputs, outputs = {"x": np.array([x], np.float32)}, {"y": np.array([y], np.float32)}
    tallied.add(inputs, outputs, truth=tallied.position(truth), latency_us=us)


def rows_of(tallied: Tally) -> list[tuple[float, ...]]:
    batch = tallied.take()
    assert batch is not None
    tallied.settle(counted=True)
    return list(struct.iter_unpack(f"<{batch.width}d", batch.data))


def test_a_row_is_its_features_then_prediction_confidence_truth_and_latency() -> None:
    tallied = make_tally()
    add(tallied, [1, 2, 3], [0.25, 0.75], truth="rest")
    assert rows_of(tallied) == [(1, 2, 3, 1, 0.75, 0, 5)]


def test_a_label_that_the_model_does_not_know_is_beyond_its_last_and_no_label_is_none() -> None:
    tallied = make_tally()
    add(tallied, [1, 2, 3], [0.25, 0.75], truth="fall")
    add(tallied, [1, 2, 3], [0.25, 0.75])
    assert [row[-2] for row in rows_of(tallied)] == [2, -1]


def test_a_model_that_is_no_classifier_has_no_prediction_and_no_confidence() -> None:
    tallied = make_tally(observe={"features": "y"}, labels=())
    add(tallied, [1, 2, 3], [4, 5])
    assert rows_of(tallied) == [(4, 5, -1, 0, -1, 5)]


def test_features_that_are_not_finite_are_counted_and_probabilities_that_are_not_are_dropped() -> None:
    tallied = make_tally()
    add(tallied, [float("nan"), 2, 3], [0.25, 0.75])
    add(tallied, [1, 2, 3], [float("nan"), 0.75])
    assert len(rows_of(tallied)) == 1
    assert tallied.dropped == 1


def test_a_row_of_another_size_than_the_manifest_promised_is_dropped() -> None:
    tallied = make_tally()
    add(tallied, [1, 2], [0.25, 0.75])
    add(tallied, [1, 2, 3], [0.25, 0.75])
    assert len(rows_of(tallied)) == 1
    assert tallied.dropped == 1


def test_what_is_kept_is_a_copy() -> None:
    tallied = make_tally()
    inputs, outputs = {"x": np.ones((1, 3), np.float32)}, {"y": np.array([[0.25, 0.75]], np.float32)}
    tallied.add(inputs, outputs, truth=-1, latency_us=5)
    inputs["x"][:] = outputs["y"][:] = 9
    assert rows_of(tallied) == [(1, 1, 1, 1, 0.75, -1, 5)]


def test_a_full_tally_drops_new_rows_and_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MAX_ROWS", 3)
    tallied = make_tally()
    for number in range(5):
        add(tallied, [number, 2, 3], [0.25, 0.75])
    assert [row[0] for row in rows_of(tallied)] == [0, 1, 2]
    assert tallied.dropped == 2


def test_a_batch_stays_the_same_until_it_is_settled() -> None:
    tallied = make_tally()
    add(tallied, [1, 2, 3], [0.25, 0.75])
    first = tallied.take()
    add(tallied, [4, 5, 6], [0.25, 0.75])
    assert tallied.take() is first
    tallied.settle(counted=False)
    assert tallied.dropped == 1
    assert [row[0] for row in rows_of(tallied)] == [4]
    assert tallied.take() is None


def test_it_wakes_the_sender_for_a_full_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "BATCH_ROWS", 2)
    woken: list[int] = []
    tallied = Tally(make_manifest(), wake=lambda: woken.append(1))
    for number in range(5):
        add(tallied, [number, 2, 3], [0.25, 0.75])
    assert len(woken) == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"observe": {"features": "z"}}, "named 'z'"),
        ({"labels": ("rest",)}, "expected 1 probabilities"),
    ],
)
def test_a_manifest_that_watches_what_is_not_there_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(Rejected, match=says):
        make_tally(**changes)
