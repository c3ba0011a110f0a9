"""The search attempts the best first, ends with its budget, and names what it did not reach."""

import threading
from collections.abc import Callable

import pytest

from converters.search import Earlier, best_first, search
from skerry.errors import Broken

PRECISIONS = ("int8", "int8-hybrid", "int8-dynamic", "fp16")


def _earlier(precision: str, *, passed: bool, agreement: float = 1.0, ratio: float = 1.0) -> Earlier:
    return Earlier(precision=precision, passed=passed, agreement=agreement, ratio=ratio)


def test_without_a_history_the_order_is_the_profiles() -> None:
    assert best_first(PRECISIONS, []) == PRECISIONS


def test_what_passed_elsewhere_comes_first_and_what_was_refused_last() -> None:
    history = [
        _earlier("int8", passed=False, agreement=0.6),
        _earlier("int8-hybrid", passed=True, ratio=0.9),
        _earlier("fp16", passed=True, ratio=0.4),
        _earlier("float32", passed=True),
    ]
    assert best_first(PRECISIONS, history) == ("fp16", "int8-hybrid", "int8-dynamic", "int8")


def test_what_was_refused_is_ordered_by_its_agreement() -> None:
    history = [_earlier("int8", passed=False, agreement=0.2), _earlier("fp16", passed=False, agreement=0.9)]
    assert best_first(("int8", "fp16"), history) == ("fp16", "int8")


def _clock(step: float) -> Callable[[], float]:
    now = [0.0]

    def tick() -> float:
        now[0] += step
        return now[0]

    return tick


def test_what_the_budget_does_not_reach_is_named() -> None:
    searched = search(str.upper, PRECISIONS, budget_s=2.5, clock=_clock(1.0))
    assert searched.found == {"int8": "INT8", "int8-hybrid": "INT8-HYBRID"}
    assert searched.missed == ("int8-dynamic", "fp16")


def test_progress_is_told() -> None:
    told: list[object] = []
    search(str.upper, ("a", "b"), budget_s=60, told=lambda *words: told.append(words))
    assert told == [("a", "A", ("b",)), ("b", "B", ())]


def test_in_parallel_two_are_attempted_at_once() -> None:
    both = threading.Barrier(2, timeout=20)

    def attempt(precision: str) -> str:
        both.wait()
        return precision.upper()

    searched = search(attempt, ("a", "b", "c", "d"), budget_s=60, parallel=2)
    assert searched.found == {"a": "A", "b": "B", "c": "C", "d": "D"}
    assert searched.missed == ()


def test_the_budget_holds_in_parallel_too() -> None:
    searched = search(str.upper, PRECISIONS, budget_s=2.5, parallel=2, clock=_clock(1.0))
    assert set(searched.found) | set(searched.missed) == set(PRECISIONS)
    assert searched.missed


@pytest.mark.parametrize("parallel", [1, 2])
def test_what_an_attempt_raises_is_raised(parallel: int) -> None:
    def attempt(_: str) -> None:
        raise Broken("expected a disk with room, got a full one")

    with pytest.raises(Broken, match="got a full one"):
        search(attempt, ("a", "b"), budget_s=60, parallel=parallel)
