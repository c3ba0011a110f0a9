"""One candidate: a precision's name, the writer behind it, its golden tolerances, and the recipe to make it again.

A TFLite file that was brought along is a candidate as it is: nothing is written anew, and ONNX profiles are refused.
Trees for a microcontroller have one form, C in float32 (`converters.emitted`).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from converters.emitted import C_FILE, emit, wants_c
from converters.gate import FLOAT
from converters.onnx_candidates import write_onnx
from converters.samples import Array
from converters.source import TFLITE, Source
from converters.tflite import write_tflite
from converters.tflite_face import precision_of
from skerry.errors import Rejected
from skerry.wire.manifest import Tolerance
from skerry.wire.profile import Profile

EXACT = Tolerance(atol=1e-4, rtol=1e-4)
"""What float32 arithmetic in another order may differ by: two architectures differ in the last bits."""
HYBRID = "int8-hybrid"
FULL = "int8"
HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU"})
"""The operators that integers are for; what comes before the first of them is preprocessing."""
_STEP = 1 / 255


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One converted form of a model.

    `precision` names the form, `file` and `data` are the model file, `tolerances` (by output) go into the manifest,
    `recipe` has every knob that made it, so that it can be made again, and `extras` are files beside it by name, such
    as `model.c` and `model.h` for a microcontroller.
    """

    precision: str
    file: str
    data: bytes
    tolerances: Mapping[str, Tolerance]
    recipe: Mapping[str, str] = field(default_factory=dict)
    extras: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The SHA-256 of the model file."""
        return hashlib.sha256(self.data).hexdigest()


def precisions_of(source: Source, profile: Profile) -> tuple[str, ...]:
    """Return what to write for a profile, the form first that the others are held against: float, or as brought along.

    Raises:
        Rejected: the source is a TFLite file, and the profile's runtime is not of its family.
    """
    if wants_c(source, profile):
        return (FLOAT,)
    if source.format != TFLITE:
        return (FLOAT, *(each for each in profile.precision if each != FLOAT))
    if profile.runtime == "onnxruntime":
        raise Rejected(f"source: expected ONNX for {profile.name}, got TFLite: bring the model along as ONNX")
    return (precision_of(source.data),)


def write_candidate(
    source: Source,
    profile: Profile,
    precision: str,
    *,
    calibration: Mapping[str, Array],
    spans: Mapping[str, float],
    previous: bytes = b"",
) -> Candidate:
    """Write one precision for the profile's runtime; equal arguments give equal bytes.

    Args:
        source: the model.
        profile: the class of device.
        precision: one of the profile's, or float32.
        calibration: rows by input name, rows first.
        spans: by output name, the difference of the largest and the least of the float outputs; for tolerances.
        previous: the model file of the version before in this precision, whose grids static int8 forms keep where
            they fit; empty for none.

    Raises:
        Rejected: the precision has no writer for this runtime, or an operator cannot be written; names it.
    """
    tolerances = {spec.name: _tolerance(precision, spans.get(spec.name, 1.0)) for spec in source.outputs}
    if source.format == TFLITE:
        brought = {"writer": "none: the file as it was brought along"}
        return Candidate(precision, "model.tflite", source.data, tolerances=_loosest(spans, source), recipe=brought)
    if wants_c(source, profile):
        made = emit(source)
        beside = {name: data for name, data in made.files.items() if name != C_FILE}
        data, recipe = made.files[C_FILE], dict(made.recipe)
        return Candidate(FLOAT, C_FILE, data, tolerances=tolerances, recipe=recipe, extras=beside)
    if profile.runtime == "onnxruntime":
        vnni = "vnni" in profile.features
        data, recipe = write_onnx(source, precision, calibration=calibration, vnni=vnni, previous=previous)
        return Candidate(precision, "model.onnx", data, tolerances=tolerances, recipe=recipe)
    if precision == HYBRID and not source.boundary:
        source = replace(source, boundary=find_boundary(source))
    per_channel = profile.runtime != "tflite-runtime"
    data, recipe = write_tflite(
        source, precision, calibration=calibration, dense_per_channel=per_channel, previous=previous
    )
    return Candidate(precision, "model.tflite", data, tolerances=tolerances, recipe=recipe)


def find_boundary(source: Source) -> str:
    """Return the tensor that enters the first operator that integers are for; empty when that is an input."""
    import onnx

    graph = onnx.load_from_string(source.data).graph
    known = {spec.name for spec in source.inputs} | {each.name for each in graph.initializer}
    first = next((node for node in graph.node if node.op_type in HEAVY), None)
    return first.input[0] if first is not None and first.input[0] not in known else ""


def _tolerance(precision: str, span: float) -> Tolerance:
    """Return how far a device's output may be from the golden one: same file, same runtime, another processor."""
    if precision in (FLOAT, "pruned-50"):
        return EXACT
    if precision == "fp16":
        return Tolerance(atol=round(max(EXACT.atol, span * 2e-3), 6), rtol=2e-3)
    # kernels round differently: a value on the border of two integers may go either way, in each layer
    return Tolerance(atol=round(max(EXACT.atol, 12 * _STEP * span), 6), rtol=0.0)


def _loosest(spans: Mapping[str, float], source: Source) -> dict[str, Tolerance]:
    """A file that was brought along may hold integers: nothing is assumed of it."""
    return {spec.name: _tolerance(FULL, spans.get(spec.name, 1.0)) for spec in source.outputs}
