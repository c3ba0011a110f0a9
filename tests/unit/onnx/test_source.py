"""A source holds together, and survives being written and read."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from converters.fold import run
from converters.network import Network
from converters.samples import Array
from converters.source import Source, from_network
from skerry.errors import Rejected
from skerry.runtimes.arrays import pack
from skerry.wire.manifest import TensorSpec


def test_a_network_becomes_a_source_that_computes_the_same(network: Network, windows: Array) -> None:
    source = from_network(network)
    assert source.inputs == (TensorSpec("window", (1, 20, 2), "float32"),)
    assert source.outputs == (
        TensorSpec("probabilities", (1, 3), "float32"),
        TensorSpec("features", (1, 10), "float32"),
    )
    assert (source.labels, source.boundary) == (network.labels, "scaled")
    expected = network.forward(windows[:1])
    got = run(onnx.ModelProto.FromString(source.data), {"window": windows[:1]})
    assert np.allclose(got["probabilities"], expected.probabilities, atol=1e-5)
    assert np.allclose(got["features"], expected.features, atol=1e-5)


def test_a_source_is_written_and_read_without_loss_and_always_alike(network: Network) -> None:
    source = from_network(network)
    data = source.to_bytes()
    again = Source.from_bytes(data)
    assert again.to_bytes() == data == from_network(network).to_bytes()
    fields = ("format", "data", "inputs", "outputs", "labels", "probabilities", "features", "feature_names", "boundary")
    assert all(getattr(again, field) == getattr(source, field) for field in fields)


@pytest.mark.parametrize(
    "data",
    [b"", b"PK\x03\x04", pack({"a": np.zeros(3)}), pack({"source": np.zeros(3), "model": np.zeros(3)})],
)
def test_anything_else_is_no_source(data: bytes) -> None:
    with pytest.raises(Rejected):
        Source.from_bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "pickle"}, "expected the format onnx or tflite"),
        ({"labels": ("a", "b")}, "expected one for each probability"),
        ({"labels": ("a", "a", "b")}, "expected distinct ones"),
        ({"labels": ()}, "labels and probabilities or neither"),
        ({"probabilities": "nowhere"}, "probabilities: expected one of the outputs"),
        ({"features": "nowhere"}, "features: expected one of the outputs"),
        ({"feature_names": ("one",)}, "expected 10, one for each feature"),
        ({"inputs": (TensorSpec("window", (4, 20, 2), "float32"),)}, "leading 1"),
    ],
)
def test_a_source_that_does_not_hold_together_is_refused(
    network: Network, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(Rejected, match=message):
        replace(from_network(network), **change)
