"""The high-water mark and its gap set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.outbox_mark import MAX_BEYOND, Mark, is_new, take
from skerry.errors import Rejected


@given(st.permutations(range(1, 30)))
def test_every_number_is_taken_once_in_any_order(order: list[int]) -> None:
    mark = Mark()
    for number in order:
        assert is_new(mark, number)
        mark = take(mark, number)
        assert not is_new(mark, number)
    assert mark == Mark(29)


@given(st.lists(st.integers(1, 40), max_size=100))
def test_the_mark_knows_exactly_what_it_has_taken(numbers: list[int]) -> None:
    mark, taken = Mark(), set()
    for number in numbers:
        assert is_new(mark, number) == (number not in taken)
        if is_new(mark, number):
            mark = take(mark, number)
            taken.add(number)
    assert {number for number in range(1, 41) if not is_new(mark, number)} == taken
    assert mark.up_to + 1 not in taken
    assert all(number > mark.up_to for number in mark.beyond)


@given(st.permutations([(1, 1), (2, 5), (6, 6), (7, 12), (13, 13)]))
def test_ranges_are_taken_whole_in_any_order(ranges: list[tuple[int, int]]) -> None:
    mark = Mark()
    for first, last in ranges:
        assert is_new(mark, first)
        mark = take(mark, first, through=last)
        assert not any(is_new(mark, number) for number in range(first, last + 1))
    assert mark == Mark(13)


def test_a_long_range_in_its_turn_is_taken_however_long_it_is() -> None:
    assert take(Mark(4), 5, through=1_000_000) == Mark(1_000_000)
    with pytest.raises(Rejected, match="expected 5 before"):
        take(Mark(4), 7, through=1_000_000)


def test_a_number_that_is_none_is_refused() -> None:
    for number in (0, -1, 1 << 62):
        with pytest.raises(Rejected, match="sequence"):
            is_new(Mark(), number)


def test_the_gap_set_is_bounded() -> None:
    mark = Mark(0, frozenset(range(2, MAX_BEYOND + 2)))
    with pytest.raises(Rejected, match="expected 1 before"):
        take(mark, MAX_BEYOND + 2)
    assert take(mark, 1) == Mark(MAX_BEYOND + 1)
