"""Manifests and offers of deltas for tests that care about a file or two of them."""

from typing import Any

from skerry.wire.manifest import Manifest, TensorSpec, describe_file
from skerry.wire.messages import Delta


def make_manifest(files: dict[str, bytes], *, created: str = "2026-01-01T00:00:00Z", **changes: Any) -> Manifest:
    """Return a manifest of a model that observes nothing; the last of the files is its golden and its gate file."""
    last = next(reversed(files))
    usual: dict[str, Any] = {
        "model": "strokes",
        "version": 1,
        "profile": "gateway",
        "runtime": "onnxruntime",
        "model_file": "model.onnx",
        "golden_file": last,
        "gate_file": last,
        "inputs": (TensorSpec("window", (1, 2), "float32"),),
        "outputs": (),
        "labels": (),
        "tolerances": {},
        "observe": {},
        "monitor": {},
        "files": tuple(describe_file(name, data) for name, data in files.items()),
        "latency_budget_ms": 1.0,
    }
    return Manifest(created=created, **(usual | changes))


def offer_delta(data: bytes, *, source: str, sealed: str) -> Delta:
    """Return the offer of a delta of the model from the file with the SHA-256 `source`, empty for a packed form."""
    entry = describe_file("delta", data)
    return Delta("model.onnx", source, entry.length, entry.sha256, entry.chunks, sealed)
