"""The counts of the open window: one call per inference, constant memory, nothing kept of a row but where it fell.

This runs inside the user's inference loop, so everything that can be prepared is prepared when the counter is made.
"""

from bisect import bisect_right
from collections.abc import Sequence
from math import inf

from skerry.drift.monitor import Counts, Monitor, Rejected


class Counter:
    """Counts rows into a monitor's bins; not safe for several threads at once."""

    __slots__ = ("_categories", "_cells", "_monitor", "_numeric", "_pairs", "_scalars", "_width")

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._width = len(monitor.scalars)
        self.reset()

    def add(self, values: Sequence[float | str | None]) -> None:
        """Count one row: a value for each scalar of the monitor, in its order; None where there is none.

        Raises `Rejected` for a row of another length, and counts nothing of it.
        """
        if len(values) != self._width:
            raise Rejected(f"row: expected {self._width} values, got {len(values)}")
        low, high = -inf, inf
        for index, edges, bins in self._numeric:
            value = values[index]
            try:
                # False for NaN too; math.isfinite costs a call, and subtracting makes numpy's scalars warn.
                if low < value < high:  # type: ignore[operator]
                    bins[bisect_right(edges, value)] += 1  # type: ignore[type-var]
                else:
                    bins[-1] += 1
            except TypeError:
                bins[-1] += 1
        for index, positions, bins in self._categories:
            value = values[index]
            bins[positions.get(value, -2) if value is not None else -1] += 1  # type: ignore[arg-type]
        for a, edges_a, b, edges_b, cells in self._pairs:
            left, right = values[a], values[b]
            try:
                if low < left < high and low < right < high:  # type: ignore[operator]
                    cells[4 * bisect_right(edges_a, left) + bisect_right(edges_b, right)] += 1  # type: ignore[type-var]
            except TypeError:
                continue

    def counts(self) -> Counts:
        """Return what the window holds so far: scalars first, then pairs."""
        return tuple(tuple(bins) for bins in (*self._scalars, *self._cells))

    def reset(self) -> None:
        """Open an empty window."""
        self.restore(tuple((0,) * bins for bins in self._monitor.shape))

    def restore(self, counts: Counts) -> None:
        """Continue a window from its counts; raises `Rejected` when they are another monitor's."""
        self._monitor.check(counts)
        monitor = self._monitor
        self._scalars = [list(bins) for bins in counts[: self._width]]
        self._cells = [list(bins) for bins in counts[self._width :]]
        self._numeric = tuple(
            (index, scalar.edges, self._scalars[index])
            for index, scalar in enumerate(monitor.scalars)
            if scalar.kind == "numeric"
        )
        self._categories = tuple(
            (index, {name: place for place, name in enumerate(scalar.categories)}, self._scalars[index])
            for index, scalar in enumerate(monitor.scalars)
            if scalar.kind == "category"
        )
        self._pairs = tuple(
            (monitor.position(pair.a), pair.edges_a, monitor.position(pair.b), pair.edges_b, cells)
            for pair, cells in zip(monitor.pairs, self._cells, strict=True)
        )


def merge(windows: Sequence[Counts]) -> Counts:
    """Add counts bin by bin; merging windows, or a fleet, is addition and nothing else."""
    if not windows:
        raise Rejected("windows: expected one or more, got none")
    return tuple(tuple(map(sum, zip(*scalars, strict=True))) for scalars in zip(*windows, strict=True))


def rows(counts: Counts) -> int:
    """Say how many rows were counted: every row falls into exactly one bin of each scalar."""
    return sum(counts[0])
