"""Keeps the device's certificate alive: renewed at two thirds of its life, or as soon as it wakes after its end.

A thread that sleeps. It judges by max(clock, floor); where a clock so wrong that the broker lets nobody in cannot tell
it, the silence of the broker does: then it asks too, ever less often. Inference knows nothing of any of this.
"""

import logging
import threading
import time
from collections.abc import Callable

from agent.identity.errand import run_errand
from agent.identity.folder import StateFolder
from agent.identity.life import Life
from agent.link.backoff import full_jitter
from agent.trust.floor import read_floor
from skerry.errors import Rejected, SkerryError

LOOK_S = 60.0
RETRY_LEAST_S = 2.0
RETRY_MOST_S = 600.0
REFUSED_MOST_S = 3600.0
DOUBT_LEAST_S = 120.0
DOUBT_MOST_S = 86400.0
_log = logging.getLogger("skerry.agent.renewal")


class Renewal:
    """Renews one device's certificate; `problem` says why it could not, `on_renewed` is called when it did.

    `life` is the present certificate's, None until it was read.
    """

    def __init__(
        self,
        folder: StateFolder,
        *,
        connected: Callable[[], bool],
        on_renewed: Callable[[], None],
        may_keep: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._connected = connected
        self._on_renewed = on_renewed
        self._may_keep = may_keep
        self._clock = clock
        self._rests_until = 0.0
        self._silent_since = time.monotonic()
        self._doubts = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renewal", daemon=True)
        self.problem = ""
        self.life: Life | None = None

    def start(self) -> None:
        """Begin to watch over the certificate."""
        self._thread.start()

    def stop(self) -> None:
        """End the watch; an errand under way is left to itself, for all that it writes is written at once."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)

    def _run(self) -> None:
        misses = 0
        while not self._stop.is_set():
            pause = LOOK_S
            try:
                life = self.life = self.life or run_errand("life", self._folder.path, Life)
                if not self._may_keep():
                    # the present one has to do
                    pause = LOOK_S
                elif self._is_due(life):
                    life = self.life = run_errand("renew", self._folder.path, Life)
                    self._rests_until = time.monotonic() + life.rest_s
                    _log.info("the certificate was renewed")
                    self._on_renewed()
                else:
                    pause = min(max(life.renew_at - self._now(), 0.1), LOOK_S)
                misses, self.problem = 0, ""
            except SkerryError as error:
                most = REFUSED_MOST_S if isinstance(error, Rejected) else RETRY_MOST_S
                pause = full_jitter(misses, least_s=RETRY_LEAST_S, most_s=most)
                misses += 1
                if str(error) != self.problem:
                    _log.warning("the certificate was not renewed: %s", error)
                self.problem = str(error)
            self._stop.wait(pause)

    def _is_due(self, life: Life) -> bool:
        if time.monotonic() < self._rests_until:
            return False
        return self._now() >= life.renew_at or self._in_doubt()

    def _now(self) -> float:
        return max(self._clock(), read_floor(self._folder.trust))

    def _in_doubt(self) -> bool:
        """Say whether the broker has been silent for so long that the certificate may be why: ever less often."""
        now = time.monotonic()
        if self._connected():
            self._silent_since, self._doubts = now, 0
            return False
        if now - self._silent_since < min(DOUBT_LEAST_S * 2**self._doubts, DOUBT_MOST_S):
            return False
        self._silent_since = now
        self._doubts += 1
        return True
