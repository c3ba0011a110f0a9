"""Which slot is committed, by the pointer alone."""

import pytest

from skerry.delivery.slots import Pointer, Slot
from skerry.local.committed import committed_slot

GOOD, PENDING, BAD = Slot(mark="good", manifest="g"), Slot(mark="pending", manifest="p"), Slot(mark="bad")
REVOKED = Slot(mark="good", manifest="r", revoked=True)


@pytest.mark.parametrize(
    ("pointer", "expected"),
    [
        (Pointer(), ""),
        (Pointer(active="a", a=GOOD), "a"),
        # on trial: the last good one runs until the commit
        (Pointer(active="b", a=GOOD, b=PENDING), "a"),
        (Pointer(active="b", a=BAD, b=PENDING), ""),
        (Pointer(active="b", a=REVOKED, b=PENDING), ""),
        (Pointer(active="b", a=GOOD, b=BAD), "a"),
        # the agent still runs it: it says itself when a revoked one is given up
        (Pointer(active="a", a=REVOKED), "a"),
        # given up, and nothing runs
        (Pointer(active="", a=BAD, b=REVOKED), ""),
    ],
)
def test_which_slot_is_committed(pointer: Pointer, expected: str) -> None:
    assert committed_slot(pointer) == expected
