"""How often what is committed has crashed lately, when it is started again, and when that is too often: pure values.

Crashes().after(100.0).after(101.0)     # two within ten minutes: the next start is due at 102.0
"""

from dataclasses import dataclass

WITHIN_S = 600.0
TOO_MANY = 3
LEAST_PAUSE_S = 1.0
MOST_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True)
class Crashes:
    """The times of the crashes of the last ten minutes, by one clock."""

    times: tuple[float, ...] = ()

    def after(self, now: float) -> "Crashes":
        """Return them with one more."""
        return Crashes((*(each for each in self.times if now - each < WITHIN_S), now))

    @property
    def too_many(self) -> bool:
        """True when whoever has something better to run should run that."""
        return len(self.times) >= TOO_MANY

    @property
    def due(self) -> float:
        """When to start again: at once after the first one, then after pauses that double."""
        if not self.times:
            return 0.0
        doublings = len(self.times) - 2
        pause = min(LEAST_PAUSE_S * 2**doublings, MOST_PAUSE_S) if doublings >= 0 else 0.0
        return self.times[-1] + pause
