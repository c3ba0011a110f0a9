"""Small graphs by hand, and a small network of known numbers."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference

from converters.network import FEATURES, Dense, Network
from converters.samples import Array

Build = Callable[..., bytes]


@pytest.fixture(scope="session")
def network() -> Network:
    """20 steps of 2 axes, 10 features, a dense net of 64 and 32 units, 3 labels."""
    rng = np.random.default_rng(0)
    widths = (10, 64, 32, 3)
    layers = tuple(
        Dense(weights=(rng.normal(size=pair) / np.sqrt(pair[0])).astype(np.float32), bias=_small(rng, pair[1]))
        for pair in pairwise(widths)
    )
    return Network(
        steps=20,
        channels=("x", "y"),
        features=FEATURES,
        mean=_small(rng, 10),
        scale=(0.5 + rng.random(10)).astype(np.float32),
        layers=layers,
        labels=("still", "slow", "fast"),
    )


def _small(rng: np.random.Generator, width: int) -> Array:
    return (rng.normal(size=width) / 4).astype(np.float32)


@pytest.fixture(scope="session")
def windows() -> Array:
    """Return 200 windows for that network."""
    return np.random.default_rng(1).normal(size=(200, 20, 2)).astype(np.float32)


@pytest.fixture(scope="session")
def build() -> Build:
    """Return a function that makes an ONNX file of nodes, inputs and outputs (name to shape) and constants."""

    def make(
        nodes: list[Any],
        inputs: dict[str, tuple[Any, ...]],
        outputs: dict[str, tuple[Any, ...] | None],
        constants: dict[str, Array] | None = None,
        *,
        opset: int = 17,
        ml: int = 0,
        kinds: dict[str, int] | None = None,
    ) -> bytes:
        kinds = kinds or {}
        graph = helper.make_graph(
            nodes,
            "test",
            [helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), s) for n, s in inputs.items()],
            [helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), s) for n, s in outputs.items()],
            initializer=[numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
        )
        opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid("ai.onnx.ml", ml)] if ml else [])
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        # an output given as None has the shape that inference finds, or one open dimension
        model = shape_inference.infer_shapes(model)
        for output in model.graph.output:
            if not output.type.tensor_type.HasField("shape"):
                output.type.tensor_type.shape.dim.add().dim_param = "open"
        del model.graph.value_info[:]
        return bytes(model.SerializeToString())

    return make
