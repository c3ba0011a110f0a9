"""How long to wait before trying again: spread, so that a fleet that lost its broker does not come back at once."""

import random

from skerry.errors import Rejected

RECONNECT_S = 10.0
# of a wait, against the spread of the first one
_MOST = 12
# a connection that lived this many spreads was one: what ends it is a new loss, and not the old one going on
_STEADY = 3


class Backoff:
    """The waits of one connection that is kept up: each anywhere in [0, spread], and the spread doubles.

    A thousand devices whose broker went away make about `1000 / reconnect_s` attempts a second and never twice as many,
    from the first second on: the wait before the *first* attempt is spread as well. It begins anew only after a
    connection that has lived for three spreads, so a broker that accepts and drops is asked ever less often.
    """

    def __init__(self, reconnect_s: float = RECONNECT_S, *, dice: random.Random | None = None) -> None:
        if not 0 < reconnect_s <= 3600:
            raise Rejected(f"reconnect_s: expected more than 0 and at most 3600, got {reconnect_s:g}")
        self._first_s = reconnect_s
        self._dice = dice or random.Random()  # noqa: S311 -- spreads a fleet, guards nothing
        self._misses = 0

    def pause(self, *, lived_s: float = 0.0) -> float:
        """Return how long to wait after a connection that lived `lived_s`; 0 is an attempt that failed."""
        if lived_s >= _STEADY * self._first_s:
            self._misses = 0
        spread = min(self._first_s * 2.0**self._misses, _MOST * self._first_s)
        self._misses = min(self._misses + 1, 16)
        return self._dice.uniform(0, spread)


def full_jitter(attempt: int, *, least_s: float, most_s: float) -> float:
    """Return how long to wait before an errand is run again: at least `least_s`, and anywhere up to a growing bound.

    The bound is twice the least for the first attempt and doubles with each, up to `most_s`.
    """
    bound = min(most_s, least_s * 2.0 ** (min(attempt, 16) + 1))
    return random.uniform(least_s, max(bound, least_s))  # noqa: S311 -- spreads a fleet, guards nothing
