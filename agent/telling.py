"""What the device says: batches of its outbox, one at a time until heard, and the reported half of its twin."""

import logging
import random
import time
from dataclasses import dataclass, replace
from typing import Protocol

from agent.outbox import OutboxFile
from skerry.errors import Rejected, Unavailable
from skerry.wire import codec
from skerry.wire.messages import Ack, Reported

RESUME_JITTER_S = 2.0
RESEND_MOST_S = 60.0
_WILL_SHARE = 10_000_000
_CONNECTIONS = 100_000
_log = logging.getLogger("skerry.agent.telling")


class Voice(Protocol):
    """Whoever can publish for us; `agent.link.Link` does."""

    @property
    def connected(self) -> bool:
        """True while there is a connection."""

    def publish(self, name: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish on `up/NAME`; raises `Unavailable`."""


class Publisher:
    """Empties the outbox: one batch in flight, sent again until the control plane has acknowledged it."""

    def __init__(self, outbox: OutboxFile, *, ack_timeout_s: float) -> None:
        self._outbox = outbox
        self._ack_timeout_s = ack_timeout_s
        self._last = 0
        self._due = 0.0
        self._tries = 0

    def connected(self, *, again: bool) -> None:
        """A connection is there; after an outage a fleet comes back spread over some seconds."""
        self._last = self._tries = 0
        self._due = time.monotonic() + (random.uniform(0, RESUME_JITTER_S) if again else 0.0)  # noqa: S311

    def tick(self, voice: Voice) -> None:
        """Send the next batch, or the last one again, when its time has come."""
        now = time.monotonic()
        if not voice.connected or now < self._due:
            return
        batch = self._outbox.batch()
        if batch is None:
            self._last = self._tries = 0
            return
        if self._tries:
            _log.debug("no acknowledgement of %d; sending again", self._last)
        try:
            voice.publish("outbox", codec.encode(batch))
        except Unavailable:
            return
        self._last = batch.entries[-1].sequence
        self._due = now + min(self._ack_timeout_s * 2**self._tries, RESEND_MOST_S)
        self._tries = min(self._tries + 1, 8)

    def acknowledged(self, payload: bytes) -> None:
        """Delete what the control plane has committed, and go on with the next batch."""
        try:
            ack = codec.decode(Ack, payload)
        except Rejected as error:
            _log.warning("%s", error)
            return
        if not self._outbox.acknowledge(ack):
            return
        if ack.new_epoch:
            _log.warning("the control plane asked for a new epoch: %s", self._outbox.epoch)
        if ack.up_to >= self._last or ack.new_epoch:
            self._last = self._tries = 0
            self._due = 0.0


@dataclass(frozen=True, slots=True)
class Reporter:
    """When to publish `up/reported`: on connect, on each change of what matters, and every few seconds."""

    every_s: float
    last: Reported | None = None
    sent_at: float = 0.0

    def due(self, now_reported: Reported, *, now: float) -> bool:
        """Say whether it should be published now."""
        if self.last is None:
            return True
        if now - self.sent_at >= self.every_s:
            return _without_version(now_reported) != _without_version(self.last)
        return _matters(now_reported) != _matters(self.last)

    def sent(self, reported: Reported, *, now: float) -> "Reporter":
        """Return the reporter after a publication."""
        return replace(self, last=reported, sent_at=now)


class Versions:
    """Numbers for `Reported.version` that only grow, over restarts and reconnections, wills included.

    A will is written when the connection begins and heard after everything that is said in it.
    """

    def __init__(self, starts: int) -> None:
        self._base = (starts * _CONNECTIONS + 1) * _WILL_SHARE
        self._number = 0

    def next(self) -> int:
        """Return the number of the next report."""
        self._number = min(self._number + 1, _WILL_SHARE - 2)
        return self._base + self._number

    def will(self) -> int:
        """Begin a connection: return the number of its will, above all reports of the connection.

        An attempt in which nothing was said leaves its number to the next, so an outage uses up none.
        """
        if self._number:
            self._base += _WILL_SHARE
        self._number = 0
        return self._base + _WILL_SHARE - 1


def _without_version(reported: Reported) -> Reported:
    # a hundred reports of a fetch are enough, on a slow link above all
    return replace(reported, version=0, received=0, progress=round(reported.progress, 2))


def _matters(reported: Reported) -> tuple[str, ...]:
    lifecycle = (reported.state, reported.release, reported.manifest, reported.deployment, reported.last_error)
    return (*lifecycle, reported.waiting, reported.stalled, str(reported.desired_version))
