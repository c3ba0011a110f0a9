"""Training and conversion on the real recording: the figures that the product's story rests on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from control_plane.training import Trained, fit, split
from converters import onnx_writer
from converters.network import Network
from converters.samples import Array, Samples
from skerry.runtimes import Ran, Refused, probe, run_in_child
from tests.tflite_files import float_file, hybrid_file

from .conftest import Watch, wearers


def _accuracy(network: Network, samples: Samples) -> float:
    return float(np.mean(network.forward(samples.windows).labels == samples.truth))


def _run(runtime: str, data: bytes, windows: Array, folder: Path) -> Ran:
    if isinstance(missing := probe(runtime), Refused):
        pytest.skip(missing.reason)
    file = folder / "model"
    file.write_bytes(data)
    ran = run_in_child(runtime, file, {"window": windows})
    assert isinstance(ran, Ran), ran.reason
    return ran


def test_the_model_knows_unseen_wearers_on_the_wrist_it_was_trained_on(first: Trained, unseen: Samples) -> None:
    assert _accuracy(first.network, unseen) >= 0.84


def test_it_fails_on_the_other_wrist(first: Trained, watch: Watch) -> None:
    assert _accuracy(first.network, wearers(watch.moved, 8, 10)) <= 0.66


def test_trained_on_both_wrists_it_knows_both(second: Trained, watch: Watch) -> None:
    assert _accuracy(second.network, wearers(watch.worn, 8, 10)) >= 0.81
    assert _accuracy(second.network, wearers(watch.moved, 8, 10)) >= 0.81


@pytest.mark.parametrize(
    ("runtime", "write"),
    [
        ("onnxruntime", onnx_writer.write_float),
        ("litert", float_file),
        ("tflite-micro", float_file),
    ],
)
def test_a_float_build_equals_the_trained_pipeline(
    first: Trained,
    watch: Watch,
    unseen: Samples,
    tmp_path: Path,
    runtime: str,
    write: Callable[[Network], bytes],
) -> None:
    pipeline = fit(first.recipe, split(first.recipe, wearers(watch.worn, 1, 7))[0])
    ran = _run(runtime, write(first.network), unseen.windows, tmp_path)
    assert np.abs(ran.outputs["probabilities"] - pipeline.predict_proba(unseen.windows)).max() <= 1e-5
    assert np.abs(ran.outputs["features"] - first.network.forward(unseen.windows).features).max() <= 1e-5


@pytest.mark.parametrize("runtime", ["litert", "tflite-micro"])
def test_the_hybrid_keeps_the_labels_of_unseen_wearers(
    first: Trained, learnt: Samples, unseen: Samples, tmp_path: Path, runtime: str
) -> None:
    data = hybrid_file(first.network, learnt.windows)
    ran = _run(runtime, data, unseen.windows, tmp_path)
    expected = first.network.forward(unseen.windows)
    assert np.mean(ran.outputs["probabilities"].argmax(axis=1) == expected.labels) >= 0.975
    assert np.abs(ran.outputs["features"] - expected.features).max() <= 1e-5
    assert len(data) <= 12_600


def test_the_hybrid_gives_the_same_labels_on_a_microcontroller_in_a_small_arena(
    first: Trained, learnt: Samples, unseen: Samples, tmp_path: Path
) -> None:
    data = hybrid_file(first.network, learnt.windows)
    board = _run("litert", data, unseen.windows, tmp_path).outputs["probabilities"]
    micro = _run("tflite-micro", data, unseen.windows, tmp_path)
    # kernels may round a value on the border of two integers either way: a label in some hundreds may be another
    assert np.mean(board.argmax(axis=1) == micro.outputs["probabilities"].argmax(axis=1)) >= 0.995
    assert micro.arena_bytes is not None
    assert 2_400 < micro.arena_bytes <= 16 * 1024
