"""From reference rows to a monitor: edges, categories, the pairs worth watching, counts and design effects.

This runs where the training or validation data is, never on a device.
"""

import math
import struct
from collections import Counter as Tally
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from skerry.drift.counting import Counter
from skerry.drift.design import design_effects
from skerry.drift.monitor import CONFIDENCE, PAIR_CELLS, Counts, Monitor, Pair, Rejected, Scalar

TOP_CATEGORIES = 20
CALIBRATION_BINS = 20
IDENTICAL = 0.98  # two scalars more correlated than this are one scalar twice
ENOUGH_BATCHES = 8
ROWS_FOR_CORRELATION = 5000


def build_monitor(
    columns: Mapping[str, Sequence[float]],
    *,
    categories: Mapping[str, Sequence[str]] | None = None,
    confidence: Sequence[float] | None = None,
    correct: Sequence[bool] | None = None,
    window_n: int,
    pairs: int = 4,
    time_ordered: bool = False,
    alpha: float = 0.01,
    horizon_windows: int = 30,
    commissioning_windows: int = 8,
) -> Monitor:
    """Build a monitor from reference rows: numeric columns, category columns (the prediction among them), confidence.

    The monitor's order is that of `columns`, then of `categories`, then "confidence". All columns have the same number
    of rows. `correct` says which predictions were right, for the calibration table. `time_ordered` says that rows are
    in the order in which they were seen; only then can batches of `window_n` rows show a design effect. Raises
    `Rejected`.
    """
    categories = categories or {}
    numeric = dict(columns)
    if confidence is not None:
        if CONFIDENCE in numeric:
            raise Rejected(f"columns: expected confidence as an argument of its own, got a column {CONFIDENCE!r}")
        numeric[CONFIDENCE] = confidence
    rows = _rows_of({**numeric, **categories})

    inputs = [_numeric_scalar(name, values, parts=10) for name, values in columns.items()]
    named = [_category_scalar(name, values) for name, values in categories.items()]
    last = [] if confidence is None else [_numeric_scalar(CONFIDENCE, confidence, parts=CALIBRATION_BINS)]
    scalars = (*inputs, *named, *last)
    chosen = _correlated_pairs(inputs, columns, limit=pairs)
    empty = Monitor(
        scalars=scalars,
        pairs=tuple(_empty_pair(a, b, columns) for a, b in chosen),
        window_n=window_n,
        alpha=alpha,
        horizon_windows=horizon_windows,
        commissioning_windows=commissioning_windows,
    )

    everything: dict[str, Sequence[float] | Sequence[str]] = {
        **columns,
        **categories,
        **({} if confidence is None else {CONFIDENCE: confidence}),
    }
    ordered = [everything[scalar.name] for scalar in scalars]
    reference = _count(empty, ordered, 0, rows)
    batches = [_count(empty, ordered, start, start + window_n) for start in range(0, rows - window_n + 1, window_n)]
    effects = (1.0,) * len(reference)
    if time_ordered and len(batches) >= ENOUGH_BATCHES:
        effects = design_effects(batches, pairs=len(empty.pairs))
    calibration = () if confidence is None or correct is None else _calibrate(scalars[-1], confidence, correct)
    return _filled(empty, reference, effects, calibration)


def _filled(
    empty: Monitor, reference: Counts, effects: Sequence[float], calibration: tuple[tuple[int, int], ...]
) -> Monitor:
    width = len(empty.scalars)
    known = list(zip(reference, effects, strict=True))
    return replace(
        empty,
        scalars=tuple(
            replace(scalar, reference=counts, design_effect=effect)
            for scalar, (counts, effect) in zip(empty.scalars, known[:width], strict=True)
        ),
        pairs=tuple(
            replace(pair, reference=counts, design_effect=effect)
            for pair, (counts, effect) in zip(empty.pairs, known[width:], strict=True)
        ),
        calibration=calibration,
    )


def _rows_of(columns: Mapping[str, Sequence[object]]) -> int:
    lengths = {len(values) for values in columns.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise Rejected(f"columns: expected one or more, of the same number of rows, got {sorted(lengths)} rows")
    return lengths.pop()


def _count(monitor: Monitor, ordered: Sequence[Sequence[float] | Sequence[str]], start: int, stop: int) -> Counts:
    counter = Counter(monitor)
    for row in zip(*(values[start:stop] for values in ordered), strict=True):
        counter.add(row)
    return counter.counts()


def _numeric_scalar(name: str, values: Sequence[float], *, parts: int) -> Scalar:
    finite = sorted(float(value) for value in values if value is not None and math.isfinite(value))
    if not finite:
        raise Rejected(f"column {name!r}: expected at least one finite number, got none")
    inner = [_float32(finite[len(finite) * part // parts]) for part in range(1, parts)]
    # The top edge lies just above the largest value, which therefore is within range.
    edges = sorted({_float32_below(finite[0]), *inner, _float32_above(finite[-1])})
    return Scalar(name=name, kind="numeric", edges=tuple(edges), reference=(0,) * (len(edges) + 2))


def _category_scalar(name: str, values: Sequence[str]) -> Scalar:
    tally = Tally(str(value) for value in values if value is not None)
    top = tuple(category for category, _ in sorted(tally.items(), key=lambda item: (-item[1], item[0])))
    top = top[:TOP_CATEGORIES]
    return Scalar(name=name, kind="category", categories=top, reference=(0,) * (len(top) + 2))


def _empty_pair(a: str, b: str, columns: Mapping[str, Sequence[float]]) -> Pair:
    return Pair(a=a, b=b, edges_a=_quartiles(columns[a]), edges_b=_quartiles(columns[b]), reference=(0,) * PAIR_CELLS)


def _quartiles(values: Sequence[float]) -> tuple[float, ...]:
    finite = sorted(float(value) for value in values if value is not None and math.isfinite(value))
    return tuple(_float32(finite[len(finite) * part // 4]) for part in (1, 2, 3))


def _correlated_pairs(
    scalars: Sequence[Scalar], columns: Mapping[str, Sequence[float]], *, limit: int
) -> list[tuple[str, str]]:
    """Pick the pairs with the largest correlation of bin ranks: robust against outliers, and cheap."""
    standard: dict[str, list[float]] = {}
    for scalar in scalars:
        values = columns[scalar.name]
        stride = max(1, len(values) // ROWS_FOR_CORRELATION)
        ranks = [float(scalar.bin_of(value)) for value in values[::stride]]
        mean = math.fsum(ranks) / len(ranks)
        norm = math.sqrt(math.fsum((rank - mean) ** 2 for rank in ranks))
        if norm > 0:
            standard[scalar.name] = [(rank - mean) / norm for rank in ranks]
    found = [
        (abs(sum(x * y for x, y in zip(standard[a], standard[b], strict=True))), a, b)
        for a, b in combinations(standard, 2)
    ]
    eligible = sorted(((rho, a, b) for rho, a, b in found if rho <= IDENTICAL), key=lambda item: (-item[0], item[1:]))
    return [(a, b) for _, a, b in eligible[:limit]]


def _calibrate(scalar: Scalar, confidence: Sequence[float], correct: Sequence[bool]) -> tuple[tuple[int, int], ...]:
    if len(correct) != len(confidence):
        raise Rejected(f"correct: expected {len(confidence)} rows, got {len(correct)}")
    table = [[0, 0] for _ in range(scalar.bins)]
    for value, right in zip(confidence, correct, strict=True):
        entry = table[scalar.bin_of(value)]
        entry[0] += 1
        entry[1] += bool(right)
    return tuple((count, right) for count, right in table[1:-2])


def _float32(value: float) -> float:
    limit = 3.4028234663852886e38
    return float(struct.unpack("<f", struct.pack("<f", min(max(value, -limit), limit)))[0])


def _float32_below(value: float) -> float:
    nearest = _float32(value)
    return nearest if nearest <= value else _float32_step(nearest, -math.inf)


def _float32_above(value: float) -> float:
    nearest = _float32(value)
    # Strictly above the value *and* its float32 rounding, whichever a device computes with.
    return _float32_step(nearest, math.inf)


def _float32_step(value: float, toward: float) -> float:
    """Return the next float32 in a direction; a float32 has 24 bits of mantissa."""
    if value == 0.0:
        return math.copysign(2.0**-149, toward)
    step = 2.0 ** max(math.frexp(value)[1] - 25, -149)
    moved = _float32(value + math.copysign(step, toward))
    return moved if moved != value else _float32(value + math.copysign(2 * step, toward))
