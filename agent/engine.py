"""The inference loop, on a thread of its own: runs what is committed or on trial, counts, waits for no network.

It owns the event clock. `switch` is the only way to change what runs; the old session runs until the new one is there.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agent.config import Config
from agent.observe import Latencies, Observer, Seen, read_seen
from agent.outbox import OutboxFile, decode_open, encode_open
from agent.source import Sample, Source
from agent.trial import Decision, Terms, Trial
from skerry.errors import Rejected, SkerryError
from skerry.runtimes import Session
from skerry.wire.manifest import Manifest
from skerry.wire.report import encode_report

_log = logging.getLogger("skerry.agent.engine")


@dataclass(frozen=True, slots=True, eq=False)
class Running:
    """What runs: a loaded artifact; `digest` is the SHA-256 of its manifest."""

    session: Session
    manifest: Manifest
    digest: str


class Engine:
    """Runs inference after inference; `on_decision` hears how a trial of a manifest ended."""

    def __init__(
        self,
        *,
        config: Config,
        source: Source | None,
        outbox: OutboxFile,
        on_decision: Callable[[str, Decision], None],
        on_window: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._source = source
        self._outbox = outbox
        self._on_decision = on_decision
        self._on_window = on_window
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._news = threading.Event()
        self._running: Running | None = None
        self._trial: Trial | None = None
        self._observer: Observer | None = None
        self._due = 0.0
        self.inferences = 0
        self.trial_latency_us = 0
        self.problem = ""
        # an accelerated clock goes on where it stood; the real one needs no memory
        self._clock = outbox.event_clock() or time.time()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def event_time(self) -> float:
        """The event clock, in seconds since 1970."""
        return self._clock if self._config.event_step_s else time.time()

    @property
    def running(self) -> Running | None:
        """What runs now."""
        return self._running

    @property
    def alive(self) -> bool:
        """False when the loop has ended, for whatever reason."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to infer."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the inference under way and persist the open window."""
        self._stop.set()
        self._news.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        with self._lock:
            try:
                self._save_open()
            except SkerryError as error:
                _log.error("the open window is lost: %s", error)

    def switch(self, running: Running | None, *, trial: Terms | None = None) -> None:
        """Run something else from the next inference on; with `trial`, uncounted until a decision was heard."""
        with self._lock:
            self._save_open()
            self._running = running
            self._observer = None
            self._trial = None
            if running is not None and trial is not None:
                self._trial = Trial(terms=trial, latencies=Latencies(), began=time.monotonic())
            elif running is not None:
                self._observer = self._open_observer(running)
        self._news.set()

    def commit(self) -> None:
        """End the trial: what runs is counted from now on."""
        with self._lock:
            self._trial = None
            if self._running is not None and self._observer is None:
                self._observer = self._open_observer(self._running)

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                busy = self._running is not None and self._source is not None
                decision = self._infer_once() if busy else self._decide()
                digest = self._running.digest if self._running else ""
            if decision is not None:
                self._on_decision(digest, decision)
            self._pace(busy=busy)

    def _infer_once(self) -> Decision | None:
        assert self._running is not None  # noqa: S101 -- the caller has looked, under the same lock
        assert self._source is not None  # noqa: S101 -- as above
        running, manifest = self._running, self._running.manifest
        try:
            sample = self._source.next()
            inputs = sample.inputs(manifest.inputs)
        except Rejected as error:
            return self._without_input(str(error))
        try:
            began = time.perf_counter_ns()
            outputs = running.session.run(inputs)
            latency_us = (time.perf_counter_ns() - began) / 1000
            seen = read_seen(manifest, {**inputs, **outputs})
        except Rejected as error:
            if not _finite(sample):
                return self._without_input(f"input: expected finite values, got NaN or infinity; {error}")
            return self._trouble(str(error))
        self.inferences += 1
        self.problem = ""
        self._clock += self._config.event_step_s
        if self._trial is not None:
            self._trial = self._trial.after(latency_us)
            return self._decide()
        self._count(sample, seen, latency_us)
        return None

    def _count(self, sample: Sample, seen: Seen, latency_us: float) -> None:
        observer = self._observer
        if observer is None:
            return
        assert self._running is not None  # noqa: S101 -- an observer belongs to what runs
        truth = _name(sample.truth, self._running.manifest)
        try:
            if observer.full:
                # the disk refused last time: until it takes the window, rows go uncounted, and the report says why
                self._close_window(observer)
            observer.add(seen, truth=truth, latency_us=latency_us, event_time=self.event_time)
            if observer.full:
                self._close_window(observer)
            elif observer.rows % self._config.save_rows == 0:
                self._save_open()
        except SkerryError as error:
            self._trouble(str(error))

    def _close_window(self, observer: Observer) -> None:
        body = encode_report(observer.report(event_time=self.event_time))
        self._outbox.close_window(observer.digest, body, number=observer.number, event_clock=self.event_time)
        observer.next_window()
        self._on_window()

    def _trouble(self, problem: str) -> Decision | None:
        """A row that could not be judged: the end of a trial; for what is committed, something to report."""
        self._note(problem)
        if self._trial is None:
            return None
        self._trial = None
        return Decision(passed=False, reason=problem)

    def _without_input(self, problem: str) -> Decision | None:
        """Without an input, or with one that is no number, nothing is learnt about what runs; a trial goes on."""
        self._note(problem)
        return self._decide()

    def _note(self, problem: str) -> None:
        if problem != self.problem:
            _log.warning("inference: %s", problem)
        self.problem = problem
        self._due = time.monotonic() + 1.0

    def _decide(self) -> Decision | None:
        """Return the trial's decision, once; what is on trial runs on, uncounted, until somebody acts on it."""
        if self._trial is None:
            return None
        decision = self._trial.decide(time.monotonic())
        if decision is not None:
            self.trial_latency_us = self._trial.latencies.percentile(0.5)
            self._trial = None
        return decision

    def _pace(self, *, busy: bool) -> None:
        if not busy:
            self._news.wait(0.5)
            self._news.clear()
            return
        if not self._config.rate and self._due <= time.monotonic():
            time.sleep(0.0001)  # lets another thread have the lock
            return
        now = time.monotonic()
        step = 1 / self._config.rate if self._config.rate else 0.0
        # after a pause the loop does not run faster to catch up
        self._due = max(self._due + step, now - step)
        if self._due > now:
            self._stop.wait(min(self._due - now, threading.TIMEOUT_MAX))

    def _open_observer(self, running: Running) -> Observer:
        kept = self._outbox.open_window(running.digest)
        rows = self._config.window_rows or None
        observer = Observer(running.manifest, digest=running.digest, number=kept.number, window_rows=rows)
        fields: Any = decode_open(kept.body)
        if fields is not None and not observer.restore(fields):
            _log.warning("the open window could not be continued; its rows are not counted")
        return observer

    def _save_open(self) -> None:
        observer = self._observer
        if observer is None or observer.rows == 0:
            return
        body = encode_open(observer.save())
        self._outbox.save_open(observer.digest, body, number=observer.number, event_clock=self.event_time)


def _finite(sample: Sample) -> bool:
    import numpy as np

    return all(bool(np.isfinite(values).all()) for values in sample.values.values())


def _name(truth: str | int | None, manifest: Manifest) -> str | None:
    """Return the class of a row by name; None when it is unknown or not one of this model's."""
    if isinstance(truth, int):
        return manifest.labels[truth] if 0 <= truth < len(manifest.labels) else None
    return truth
