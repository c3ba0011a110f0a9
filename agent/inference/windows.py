"""The open window of what is committed: rows are counted into it, and full it goes to the outbox.

A few rows go there with their inputs, where the offline keys and the manifest allow it (`agent.inference.samples`).
A disk that refuses holds up nobody who counts (`agent.inference.held`).
"""

import logging
import math
from collections.abc import Callable
from typing import Any

from agent.config import Config
from agent.inference.frames import NO_SAMPLE, Sampled
from agent.inference.held import Held
from agent.inference.observe import Observer
from agent.inference.samples import Samples
from agent.local.serving_port import Row, Rows
from agent.telling.outbox import OpenWindow, OutboxFile, decode_open, encode_open
from skerry.errors import Rejected
from skerry.seen import Seen
from skerry.wire.manifest import Manifest, SamplePolicy
from skerry.wire.report import encode_report

_log = logging.getLogger("skerry.agent.windows")


class Windows:
    """Counts rows of one manifest at a time, in one thread at a time; `event_time` is in seconds since 1970."""

    def __init__(
        self,
        *,
        config: Config,
        outbox: OutboxFile,
        event_time: Callable[[], float],
        on_window: Callable[[], None],
    ) -> None:
        self._config = config
        self._outbox = outbox
        self._held = Held(outbox)
        # whose windows were opened while nobody could read what the disk has of them: they stay apart from that
        self._apart: set[str] = set()
        self._event_time = event_time
        self._on_window = on_window
        self._manifest: Manifest | None = None
        self._observer: Observer | None = None
        self._allowed: Callable[[], SamplePolicy] = SamplePolicy
        self._samples: Samples | None = None

    @property
    def digest(self) -> str:
        """Whose rows are counted; empty when nobody's."""
        return self._observer.digest if self._observer else ""

    @property
    def problem(self) -> str:
        """Why what is counted is held in memory; empty while the disk takes it."""
        return self._held.problem

    @property
    def wanted(self) -> int:
        """How many rows come before the next one whose inputs are wanted; `NO_SAMPLE` where none is."""
        wanted = self._samples.next_wanted if self._samples is not None else None
        return NO_SAMPLE if wanted is None else wanted

    def open(
        self, manifest: Manifest | None, digest: str = "", *, allowed: Callable[[], SamplePolicy] = SamplePolicy
    ) -> None:
        """Go on with the open window of this manifest, or count nothing; what is open now is kept on the disk.

        Where the disk does not take it, it is closed early, and held like any other.
        `allowed` says what the offline keys let leave the device of its inputs; it is asked for each window.
        """
        if digest and digest == self.digest:
            return
        self._leave()
        self._manifest, self._observer, self._samples = manifest, None, None
        if manifest is None:
            return
        if self._outbox.is_blind:
            self._apart.add(digest)
        kept = OpenWindow() if digest in self._apart else self._outbox.open_window(digest)
        following = self._held.next_number(digest)
        if kept.number < following:
            # the disk has not heard of the windows that are held
            kept = OpenWindow(number=following)
        rows = self._config.window_rows or None
        observer = Observer(manifest, digest=digest, number=kept.number, window_rows=rows)
        fields: Any = decode_open(kept.body)
        if fields is not None and not observer.restore(fields):
            _log.warning("the open window could not be continued; its rows are not counted")
        self._observer, self._allowed = observer, allowed
        self._begin_samples(observer, manifest)

    def count(self, rows: Rows, sampled: Sampled | None = None) -> None:
        """Count rows, one of which may have come with its inputs.

        Raises:
            Rejected: they do not fit the manifest's monitor; those before are counted.
        """
        observer, manifest = self._observer, self._manifest
        if observer is None or manifest is None:
            return
        for at, row in enumerate(rows):
            if observer.full:
                # it was continued, and windows were longer then
                self._close(observer, manifest)
            seen, truth = read_row(row, manifest)
            observer.add(seen, truth=truth, latency_us=row.latency_us, event_time=self._event_time())
            inputs = sampled.inputs if sampled is not None and sampled.row == at else None
            taken = self._samples.offer(inputs, seen) if self._samples is not None else None
            # first the window, then the sample: a power cut in between loses it, and none is taken twice
            if observer.full:
                self._close(observer, manifest)
            elif taken is not None or observer.rows % self._config.save_rows == 0:
                self.save()
            if taken is not None:
                self._held.put_sample(taken, event_time=self._event_time())

    def save(self) -> bool:
        """Keep the open window on the disk; False where that does not take it, or has another of this manifest."""
        observer = self._observer
        if observer is None or observer.rows == 0:
            return True
        if observer.digest in self._apart:
            return False
        body = encode_open(observer.save())
        return self._held.save_open(observer.digest, body, number=observer.number, event_clock=self._event_time())

    def end(self) -> None:
        """Keep on the disk what there is, for the last time."""
        if self.digest in self._apart:
            self._leave()
        self._held.end()
        self.save()

    def _leave(self) -> None:
        """Keep the open window on the disk, or close it."""
        if not self.save() and self._observer is not None:
            self._report(self._observer)

    def _begin_samples(self, observer: Observer, manifest: Manifest) -> None:
        config = self._config
        policy = manifest.samples.narrowed(self._allowed())
        samples = Samples(
            policy,
            manifest.inputs,
            digest=observer.digest,
            most_rows=config.sample_rows,
            most_bytes=config.sample_bytes,
        )
        samples.begin(observer.number, window_rows=observer.window_rows, row=observer.rows)
        self._samples = samples if samples.wanted else None

    def _close(self, observer: Observer, manifest: Manifest) -> None:
        self._report(observer)
        self._begin_samples(observer, manifest)

    def _report(self, observer: Observer) -> None:
        now = self._event_time()
        body = encode_report(observer.report(event_time=now))
        is_apart = observer.digest in self._apart
        self._held.close_window(observer.digest, body, number=observer.number, event_clock=now, is_apart=is_apart)
        observer.next_window()
        self._on_window()


def read_row(row: Row, manifest: Manifest) -> tuple[Seen, str | None]:
    """Return what was seen, by name, and the truth: a class that this model does not know is no name, and wrong."""
    labels = manifest.labels
    if not math.isfinite(row.latency_us):
        raise Rejected(f"rows: expected a finite latency, got {row.latency_us}")
    if row.prediction >= len(labels):
        raise Rejected(f"rows: expected predictions below {len(labels)}, got {row.prediction}")
    prediction = labels[row.prediction] if row.prediction >= 0 else ""
    truth = None if row.truth < 0 else labels[row.truth] if row.truth < len(labels) else ""
    return Seen(features=row.features, prediction=prediction, confidence=row.confidence), truth


def check_rows(rows: Rows, manifest: Manifest, *, digest: str) -> None:
    """Raise `Rejected` unless rows fit the manifest's monitor."""
    observer = Observer(manifest, digest=digest, number=0)
    for row in rows:
        seen, truth = read_row(row, manifest)
        observer.add(seen, truth=truth, latency_us=row.latency_us, event_time=0)
