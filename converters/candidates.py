"""Which candidates there are for a runtime: a precision's name, the writer behind it, and its golden tolerances."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from converters import onnx_writer, tflite_writer
from converters.network import Network
from converters.quantise import quantise
from converters.samples import Array
from skerry.errors import Rejected
from skerry.wire.manifest import Tolerance
from skerry.wire.profile import Profile

EXACT = Tolerance(atol=1e-4, rtol=1e-4)
"""What float32 arithmetic in another order may differ by: two architectures differ in the last bits."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One converted form of a network: `precision`, the file's name and bytes, and tolerances by output."""

    precision: str
    file: str
    data: bytes
    tolerances: Mapping[str, Tolerance]


def write_candidates(network: Network, profile: Profile, *, calibration: Array) -> tuple[Candidate, ...]:
    """Write the float form, and every other precision that the profile lists, for the profile's runtime.

    Raises:
        Rejected: the profile lists a precision that its runtime has no writer for.
    """
    wanted = ("float32", *(each for each in profile.precision if each != "float32"))
    return tuple(_write(network, profile, precision, calibration) for precision in wanted)


def _write(network: Network, profile: Profile, precision: str, calibration: Array) -> Candidate:
    exact = {"probabilities": EXACT, "features": EXACT}
    if profile.runtime == "onnxruntime":
        if precision == "float32":
            return Candidate(precision, "model.onnx", onnx_writer.write_float(network), exact)
        if precision == "int8-dynamic":
            # a value on the border of two integers may go either way, by one step of 1/255 of its range
            loose = exact | {"probabilities": Tolerance(atol=0.05, rtol=0.0)}
            return Candidate(precision, "model.onnx", onnx_writer.write_dynamic(network), loose)
        raise Rejected(f"precision: expected float32 or int8-dynamic for onnxruntime, got {precision!r}")
    if precision == "float32":
        return Candidate(precision, "model.tflite", tflite_writer.write_float(network), exact)
    if precision == "int8-hybrid":
        layers = quantise(network, calibration)
        # kernels round differently: two logits, each a step off in opposite directions, move a probability by this much
        atol = math.tanh(layers[-1].leaving.scales[0] / 2)
        loose = exact | {"probabilities": Tolerance(atol=round(atol, 4), rtol=0.0)}
        return Candidate(precision, "model.tflite", tflite_writer.write_hybrid(network, layers), loose)
    raise Rejected(f"precision: expected float32 or int8-hybrid for {profile.runtime}, got {precision!r}")
