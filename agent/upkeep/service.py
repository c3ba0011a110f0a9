"""What the service manager hears of the agent (sd_notify(3)): that it lives, that it still gets on, that it ends.

    service = Service.of(os.environ)          # silent where nobody listens
    service.ready("connected, watch-3 runs")
    service.turn(beats, status)               # in each turn of the main thread
    service.stopping()

`beats` counts the turns of each thread that must not stand still. The watchdog is fed only while each count moves in
`STALL_S` (updaters: `BUSY_S`), and by the main thread, so that this one's own stall starves it as well: then systemd
ends the process with SIGABRT and starts it anew. A thread that waits, for a network or for work, turns; so does one
that is busy for days, whenever it looks whether something more urgent came.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

STALL_S = 240.0
"""Longer than a load that takes its 90 s, or an inference that is a hang."""
BUSY_S = 7200.0
"""Of updaters: the longest single step is a delta of a model of 256 MiB, for which its child has an hour and a half."""
MAX_STATUS = 200
_log = logging.getLogger("skerry.agent.service")


class Service:
    """The agent as its service manager sees it; the times are monotonic seconds."""

    def __init__(
        self,
        address: str = "",
        *,
        watchdog_s: float = 0.0,
        stall_s: float = STALL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._feed_every_s = watchdog_s / 3
        self._stall_s = stall_s
        self._clock = clock
        self._seen: dict[str, tuple[int, float]] = {}
        self._fed = -watchdog_s
        self._status = ""
        self._stalled: tuple[str, ...] = ()

    @classmethod
    def of(cls, environment: Mapping[str, str], *, patience_s: float = 0.0) -> "Service":
        """Return the service of this process by its environment; a watchdog for another process is none of ours.

        `patience_s` is how long one inference may take.
        """
        microseconds, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
        ours = microseconds.isdecimal() and pid in ("", str(os.getpid()))
        return cls(
            environment.get("NOTIFY_SOCKET", ""),
            watchdog_s=int(microseconds) / 1e6 if ours else 0.0,
            # asked twice, and its worker started anew in between
            stall_s=STALL_S + 4 * patience_s,
        )

    def ready(self, status: str = "") -> None:
        """Say that the agent lives."""
        self._say("READY=1", self._told(status))

    def stopping(self) -> None:
        """Say that it ends."""
        self._say("STOPPING=1")

    def turn(self, beats: Mapping[str, int], status: str) -> None:
        """Say how it is if that is news, and feed the watchdog if all get on."""
        now = self._clock()
        if status != self._status:
            self._say(self._told(status))
        stalled = self._look(beats, now)
        if stalled != self._stalled:
            self._stalled = stalled
            if stalled:
                _log.error("expected all threads to get on, got none of it from %s", ", ".join(stalled))
        if self._feed_every_s and not stalled and now - self._fed >= self._feed_every_s:
            self._fed = now
            self._say("WATCHDOG=1")

    def _look(self, beats: Mapping[str, int], now: float) -> tuple[str, ...]:
        """Return who has not moved for too long."""
        for name, count in beats.items():
            if name not in self._seen or self._seen[name][0] != count:
                self._seen[name] = (count, now)
        # who is no longer there has ended in order, or the agent ends with it
        self._seen = {name: self._seen[name] for name in beats}
        still = ((name, now - since) for name, (_, since) in self._seen.items())
        return tuple(sorted(name for name, idle_s in still if idle_s > self._patience(name)))

    def _patience(self, name: str) -> float:
        return max(self._stall_s, BUSY_S) if name.startswith("updater") else self._stall_s

    def _told(self, status: str) -> str:
        self._status = status
        return f"STATUS={' '.join(status.split())[:MAX_STATUS]}"

    def _say(self, *lines: str) -> None:
        if not self._address:
            return
        # an abstract socket's name begins with a null byte, which the environment cannot hold
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                # one that is full must not hold up the agent: what is said next is newer
                sock.setblocking(False)
                sock.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            _log.debug("the service manager did not hear %s: %s", lines[0], error)
