"""What is watched of one inference: features, prediction and confidence, read among a model's tensors by name.

Nothing here imports NumPy: arrays come in, plain numbers go out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from skerry.errors import Rejected
from skerry.wire.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Seen:
    """What is watched of one row; `prediction` is empty where the model is no classifier."""

    features: tuple[float, ...]
    prediction: str = ""
    confidence: float = 0.0

    @property
    def scalars(self) -> tuple[float | str, ...]:
        """The values in the monitor's order."""
        return (*self.features, self.prediction, self.confidence) if self.prediction else self.features


def read_seen(manifest: Manifest, tensors: Mapping[str, Any]) -> Seen:
    """Return what is watched, by the manifest's `observe`, among a model's inputs and outputs by name.

    Raises:
        Rejected: a tensor is missing, of another size, or not finite: the artifact is at fault.
    """
    try:
        watched = {what: tensors[name] for what, name in manifest.observe.items() if name}
    except KeyError as error:
        raise Rejected(f"model: expected a tensor named {error}, got {', '.join(tensors)}") from error
    features = watched["features"].ravel().tolist() if "features" in watched else []
    if "probabilities" not in watched:
        return Seen(features=tuple(features))
    chances = watched["probabilities"].ravel().tolist()
    if len(chances) != len(manifest.labels):
        raise Rejected(f"model: expected {len(manifest.labels)} probabilities, got {len(chances)}")
    confidence = max(chances)
    if not all(map(math.isfinite, chances)):
        raise Rejected("model: expected finite probabilities, got NaN or infinity")
    return Seen(features=tuple(features), prediction=manifest.labels[chances.index(confidence)], confidence=confidence)
