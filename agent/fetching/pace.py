"""When how much may be fetched, by what the control plane wished for (`agent.fetching.desired`): rate, quiet hours,
jitter.

    held_back(wishes, clock=..., metered=...)     why nothing may be fetched now, or an empty text
    Bucket(rate).after(received).due(now)         when the next window may begin

Short waits happen here, in steps that a newer assignment interrupts; where it may be hours, the fetch ends instead, so
that no key is held meanwhile, and the runner comes back. What is read of a clock can be wrong; then it is quiet at
another time of the day, and nothing worse.
"""

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from skerry.delivery.chunks import WINDOW
from skerry.wire.manifest import SEALED_CHUNK_BYTES

ALLOW, PAUSE = "allow", "pause"
MAX_JITTER_S = 86400.0
_STEP_S = 0.25
_HOURS = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])")


@dataclass(frozen=True, slots=True)
class Wishes:
    """The desired configuration of fetching, and of telling what waited during an outage.

    `rate_limit_bytes_s` bounds the mean rate (0: no limit), nothing is fetched in `quiet_hours` (`22:00-06:00`, UTC),
    `metered` says what to do while the link is metered (allow, pause), and a deployment's fetch begins anywhere within
    `start_jitter_s` seconds, so that a site does not begin at once. `resume_bytes_s` bounds the rate at which the
    outbox is emptied after an outage (0: as the agent's own configuration says).
    """

    rate_limit_bytes_s: int = 0
    quiet_hours: str = ""
    metered: str = ALLOW
    start_jitter_s: float = 0.0
    resume_bytes_s: int = 0

    def __post_init__(self) -> None:
        for name in ("rate_limit_bytes_s", "resume_bytes_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if self.quiet_hours and not _HOURS.fullmatch(self.quiet_hours):
            raise ValueError(f"quiet_hours: expected HH:MM-HH:MM or nothing, got {self.quiet_hours!r:.80}")
        if self.metered not in (ALLOW, PAUSE):
            raise ValueError(f"metered: expected {ALLOW} or {PAUSE}, got {self.metered!r:.80}")
        if not 0 <= self.start_jitter_s <= MAX_JITTER_S:
            raise ValueError(f"start_jitter_s: expected 0 to {MAX_JITTER_S:g}, got {self.start_jitter_s}")


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tokens by the byte: what came is taken from it, below zero too, and it fills at `rate` bytes a second.

    The next window begins at zero, so the mean rate never exceeds `rate` by more than one window.
    """

    rate: int
    tokens: float = 0.0
    at: float = 0.0

    def after(self, size_bytes: int, *, now: float) -> "Bucket":
        """Return the bucket after so many bytes."""
        # what was not used is not saved up beyond a second: the limit is one, not an average over a day
        filled = min(self.tokens + (now - self.at) * self.rate, self.rate)
        return replace(self, tokens=filled - size_bytes, at=now)

    def wait_s(self, *, now: float) -> float:
        """Return how long the next window has to wait."""
        return max(-self.tokens / self.rate - (now - self.at), 0.0) if self.rate else 0.0


def is_quiet(hours: str, clock: float) -> bool:
    """Say whether `clock` (seconds since 1970) is within the quiet hours, which may go over midnight."""
    found = _HOURS.fullmatch(hours)
    if found is None:
        return False
    begin, end = (int(found[index]) * 60 + int(found[index + 1]) for index in (1, 3))
    minute = int(clock % 86400 // 60)
    return begin <= minute < end if begin <= end else minute >= begin or minute < end


def held_back(wishes: Wishes, *, clock: float, metered: bool, urgent: bool = False) -> str:
    """Return why nothing may be fetched now, or an empty text; an `urgent` fetch knows no quiet hours."""
    if wishes.metered == PAUSE and metered:
        return "a metered link"
    if not urgent and is_quiet(wishes.quiet_hours, clock):
        return f"quiet hours ({wishes.quiet_hours} UTC)"
    return ""


def offset_s(jitter_s: float, seed: str) -> float:
    """Return where in the jitter a device begins, the same for the same seed."""
    return jitter_s * int.from_bytes(hashlib.sha256(seed.encode()).digest()[:6], "big") / (1 << 48)


class OwnersPace:
    """The pace of this device; `wishes` and `metered` are asked before every window, so that a change counts at once.

    `clock` is seconds since 1970, `now` a clock that only goes forward.
    """

    def __init__(
        self,
        who: str,
        *,
        wishes: Callable[[], Wishes],
        metered: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.time,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._who = who
        self._wishes = wishes
        self._metered = metered
        self._clock = clock
        self._now = now
        self._sleep = sleep
        self._bucket = Bucket(0)
        self._deployment = ""
        self._began = 0.0
        self._urgent = self._begun = False
        self.waiting = ""

    def begin(self, deployment: str, *, urgent: bool, begun: bool) -> None:
        """A fetch begins or goes on; one that has bytes already, or that repairs a fleet, waits for no jitter."""
        if deployment != self._deployment:
            self._deployment, self._began = deployment, self._now()
        self._urgent, self._begun = urgent, urgent or begun
        self.waiting = ""

    @property
    def most_chunks(self) -> int:
        """As much as two seconds bring at the limit, and one chunk at least."""
        rate = self._wishes().rate_limit_bytes_s
        return max(1, min(WINDOW, 2 * rate // SEALED_CHUNK_BYTES)) if rate else WINDOW

    def admit(self, interrupted: Callable[[], bool]) -> bool:
        """Wait for the rate limit; False when interrupted, or when the fetch should end and come back later."""
        while True:
            wishes, now = self._wishes(), self._now()
            self.waiting = held_back(wishes, clock=self._clock(), metered=self._metered(), urgent=self._urgent)
            if not self.waiting and not self._begun:
                jitter_s = offset_s(wishes.start_jitter_s, f"{self._who} {self._deployment}")
                self.waiting = "its turn" if now - self._began < jitter_s else ""
            if self.waiting:
                return False
            if wishes.rate_limit_bytes_s != self._bucket.rate:
                self._bucket = Bucket(wishes.rate_limit_bytes_s, at=now)
            wait_s = self._bucket.wait_s(now=now)
            if not wait_s:
                return True
            if interrupted():
                return False
            self._sleep(min(wait_s, _STEP_S))

    def spent(self, size_bytes: int) -> None:
        """Take what came from the bucket."""
        if self._bucket.rate:
            self._bucket = self._bucket.after(size_bytes, now=self._now())
