"""The range of every tensor: the float model over calibration rows, in LiteRT, with all tensors looked at.

It is the TFLite graph that runs, not the ONNX one, so that what fusing and decomposing left has a range too. Ranges are
made into scales of 12 significant bits: another processor, which adds in another order, then writes the same bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import frexp, ldexp

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from converters.samples import Array
from converters.tflite.emit import emit
from converters.tflite.ir import Graph, Quantisation
from skerry.errors import Rejected

COVERED = (1.0, 0.9999, 0.999, 0.998)
"""The shares of values, at each side, that ranges are tried with: rare extremes cost the other values precision."""
MAX_VALUES = 1 << 18
MAX_ROWS = 2048
SCALE_BITS = 12
SMALLEST_SCALE = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Range:
    """What calibration saw of a tensor: its extremes, and a sample of its values."""

    low: float
    high: float
    values: Array

    def quantisation(self, covered: float) -> Quantisation:
        """Return the int8 quantisation that covers zero exactly, and this share of the values at each side."""
        if covered == 1.0:
            return quantisation_of(self.low, self.high)
        return quantisation_of(*np.quantile(self.values, [1 - covered, covered]))


def calibrate(graph: Graph, rows: Mapping[str, Array]) -> dict[int, Range]:
    """Return the ranges of the computed float tensors of a graph; `rows` by input name, rows first.

    Raises:
        Rejected: there are no rows, rows are missing for an input, or their shapes do not fit.
    """
    _check(graph, rows)
    interpreter = _open(graph, preserve=True)
    places = {tensor["name"]: tensor["index"] for tensor in interpreter.get_tensor_details()}
    computed = {index for operator in graph.operators for index in operator.outputs} | set(graph.inputs.values())
    watched = {
        index: places[graph.tensors[index].name]
        for index in sorted(computed)
        if graph.tensors[index].dtype == "float32"
    }
    count = min(MAX_ROWS, *(len(each) for each in rows.values()))
    seen: dict[int, list[Array]] = {index: [] for index in watched}
    bounds = {index: [0.0, 0.0] for index in watched}
    for row in range(count):
        _invoke(interpreter, graph, rows, row)
        for index, place in watched.items():
            values = interpreter.get_tensor(place).reshape(-1)
            bounds[index][0] = min(bounds[index][0], float(values.min()))
            bounds[index][1] = max(bounds[index][1], float(values.max()))
            stride = -(-values.size * count // MAX_VALUES)
            seen[index].append(values[row % stride :: stride])
    for index, (low, high) in bounds.items():
        if not np.isfinite(low) or not np.isfinite(high):
            name = graph.tensors[index].name
            raise Rejected(f"calibration: expected finite values in {name}, got {low} to {high}")
    return {index: Range(bounds[index][0], bounds[index][1], np.concatenate(seen[index])) for index in watched}


def outputs_of(graph: Graph, rows: Mapping[str, Array], *, most: int) -> dict[str, Array]:
    """Return what a graph gives for at most so many rows, spread over all, by output name."""
    interpreter = _open(graph, preserve=False)
    places = {tensor["name"]: tensor["index"] for tensor in interpreter.get_output_details()}
    count = min(len(each) for each in rows.values())
    found: dict[str, list[Array]] = {name: [] for name in places}
    for row in np.unique(np.linspace(0, count - 1, min(most, count)).astype(np.int64)):
        _invoke(interpreter, graph, rows, int(row))
        for name, place in places.items():
            found[name].append(interpreter.get_tensor(place))
    return {name: np.stack(each) for name, each in found.items()}


def quantisation_of(low: float, high: float) -> Quantisation:
    """Return the int8 quantisation that covers a range, and zero exactly."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = rounded_up((high - low) / 255) if high > low else 1.0
    return Quantisation((scale,), int(np.clip(round(-128 - low / scale), -128, 127)))


def rounded_up(scale: float) -> float:
    """Return the next number of `SCALE_BITS` significant bits."""
    fraction, exponent = frexp(max(scale, SMALLEST_SCALE))
    return ldexp(float(np.ceil(ldexp(fraction, SCALE_BITS))), exponent - SCALE_BITS)


def _open(graph: Graph, *, preserve: bool) -> Interpreter:
    interpreter = Interpreter(
        model_content=emit(graph),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=preserve,
        num_threads=1,
    )
    interpreter.allocate_tensors()
    return interpreter


def _invoke(interpreter: Interpreter, graph: Graph, rows: Mapping[str, Array], row: int) -> None:
    for place in interpreter.get_input_details():
        tensor = graph.tensors[graph.inputs[place["name"]]]
        given = rows[place["name"]][row].reshape(tensor.shape).astype(tensor.dtype)
        interpreter.set_tensor(place["index"], given)
    interpreter.invoke()


def _check(graph: Graph, rows: Mapping[str, Array]) -> None:
    for name, index in graph.inputs.items():
        tensor = graph.tensors[index]
        if name not in rows or not len(rows[name]):
            raise Rejected(f"calibration: expected rows for the input {name}, got none")
        if rows[name][0].size != tensor.size:
            raise Rejected(f"calibration: expected rows of {list(tensor.shape)}, got {list(rows[name].shape[1:])}")
