"""The high-water mark and its gap set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.outbox_mark import MAX_RANGES, Mark, as_ranges, fresh, from_json, is_new, take, to_json
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
    assert mark == Mark(mark.up_to, as_ranges(number for number in taken if number > mark.up_to))
    assert from_json(mark.up_to, to_json(mark)) == mark


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 12)), max_size=30), st.integers(1, 40), st.integers(0, 12))
def test_ranges_that_overlap_are_counted_by_what_of_them_is_new(
    ranges: list[tuple[int, int]], first: int, more: int
) -> None:
    mark = Mark()
    taken: set[int] = set()
    for start, length in ranges:
        new = set(range(start, start + length + 1)) - taken
        assert fresh(mark, start, start + length) == len(new)
        mark = take(mark, start, through=start + length)
        taken |= new
    assert fresh(mark, first, first + more) == len(set(range(first, first + more + 1)) - taken)
    assert mark == Mark(mark.up_to, as_ranges(number for number in taken if number > mark.up_to))


def test_a_gap_set_of_single_numbers_as_it_was_kept_before_is_read() -> None:
    assert from_json(1, {"3": 1, "4": 1, "10": 1, "6": 1}) == Mark(1, ((3, 4), (6, 6), (10, 10)))


@given(st.permutations([(1, 1), (2, 5), (6, 6), (7, 12), (13, 13)]))
def test_ranges_are_taken_whole_in_any_order(ranges: list[tuple[int, int]]) -> None:
    mark = Mark()
    for first, last in ranges:
        assert is_new(mark, first)
        mark = take(mark, first, through=last)
        assert not any(is_new(mark, number) for number in range(first, last + 1))
    assert mark == Mark(13)


def test_a_range_is_taken_however_long_it_is() -> None:
    assert take(Mark(4), 5, through=1_000_000) == Mark(1_000_000)
    assert take(Mark(4), 7, through=1_000_000) == Mark(4, ((7, 1_000_000),))


def test_a_number_that_is_none_is_refused() -> None:
    for number in (0, -1, 1 << 62):
        with pytest.raises(Rejected, match="sequence"):
            is_new(Mark(), number)


def test_the_gap_set_is_bounded() -> None:
    mark = Mark(0, as_ranges(range(2, 2 * MAX_RANGES + 1, 2)))
    with pytest.raises(Rejected, match="expected 1 before"):
        take(mark, 2 * MAX_RANGES + 2)
    assert take(mark, 3) == Mark(0, ((2, 4), *mark.beyond[2:]))
    assert take(mark, 1) == Mark(2, mark.beyond[1:])
