"""The pool of worker processes: started when first needed, rebuilt after a crash, gone with whoever started it.

Each worker holds the reading end of a pipe whose writing end only this process has. When this process closes it, or
dies in any way, the worker reads the end of the file and leaves: no orphan keeps a core busy.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from multiprocessing.queues import SimpleQueue
from typing import Any

REST_AFTER_S = 60.0
MAX_LINES = 10_000

Work = Callable[[str, dict[str, Any], Callable[[str], None]], dict[str, Any]]
_lines: "SimpleQueue[tuple[int, str] | None] | None" = None


class Workers:
    """A process pool that comes and goes; used from one thread, apart from its log reader."""

    def __init__(self, home: str, *, count: int = 2) -> None:
        self._home = home
        self._count = count
        self._pool: _Pool | None = None
        self._idle_since: float | None = None
        self._log: deque[tuple[int, str]] = deque(maxlen=MAX_LINES)

    def submit(self, work: Work, number: int, parameters: dict[str, Any]) -> Future[dict[str, Any]]:
        """Run `work(home, parameters, log)` in a worker; its log lines come back under `number`."""
        self._idle_since = None
        if self._pool is None:
            self._pool = _Pool(self._count, self._log)
        try:
            return self._pool.executor.submit(_call, work, number, self._home, parameters)
        except BrokenProcessPool:
            self.close()
            self._pool = _Pool(self._count, self._log)
            return self._pool.executor.submit(_call, work, number, self._home, parameters)

    def log_lines(self) -> list[tuple[int, str]]:
        """Return the log lines that have come in since the last call, as (number, line)."""
        return [self._log.popleft() for _ in range(len(self._log))]

    def rest(self) -> None:
        """Say that nothing is running: after a minute of that the workers give their memory back."""
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        if self._pool is not None and now - self._idle_since > REST_AFTER_S:
            self.close()

    def close(self) -> None:
        """Let the workers go, whatever they are doing."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


class _Pool:
    """One process pool with its log queue and its lifeline."""

    def __init__(self, count: int, log: deque[tuple[int, str]]) -> None:
        # spawn: the server has threads, and a fork of a process with threads may inherit locked locks
        context = multiprocessing.get_context("spawn")
        reading, self._lifeline = context.Pipe(duplex=False)
        self._reading = reading
        self._queue: SimpleQueue[tuple[int, str] | None] = context.SimpleQueue()
        self.executor = ProcessPoolExecutor(
            count, mp_context=context, initializer=_begin_worker, initargs=(reading, self._queue)
        )
        self._reader = threading.Thread(target=_copy, args=(self._queue, log), name="job-log", daemon=True)
        self._reader.start()

    def close(self) -> None:
        self._lifeline.close()
        self.executor.shutdown(wait=True, cancel_futures=True)
        self._reading.close()
        self._queue.put(None)
        self._reader.join()
        self._queue.close()


def _copy(queue: "SimpleQueue[tuple[int, str] | None]", log: deque[tuple[int, str]]) -> None:
    while (item := queue.get()) is not None:
        log.append(item)


def _begin_worker(lifeline: Connection, lines: "SimpleQueue[tuple[int, str] | None]") -> None:
    global _lines  # noqa: PLW0603 -- what an initializer sets, tasks of the same process can only read from a global
    _lines = lines
    # Ctrl-C in a terminal reaches the whole group; the server decides when its workers go
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # the API and the broker on the same machine come first, and one task is one core
    os.nice(5)
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
    threading.Thread(target=_leave_with, args=(lifeline,), daemon=True).start()


def _leave_with(lifeline: Connection) -> None:
    try:
        lifeline.recv()
    except (EOFError, OSError):
        os._exit(0)


def _call(work: Work, number: int, home: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return work(home, parameters, lambda line: _lines.put((number, line[:2000])) if _lines else None)
