"""Random small graphs: what the writer writes is what ONNX Runtime computes, and nearly that in integers."""

import numpy as np
import onnx
from hypothesis import HealthCheck, given, seed, settings

from converters.tflite import write_tflite

from .graphs import Board, Graph, assert_close, run_onnx
from .random_graphs import graphs

BOUNDED = settings(
    max_examples=80,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def _rows(graph: Graph, count: int) -> np.ndarray:
    value = onnx.load_model_from_string(graph.data).graph.input[0]
    shape = [size.dim_value for size in value.type.tensor_type.shape.dim]
    return np.random.default_rng(11).normal(size=(count, *shape)).astype(np.float32)


@seed(4)
@BOUNDED
@given(graph=graphs())
def test_a_random_graph_in_floats_equals_onnx_runtime(graph: Graph) -> None:
    board = Board(write_tflite(graph, "float32", calibration={})[0])
    for row in _rows(graph, 2):
        assert_close(board.run({"x": row}), run_onnx(graph.data, {"x": row}))


@seed(5)
@BOUNDED
@given(graph=graphs())
def test_a_random_graph_in_integers_follows_the_floats(graph: Graph) -> None:
    rows = _rows(graph, 24)
    board = Board(write_tflite(graph, "int8", calibration={"x": rows[:, 0]})[0])
    expected = np.stack([next(iter(run_onnx(graph.data, {"x": row}).values())) for row in rows])
    got = np.stack([next(iter(board.run({"x": row}).values())) for row in rows])
    assert got.shape == expected.shape
    spread = max(float(np.ptp(expected)), float(np.abs(expected).max()), 1e-3)
    assert float(np.sqrt(np.mean((got - expected) ** 2))) <= 0.1 * spread


@seed(6)
@BOUNDED
@given(graph=graphs())
def test_int8_weights_alone_follow_the_floats(graph: Graph) -> None:
    rows = _rows(graph, 6)
    board = Board(write_tflite(graph, "int8-dynamic", calibration={})[0])
    expected = np.stack([next(iter(run_onnx(graph.data, {"x": row}).values())) for row in rows])
    got = np.stack([next(iter(board.run({"x": row}).values())) for row in rows])
    spread = max(float(np.ptp(expected)), float(np.abs(expected).max()), 1e-3)
    assert float(np.sqrt(np.mean((got - expected) ** 2))) <= 0.1 * spread
