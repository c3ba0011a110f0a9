"""The neutral description of a trained network that every writer reads, and its forward pass in NumPy.

    window (T, C) -> features, each giving one number per channel -> (x - mean) / scale -> dense, ReLU, ... -> softmax

Features come in the order of `features`, channels within each, so the scalar `index` belongs to the feature
`index // C` and the channel `index % C`. The forward pass is the reference that candidates are compared with; it
computes in float64 and rounds once, at the end.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.samples import Array
from skerry.errors import Rejected
from skerry.runtimes.arrays import pack, unpack

FORMAT = "skerry-network-1"
FEATURES = ("mean", "mad", "mean_abs_diff", "min", "max")
"""mean; mean absolute deviation from it; mean |difference| of neighbours in time; minimum; maximum: all over time."""


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """One dense layer: `weights` float32 (inputs, outputs), `bias` float32 (outputs,)."""

    weights: Array
    bias: Array


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """What a model says about n windows: `probabilities` float32 (n, labels) and raw `features` float32 (n, F)."""

    probabilities: Array
    features: Array

    @property
    def labels(self) -> Array:
        """The index of the most probable label of each row."""
        labels: Array = self.probabilities.argmax(axis=1)
        return labels


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A trained, unconverted network. `mean` and `scale` are float32 (F,); `layers` has at least one layer."""

    steps: int
    channels: tuple[str, ...]
    features: tuple[str, ...]
    mean: Array
    scale: Array
    layers: tuple[Dense, ...]
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        unknown = set(self.features) - set(FEATURES)
        if unknown or not self.features:
            raise Rejected(
                f"features: expected some of {', '.join(FEATURES)}, got {', '.join(self.features) or 'none'}"
            )
        width = self.width
        if self.mean.shape != (width,) or self.scale.shape != (width,):
            raise Rejected(f"scaler: expected {width} means and scales, got {self.mean.shape} and {self.scale.shape}")
        for number, layer in enumerate(self.layers):
            if (
                layer.weights.ndim != 2
                or layer.weights.shape[0] != width
                or layer.bias.shape != layer.weights.shape[1:]
            ):
                got = f"{layer.weights.shape} with a bias {layer.bias.shape}"
                raise Rejected(f"layer {number}: expected weights ({width}, n) with a bias (n,), got {got}")
            width = layer.weights.shape[1]
        if not self.layers or width != len(self.labels):
            raise Rejected(f"last layer: expected {len(self.labels)} outputs, one per label, got {width}")

    @property
    def width(self) -> int:
        """The number of features of one window."""
        return len(self.features) * len(self.channels)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The names of the features in order, such as `mean_ax`."""
        return tuple(f"{feature}_{channel}" for feature in self.features for channel in self.channels)

    def normalised(self, windows: Array) -> Array:
        """Return the scaled features (n, F) in float64: what enters the first dense layer."""
        return (extract(windows, self.features) - self.mean) / self.scale

    def forward(self, windows: Array) -> Outputs:
        """Run the network over windows (n, T, C)."""
        raw = extract(windows, self.features)
        activation = (raw - self.mean) / self.scale
        for layer in self.layers[:-1]:
            activation = np.maximum(activation @ layer.weights + layer.bias, 0)
        logits = activation @ self.layers[-1].weights + self.layers[-1].bias
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = powers / powers.sum(axis=1, keepdims=True)
        return Outputs(probabilities=probabilities.astype(np.float32), features=raw.astype(np.float32))

    def to_bytes(self) -> bytes:
        """Write the network as a deterministic npz without pickle: arrays, and a JSON text of the rest."""
        layers: dict[str, Array] = {}
        for number, layer in enumerate(self.layers):
            layers |= {f"weights_{number}": layer.weights, f"bias_{number}": layer.bias}
        text = {
            "format": FORMAT,
            "steps": self.steps,
            "channels": self.channels,
            "features": self.features,
            "labels": self.labels,
            "layers": len(self.layers),
        }
        return pack({"network": json_array(text), "mean": self.mean, "scale": self.scale, **layers})

    @staticmethod
    def from_bytes(data: bytes) -> "Network":
        """Read what `to_bytes` wrote; raises `Rejected` on anything else."""
        arrays = unpack(data, what="network")
        try:
            text = array_json(arrays["network"])
            if text["format"] != FORMAT:
                raise Rejected(f"network: expected the format {FORMAT}, got {text['format']!r}")
            return Network(
                steps=int(text["steps"]),
                channels=tuple(text["channels"]),
                features=tuple(text["features"]),
                mean=arrays["mean"],
                scale=arrays["scale"],
                layers=tuple(
                    Dense(weights=arrays[f"weights_{number}"], bias=arrays[f"bias_{number}"])
                    for number in range(int(text["layers"]))
                ),
                labels=tuple(text["labels"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Rejected(f"network: expected the format {FORMAT}, got an npz with {sorted(arrays)[:6]}") from error


def extract(windows: Array, features: tuple[str, ...]) -> Array:
    """Return the features (n, F) of windows (n, T, C) in float64."""
    values = windows.astype(np.float64)
    mean = values.mean(axis=1)
    columns = {
        "mean": lambda: mean,
        "mad": lambda: np.abs(values - mean[:, None, :]).mean(axis=1),
        "mean_abs_diff": lambda: np.abs(np.diff(values, axis=1)).mean(axis=1),
        "min": lambda: values.min(axis=1),
        "max": lambda: values.max(axis=1),
    }
    return np.concatenate([columns[feature]() for feature in features], axis=1)


def json_array(tree: Any) -> Array:
    """Return a JSON tree as a uint8 array, which an npz can hold without pickle."""
    return np.frombuffer(json.dumps(tree, sort_keys=True).encode(), dtype=np.uint8)


def array_json(array: Array) -> Any:
    """Return the JSON tree of `json_array`; raises ValueError when it holds none."""
    return json.loads(array.tobytes())
