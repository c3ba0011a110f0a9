"""Every operator of the writer, in each of its ways, gives what ONNX Runtime gives."""

import numpy as np
import pytest

from converters.tflite import write_tflite

from .cases import CASES
from .graphs import Board, assert_close, run_onnx


@pytest.mark.parametrize("name", CASES)
def test_an_operator_gives_what_onnx_runtime_gives(name: str) -> None:
    import onnx

    graph = CASES[name]()
    board = Board(write_tflite(graph, "float32", calibration={})[0])
    shapes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in onnx.load_model_from_string(graph.data).graph.input
    }
    random = np.random.default_rng(7)
    for _ in range(3):
        inputs = {each: random.normal(size=shape, scale=2).astype(np.float32) for each, shape in shapes.items()}
        assert_close(board.run(inputs), run_onnx(graph.data, inputs))
