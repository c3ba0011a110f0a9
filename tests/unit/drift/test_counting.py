"""Counting a row, and adding what was counted."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.drift import Counter, Counts, Monitor, Rejected, build_monitor, merge
from skerry.drift.counting import rows


def _rng(seed: int) -> random.Random:
    return random.Random(seed)


_RNG = _rng(1)
_X = [_RNG.gauss(0, 1) for _ in range(200)]
MONITOR: Monitor = build_monitor(
    {"x": _X, "y": [value + _RNG.gauss(0, 1) for value in _X]},
    categories={"prediction": [_RNG.choice("ab") for _ in range(200)]},
    window_n=10,
    pairs=1,
)
Row = tuple[float | None, float | None, str | None]
ROW = st.tuples(
    st.none() | st.floats(width=32), st.none() | st.floats(), st.none() | st.sampled_from(["a", "b", "unheard of"])
)


def _counted(table: list[Row]) -> Counts:
    counter = Counter(MONITOR)
    for row in table:
        counter.add(row)
    return counter.counts()


@given(st.lists(ROW, max_size=30))
def test_the_counter_agrees_with_the_definition_of_the_bins(table: list[Row]) -> None:
    expected = [[0] * bins for bins in MONITOR.shape]
    for row in table:
        for index, (scalar, value) in enumerate(zip(MONITOR.scalars, row, strict=True)):
            expected[index][scalar.bin_of(value)] += 1
        cell = MONITOR.pairs[0].cell_of(row[0], row[1])
        if cell is not None:
            expected[3][cell] += 1
    assert _counted(table) == tuple(tuple(bins) for bins in expected)


@given(st.lists(ROW, max_size=20), st.lists(ROW, max_size=20))
def test_merging_two_windows_is_counting_all_their_rows(first: list[Row], second: list[Row]) -> None:
    assert merge([_counted(first), _counted(second)]) == _counted(first + second)


@given(st.lists(ROW, max_size=20), st.lists(ROW, max_size=20))
def test_a_restored_window_continues_where_it_was(before: list[Row], after: list[Row]) -> None:
    counter = Counter(MONITOR)
    counter.restore(_counted(before))
    for row in after:
        counter.add(row)
    assert counter.counts() == _counted(before + after)


def test_every_row_falls_into_one_bin_of_each_scalar() -> None:
    counts = _counted([(0.0, 0.0, "a"), (math.nan, None, None), (math.inf, -math.inf, "c")])
    assert [sum(bins) for bins in counts] == [3, 3, 3, 1]
    assert rows(counts) == 3


def test_a_reset_window_is_empty_and_leaves_earlier_counts_alone() -> None:
    counter = Counter(MONITOR)
    counter.add((0.0, 0.0, "a"))
    earlier = counter.counts()
    counter.reset()
    assert rows(counter.counts()) == 0
    assert rows(earlier) == 1


def test_a_row_of_another_length_counts_nothing() -> None:
    counter = Counter(MONITOR)
    with pytest.raises(Rejected, match="expected 3 values, got 2"):
        counter.add((0.0, 0.0))
    assert rows(counter.counts()) == 0


def test_counts_of_another_monitor_are_rejected() -> None:
    counter = Counter(MONITOR)
    with pytest.raises(Rejected, match="expected bins"):
        counter.restore(((1, 2),))
    negative = tuple((-1,) * bins for bins in MONITOR.shape)
    with pytest.raises(Rejected, match="negative"):
        counter.restore(negative)


def test_nothing_cannot_be_merged() -> None:
    with pytest.raises(Rejected, match="one or more"):
        merge([])
