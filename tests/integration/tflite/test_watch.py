"""The watch model through the writer: what version 1 of the writer reached for this one net, reached for any graph."""

from pathlib import Path

import numpy as np
import pytest

from bench.zoo import SERIES_LABELS, series_net
from control_plane.training import Recipe, Trained, train
from converters.source import Source, from_network
from converters.tflite import write_tflite
from skerry.runtimes import Ran, Refused, probe, run_in_child

CHANNELS = ("ax", "ay", "az", "wx", "wy", "wz")


@pytest.fixture(scope="module")
def trained() -> Trained:
    """A model of wearers 1 to 7."""
    net = series_net()
    recipe = Recipe(channels=CHANNELS)
    windows = net.calibration["x"]
    return train(recipe, windows, net.calibration_truth, net.calibration_groups, labels=SERIES_LABELS)


@pytest.fixture(scope="module")
def source(trained: Trained) -> Source:
    """The same as ONNX, with the scaled features as its boundary."""
    return from_network(trained.network)


def _run(runtime: str, data: bytes, folder: Path) -> Ran:
    if isinstance(missing := probe(runtime), Refused):
        pytest.skip(missing.reason)
    file = folder / "model"
    file.write_bytes(data)
    ran = run_in_child(runtime, file, {"window": series_net().holdout["x"]})
    assert isinstance(ran, Ran), ran.reason
    return ran


@pytest.mark.parametrize("runtime", ["litert", "tflite-micro"])
def test_floats_are_the_trained_network(trained: Trained, source: Source, runtime: str, tmp_path: Path) -> None:
    ran = _run(runtime, write_tflite(source, "float32", calibration={})[0], tmp_path)
    expected = trained.network.forward(series_net().holdout["x"])
    assert np.abs(ran.outputs["probabilities"] - expected.probabilities).max() <= 1e-5
    assert np.abs(ran.outputs["features"] - expected.features).max() <= 1e-5


def test_the_hybrid_keeps_labels_and_features_in_a_small_arena(
    trained: Trained, source: Source, tmp_path: Path
) -> None:
    data, _ = write_tflite(source, "int8-hybrid", calibration={"window": series_net().calibration["x"]})
    expected = trained.network.forward(series_net().holdout["x"])
    board = _run("litert", data, tmp_path).outputs
    assert np.mean(board["probabilities"].argmax(axis=1) == expected.labels) >= 0.975
    assert np.abs(board["features"] - expected.features).max() <= 1e-5
    assert len(data) <= 12_600

    micro = _run("tflite-micro", data, tmp_path)
    # kernels may round a value on the border of two integers either way: a label in some hundreds may be another
    same = micro.outputs["probabilities"].argmax(axis=1) == board["probabilities"].argmax(axis=1)
    assert np.mean(same) >= 0.995
    assert micro.arena_bytes is not None
    assert 2_400 < micro.arena_bytes <= 16 * 1024


def test_full_integers_of_raw_features_are_what_the_gate_is_for(
    trained: Trained, source: Source, tmp_path: Path
) -> None:
    data, recipe = write_tflite(source, "int8", calibration={"window": series_net().calibration["x"]})
    labels = _run("litert", data, tmp_path).outputs["probabilities"].argmax(axis=1)
    assert np.mean(labels == trained.network.forward(series_net().holdout["x"]).labels) < 0.975
    assert recipe["float_operators"] == ""
