"""Gathers the retained messages that one caller asked for, and judges when no more of them will come."""

import threading
import time
from collections.abc import Callable

from skerry.wire.codec import MAX_BYTES

# less than this is acknowledgements and pings; more is what was asked for
MURMUR_BYTES = 1024
# a link on which one window takes longer is dead in all but name
FETCH_MOST_S = 180.0


class Collector:
    """What came of `wanted` so far; one thread adds, another waits."""

    def __init__(self, wanted: frozenset[str]) -> None:
        self._wanted = wanted
        self._found: dict[str, bytes] = {}
        self._news = threading.Condition()

    def add(self, topic: str, payload: bytes) -> None:
        """Take a message, if it was asked for and is no longer than one may be."""
        with self._news:
            if topic in self._wanted and len(payload) <= MAX_BYTES:
                self._found[topic] = payload
                self._news.notify()

    def wait(self, silence_s: float, *, heard: Callable[[], int], while_true: Callable[[], bool]) -> dict[str, bytes]:
        """Return what came until all has, the link has been silent for `silence_s`, or `while_true` is no more.

        `heard` counts the bytes of the link: a message that is under way is no silence.
        """
        began = since = time.monotonic()
        held, before = 0, heard()
        with self._news:
            while len(self._found) < len(self._wanted) and while_true():
                now, by_now = time.monotonic(), heard()
                if by_now >= before + MURMUR_BYTES or len(self._found) > held:
                    held, before, since = len(self._found), by_now, now
                left = min(since + silence_s, began + FETCH_MOST_S) - now
                if left <= 0:
                    break
                self._news.wait(min(left, 0.5))
            return dict(self._found)
