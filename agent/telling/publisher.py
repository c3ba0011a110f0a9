"""How the outbox is emptied: several batches on their way at once, each until heard, and no flood after an outage.

Each acknowledgement says how many batches may be on their way, and by that, that they may come packed and in any order;
to an older control plane a single batch is said at a time, the oldest, in plain JSON. One begins with a single batch in
any case, and each answer allows one more; no answer for a while allows one again, and lets everything be said anew.

When a connection comes after an outage, the newest few rows are said first: they tell how the device is *now*. Then the
rest, the oldest first, at a limited rate, so that a fleet that comes back leaves its links and its control plane room.
Both begin after a jitter. What is said when nothing is left of that knows no limit.
"""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from agent.fetching.pace import Bucket
from agent.telling.outbox import OutboxFile
from skerry.errors import Rejected, Unavailable
from skerry.wire import codec
from skerry.wire.batch import encode_batch
from skerry.wire.messages import Ack

NEWEST_ROWS = 8
MAX_IN_FLIGHT = 8
RESUME_JITTER_S = 2.0
BACKLOG_JITTER_S = 5.0
RESEND_MOST_S = 60.0
# after so many silences it may be an older control plane than the last one: nothing is said that it could not read
PLAIN_AFTER = 2
_log = logging.getLogger("skerry.agent.publisher")


class Voice(Protocol):
    """Whoever can publish for us; `agent.link.session.Link` does."""

    @property
    def connected(self) -> bool:
        """True while there is a connection."""

    def publish(self, name: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish on `up/NAME`; raises `Unavailable`."""


@dataclass(slots=True)
class _Flight:
    """A batch on its way: the numbers in it that were not heard yet, and since when."""

    numbers: set[int]
    since: float


class Publisher:
    """Empties one outbox, on one thread; `rate_bytes_s` is asked before each batch of a backlog, 0 is no limit."""

    def __init__(
        self,
        outbox: OutboxFile,
        *,
        ack_timeout_s: float,
        rate_bytes_s: Callable[[], int] = lambda: 0,
        now: Callable[[], float] = time.monotonic,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._outbox = outbox
        self._ack_timeout_s = ack_timeout_s
        self._rate_bytes_s = rate_bytes_s
        self._now = now
        self._jitter = jitter
        self._flights: list[_Flight] = []
        self._bucket = Bucket(0)
        self._allowed = 1
        self._silences = 0
        self._slowest_s = 0.0
        self._due = self._patience_ends = 0.0
        self._newest_first = self._resuming = False
        self.bytes_said = 0

    def connected(self, *, again: bool) -> None:
        """A connection is there; after an outage a fleet comes back spread over some seconds."""
        self._forget_flights()
        self._silences = 0
        self._newest_first = self._resuming = True
        self._due = self._now() + (self._jitter(0, RESUME_JITTER_S) if again else 0.0)

    def tick(self, voice: Voice) -> None:
        """Say what may be said now; to be called every now and then, and when there is news."""
        now = self._now()
        if not voice.connected or now < self._due:
            return
        if self._flights and now >= self._patience_ends:
            _log.debug("no acknowledgement of %d batches; saying them again", len(self._flights))
            self._forget_flights()
            self._silences = min(self._silences + 1, 8)
        while len(self._flights) < self._allowed and self._now() >= self._due and self._say(voice):
            pass

    def acknowledged(self, payload: bytes) -> None:
        """Delete what the control plane has committed, and let further batches go."""
        try:
            ack = codec.decode(Ack, payload)
        except Rejected as error:
            _log.warning("%s", error)
            return
        before = self._outbox.epoch
        if not self._outbox.acknowledge(ack):
            return
        if self._outbox.epoch != before:
            _log.warning("a new epoch of the outbox began, for the last one has conflicts: %s", self._outbox.epoch)
            self._forget_flights()
            self._silences = 0
            return
        self._settle(ack)

    @property
    def _packed(self) -> bool:
        return self._outbox.window > 0 and self._silences < PLAIN_AFTER

    def _say(self, voice: Voice) -> bool:
        """Say the next batch; False when there is none, or it has to wait."""
        now = self._now()
        if self._resuming and not self._newest_first and (wait_s := self._wait_s(now)):
            self._due = now + wait_s
            return False
        besides = {number for flight in self._flights for number in flight.numbers}
        # an older control plane acknowledges by one number: to it, what is older comes first
        newest = NEWEST_ROWS if self._newest_first and self._packed and self._outbox.depth > NEWEST_ROWS else 0
        batch = self._outbox.batch(besides=besides, newest=newest)
        if batch is None:
            self._newest_first = self._resuming = False
            return False
        payload = encode_batch(batch, packed=self._packed)
        try:
            voice.publish("outbox", payload)
        except Unavailable:
            return False
        self.bytes_said += len(payload)
        if not self._flights:
            self._be_patient(now)
        self._flights.append(_Flight({entry.sequence for entry in batch.entries}, now))
        if self._resuming:
            self._bucket = self._bucket.after(len(payload), now=now) if self._bucket.rate else self._bucket
        if newest:
            self._due = now + self._jitter(0, BACKLOG_JITTER_S)
        self._newest_first = False
        return True

    def _wait_s(self, now: float) -> float:
        rate = self._rate_bytes_s()
        if rate != self._bucket.rate:
            self._bucket = Bucket(rate, at=now)
        return self._bucket.wait_s(now=now)

    def _settle(self, ack: Ack) -> None:
        """Take what was heard from the batches on their way."""
        now = self._now()
        numbers = {number for flight in self._flights for number in flight.numbers}
        heard = numbers - self._outbox.holds(numbers) if numbers else set()
        if not heard and not ack.conflicts:
            return
        for flight in self._flights:
            if flight.numbers & heard:
                self._slowest_s = max(now - flight.since, 0.9 * self._slowest_s)
            flight.numbers -= heard | set(ack.conflicts)
        self._flights = [flight for flight in self._flights if flight.numbers]
        self._silences = 0
        self._allowed = max(1, min(self._allowed + 1, self._outbox.window, MAX_IN_FLIGHT))
        self._be_patient(now)

    def _be_patient(self, now: float) -> None:
        """Set when silence is too long: a slow link's own measure counts, and each silence in a row doubles it."""
        least = max(self._ack_timeout_s, 2 * self._slowest_s)
        patience_s = min(least * 2**self._silences, RESEND_MOST_S)
        self._patience_ends = now + self._jitter(patience_s, 1.25 * patience_s)

    def _forget_flights(self) -> None:
        self._flights.clear()
        self._allowed = 1
