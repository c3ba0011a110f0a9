"""Integers for the dense part: ranges from calibration rows, symmetric int8 weights, int32 biases.

The features stay float: one int8 scale for features of unlike size costs more labels than the gate allows. What is
quantised starts at the *normalised* features. The arithmetic is that of TFLite's int8 specification.
"""

from dataclasses import dataclass

import numpy as np

from converters.flatbuffer import Quantisation
from converters.network import Network
from converters.samples import Array

COVERED = 0.999
"""The share of calibration values, at each side, that a range covers: rare extremes cost the others precision."""


@dataclass(frozen=True, slots=True, eq=False)
class IntegerDense:
    """One dense layer in integers: `weights` int8 (outputs, inputs), `bias` int32, and the scales of each side."""

    weights: Array
    bias: Array
    weight_scale: float
    entering: Quantisation
    leaving: Quantisation

    @property
    def bias_scale(self) -> float:
        """The scale of the int32 bias: that of the products that it is added to."""
        return self.entering.scales[0] * self.weight_scale


def quantise(network: Network, windows: Array) -> tuple[IntegerDense, ...]:
    """Return the dense layers of a network in integers, calibrated on windows (n, T, C)."""
    layers = []
    activation = network.normalised(windows)
    entering = range_of(activation)
    for number, layer in enumerate(network.layers):
        activation = activation @ layer.weights + layer.bias
        last = number == len(network.layers) - 1
        if not last:
            activation = np.maximum(activation, 0)
        # the logits keep their extremes: two clipped ones would be a tie
        leaving = range_of(activation, covered=1.0 if last else COVERED)
        weight_scale = float(np.float32(np.abs(layer.weights).max() / 127 or 1.0))
        bias_scale = entering.scales[0] * weight_scale
        layers.append(
            IntegerDense(
                weights=np.clip(np.rint(layer.weights.T / weight_scale), -127, 127).astype(np.int8),
                bias=np.rint(layer.bias / bias_scale).astype(np.int32),
                weight_scale=weight_scale,
                entering=entering,
                leaving=leaving,
            )
        )
        entering = leaving
    return tuple(layers)


def range_of(values: Array, *, covered: float = COVERED) -> Quantisation:
    """Return the int8 quantisation that covers zero exactly, and all values but the extremes at each side."""
    low, high = np.quantile(values, [1 - covered, covered])
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = float(np.float32((high - low) / 255 or 1.0))
    return Quantisation(scales=(scale,), zero_point=int(np.clip(round(-128 - low / scale), -128, 127)))
