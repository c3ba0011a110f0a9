"""What a device watches of a model, and its baseline: bins and reference from the candidate's own outputs.

    features        the output that the model names for it; else its one input, where that is a row of numbers
    prediction      the label, of a classifier
    confidence      the largest probability, of a classifier

A model that is no classifier and has neither is watched by its smallest output. `Watch.observe` says in the manifest
what feeds the monitor: `features` names an output or an input, `probabilities` an output.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from converters.samples import Array, Rows
from converters.source import Source
from skerry.drift.monitor import CONFIDENCE, PREDICTION, Monitor
from skerry.drift.reference import build_monitor
from skerry.errors import Rejected

MOST_SCALARS = 64
"""The most elements of an input or output that are watched: each costs the device its bins, and the air its counts."""


@dataclass(frozen=True, slots=True)
class Watch:
    """The monitor, and the manifest's `observe` that feeds it."""

    monitor: Monitor
    observe: Mapping[str, str]


def watch(
    source: Source,
    *,
    learnt: Rows,
    held_out: Rows,
    learnt_outputs: Mapping[str, Array],
    held_out_outputs: Mapping[str, Array],
    window_n: int,
) -> Watch:
    """Return what is watched, with its baseline from learnt and held-out rows.

    The calibration table (how often a confidence is right) is from held-out rows alone: on rows that it learnt from, a
    model is right more often than it will be.

    Raises:
        Rejected: there is nothing to watch.
    """
    name = watched_by(source)
    values: dict[str, Array] = {
        key: np.concatenate([_flat(one[key]), _flat(other[key])])
        for one, other in ((learnt.inputs, held_out.inputs), (learnt_outputs, held_out_outputs))
        for key in one
    }
    columns = {}
    if name:
        names = source.feature_names if name == source.features else ()
        width = values[name].shape[1]
        names = names if len(names) == width else tuple(f"{name}_{index}" for index in range(width))
        columns = {column: values[name][:, index].astype(float).tolist() for index, column in enumerate(names)}
    observe = {"features": name} if name else {}
    if not source.probabilities:
        return Watch(monitor=build_monitor(columns, window_n=window_n), observe=observe)

    chances = values[source.probabilities]
    monitor = build_monitor(
        columns,
        categories={PREDICTION: [source.labels[index] for index in chances.argmax(axis=1)]},
        confidence=chances.max(axis=1).astype(float).tolist(),
        window_n=window_n,
    )
    if held_out.truth is not None:
        monitor = _calibrated(monitor, _flat(held_out_outputs[source.probabilities]), held_out.truth)
    return Watch(monitor=monitor, observe=observe | {"probabilities": source.probabilities})


def watched_by(source: Source) -> str:
    """Return the output or input whose elements are watched; empty for a classifier that has none.

    Raises:
        Rejected: there is nothing to watch.
    """
    if source.features:
        return source.features
    widths = {spec.name: int(np.prod(spec.shape)) for spec in (*source.inputs, *source.outputs)}
    only = source.inputs[0] if len(source.inputs) == 1 else None
    if only is not None and len(only.shape) == 2 and widths[only.name] <= MOST_SCALARS and "float" in only.dtype:
        return only.name
    if source.probabilities:
        return ""
    smallest = min((spec.name for spec in source.outputs), key=lambda name: widths[name])
    if widths[smallest] > MOST_SCALARS:
        got = f"{widths[smallest]} or more: name one with --features"
        raise Rejected(f"monitor: expected an output of at most {MOST_SCALARS} numbers, got {got}")
    return smallest


def _calibrated(monitor: Monitor, chances: Array, truth: Array) -> Monitor:
    scalar = monitor.scalars[monitor.position(CONFIDENCE)]
    table = [[0, 0] for _ in range(scalar.bins - 3)]
    right = chances.argmax(axis=1) == truth
    for confidence, correct in zip(chances.max(axis=1).tolist(), right.tolist(), strict=True):
        index = scalar.bin_of(confidence) - 1
        if 0 <= index < len(table):
            table[index][0] += 1
            table[index][1] += int(correct)
    return replace(monitor, calibration=tuple((rows, correct) for rows, correct in table))


def _flat(array: Array) -> Array:
    return array.reshape(len(array), -1)
