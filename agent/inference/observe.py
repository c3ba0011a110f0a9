"""Observing: what one inference put out, counted into the open window of its artifact.

A window is `window_rows` inferences, or fewer where a disk refused to keep it open; full, it becomes a `WindowReport`.
Memory is constant: counts in bins, and latencies in a histogram of some 9 % per bin. At every `save` the state goes to
the outbox file.
"""

import math
from collections.abc import Mapping
from typing import Any

from skerry.drift.counting import Counter
from skerry.drift.monitor import CONFIDENCE, PREDICTION, Monitor
from skerry.drift.monitor import Rejected as MonitorRejected
from skerry.errors import Rejected
from skerry.seen import Seen
from skerry.wire.manifest import Manifest
from skerry.wire.report import WindowReport

_BINS_PER_OCTAVE = 8
_LATENCY_BINS = 26 * _BINS_PER_OCTAVE  # up to a minute


def read_monitor(manifest: Manifest) -> Monitor:
    """Return the manifest's monitor; raises `Rejected` when it is malformed or is not made for these outputs."""
    try:
        monitor = Monitor.from_json(manifest.monitor)
    except MonitorRejected as error:
        raise Rejected(f"manifest: {error}") from error
    classifies = bool(manifest.observe.get("probabilities"))
    if classifies and [scalar.name for scalar in monitor.scalars[-2:]] != [PREDICTION, CONFIDENCE]:
        names = ", ".join(scalar.name for scalar in monitor.scalars[-2:])
        raise Rejected(f"manifest: expected {PREDICTION} and {CONFIDENCE} as its last scalars, got {names}")
    return monitor


class Latencies:
    """Latencies in microseconds, in logarithmic bins."""

    __slots__ = ("bins",)

    def __init__(self, bins: list[int] | None = None) -> None:
        self.bins = bins if bins is not None and len(bins) == _LATENCY_BINS else [0] * _LATENCY_BINS

    def add(self, latency_us: float) -> None:
        """Count one inference."""
        self.bins[min(int(math.log2(max(latency_us, 1.0)) * _BINS_PER_OCTAVE), _LATENCY_BINS - 1)] += 1

    def percentile(self, share: float) -> int:
        """Return the upper edge of the bin that holds the given share, 0 when nothing was counted."""
        wanted = share * sum(self.bins)
        seen = 0
        for index, count in enumerate(self.bins):
            seen += count
            if count and seen >= wanted:
                return round(2 ** ((index + 1) / _BINS_PER_OCTAVE))
        return 0


class Observer:
    """The open window of one artifact. Not safe for several threads."""

    def __init__(self, manifest: Manifest, *, digest: str, number: int, window_rows: int | None = None) -> None:
        self._monitor = read_monitor(manifest)
        self._counter = Counter(self._monitor)
        self._manifest = digest[:16]
        self._monitor_digest = self._monitor.digest()[:16]
        self.window_rows = window_rows or self._monitor.window_n
        self.digest = digest
        self.number = number
        self._begin()

    def _begin(self) -> None:
        self._counter.reset()
        self._latencies = Latencies()
        self.rows = self._labelled = self._correct = 0
        self._start = 0

    @property
    def full(self) -> bool:
        """True when the window is ready to be reported."""
        return self.rows >= self.window_rows

    def add(self, seen: Seen, *, truth: str | None, latency_us: float, event_time: float) -> None:
        """Count one inference; raises `Rejected` when the outputs are not what the monitor watches."""
        try:
            self._counter.add(seen.scalars)
        except MonitorRejected as error:
            raise Rejected(f"model: its outputs do not fit the monitor: {error}") from error
        if self.rows == 0:
            self._start = int(event_time)
        self._latencies.add(latency_us)
        self.rows += 1
        if truth is not None and seen.prediction:
            self._labelled += 1
            self._correct += truth == seen.prediction

    def report(self, *, event_time: float) -> WindowReport:
        """Return what the window counted."""
        return WindowReport(
            manifest=self._manifest,
            monitor=self._monitor_digest,
            window=self.number,
            start=self._start,
            end=int(event_time),
            rows=self.rows,
            labelled=self._labelled,
            correct=self._correct,
            latency_p50_us=self._latencies.percentile(0.5),
            latency_p99_us=self._latencies.percentile(0.99),
            tables=self._counter.counts(),
        )

    def next_window(self) -> None:
        """Open the next window, after the report of this one is durable."""
        self.number += 1
        self._begin()

    def save(self) -> dict[str, object]:
        """Return the open window as plain values, to be persisted."""
        return {
            "monitor": self._monitor_digest,
            "start": self._start,
            "rows": self.rows,
            "labelled": self._labelled,
            "correct": self._correct,
            "latencies": self._latencies.bins,
            "counts": self._counter.counts(),
        }

    def restore(self, fields: Mapping[str, Any]) -> bool:
        """Continue a persisted window; False, and an empty window, when it does not fit this artifact's monitor."""
        try:
            if fields["monitor"] != self._monitor_digest:
                return False
            self._counter.restore(tuple(tuple(bins) for bins in fields["counts"]))
            self._latencies = Latencies(list(fields["latencies"]))
            self._start, self.rows = int(fields["start"]), int(fields["rows"])
            self._labelled, self._correct = int(fields["labelled"]), int(fields["correct"])
        except (KeyError, TypeError, ValueError, MonitorRejected):
            self._begin()
            return False
        return True
