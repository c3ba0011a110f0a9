"""Running sessions over rows, one row at a time, and timing them: what the child process does between load and result.

NumPy is imported inside the functions, so that importing this module costs a device nothing.
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from skerry.errors import Rejected
from skerry.runtimes.session import Session

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Arrays = dict[str, Array]

WARM_UP_ROWS = 10
WATCHED_ROWS = 32
LEAST_PAIRS = 20


def run_rows(
    session: Session, inputs: "Arrays", *, starts: Sequence[int] = (0,), fresh: Callable[[], Session]
) -> "tuple[Arrays, list[int]]":
    """Run every row as a batch of one, in order; returns outputs with rows first, and microseconds per inference.

    The first row is run in `session`, and each other one of `starts` in a fresh session, as are those that follow it.
    """
    results, latencies = [], []
    begins = set(starts) - {0}
    for position, row in enumerate(_rows(inputs)):
        if position in begins:
            session.close()
            session = fresh()
        started = time.perf_counter_ns()
        results.append(session.run(row))
        latencies.append((time.perf_counter_ns() - started) // 1000)
    return _joined(results), latencies


def run_in_turn(
    sessions: Sequence[Session], inputs: "Arrays", *, watched: int, pairs: int, seconds: float
) -> "tuple[Arrays, list[Array]]":
    """Time one inference of each session in turn, until there are `pairs` of them or `seconds` have gone by.

    Returns the outputs that the session of index `watched` gave for the first rows, from its fresh state, and for
    each session the microseconds of its inferences, one per pair.
    """
    import numpy as np

    rows = _rows(inputs)
    if not rows:
        raise Rejected("inputs: expected one row or more to time, got none")
    outputs = _joined([sessions[watched].run(row) for row in rows[:WATCHED_ROWS]])
    for index in range(WARM_UP_ROWS):
        for session in sessions:
            session.run(rows[index % len(rows)])
    times: list[list[float]] = [[] for _ in sessions]
    end = time.perf_counter() + seconds
    for pair in range(pairs):
        row = rows[pair % len(rows)]
        turns = list(zip(sessions, times, strict=True))
        # A B, B A, A B: who is timed second finds warmer caches, so each is second in every other pair
        for session, taken in turns if pair % 2 == 0 else reversed(turns):
            started = time.perf_counter_ns()
            session.run(row)
            taken.append((time.perf_counter_ns() - started) / 1000)
        if pair + 1 >= LEAST_PAIRS and time.perf_counter() > end:
            break
    return outputs, [np.asarray(taken) for taken in times]


def timed(latencies: list[int]) -> tuple[int, int]:
    """Return median and 99th percentile without the first, cold inferences; zeros without any."""
    warm = sorted(latencies[WARM_UP_ROWS:] or latencies) or [0]
    return warm[len(warm) // 2], warm[len(warm) * 99 // 100]


def _rows(inputs: "Arrays") -> "list[Arrays]":
    lengths = {len(rows) for rows in inputs.values()}
    if len(lengths) > 1:
        raise Rejected(f"inputs: expected equally many rows of each, got {sorted(lengths)}")
    return [
        {name: rows[index : index + 1] for name, rows in inputs.items()}
        for index in range(lengths.pop() if lengths else 0)
    ]


def _joined(results: "list[Arrays]") -> "Arrays":
    import numpy as np

    if not results:
        return {}
    return {
        # an output of one number has no axis to count rows along
        name: np.concatenate([result[name] if result[name].ndim else result[name][None] for result in results])
        for name in results[0]
    }
