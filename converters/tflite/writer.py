"""The writer's one verb: a source and a precision in, the bytes of a TFLite model and their recipe out."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from math import tanh
from typing import Protocol

import numpy as np

from converters.samples import Array
from converters.tflite import sticky
from converters.tflite.calibrate import COVERED, Range, calibrate, outputs_of
from converters.tflite.convert import convert
from converters.tflite.emit import emit
from converters.tflite.ir import Graph
from converters.tflite.quantise import PROBABILITIES, Plan, quantise, quantise_weights
from skerry.errors import Rejected

PRECISIONS = ("float32", "int8", "int8-hybrid", "int8-dynamic")
TRIED_ROWS = 256
"""How many calibration rows decide how far ranges reach."""


class OnnxSource(Protocol):
    """What the writer reads of a `converters.source.Source`: the ONNX bytes, and where float preprocessing ends."""

    @property
    def data(self) -> bytes:
        """Opset 17, batch 1."""

    @property
    def boundary(self) -> str:
        """The ONNX tensor at which the int8 part of a hybrid begins; empty for the inputs."""


def write_tflite(
    source: OnnxSource,
    precision: str,
    *,
    calibration: Mapping[str, Array],
    dense_per_channel: bool = True,
    previous: bytes = b"",
) -> tuple[bytes, dict[str, str]]:
    """Write a source as TFLite; equal arguments give equal bytes. Returns the model and its recipe (every knob).

    Inputs and outputs keep ONNX names, shapes and types in every precision.

    Args:
        source: the float32 ONNX graph.
        precision: `float32`; `int8`, all integers between a QUANTIZE and a DEQUANTIZE at the edges; `int8-hybrid`,
            float up to `source.boundary` and in the last softmax; `int8-dynamic`, int8 weights and float activations
            (LiteRT alone).
        calibration: rows by input name, rows first (n, ...): ranges for `int8` and `int8-hybrid`; may be empty for
            the others.
        dense_per_channel: whether a dense layer has one weight scale for each output; runtimes from before 2024
            (`tflite-runtime`) know one scale alone.
        previous: the file of the version before in the same precision, whose grids `int8` and `int8-hybrid` keep where
            they fit; empty for none.

    Raises:
        Unsupported: the graph has an operator, a shape or a type without a TFLite form; the message names the node.
        Rejected: the precision is unknown, or it needs calibration rows that are missing.
    """
    if precision not in PRECISIONS:
        raise Rejected(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    boundary = source.boundary if precision == "int8-hybrid" else ""
    graph, starts = convert(source.data, boundary=boundary)
    recipe = {"writer": "skerry-tflite-1", "precision": precision, "source": hashlib.sha256(source.data).hexdigest()}
    if precision == "float32":
        return emit(graph), recipe
    recipe["dense"] = "per-channel" if dense_per_channel else "per-tensor"
    if precision == "int8-dynamic":
        return emit(quantise_weights(graph, dense_per_channel=dense_per_channel)), recipe

    ranges = calibrate(graph, calibration)
    hybrid = precision == "int8-hybrid"
    plan = Plan(
        starts=starts if hybrid else None,
        float_kinds=PROBABILITIES if hybrid else frozenset(),
        dense_per_channel=dense_per_channel,
        previous=sticky.grids_of(previous) if previous else {},
    )
    integers, covered = _best(graph, ranges, plan, calibration)
    recipe |= {
        "calibration": _digest(calibration),
        "calibration_rows": str(min(len(rows) for rows in calibration.values())),
        "covered": str(covered),
        "float_operators": ", ".join(_float_operators(integers)),
    }
    if hybrid:
        recipe["boundary"] = boundary or ", ".join(graph.inputs)
    out = emit(integers)
    return out, recipe | _steps(integers) | sticky.recipe_of(previous, out)


def _best(graph: Graph, ranges: Mapping[int, Range], plan: Plan, rows: Mapping[str, Array]) -> tuple[Graph, float]:
    """Return the integers whose outputs are nearest to the float graph's, and the cover of their ranges.

    Whether cut extremes pay depends on the net: they halve the error on heavy-tailed features, and add to it on images.
    """
    expected = outputs_of(graph, rows, most=TRIED_ROWS)
    found: list[tuple[float, float, Graph]] = []
    for covered in COVERED:
        integers = quantise(graph, ranges, replace(plan, covered=covered))
        got = outputs_of(integers, rows, most=TRIED_ROWS)
        error = sum(_relative_error(got[name], each) for name, each in expected.items())
        found.append((error, -covered, integers))
    _, covered, integers = min(found, key=lambda each: each[:2])
    return integers, -covered


def _relative_error(got: Array, expected: Array) -> float:
    difference = got.astype(np.float64) - expected
    return float(np.sqrt(np.mean(np.square(difference)))) / (float(np.ptp(expected)) or 1.0)


def _digest(rows: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()
    for name in sorted(rows):
        digest.update(f"{name} {rows[name].dtype} {rows[name].shape}".encode())
        digest.update(rows[name].tobytes())
    return digest.hexdigest()


def _float_operators(graph: Graph) -> list[str]:
    """Return the kinds of operators that compute in float, in order."""
    found = {
        operator.kind: None
        for operator in graph.operators
        if operator.kind not in ("QUANTIZE", "DEQUANTIZE") and graph.tensors[operator.outputs[0]].dtype == "float32"
    }
    return list(found)


def _steps(graph: Graph) -> dict[str, str]:
    """Return by output what one step of the integers before it is worth: kernels may round a border either way.

    Behind a float softmax, two logits that are each a step off in opposite directions move a probability by
    tanh(step / 2).
    """
    makers = {index: operator for operator in graph.operators for index in operator.outputs}
    steps = {}
    for name, index in graph.outputs.items():
        maker, soft = makers.get(index), False
        while maker is not None and maker.kind in ("SOFTMAX", "RESHAPE", "TRANSPOSE"):
            soft = soft or maker.kind == "SOFTMAX"
            maker = makers.get(maker.inputs[0])
        scale = None if maker is None or maker.kind != "DEQUANTIZE" else graph.tensors[maker.inputs[0]].quantisation
        if scale is not None:
            steps[f"step:{name}"] = repr(tanh(scale.scales[0] / 2) if soft else scale.scales[0])
    return steps
