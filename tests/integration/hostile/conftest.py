"""Whole models to damage, one of each format."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from converters.network import FEATURES, Dense, Network
from converters.source import Source, from_network
from converters.tflite import write_tflite


@pytest.fixture(scope="session")
def whole() -> dict[str, bytes]:
    """A small network as `onnx` and as `tflite`."""
    rng = np.random.default_rng(0)
    widths = (10, 16, 3)
    layers = tuple(
        Dense(rng.normal(size=pair).astype(np.float32), rng.normal(size=pair[1]).astype(np.float32))
        for pair in pairwise(widths)
    )
    network = Network(
        steps=20,
        channels=("x", "y"),
        features=FEATURES,
        mean=np.zeros(10, dtype=np.float32),
        scale=np.ones(10, dtype=np.float32),
        layers=layers,
        labels=("a", "b", "c"),
    )
    source: Source = from_network(network)
    return {"onnx": source.data, "tflite": write_tflite(source, "float32", calibration={})[0]}


@pytest.fixture
def forked() -> Path:
    """The program that serves many files, each in a fork with limits."""
    return Path(__file__).parent / "forked.py"
