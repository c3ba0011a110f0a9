"""Who answers: the committed model, or the one on trial with the committed one beside it; and what a crash leads to.

    ask  ->  the one on trial, if it is up  ->  else the good one  ->  else wait until it is up again

- On trial, whoever crashes or hangs is left down: the lifecycle is told (`fault`, counted), and starts it anew or rolls
  back. Meanwhile the good one answers, the interrupted request first.
- What is committed is started again, at once and then after pauses that double (`agent.inference.crashes`), and the
  request that it crashed on is asked once more; three crashes in ten minutes are told (`crashed`), for the other slot
  to take over.
- A worker is ended only after its place was taken, so a request that finds it ended asks again, and none is lost.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from agent.deployment.lifecycle import Kind
from agent.inference.crashes import Crashes
from agent.inference.frames import Answer, Request
from agent.inference.workers import Closed, Crashed, Hung
from skerry.errors import Broken, Rejected, Unavailable
from skerry.runtimes.session import Signature
from skerry.wire.manifest import Manifest, SamplePolicy

_log = logging.getLogger("skerry.agent.supervisor")


class Asked(Protocol):
    """A worker; a fake in tests. It also says of itself whether it ended and by how much it grew."""

    signature: Signature

    @property
    def ended(self) -> str:
        """How it ended; empty while it runs."""

    @property
    def growth_bytes(self) -> int:
        """By how much it grew at most over the bare runtime; 0 where nobody tells."""

    def ask(self, request: Request, *, patience_s: float) -> Answer:
        """Ask, and wait for the answer; raises `Closed`, `Unavailable`, `Crashed` or `Hung`."""

    def close(self, *, now: bool = False) -> None:
        """End it."""


@dataclass(frozen=True, slots=True, eq=False)
class Running:
    """What runs: a loaded artifact; `digest` is the SHA-256 of its manifest, `reopen` starts another worker for it.

    `allowed` says what the offline keys let leave the device of its inputs.
    """

    worker: Asked
    manifest: Manifest
    digest: str
    reopen: Callable[[], Asked]
    allowed: Callable[[], SamplePolicy] = SamplePolicy


class Fallen:
    """Stands for a worker that could not be started: whoever asks it hears why, and it is started again later."""

    growth_bytes = 0
    signature = Signature(inputs=(), outputs=())

    def __init__(self, why: Broken) -> None:
        self.ended = str(why)

    def ask(self, request: Request, *, patience_s: float) -> Answer:  # noqa: ARG002 -- the port's
        """Say why there is nobody."""
        raise Crashed(self.ended)

    def close(self, *, now: bool = False) -> None:
        """Do nothing: there is nobody."""


class Supervisor:
    """The places of what is good and what is on trial; safe for several threads."""

    def __init__(
        self, *, patience_s: float, on_trouble: Callable[[str, Kind, str], None], on_down: Callable[[], None]
    ) -> None:
        self._patience_s = patience_s
        self._on_trouble = on_trouble
        self._on_down = on_down
        self._changed = threading.Condition()
        self._good: Running | None = None
        self._trial: Running | None = None
        self._down: set[Running] = set()
        self._crashes = Crashes()
        self.ends = 0

    @property
    def good(self) -> Running | None:
        """What is committed."""
        return self._good

    @property
    def trial(self) -> Running | None:
        """What is on trial."""
        return self._trial

    def places(self) -> tuple[tuple[Running, bool], ...]:
        """Return what runs, the one on trial first, and whether it is up."""
        with self._changed:
            there = [each for each in (self._trial, self._good) if each is not None]
            return tuple((each, each not in self._down) for each in there)

    # --- who is where

    def put(self, *, good: Running | None, trial: Running | None = None, now: bool = False) -> None:
        """Take these places; whoever had one and has none any more ends after what it is doing, or `now`."""
        with self._changed:
            before = {each for each in (self._good, self._trial) if each is not None}
            if good is None or self._good is None or good.digest != self._good.digest:
                self._crashes = Crashes()
            self._good, self._trial = good, trial
            self._down &= {each for each in (good, trial) if each is not None}
            if good is not None and good.worker.ended and good not in self._down:
                self._down.add(good)
                self._crashes = self._crashes.after(time.monotonic())
            self._changed.notify_all()
        for each in before - {good, trial}:
            each.worker.close(now=now)

    def sideline(self, running: Running) -> None:
        """Let the good one answer instead of this one on trial, which is known to be bad."""
        with self._changed:
            if running is self._trial and self._good is not None:
                self._down.add(running)

    # --- asking

    def ask(
        self, request: Request, *, version: str = "", patient: bool = True, but: Running | None = None
    ) -> tuple[Running, Answer]:
        """Ask whoever is to answer, `but` not this one, once more where it ended on this; returns who answered what.

        Raises:
            Rejected: nothing of that version runs.
            Unavailable: nobody can answer in time.
            Crashed, Hung: only where we are not `patient`: it ended, and nobody else is there to answer.
        """
        deadline = time.monotonic() + (self._patience_s if patient else 0.0)
        ended: Crashed | Hung | None = None
        while True:
            try:
                running = self._pick(version, deadline, but)
            except Unavailable:
                if ended is None or patient:
                    raise
                raise ended from None
            try:
                return running, running.worker.ask(request, patience_s=self._patience_s)
            except Closed:
                continue
            except (Crashed, Hung) as error:
                self._ended(running, str(error))
                if ended is not None:
                    raise Unavailable(
                        f"expected an answer of the model, got twice: {error}; ask something else"
                    ) from error
                ended = error
                deadline = max(deadline, time.monotonic() + self._patience_s) if patient else deadline

    def _pick(self, version: str, deadline: float, but: Running | None) -> Running:
        with self._changed:
            while True:
                there = [each for each in (self._trial, self._good) if each is not None and each is not but]
                if not there:
                    raise Unavailable("expected a model that runs here, got none yet; assign one, or ask later")
                wanted = [each for each in there if version in ("", str(each.manifest.version))]
                if not wanted:
                    known = ", ".join(str(each.manifest.version) for each in there)
                    raise Rejected(f"expected a version that runs here ({known}), got {version[:40]!r}")
                up = next((each for each in wanted if each not in self._down), None)
                if up is not None:
                    return up
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    raise Unavailable("expected a model that is up, got one that is being started again; ask later")

    def _ended(self, running: Running, reason: str) -> None:
        with self._changed:
            if running in self._down or running not in (self._trial, self._good):
                return
            self._down.add(running)
            self.ends += 1
            on_trial = running is self._trial
            if not on_trial:
                self._crashes = self._crashes.after(time.monotonic())
            tell = on_trial or self._crashes.too_many
            self._changed.notify_all()
        _log.warning("%s %s: %s", running.manifest.model, running.manifest.version, reason)
        if tell:
            self._on_trouble(running.digest, Kind.FAULT if on_trial else Kind.CRASHED, reason)
        self._on_down()

    # --- starting again

    def mend(self) -> None:
        """Notice who has ended while nobody asked, and start the good one again when that is due."""
        for running, up in self.places():
            ended = running.worker.ended if up else ""
            if ended:
                self._ended(running, ended)
        with self._changed:
            good = self._good
            if good is None or good not in self._down or time.monotonic() < self._crashes.due:
                return
        try:
            fresh = replace(good, worker=good.reopen())
        except Rejected as error:
            # what is on the disk is no longer what was committed
            self._failed(good, Kind.CORRUPTED, str(error))
        except (Broken, Unavailable, OSError) as error:
            self._failed(good, Kind.CRASHED, str(error))
        else:
            self._take_over(good, fresh)

    def _failed(self, good: Running, kind: Kind, reason: str) -> None:
        with self._changed:
            if self._good is not good:
                return
            self._crashes = self._crashes.after(time.monotonic())
            tell = kind is Kind.CORRUPTED or self._crashes.too_many
        _log.warning("%s %s does not start: %s", good.manifest.model, good.manifest.version, reason)
        if tell:
            self._on_trouble(good.digest, kind, reason)

    def start_again(self, good: Running) -> None:
        """Give the place of what is good to another worker for the same; raises as starting it does."""
        self._take_over(good, replace(good, worker=good.reopen()))

    def _take_over(self, good: Running, fresh: Running) -> None:
        with self._changed:
            if self._good is good:
                self._good = fresh
                self._down.discard(good)
                self._changed.notify_all()
                fresh, good = good, fresh
        # the one that ended, or ours, when somebody else has the place by now
        fresh.worker.close()
