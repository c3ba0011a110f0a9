"""The runner: saves the lifecycle's new state, then acts, then feeds the result back; and decides on assignments.

    while running:  what happened?  ->  step  ->  save  ->  say so  ->  perform the effect

One thread, so there is one effect at a time. What an effect does is `agent.deployment.effects`; when it may happen is
`agent.deployment.lifecycle`. Every effect may be performed again after a power cut at any point in between.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.deployment.lifecycle import Effect, Event, Good, IllegalEvent, Kind, Phase, State, resume, settled, step
from agent.link.backoff import full_jitter
from skerry.delivery.checked import add_sum, check_sum
from skerry.delivery.durable import write_durably
from skerry.errors import Broken, Rejected, Unavailable
from skerry.wire import codec
from skerry.wire.messages import DeploymentEvent

_log = logging.getLogger("skerry.agent.runner")
# while the disk refuses nobody takes them, and a program may tell of one crash after the other
MAX_EVENTS = 64


@dataclass(frozen=True, slots=True)
class Saved:
    """What `lifecycle.json` holds: the state, and whether it has been put into the outbox."""

    state: State
    announced: bool = True
    v: int = 1


class Effects(Protocol):
    """What can be done; each returns the event that it led to, or None when one will come later."""

    def perform(self, effect: Effect, state: State) -> Event | None:
        """Do it, again if need be."""

    def decide(self, state: State) -> Event | None:
        """Judge the pending assignment; None when there is nothing to do."""

    def decided(self) -> None:
        """Note that the assignment was decided: what came of it is durable."""

    def pending(self) -> bool:
        """True while an assignment waits for a decision."""

    def measured(self) -> dict[str, float]:
        """What is known about the artifact under way, for reports."""


class Runner:
    """Drives one device's lifecycle; `announce` must be durable when it returns."""

    def __init__(
        self,
        file: Path,
        *,
        announce: Callable[[DeploymentEvent], None],
        retry_s: float,
        retry_most_s: float,
    ) -> None:
        self._file = file
        self._announce = announce
        self._retry_s = retry_s
        self._retry_most_s = retry_most_s
        self._events: queue.Queue[Event] = queue.Queue(MAX_EVENTS)
        self._news = threading.Event()
        self._stop = threading.Event()
        self._effect: Effect = Effect.NONE
        self._due = 0.0
        self._misses = 0
        self._decide_due = 0.0
        self._decide_misses = 0
        self._unsaved: Event | None = None
        self.problem = ""
        # turns of the loop, and looks around during long effects, for the watchdog (`agent.upkeep.service`)
        self.beats = 0
        saved = _load(file)
        self.state = saved.state
        self._announced = saved.announced

    def wake_up(self, effects: Effects) -> None:
        """Go on where the last run stopped, by the resume column of the table."""
        if not self._announced:
            self._say(self.state, effects)
        before = self.state
        after, self._effect = resume(before)
        if after != before:
            self._save(before, after, effects)

    def tell(self, event: Event) -> None:
        """Hand in an event from another thread; one that comes after too many that nobody took is dropped."""
        try:
            self._events.put_nowait(event)
        except queue.Full:
            _log.error("expected at most %d events to wait, dropped: %s", self._events.maxsize, event.kind.value)
        self._news.set()

    def nudge(self) -> None:
        """Something changed outside (an assignment, a connection): look now instead of later."""
        self._due = self._decide_due = 0.0
        self._news.set()

    def stop(self) -> None:
        """End `run` after what it is doing now."""
        self._stop.set()
        self._news.set()

    def interrupts(self, effects: Effects) -> bool:
        """True when a long effect should return early: the agent stops, or another assignment wants a decision."""
        self.beats += 1
        return self._stop.is_set() or (effects.pending() and time.monotonic() >= self._decide_due)

    def run(self, effects: Effects) -> None:
        """Work until `stop`; a disk that refuses the state is asked again, and the last good artifact runs on."""
        refused = 0
        while not self._stop.is_set():
            self.beats += 1
            try:
                busy = self.turn(effects)
                refused = 0
            except Broken as error:
                self._complain(str(error))
                refused += 1
                self._stop.wait(self._pause(refused))
                continue
            if not busy:
                self._news.wait(0.5)
                self._news.clear()

    def turn(self, effects: Effects) -> bool:
        """Do one thing, the most urgent; False when there was nothing to do yet.

        Raises:
            Broken: the disk refused the new state; the next turn tries that again before anything else.
        """
        if not self._announced:
            self._say(self.state, effects)
        if self._unsaved is not None:
            return self._feed(self._unsaved, effects)

        now = time.monotonic()
        # a roll-back comes before everything: until it is done the pointer may name what has failed; so does a commit:
        # until it is done, what has passed its trial is not what the next deployment would roll back to
        if self.state.phase != Phase.ROLLING_BACK.value and self._effect is not Effect.COMMIT:
            try:
                event = self._events.get_nowait()
                # what is told is about one deployment, or one artifact: another may have taken its place meanwhile
                late = event.grant not in (None, self.state.grant) or event.manifest not in (
                    "",
                    self.state.good.manifest,
                )
                return late or self._feed(event, effects)
            except queue.Empty:
                pass
            if effects.pending() and now >= self._decide_due:
                return self._decide(effects)
        if self._effect is not Effect.NONE and now >= self._due:
            return self._perform(effects)
        return False

    def _decide(self, effects: Effects) -> bool:
        try:
            event = effects.decide(self.state)
        except (Unavailable, Broken, OSError) as error:
            self._complain(str(error))
            self._decide_misses += 1
            self._decide_due = time.monotonic() + self._pause(self._decide_misses)
            return True
        self._decide_misses = 0
        if event is not None:
            self._feed(event, effects)
        # not before: after a power cut in between it is judged again, and found to be known
        effects.decided()
        return True

    def _perform(self, effects: Effects) -> bool:
        effect, state = self._effect, self.state
        try:
            event = effects.perform(effect, state)
        except Unavailable as error:
            event = Event(Kind.UNAVAILABLE, reason=str(error))
        except Rejected as error:
            event = Event(Kind.REFUSED, reason=str(error))
        except (Broken, OSError) as error:
            event = Event(Kind.FAULT, reason=str(error))
        if event is None:
            if effect is self._effect and state is self.state:
                self._effect = Effect.NONE
            return True
        return self._feed(event, effects)

    def _feed(self, event: Event, effects: Effects) -> bool:
        before = self.state
        try:
            after, effect = step(before, event)
        except IllegalEvent as error:
            # late news, such as the end of a trial that has been replaced; the table has left everything as it was
            _log.info("%s", error)
            return True
        if event.kind is not Kind.LIVED:
            self._effect = effect
        retried = event.kind in (Kind.UNAVAILABLE, Kind.FAULT) and after.phase == before.phase
        self._misses = self._misses + 1 if retried else 0
        self._due = time.monotonic() + self._pause(self._misses) if retried else 0.0
        if event.reason and not settled(before) and event is not self._unsaved:
            self._complain(event.reason)
        if after != before:
            self._unsaved = event
            self._save(before, after, effects)
        return True

    def _save(self, before: State, after: State, effects: Effects) -> None:
        """Persist first; then say so. Should the power go in between, `wake_up` says it."""
        moved = _moved(before, after)
        self._write(after, announced=self._announced and not moved)
        if not moved:
            return
        if before.grant and after.grant and before.grant.deployment != after.grant.deployment and not settled(before):
            reason = f"replaced by deployment {after.grant.deployment}"
            self._announce(_event(before, state=Phase.FAILED.value, reason=reason))
        self._say(after, effects)

    def _say(self, state: State, effects: Effects) -> None:
        if state.grant is not None:
            measured = effects.measured() if state.phase == Phase.COMMITTED.value else {}
            self._announce(_event(state, state=state.phase, reason=state.reason, measured=measured))
            shown = f": {state.reason}" if state.reason else ""
            _log.info("deployment %s (%s) is %s%s", state.grant.deployment, state.grant.release, state.phase, shown)
        self._write(state, announced=True)

    def _write(self, state: State, *, announced: bool) -> None:
        write_durably(self._file, encode_saved(Saved(state=state, announced=announced)))
        self.state = state
        self._announced = announced
        self._unsaved = None

    def _pause(self, misses: int) -> float:
        return full_jitter(misses, least_s=self._retry_s / 2, most_s=self._retry_most_s)

    def _complain(self, reason: str) -> None:
        if reason != self.problem:
            _log.warning("%s", reason)
        self.problem = reason


def _moved(before: State, after: State) -> bool:
    return before.phase != after.phase or before.grant != after.grant


def _event(of: State, *, state: str, reason: str, measured: dict[str, float] | None = None) -> DeploymentEvent:
    assert of.grant is not None  # noqa: S101 -- callers have looked
    return DeploymentEvent(
        deployment=of.grant.deployment,
        release=of.grant.release,
        manifest=of.grant.manifest,
        state=state,
        reason=reason,
        bytes_received=of.bytes_received,
        measured=measured or {},
    )


def read_state(file: Path) -> State:
    """Return the lifecycle state in a file, for `status`."""
    return _load(file).state


def _load(file: Path) -> Saved:
    if not file.exists():
        return Saved(state=State(good=Good()))
    try:
        return decode_saved(file.read_bytes())
    except (Rejected, OSError) as error:
        raise Broken(f"{file}: expected the lifecycle's state, got: {error}; start the agent, it makes one") from error


def encode_saved(saved: Saved) -> bytes:
    """Return what `lifecycle.json` holds, with its checksum."""
    return add_sum(codec.encode(saved))


def decode_saved(data: bytes) -> Saved:
    """Return the state in `lifecycle.json`; raises `Rejected` when the disk has spoilt it."""
    saved = codec.decode(Saved, check_sum(data))
    if saved.state.phase not in {phase.value for phase in Phase}:
        raise Rejected(f"expected a phase, got {saved.state.phase!r:.40}")
    return saved
