"""Which sequence numbers of one epoch have been merged: a high-water mark and the gap set beyond it, in ranges.

At-least-once delivery in any order has an exactly-once effect when each number is taken once:

    mark = Mark()
    is_new(mark, 1); mark = take(mark, 1)                  # up_to 1
    is_new(mark, 3); mark = take(mark, 3)                  # up_to 1, beyond ((3, 3),)
    is_new(mark, 2); mark = take(mark, 2)                  # up_to 3
    fresh(mark, 2, 9); mark = take(mark, 2, through=9)     # 6 of them are new; up_to 9
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from skerry.errors import Rejected

# how many batches a device may have on their way; a fleet that comes back fills the queue of `control_plane.link` less
BATCHES_IN_FLIGHT = 8
# what a device has said goes back to few batches: each of them leaves one range, or few
MAX_RANGES = 1024
MAX_SEQUENCE = 1 << 62
Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Mark:
    """Everything up to and including `up_to`, and the ranges in `beyond`: in order, none touching another."""

    up_to: int = 0
    beyond: tuple[Range, ...] = ()


def is_new(mark: Mark, sequence: int) -> bool:
    """Say whether the number has not been taken; raises `Rejected` where a number cannot be a sequence number."""
    if not 1 <= sequence < MAX_SEQUENCE:
        raise Rejected(f"sequence: expected a number from 1, got {sequence}")
    return fresh(mark, sequence, sequence) == 1


def fresh(mark: Mark, first: int, last: int) -> int:
    """Return how many of the numbers from `first` to `last` have not been taken."""
    first = max(first, mark.up_to + 1)
    if first > last:
        return 0
    begin = bisect_left(mark.beyond, first, key=_last)
    end = bisect_right(mark.beyond, last, key=_first)
    taken = sum(min(last, until) - max(first, since) + 1 for since, until in mark.beyond[begin:end])
    return last - first + 1 - taken


def take(mark: Mark, sequence: int, *, through: int | None = None) -> Mark:
    """Return the mark with one more number taken, or with all numbers from `sequence` to `through`.

    Raises:
        Rejected: too many ranges are missing below; the sender begins again at the last acknowledged one.
    """
    first, last = sequence, sequence if through is None else max(sequence, through)
    # what overlaps or touches becomes one range
    begin = bisect_left(mark.beyond, first - 1, key=_last)
    end = bisect_right(mark.beyond, last + 1, key=_first)
    joined = mark.beyond[begin:end]
    if joined:
        first, last = min(first, joined[0][0]), max(last, joined[-1][1])
    if first <= mark.up_to + 1:
        return Mark(max(mark.up_to, last), mark.beyond[end:])
    beyond = (*mark.beyond[:begin], (first, last), *mark.beyond[end:])
    if len(beyond) > MAX_RANGES:
        raise Rejected(f"sequence: expected {mark.up_to + 1} before {MAX_RANGES} later ranges, got {sequence}")
    return Mark(mark.up_to, beyond)


def as_ranges(numbers: Iterable[int]) -> tuple[Range, ...]:
    """Return numbers as ranges, in order."""
    ranges: list[Range] = []
    for number in sorted(numbers):
        if ranges and number <= ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return tuple(ranges)


def to_json(mark: Mark) -> dict[str, Any]:
    """Return the gap set as it is kept: the first numbers of its ranges, with their last."""
    return {str(first): last for first, last in mark.beyond}


def from_json(up_to: int, beyond: Mapping[str, Any]) -> Mark:
    """Return a mark from what is kept; before 0.2 each number beyond stood alone, with a 1."""
    mark = Mark(up_to)
    for first, last in sorted((int(first), int(last)) for first, last in beyond.items()):
        mark = take(mark, first, through=last)
    return mark


def _first(each: Range) -> int:
    return each[0]


def _last(each: Range) -> int:
    return each[1]
