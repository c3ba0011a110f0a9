"""Golden vectors on the device: read, and compared within the tolerances of the manifest. Runs in a worker."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from skerry.errors import Rejected
from skerry.wire.manifest import Manifest, Tolerance

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from skerry.runtimes import Ran

    Arrays = dict[str, np.ndarray[Any, Any]]

MAX_ARTIFACT_BYTES = 256 << 20


def golden_vectors(data: bytes, manifest: Manifest) -> "tuple[Arrays, Arrays]":
    """Return the golden inputs and outputs of a golden file by name, rows first; raises `Rejected`."""
    from skerry.runtimes.arrays import unpack

    arrays = unpack(data, what=manifest.golden_file, limit=MAX_ARTIFACT_BYTES)
    names = [spec.name for spec in (*manifest.inputs, *manifest.outputs)]
    missing = [each for each in names if each not in arrays]
    if missing or not all(arrays[each].ndim and len(arrays[each]) for each in names):
        raise Rejected(f"{manifest.golden_file}: expected rows for {', '.join(names)}, got {', '.join(arrays)}")
    return (
        {spec.name: arrays[spec.name] for spec in manifest.inputs},
        {spec.name: arrays[spec.name] for spec in manifest.outputs},
    )


def compare(got: Mapping[str, Any], expected: Mapping[str, Any], tolerances: Mapping[str, Tolerance]) -> None:
    """Raise `Rejected` unless every output is within its tolerance of the golden vectors (shapes included)."""
    import numpy as np

    for name, want in expected.items():
        have = got.get(name)
        tolerance = tolerances.get(name)
        if have is None or tolerance is None or have.shape != want.shape:
            shape = "none" if have is None else f"{have.shape}"
            raise Rejected(f"golden replay: expected {name} of shape {want.shape} and a tolerance, got {shape}")
        difference = np.abs(have.astype(np.float64) - want)
        # written so that NaN is outside
        outside = ~(difference <= tolerance.atol + tolerance.rtol * np.abs(want))
        if outside.any():
            worst = float(difference[outside].max())
            raise Rejected(f"golden replay: expected {name} within {tolerance.atol:g}, got a difference of {worst:.3g}")


def replay_in_child(model: "Path | bytes", manifest: Manifest, inputs: "Arrays", expected: "Arrays") -> "Ran":
    """Load a model in a child with limits and replay golden vectors there; raises `Rejected` unless all agree."""
    from skerry.runtimes import Refused, run_in_child

    ran = run_in_child(manifest.runtime, model, inputs)
    if isinstance(ran, Refused):
        raise Rejected(f"{manifest.model_file}: {ran.reason}")
    compare(ran.outputs, expected, manifest.tolerances)
    return ran
