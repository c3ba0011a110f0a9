"""What was counted and the disk would not take: held in memory, bounded, and stored as soon as the disk takes it.

    store = Held(outbox)
    store.close_window(...)     never raises and never waits: whoever counts goes on counting

A disk that refused is spared for `RETRY_S`, so inference keeps its pace. Meanwhile closed windows are held, up to
`MOST_BYTES` of reports; beyond that the oldest is given up. What is given up, and samples, which are not held, become a
gap record when the disk takes writes again. What is held when the agent ends is lost, and the log says how much.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from agent.telling.outbox import OutboxFile
from skerry.errors import Broken
from skerry.wire.report import decode_report, encode_report

MOST_BYTES = 64 * 1024
RETRY_S = 5.0
# each is a transaction, which a slow disk takes its time for while nobody can count
AT_ONCE = 8
REASON = "the disk refused it"
_log = logging.getLogger("skerry.agent.windows")


@dataclass(frozen=True, slots=True)
class _Closed:
    """A window that is to be closed in the outbox."""

    manifest: str
    report: bytes
    number: int
    event_clock: float
    is_apart: bool


class Held:
    """Stores windows and samples in one outbox, from one thread at a time; `problem` is what the disk said last."""

    def __init__(self, outbox: OutboxFile, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._outbox = outbox
        self._clock = clock
        self._closed: deque[_Closed] = deque()
        self._bytes = 0
        self._lost = {"window": 0, "sample": 0}
        self._next: dict[str, int] = {}
        self._again = 0.0
        self.problem = ""

    def next_number(self, manifest: str) -> int:
        """Return the number of the window after the last that was closed here; 0 before the first."""
        return self._next.get(manifest, 0)

    def close_window(
        self, manifest: str, report: bytes, *, number: int, event_clock: float, is_apart: bool = False
    ) -> None:
        """Store the report of a window, or hold it.

        One that is apart was opened without a look at what the disk has of its manifest: where that turns out to be
        further on, its number follows, and the rows that were saved there are left for another window.
        """
        self._closed.append(_Closed(manifest, report, number, event_clock, is_apart))
        self._next[manifest] = number + 1
        self._bytes += len(report)
        self._try(lambda: None)
        while self._bytes > MOST_BYTES:
            self._bytes -= len(self._closed.popleft().report)
            self._lost["window"] += 1

    def save_open(self, manifest: str, body: bytes, *, number: int, event_clock: float) -> bool:
        """Store the open window, if nothing that came before it is held; False where it was not stored."""
        return self._try(lambda: self._outbox.save_open(manifest, body, number=number, event_clock=event_clock))

    def put_sample(self, body: bytes, *, event_time: float) -> None:
        """Store a sample, or count it."""
        if not self._try(lambda: self._outbox.put("sample", body, event_time=event_time)):
            self._lost["sample"] += 1

    def end(self) -> None:
        """Ask the disk once more, for the last time is now."""
        self._again = 0.0
        while not self._try(lambda: None) and not self.problem:
            pass
        if self.problem:
            windows, samples = len(self._closed) + self._lost["window"], self._lost["sample"]
            _log.error("%d windows, %d samples and the open window are lost: %s", windows, samples, self.problem)

    def _try(self, write: Callable[[], object]) -> bool:
        """Store some of what is held, and this if nothing is left of that; False where it was not stored."""
        if self.problem and self._clock() < self._again:
            return False
        try:
            self._store()
            if not self._closed:
                write()
        except Broken as error:
            if str(error) != self.problem:
                _log.error("%s; inference goes on, and what is counted is held in memory", error)
            self.problem, self._again = str(error), self._clock() + RETRY_S
            return False
        self.problem = ""
        return not self._closed

    def _store(self) -> None:
        for kind, count in self._lost.items():
            if count:
                self._outbox.lose(kind, count, reason=REASON)
                self._lost[kind] = 0
        for held in list(self._closed)[:AT_ONCE]:
            self._close(held)
            self._closed.popleft()
            self._bytes -= len(held.report)

    def _close(self, held: _Closed) -> None:
        report, number, clock, body = held.report, held.number, held.event_clock, b""
        if held.is_apart:
            kept = self._outbox.open_window(held.manifest)
            number, clock, body = max(kept.number, number), max(kept.event_clock, clock), kept.body
            report = encode_report(replace(decode_report(report), window=number))
        self._outbox.close_window(held.manifest, report, number=number, event_clock=clock, body=body)
