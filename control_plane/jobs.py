"""Long work with its record: jobs are rows, their tasks run in a pool of processes, and one thread drives them.

    job = ask(session, kind="train", parameters={...}, key="...", now=now)      # in the caller's transaction
    runner = Runner(plane, kinds); runner.start(); ...; runner.close()

A job is taken with a lease that its runner renews. When a runner is gone, its lease ends and any other takes the job up
again from the start: tasks only add blobs, which are content-addressed, and the rows are written once, in the same
transaction that ends the job. Asking twice with the same key is one job; asking again for a failed one queues it anew.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from control_plane.events import record
from control_plane.schema.work import Job
from control_plane.workers import Workers
from skerry.errors import SkerryError

if TYPE_CHECKING:
    from control_plane.plane import Plane

POLL_S = 0.2
LEASE = timedelta(seconds=30)
MAX_RUNNING = 4
MAX_LOG_CHARACTERS = 200_000
_log = logging.getLogger(__name__)

Parameters = dict[str, Any]
Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of job.

    `tasks` turns the job's parameters into those of its tasks, which run in parallel; `work` (a function of a module,
    so that another process can import it) gets the home folder, one task's parameters and a log, and returns JSON;
    `finish` writes the rows from all results, in the order of the tasks, and returns the job's result.
    """

    tasks: Callable[[Parameters], list[Parameters]]
    work: Callable[[str, Parameters, Callable[[str], None]], Result]
    finish: Callable[[Session, Parameters, list[Result], datetime], Result]


def ask(session: Session, *, kind: str, parameters: Parameters, key: str, now: datetime) -> Job:
    """Return the job of that key, queued if it is new or had failed."""
    job = session.scalar(select(Job).where(Job.key == key))
    if job is None:
        job = Job(kind=kind, key=key, state="queued", parameters=parameters, created_at=now)
        session.add(job)
        session.flush()
    elif job.state == "failed":
        job.state, job.error, job.ended_at = "queued", "", None
    return job


@dataclass(frozen=True, slots=True)
class _Running:
    kind: Kind
    parameters: Parameters
    futures: tuple[Future[Result], ...]


class Runner:
    """Takes queued jobs, hands their tasks to the pool and writes what came of them."""

    def __init__(self, plane: "Plane", kinds: Mapping[str, Kind], *, workers: int = 2) -> None:
        self._plane = plane
        self._kinds = kinds
        self._workers = Workers(str(plane.home.path), count=workers)
        self._running: dict[int, _Running] = {}
        self._renewed: datetime | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)

    def start(self) -> None:
        """Begin to take jobs, those that a runner left behind among them."""
        self._thread.start()

    def close(self) -> None:
        """Stop at once: what was running is queued again for the next runner."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._workers.close()
        self._flush_logs()
        with self._plane.sessions.begin() as session:
            for job in session.scalars(select(Job).where(Job.id.in_(self._running), Job.state == "running")):
                job.state, job.leased_until = "queued", None
        self._running.clear()

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            try:
                self.turn()
            except Exception:  # noqa: BLE001 -- a full disk or a locked database must not end the thread: try again
                _log.exception("jobs: a turn failed; the next one is in %s s", POLL_S)

    def turn(self) -> None:
        """Do whatever is due now: copy log lines, end jobs, renew leases, take new jobs."""
        now = self._plane.clock()
        self._flush_logs()
        for number, running in list(self._running.items()):
            if _is_over(running):
                self._end(number, running, now)
        if self._running and (self._renewed is None or now - self._renewed > LEASE / 3):
            self._renew(now)
        if len(self._running) < MAX_RUNNING:
            self._take(now)
        if not self._running:
            self._workers.rest()

    def _take(self, now: datetime) -> None:
        due = or_(Job.state == "queued", and_(Job.state == "running", Job.leased_until < now))
        query = select(Job).where(due, Job.kind.in_(self._kinds)).order_by(Job.id).limit(MAX_RUNNING)
        # the cheap look first: a writing session would take the lock five times a second for nothing
        with self._plane.readers() as session:
            if not [job for job in session.scalars(query) if job.id not in self._running]:
                return
        with self._plane.sessions.begin() as session:
            free = [job for job in session.scalars(query) if job.id not in self._running]
            taken = free[: MAX_RUNNING - len(self._running)]
            for job in taken:
                if job.state == "running":
                    _append(job, "taken up again: the server that ran it is gone")
                job.state, job.leased_until = "running", now + LEASE
            todo = [(job.id, job.kind, job.parameters) for job in taken]
        for number, kind, parameters in todo:
            try:
                self._begin(number, self._kinds[kind], parameters)
            except SkerryError as refusal:
                self._fail(number, str(refusal), now)

    def _begin(self, number: int, kind: Kind, parameters: Parameters) -> None:
        futures = tuple(self._workers.submit(kind.work, number, task) for task in kind.tasks(parameters))
        self._running[number] = _Running(kind, parameters, futures)

    def _end(self, number: int, running: _Running, now: datetime) -> None:
        del self._running[number]
        error = _failure(running)
        results = [] if error else [future.result() for future in running.futures]
        for future in running.futures:
            future.cancel()
        if not error:
            try:
                self._finish(number, running, results, now)
            except SkerryError as refusal:
                error = str(refusal)
            except Exception as mistake:  # noqa: BLE001 -- a kind that cannot write its rows ends its job, not the thread
                error = _one_line(mistake)
        if error:
            self._fail(number, error, now)

    def _finish(self, number: int, running: _Running, results: list[Result], now: datetime) -> None:
        with self._plane.sessions.begin() as session:
            job = session.get_one(Job, number)
            # another runner that took it for abandoned was faster: its rows stand
            if job.state == "running":
                job.result = running.kind.finish(session, running.parameters, results, now)
                job.state, job.leased_until, job.ended_at = "done", None, now

    def _fail(self, number: int, error: str, now: datetime) -> None:
        with self._plane.sessions.begin() as session:
            job = session.get_one(Job, number)
            if job.state == "running":
                job.state, job.error, job.leased_until, job.ended_at = "failed", error, None, now
                record(session, "job", f"{job.kind} {number}", f"{job.kind} failed: {error}", job=number)

    def _renew(self, now: datetime) -> None:
        with self._plane.sessions.begin() as session:
            for job in session.scalars(select(Job).where(Job.id.in_(self._running), Job.state == "running")):
                job.leased_until = now + LEASE
        self._renewed = now

    def _flush_logs(self) -> None:
        lines = self._workers.log_lines()
        if not lines:
            return
        with self._plane.sessions.begin() as session:
            for number, line in lines:
                job = session.get(Job, number)
                if job is not None:
                    _append(job, line)


def _is_over(running: _Running) -> bool:
    done = [future for future in running.futures if future.done()]
    return len(done) == len(running.futures) or any(future.exception() for future in done)


def _failure(running: _Running) -> str:
    """Return why the first failed task failed, in one line; empty when none did."""
    for future in running.futures:
        error = future.exception() if future.done() else None
        if isinstance(error, BrokenProcessPool):
            return "its worker process ended abruptly (killed, or out of memory): free memory and ask again"
        if isinstance(error, SkerryError):
            return str(error)
        if error is not None:
            return _one_line(error)
    return ""


def _one_line(error: BaseException) -> str:
    _log.error("a job failed unexpectedly", exc_info=error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _append(job: Job, line: str) -> None:
    if len(job.log) + len(line) < MAX_LOG_CHARACTERS:
        job.log = f"{job.log}{line.rstrip()}\n"
