"""What the device says of itself, and when: the reported half of its twin. (Its outbox: `agent.telling.publisher`.)"""

from dataclasses import dataclass, replace

from skerry.wire.messages import Reported, Vitals

# what the system tells changes all the time: by itself it is said so often at most
VITALS_EVERY_S = 300.0
_WILL_SHARE = 10_000_000
_CONNECTIONS = 100_000


@dataclass(frozen=True, slots=True)
class Reporter:
    """When to publish `up/reported`: on connect, on each change of what matters, and every few seconds.

    Those seconds bring what counts on; what the system tells of itself comes along, and alone every few minutes.
    """

    every_s: float
    last: Reported | None = None
    sent_at: float = 0.0

    def due(self, now_reported: Reported, *, now: float) -> bool:
        """Say whether it should be published now."""
        if self.last is None:
            return True
        if now - self.sent_at >= VITALS_EVERY_S:
            return True
        if now - self.sent_at >= self.every_s:
            return _without_version(now_reported) != _without_version(self.last)
        return _matters(now_reported) != _matters(self.last)

    def sent(self, reported: Reported, *, now: float) -> "Reporter":
        """Return the reporter after a publication."""
        return replace(self, last=reported, sent_at=now)


class Versions:
    """Numbers for `Reported.version` that only grow, over restarts and reconnections, wills included.

    A will is written when the connection begins and heard after everything that is said in it. A start that the disk
    could not count goes on with the numbers of the last one that it did, by the minutes since then, `uncounted_s`.
    """

    def __init__(self, starts: int, *, uncounted_s: float | None = None) -> None:
        connections = 1
        if uncounted_s is not None:
            connections = _CONNECTIONS // 2 + min(int(uncounted_s / 60), _CONNECTIONS // 4)
        self._base = (starts * _CONNECTIONS + connections) * _WILL_SHARE
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
    components = {
        name: replace(each, received=0, progress=round(each.progress, 2))
        for name, each in (reported.components or {}).items()
    }
    progress = round(reported.progress, 2)
    quiet = replace(reported, version=0, received=0, progress=progress, vitals=Vitals(), components=components)
    return replace(quiet, runs=replace(quiet.runs, since_s=0), clock_ahead_s=None, uptime_s=0, outbox_bytes=0)


def _matters(reported: Reported) -> tuple[str, ...]:
    lifecycle = (reported.state, reported.release, reported.manifest, reported.deployment, reported.last_error)
    twin = (reported.health, reported.active, reported.runs.word, reported.desired_refused)
    named = [
        text
        for name, each in (reported.components or {}).items()
        for text in (
            name,
            each.state,
            each.release,
            each.manifest,
            each.deployment,
            each.last_error,
            each.stalled,
            each.runs,
        )
    ]
    return (*lifecycle, *twin, reported.waiting, reported.stalled, str(reported.desired_version), *named)
