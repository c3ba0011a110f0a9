"""What a device watches: the bins of every monitored scalar and pair, and what the training data put into them.

A monitor travels, signed, in an artifact's manifest. The layout of the bins is fixed here and nowhere else:

    numeric    below the range | one bin per gap between edges | above the range | missing (None, NaN, infinite)
    category   one bin per named category | other | missing (None)
    pair       4 x 4 cells, row by row: (quartile of a) * 4 + (quartile of b); a row that lacks either is not counted

so a numeric scalar with the edges (0, 1, 2) has five bins, and the value 1.0 falls into the third of them.
This module does not count (`counting`), does not look at rows (`reference`) and does not test (`evidence`).
"""

import hashlib
import json
import math
import struct
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from skerry import errors

Counts = tuple[tuple[int, ...], ...]
"""Counts of one span of time: a tuple of bins for every scalar in the monitor's order, then for every pair."""

PREDICTION = "prediction"
CONFIDENCE = "confidence"
PAIR_CELLS = 16


class Rejected(errors.Rejected, ValueError):
    """A monitor, or counts for it, that cannot be used; whoever built the artifact or the report must act."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalar:
    """One monitored number or category, with its bins and their reference counts.

    `edges` are ascending and exact in float32, so a device that computes in float32 bins as the server did.
    `design_effect` is the variance of a window's mean over that of independent rows, at least 1.
    """

    name: str
    kind: Literal["numeric", "category"]
    reference: tuple[int, ...]
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    design_effect: float = 1.0

    def __post_init__(self) -> None:
        _expect(self.kind in {"numeric", "category"}, f"kind of {self.name!r}", "numeric or category", self.kind)
        if self.kind == "numeric":
            _expect(len(self.edges) >= 2, f"edges of {self.name!r}", "two or more", len(self.edges))
            _expect(not self.categories, f"categories of the numeric {self.name!r}", "none", self.categories)
            _check_edges(self.name, self.edges, strictly=True)
        else:
            _expect(not self.edges, f"edges of the category {self.name!r}", "none", self.edges)
            distinct = len(set(self.categories)) == len(self.categories)
            _expect(distinct, f"categories of {self.name!r}", "distinct names", self.categories)
        _check_reference(self.name, self.reference, self.design_effect, bins=self.bins)

    @property
    def bins(self) -> int:
        """The number of bins, those for out of range, other and missing included."""
        return (len(self.edges) if self.kind == "numeric" else len(self.categories)) + 2

    def bin_of(self, value: float | str | None) -> int:
        """Say which bin a value falls into; `counting.Counter` does the same, faster."""
        if value is None:
            return self.bins - 1
        if self.kind == "category":
            name = str(value)
            return self.categories.index(name) if name in self.categories else len(self.categories)
        number = float(value)
        return bisect_right(self.edges, number) if math.isfinite(number) else self.bins - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two correlated numeric scalars in 4 x 4 cells: marginal bins alone are blind to a change of correlation."""

    a: str
    b: str
    edges_a: tuple[float, ...]
    edges_b: tuple[float, ...]
    reference: tuple[int, ...]
    design_effect: float = 1.0

    def __post_init__(self) -> None:
        for edges in (self.edges_a, self.edges_b):
            _expect(len(edges) == 3, f"edges of {self.name!r}", "three quartiles", len(edges))
            _check_edges(self.name, edges, strictly=False)
        _check_reference(self.name, self.reference, self.design_effect, bins=PAIR_CELLS)

    @property
    def name(self) -> str:
        """The pair's name in reports and on pages."""
        return f"{self.a} x {self.b}"

    def cell_of(self, a: float | None, b: float | None) -> int | None:
        """Say which cell two values fall into, or None when either is missing."""
        if a is None or b is None or not (math.isfinite(a) and math.isfinite(b)):
            return None
        return 4 * bisect_right(self.edges_a, a) + bisect_right(self.edges_b, b)


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitor:
    """Everything that a device needs to count, to commission itself and to test.

    `alpha` is the chance of any alarm within `horizon_windows` windows without a change. `window_n` is the number of
    rows expected in a window. `calibration` holds (rows, correct rows) for each bin within the range of the scalar
    named "confidence", and is empty where no labels were at hand.
    """

    scalars: tuple[Scalar, ...]
    pairs: tuple[Pair, ...] = ()
    window_n: int
    alpha: float = 0.01
    horizon_windows: int = 30
    commissioning_windows: int = 8
    calibration: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        names = [scalar.name for scalar in self.scalars]
        _expect(bool(names) and len(set(names)) == len(names), "scalars", "one or more, of distinct names", names)
        numeric = {scalar.name for scalar in self.scalars if scalar.kind == "numeric"}
        for pair in self.pairs:
            known = pair.a in numeric and pair.b in numeric and pair.a != pair.b
            _expect(known, f"pair {pair.name!r}", "two different numeric scalars", (pair.a, pair.b))
        _expect(0 < self.alpha < 1, "alpha", "a number between 0 and 1", self.alpha)
        _expect(self.window_n >= 1, "window_n", "at least 1", self.window_n)
        _expect(self.horizon_windows >= 1, "horizon_windows", "at least 1", self.horizon_windows)
        _expect(self.commissioning_windows >= 8, "commissioning_windows", "at least 8", self.commissioning_windows)
        if self.calibration:
            _expect(CONFIDENCE in numeric, "calibration", f"a numeric scalar named {CONFIDENCE!r} beside it", names)
            expected = self.scalars[self.position(CONFIDENCE)].bins - 3
            _expect(len(self.calibration) == expected, "calibration", f"{expected} bins", len(self.calibration))
            sane = all(0 <= correct <= rows for rows, correct in self.calibration)
            _expect(sane, "calibration", "0 <= correct <= rows in each bin", self.calibration)

    @property
    def items(self) -> tuple[Scalar | Pair, ...]:
        """Everything that has counts, in the order of counts: scalars, then pairs."""
        return (*self.scalars, *self.pairs)

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the order of counts: scalars, then pairs."""
        return tuple(item.name for item in self.items)

    @property
    def shape(self) -> tuple[int, ...]:
        """Bins in the order of counts."""
        return (*(scalar.bins for scalar in self.scalars), *(PAIR_CELLS for _ in self.pairs))

    @property
    def reference(self) -> Counts:
        """What the training data put into the bins."""
        return tuple(item.reference for item in self.items)

    @property
    def design_effects(self) -> tuple[float, ...]:
        """The manifest's design effects, in the order of counts."""
        return tuple(item.design_effect for item in self.items)

    def position(self, name: str) -> int:
        """Say where a scalar stands in the order of counts; raises KeyError for an unknown name."""
        for index, scalar in enumerate(self.scalars):
            if scalar.name == name:
                return index
        raise KeyError(name)

    def check(self, counts: Counts) -> None:
        """Raise `Rejected` unless the counts have this monitor's shape and are not negative."""
        shape = tuple(len(bins) for bins in counts)
        _expect(shape == self.shape, "counts", f"bins {self.shape}", shape)
        _expect(all(min(bins) >= 0 for bins in counts), "counts", "no negative count", "one")

    def digest(self) -> str:
        """Name this monitor by content: artifacts with the same digest share a device's commissioning."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Write the monitor as the manifest's `monitor` block."""
        return {
            "scalars": [_scalar_to_json(scalar) for scalar in self.scalars],
            "pairs": [
                {
                    "a": pair.a,
                    "b": pair.b,
                    "edges_a": list(pair.edges_a),
                    "edges_b": list(pair.edges_b),
                    "reference": list(pair.reference),
                    "design_effect": pair.design_effect,
                }
                for pair in self.pairs
            ],
            "window_n": self.window_n,
            "alpha": self.alpha,
            "horizon_windows": self.horizon_windows,
            "commissioning_windows": self.commissioning_windows,
            "calibration": [list(entry) for entry in self.calibration],
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "Monitor":
        """Read a manifest's `monitor` block; raises `Rejected` with what was expected and what was found."""
        return Monitor(
            scalars=tuple(_scalar_from_json(entry) for entry in _entries(document, "scalars")),
            pairs=tuple(_pair_from_json(entry) for entry in _entries(document, "pairs")),
            window_n=_integer(document, "window_n"),
            alpha=_number(document, "alpha"),
            horizon_windows=_integer(document, "horizon_windows"),
            commissioning_windows=_integer(document, "commissioning_windows"),
            calibration=_calibration(document),
        )


def _scalar_to_json(scalar: Scalar) -> dict[str, Any]:
    layout = {"edges": list(scalar.edges)} if scalar.kind == "numeric" else {"categories": list(scalar.categories)}
    return {
        "name": scalar.name,
        "kind": scalar.kind,
        **layout,
        "reference": list(scalar.reference),
        "design_effect": scalar.design_effect,
    }


def _scalar_from_json(entry: Mapping[str, Any]) -> Scalar:
    kind = _text(_get(entry, "kind"), "kind")
    _expect(kind in {"numeric", "category"}, "kind", "numeric or category", kind)
    return Scalar(
        name=_text(_get(entry, "name"), "name"),
        kind="numeric" if kind == "numeric" else "category",
        edges=_numbers(entry, "edges") if kind == "numeric" else (),
        categories=tuple(_text(item, "category") for item in _list(entry, "categories")) if kind == "category" else (),
        reference=_integers(entry, "reference"),
        design_effect=_number(entry, "design_effect"),
    )


def _pair_from_json(entry: Mapping[str, Any]) -> Pair:
    return Pair(
        a=_text(_get(entry, "a"), "a"),
        b=_text(_get(entry, "b"), "b"),
        edges_a=_numbers(entry, "edges_a"),
        edges_b=_numbers(entry, "edges_b"),
        reference=_integers(entry, "reference"),
        design_effect=_number(entry, "design_effect"),
    )


def _calibration(document: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    table: list[tuple[int, int]] = []
    for entry in _list(document, "calibration"):
        paired = isinstance(entry, (list, tuple)) and len(entry) == 2
        _expect(paired, "calibration", "pairs of rows and correct rows", entry)
        table.append((_whole(entry[0], "calibration"), _whole(entry[1], "calibration")))
    return tuple(table)


def _expect(condition: bool, what: str, expected: str, got: object) -> None:
    if not condition:
        raise Rejected(f"{what}: expected {expected}, got {got!r:.200}")


def _check_edges(name: str, edges: tuple[float, ...], *, strictly: bool) -> None:
    _expect(all(is_float32(edge) for edge in edges), f"edges of {name!r}", "finite float32 numbers", edges)
    steps = pairwise(edges)
    ascending = all(low < high or (low == high and not strictly) for low, high in steps)
    _expect(ascending, f"edges of {name!r}", "ascending numbers", edges)


def _check_reference(name: str, reference: tuple[int, ...], design_effect: float, *, bins: int) -> None:
    _expect(len(reference) == bins, f"reference of {name!r}", f"{bins} bins", len(reference))
    _expect(min(reference) >= 0, f"reference of {name!r}", "no negative count", min(reference))
    sane = math.isfinite(design_effect) and design_effect >= 1.0
    _expect(sane, f"design effect of {name!r}", "a number of at least 1", design_effect)


def as_counts(document: Sequence[Sequence[int]]) -> Counts:
    """Read counts from JSON's lists; `Monitor.check` says whether they fit."""
    return tuple(tuple(int(count) for count in bins) for bins in document)


def is_float32(value: float) -> bool:
    """Say whether a number is finite and exact in float32."""
    try:
        return math.isfinite(value) and struct.unpack("<f", struct.pack("<f", value))[0] == value
    except OverflowError:
        return False


def _get(document: Mapping[str, Any], key: str) -> Any:
    _expect(isinstance(document, Mapping), "monitor block", "an object", document)
    _expect(key in document, "monitor block", f"the key {key!r}", sorted(map(str, document)))
    return document[key]


def _list(document: Mapping[str, Any], key: str) -> list[Any]:
    value = _get(document, key)
    _expect(isinstance(value, (list, tuple)), key, "a list", value)
    return list(value)


def _entries(document: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    entries = _list(document, key)
    _expect(all(isinstance(entry, Mapping) for entry in entries), key, "a list of objects", entries)
    return entries


def _text(value: object, key: str) -> str:
    _expect(isinstance(value, str) and value != "", key, "a text", value)
    return str(value)


def _whole(value: Any, key: str) -> int:
    _expect(isinstance(value, int) and not isinstance(value, bool), key, "a whole number", value)
    return int(value)


def _real(value: Any, key: str) -> float:
    _expect(isinstance(value, (int, float)) and not isinstance(value, bool), key, "a number", value)
    return float(value)


def _integer(document: Mapping[str, Any], key: str) -> int:
    return _whole(_get(document, key), key)


def _number(document: Mapping[str, Any], key: str) -> float:
    return _real(_get(document, key), key)


def _integers(document: Mapping[str, Any], key: str) -> tuple[int, ...]:
    return tuple(_whole(item, key) for item in _list(document, key))


def _numbers(document: Mapping[str, Any], key: str) -> tuple[float, ...]:
    return tuple(_real(item, key) for item in _list(document, key))
