"""What the emitted C of a tree ensemble gives for rows, computed here in its order of float32 operations.

Tests hold it against the C compiled for this machine and for an emulated Cortex-M3, bit for bit, and against ONNX
Runtime. So a candidate can be measured without a compiler.
"""

import numpy as np

from converters.c.behind import PAIR
from converters.c.ensemble import Ensemble
from converters.c.exponential import exponential
from converters.samples import Array

_COMPARE = {"<=": np.less_equal, "<": np.less, ">=": np.greater_equal, ">": np.greater}
_ONE = np.float32(1)


def evaluate(ensemble: Ensemble, rows: Array) -> Array:
    """Return the scores, float32 (n, outputs), of float32 rows (n, width)."""
    # a sum may overflow, as it does in C: what is not finite is refused by whoever measures
    with np.errstate(all="ignore"):
        sums = _sums(ensemble, rows)
        if ensemble.transform == PAIR:
            second = _logistic(sums)
            return np.concatenate([_ONE - second, second], axis=1)
        if ensemble.rule == "half":
            return np.concatenate([_ONE - sums, sums], axis=1)
        if ensemble.rule == "sign":
            sums = np.concatenate([-sums, sums], axis=1)
        if ensemble.transform == "LOGISTIC":
            return _logistic(sums)
        return _softmax(sums) if ensemble.transform == "SOFTMAX" else sums


def hard_rows(ensemble: Ensemble, count: int) -> Array:
    """Return seeded rows, float32 (count, width), most of whose values lie on a threshold or next to one."""
    draw = np.random.default_rng(1)
    rows = draw.normal(size=(count, ensemble.width)).astype(np.float32)
    for feature in range(ensemble.width):
        thresholds = ensemble.threshold[ensemble.feature == feature]
        if len(thresholds):
            on = draw.choice(thresholds, count)
            rows[:, feature] = np.where(draw.random(count) < 0.5, on, np.nextafter(on, np.float32(np.inf)))
    return rows


def _sums(ensemble: Ensemble, rows: Array) -> Array:
    everyone = np.arange(len(rows))
    compare = _COMPARE[ensemble.comparison]
    sums = np.zeros((len(rows), ensemble.sums), dtype=np.float32)
    for root in ensemble.roots:
        node = np.full(len(rows), root)
        while (walking := ensemble.feature[node] >= 0).any():
            value = rows[everyone, np.maximum(ensemble.feature[node], 0)]
            yes = compare(value, ensemble.threshold[node]) | ((ensemble.nan_goes_yes[node] != 0) & np.isnan(value))
            node = np.where(walking, np.where(yes, ensemble.yes[node], ensemble.no[node]), node)
        first, past = ensemble.yes[node], ensemble.no[node]
        for step in range(int((past - first).max(initial=0))):
            here = first + step < past
            leaf = (first + step)[here]
            target = ensemble.targets[leaf] if ensemble.sums > 1 else 0
            sums[everyone[here], target] += ensemble.weights[leaf]
    if ensemble.rule == "mean":
        sums /= np.float32(len(ensemble.roots))
    return sums + ensemble.base if len(ensemble.base) else sums


def _logistic(sums: Array) -> Array:
    value = _ONE / (_ONE + exponential(-np.abs(sums)))
    return np.where(sums < 0, _ONE - value, value)


def _softmax(sums: Array) -> Array:
    powers = exponential(sums - sums.max(axis=1, keepdims=True))
    total = np.zeros(len(sums), dtype=np.float32)
    for column in range(sums.shape[1]):
        total += powers[:, column]
    return powers / total[:, None]
