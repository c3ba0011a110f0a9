"""A float ONNX source in every precision that ONNX Runtime has; equal arguments give equal bytes.

float32          as it is                               fp16             computes in half, float inputs and outputs
fp16-weights     halves are stored, floats computed     pruned-50        the smaller half of each weight is zero
int8-qdq         static, per channel, S8S8 QDQ          int8-qoperator   static, integer operators
int8-dynamic     weights int8, MatMul and Gemm alone    pruned-50+...    pruned, then quantised

Preprocessing before the source's `boundary`, and the softmax or sigmoid at the end, stay float in the static forms: one
scale for features of unlike size costs labels, and confidences in steps of 1/256 cannot be watched for drift.
"""

from collections.abc import Mapping

import onnx

from converters import onnx_quantise
from converters.half import store_half, to_half
from converters.onnx_graph import bare
from converters.prune import prune
from converters.samples import Array
from converters.source import ONNX, Source
from skerry.errors import Rejected

PRUNED = "pruned-50"
PRECISIONS = (
    "float32",
    "fp16",
    "fp16-weights",
    "int8-qdq",
    "int8-qoperator",
    "int8-dynamic",
    PRUNED,
    f"{PRUNED}+int8-qdq",
    f"{PRUNED}+int8-qoperator",
    f"{PRUNED}+int8-dynamic",
    f"{PRUNED}+fp16-weights",
)


def write_onnx(
    source: Source, precision: str, *, calibration: Mapping[str, Array], vnni: bool, previous: bytes = b""
) -> tuple[bytes, dict[str, str]]:
    """Return the model in a precision, and the recipe that makes it again.

    Args:
        source: an ONNX source.
        precision: one of `PRECISIONS`.
        calibration: rows by input name, rows first; used by the static forms alone.
        vnni: whether the processor multiplies int8 without saturating; without it, weights keep to seven bits.
        previous: the file of the version before in the same precision, whose grids `int8-qdq` keeps where they fit.

    Raises:
        Rejected: the source is TFLite, or nothing in it can be written in that precision; says which.
    """
    if source.format != ONNX:
        raise Rejected(f"{precision}: expected an ONNX source, got {source.format}: TFLite profiles only")
    if precision not in PRECISIONS:
        raise Rejected(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    recipe = {"precision": precision, "onnx": onnx.__version__}
    data = source.data
    steps = [step for step in precision.split("+") if step != "float32"]
    for step in steps:
        if step == PRUNED:
            data, made = prune(data, share=0.5, boundary=source.boundary)
        elif step == "fp16":
            data, made = to_half(data, boundary=source.boundary)
        elif step == "fp16-weights":
            data, made = store_half(data)
        elif step == "int8-dynamic":
            data, made = onnx_quantise.dynamic(data, boundary=source.boundary, vnni=vnni)
        else:
            data, made = onnx_quantise.static(
                data, form=step, calibration=calibration, boundary=source.boundary, vnni=vnni, previous=previous
            )
        recipe |= made
    return bare(data), recipe
