"""A real third-party model, installed by name: a recurrent net that tells attitude from an inertial sensor."""

from importlib.resources import files

import numpy as np
import onnx
import pytest

from converters.source import Source, import_model, run_reference
from converters.tflite import write_tflite
from tests.unit.tflite.graphs import Board

riann = pytest.importorskip("riann", reason="expected the package riann: it comes with the extra dev")


@pytest.fixture(scope="module")
def attitude() -> Source:
    """RIANN for one step at a time, with its state as input and output."""
    return import_model(files("riann").joinpath("riann.onnx").read_bytes(), shapes={"input": (1, 1, 7)})


def _motion(rows: int) -> dict[str, np.ndarray]:
    """Return a slow tilt with gravity, turning rates and the time step, and states that a stream would have."""
    time = np.arange(rows)[:, None] / 20
    noise = np.random.default_rng(0).normal(size=(rows, 6), scale=0.02)
    sensor = np.hstack([np.sin(time), 0 * time + 0.3, 0 * time + 9.7, 0.1 * np.cos(time), 0 * time, 0 * time]) + noise
    state = np.tanh(np.random.default_rng(1).normal(size=(rows, 2, 1, 1, 200)))
    return {
        "input": np.hstack([sensor, 0 * time + 0.01])[:, None].astype(np.float32),
        "h0": state.astype(np.float32),
    }


def test_a_recurrent_net_agrees_to_the_fifth_digit(attitude: Source) -> None:
    rows = _motion(20)
    board = Board(write_tflite(attitude, "float32", calibration={})[0])
    expected = run_reference(attitude, rows)
    for row in range(20):
        got = board.run({name: values[row : row + 1] for name, values in rows.items()})
        for name, values in expected.items():
            assert np.abs(got[name] - values[row].reshape(got[name].shape)).max() <= 1e-5, name


def test_its_weights_alone_in_integers_are_a_third_of_the_size_and_near(attitude: Source) -> None:
    rows = _motion(20)
    floats = len(write_tflite(attitude, "float32", calibration={})[0])
    data, _ = write_tflite(attitude, "int8-dynamic", calibration={})
    assert len(data) < floats / 3
    board, expected = Board(data), run_reference(attitude, rows)
    got = np.stack(
        [board.run({name: each[row : row + 1] for name, each in rows.items()})["output"] for row in range(20)]
    )
    assert np.abs(got.reshape(20, -1) - expected["output"].reshape(20, -1)).max() <= 0.15


def test_it_is_the_gru_that_is_unrolled(attitude: Source) -> None:
    assert [node.op_type for node in onnx.load_model_from_string(attitude.data).graph.node].count("GRU") == 2
