"""Searching the candidates of a profile: best first by what was measured before, within a time budget, in parallel.

    order = best_first(("int8", "int8-hybrid"), history)
    searched = search(attempt, order, budget_s=60, parallel=2, told=print)

`attempt(precision)` does one candidate whole, and is called from several threads when `parallel` is above 1: what takes
its time are the processes that it starts, in which a runtime loads and runs the candidate. Nothing is begun after the
budget's end, and what is missed so is named: it is "not run", never "passed". The float form is no part of the search:
everything else is held against it, so it is measured whatever the budget.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
Attempt = Callable[[str], T]


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a precision of the same model came to on another profile: outcome of its gate, and what it cost.

    `ratio` is its latency against the float form's, 1 where it was not measured.
    """

    precision: str
    passed: bool
    agreement: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Searched(Generic[T]):
    """What was attempted, by precision in the order in which it ended, and what the budget did not reach."""

    found: Mapping[str, T]
    missed: tuple[str, ...]


def best_first(precisions: Sequence[str], history: Iterable[Earlier]) -> tuple[str, ...]:
    """Return precisions in the order in which to attempt them.

    What passed elsewhere comes first, the fastest of it before the others; then what is unknown, in the order given;
    then what was refused everywhere, by its agreement.
    """
    known: dict[str, list[Earlier]] = {}
    for earlier in history:
        known.setdefault(earlier.precision, []).append(earlier)

    def rank(precision: str) -> tuple[int, float, int]:
        position = precisions.index(precision)
        seen = known.get(precision, [])
        passed = [each.ratio for each in seen if each.passed]
        if passed:
            return 0, sum(passed) / len(passed), position
        if not seen:
            return 1, 0.0, position
        return 2, -max(each.agreement for each in seen), position

    return tuple(sorted(dict.fromkeys(precisions), key=rank))


def search(
    attempt: Attempt[T],
    order: Sequence[str],
    *,
    budget_s: float,
    parallel: int = 1,
    clock: Callable[[], float] = time.monotonic,
    told: Callable[[str, T, tuple[str, ...]], None] = lambda *_: None,
) -> Searched[T]:
    """Attempt precisions in order until the budget ends; `told` gets each with its value, and what is still to go.

    What `attempt` raises is raised, after those beside it have ended; that a candidate is refused should be its value.
    """
    deadline = clock() + budget_s
    found: dict[str, T] = {}
    waiting = list(order)
    if parallel <= 1 or len(waiting) <= 1:
        while waiting and clock() < deadline:
            precision = waiting.pop(0)
            found[precision] = attempt(precision)
            told(precision, found[precision], tuple(waiting))
        return Searched(found=found, missed=tuple(waiting))

    with ThreadPoolExecutor(min(parallel, len(waiting)), thread_name_prefix="search") as pool:
        running: dict[Future[T], str] = {}
        while running or waiting:
            while waiting and len(running) < parallel and clock() < deadline:
                precision = waiting.pop(0)
                running[pool.submit(attempt, precision)] = precision
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                precision = running.pop(future)
                found[precision] = future.result()
                told(precision, found[precision], (*running.values(), *waiting))
    return Searched(found=found, missed=tuple(waiting))
