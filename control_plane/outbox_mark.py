"""Which sequence numbers of one epoch have been merged: a high-water mark and the gap set beyond it.

At-least-once delivery in any order has an exactly-once effect when each number is taken once:

    mark = Mark()
    is_new(mark, 1); mark = take(mark, 1)       # up_to 1
    is_new(mark, 3); mark = take(mark, 3)       # up_to 1, beyond {3}
    is_new(mark, 2); mark = take(mark, 2)       # up_to 3
"""

from dataclasses import dataclass

from skerry.errors import Rejected

MAX_BEYOND = 4096
MAX_SEQUENCE = 1 << 62


@dataclass(frozen=True, slots=True)
class Mark:
    """Everything up to and including `up_to`, and what is in `beyond`."""

    up_to: int = 0
    beyond: frozenset[int] = frozenset()


def is_new(mark: Mark, sequence: int) -> bool:
    """Say whether the number has not been taken; raises `Rejected` where a number cannot be a sequence number."""
    if not 1 <= sequence < MAX_SEQUENCE:
        raise Rejected(f"sequence: expected a number from 1, got {sequence}")
    return sequence > mark.up_to and sequence not in mark.beyond


def take(mark: Mark, sequence: int, *, through: int | None = None) -> Mark:
    """Return the mark with one more number taken, or with all numbers from `sequence` to `through`.

    Raises:
        Rejected: too many numbers are missing below; the sender begins again at the last acknowledged one.
    """
    last = sequence if through is None else max(sequence, through)
    if sequence <= mark.up_to + 1:
        up_to = max(mark.up_to, last)
        while up_to + 1 in mark.beyond:
            up_to += 1
        return Mark(up_to, frozenset(number for number in mark.beyond if number > up_to))
    if len(mark.beyond) + last - sequence >= MAX_BEYOND:
        raise Rejected(f"sequence: expected {mark.up_to + 1} before {MAX_BEYOND} later ones, got {sequence}")
    return Mark(mark.up_to, mark.beyond | frozenset(range(sequence, last + 1)))
