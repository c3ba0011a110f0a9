"""How far this device's clock is from the control plane's, as its acknowledgements tell; reported, never acted upon.

An acknowledgement says when it was written, and takes a while to come: `now - at` is the clock's lead plus that while.
So the least of the last few is the best bound, and one that waited in the broker while this device was away is
outvoted by the next. It is unsigned: whoever owns the broker can make a device complain of its clock, and nothing else.
"""

from collections import deque

_KEPT = 8
_ENOUGH = 2


class Skew:
    """What was heard of the time; `behind` is a bound that the floor gives (`agent.trust.floor`), in seconds."""

    def __init__(self) -> None:
        self._leads: deque[float] = deque(maxlen=_KEPT)

    def heard(self, at: float, *, now: float) -> None:
        """Note that something written at `at` by the control plane's clock came when ours said `now`."""
        if at > 0:
            self._leads.append(now - at)

    def ahead_s(self, *, now: float, floor: float) -> float | None:
        """Return by how many seconds the clock is ahead, below 0 behind, to ten seconds; None when nothing tells."""
        leads = list(self._leads)
        found = [min(leads)] if len(leads) >= _ENOUGH else []
        # what a verified assignment proves to have passed, has passed
        if floor > now:
            found.append(now - floor)
        return round(min(found) / 10) * 10.0 if found else None
