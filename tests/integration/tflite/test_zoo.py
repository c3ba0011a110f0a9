"""The zoo through the writer and the runtimes, in child processes: floats to the last digits, labels in integers."""

from pathlib import Path

import numpy as np
import pytest

from bench.zoo import EXHIBITS, Exhibit
from converters.tflite import write_tflite
from skerry.runtimes import Ran, Refused, probe, run_in_child

ROWS = 300
RUNTIMES = ("litert", "tflite-micro")


def _run(runtime: str, data: bytes, exhibit: Exhibit, folder: Path) -> Ran:
    if isinstance(missing := probe(runtime), Refused):
        pytest.skip(missing.reason)
    file = folder / "model"
    file.write_bytes(data)
    ran = run_in_child(runtime, file, {"x": exhibit.holdout["x"][:ROWS]})
    assert isinstance(ran, Ran), ran.reason
    return ran


@pytest.fixture(scope="module", params=EXHIBITS)
def exhibit(request: pytest.FixtureRequest) -> Exhibit:
    """Each net of the zoo."""
    return EXHIBITS[request.param]()


@pytest.fixture(scope="module")
def expected(exhibit: Exhibit, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """What ONNX Runtime gives for the held-out rows."""
    return _run("onnxruntime", exhibit.data, exhibit, tmp_path_factory.mktemp("onnx")).outputs["probabilities"]


def test_a_net_of_the_zoo_knows_what_it_has_not_seen(exhibit: Exhibit, expected: np.ndarray) -> None:
    assert np.mean(expected.argmax(axis=1) == exhibit.truth[:ROWS]) >= 0.85


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_floats_agree_to_the_fifth_digit(exhibit: Exhibit, expected: np.ndarray, runtime: str, tmp_path: Path) -> None:
    data, _ = write_tflite(exhibit, "float32", calibration={})
    got = _run(runtime, data, exhibit, tmp_path).outputs["probabilities"]
    assert np.abs(got - expected).max() <= 1e-5


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("dense_per_channel", [True, False])
def test_integers_behind_the_scaling_keep_the_labels(
    exhibit: Exhibit, expected: np.ndarray, runtime: str, dense_per_channel: bool, tmp_path: Path
) -> None:
    data, recipe = write_tflite(
        exhibit, "int8-hybrid", calibration=exhibit.calibration, dense_per_channel=dense_per_channel
    )
    got = _run(runtime, data, exhibit, tmp_path).outputs["probabilities"]
    assert np.mean(got.argmax(axis=1) == expected.argmax(axis=1)) >= 0.975
    assert set(recipe["float_operators"].split(", ")) <= {"MUL", "ADD", "SOFTMAX"}


def test_full_integers_keep_the_labels_unless_raw_columns_are_of_unlike_size(
    exhibit: Exhibit, expected: np.ndarray, tmp_path: Path
) -> None:
    data, recipe = write_tflite(exhibit, "int8", calibration=exhibit.calibration)
    got = _run("litert", data, exhibit, tmp_path).outputs["probabilities"]
    agreement = np.mean(got.argmax(axis=1) == expected.argmax(axis=1))
    # one scale for columns of .1 and of 1,500 is what the hybrid is for, and what the gate refuses
    assert agreement < 0.975 if exhibit.name == "dense net" else agreement >= 0.975
    assert recipe["float_operators"] == ""


def test_int8_weights_alone_keep_the_labels(exhibit: Exhibit, expected: np.ndarray, tmp_path: Path) -> None:
    data, _ = write_tflite(exhibit, "int8-dynamic", calibration={})
    got = _run("litert", data, exhibit, tmp_path).outputs["probabilities"]
    assert np.mean(got.argmax(axis=1) == expected.argmax(axis=1)) >= 0.975


def test_integers_need_less_of_a_microcontroller(tmp_path: Path) -> None:
    exhibit = EXHIBITS["2-D CNN"]()
    arenas, sizes = [], []
    for precision in ("float32", "int8"):
        data, _ = write_tflite(exhibit, precision, calibration=exhibit.calibration)
        arenas.append(_run("tflite-micro", data, exhibit, tmp_path).arena_bytes or 0)
        sizes.append(len(data))
    assert 0 < arenas[1] < 0.6 * arenas[0]
    assert sizes[1] < 0.4 * sizes[0]
