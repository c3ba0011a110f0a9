"""Jobs in real worker processes: crashes, shutdown, live logs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from control_plane import jobs
from control_plane.jobs import Kind, Runner
from control_plane.plane import Plane
from control_plane.schema.work import Job
from control_plane.server import make_home, open_plane
from control_plane.settings import Settings


def work(home: str, task: dict[str, Any], log: Callable[[str], None]) -> dict[str, Any]:
    """Do what the task says."""
    log(f"begins {task['do']}")
    if task["do"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if task["do"] == "fail":
        raise ZeroDivisionError("of two\nlines")
    if task["do"] == "wait":
        time.sleep(60)
    return {"pid": os.getpid(), "home": home}


def finish(session: Session, task: dict[str, Any], results: list[dict[str, Any]], now: datetime) -> dict[str, Any]:
    """Write nothing."""
    return {"results": results}


KINDS = {"do": Kind(tasks=lambda parameters: list(parameters["tasks"]), work=work, finish=finish)}


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Plane]:
    """Return a control plane without a server."""
    opened = open_plane(make_home(tmp_path / "home", Settings(project="watch")).path)
    yield opened
    opened.sessions.kw["bind"].dispose()


@pytest.fixture
def runner(plane: Plane) -> Iterator[Runner]:
    """Return a runner that runs."""
    opened = Runner(plane, KINDS)
    opened.start()
    yield opened
    opened.close()


def ask(plane: Plane, *tasks: str, key: str = "") -> int:
    """Ask for a job; return its number."""
    with plane.sessions.begin() as session:
        job = jobs.ask(
            session,
            kind="do",
            parameters={"tasks": [{"do": task} for task in tasks]},
            key=key or "-".join(tasks),
            now=plane.clock(),
        )
        return job.id


def until(plane: Plane, number: int, check: Callable[[Job], bool]) -> Job:
    """Wait for a job."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with plane.readers() as session:
            job = session.get_one(Job, number)
        if check(job):
            return job
        time.sleep(0.02)
    pytest.fail(f"expected another state of the job, got {job.state}: {job.error}")


def is_over(job: Job) -> bool:
    """Say whether a job has ended."""
    return job.state in ("done", "failed")


def test_tasks_run_in_other_processes_and_asking_twice_is_one_job(plane: Plane, runner: Runner) -> None:
    number = ask(plane, "this", "that", key="k")
    job = until(plane, number, is_over)
    assert job.state == "done"
    assert all(result["pid"] != os.getpid() for result in job.result["results"])
    assert sorted(job.log.splitlines()) == ["begins that", "begins this"]
    assert ask(plane, "this", "that", key="k") == number


def test_a_worker_that_dies_fails_its_job_and_the_next_job_has_a_new_pool(plane: Plane, runner: Runner) -> None:
    job = until(plane, ask(plane, "die"), is_over)
    assert job.state == "failed"
    assert "ended abruptly" in job.error
    assert until(plane, ask(plane, "after"), is_over).state == "done"


def test_an_unexpected_error_is_one_line_and_asking_again_queues_the_job_anew(plane: Plane, runner: Runner) -> None:
    number = ask(plane, "fail")
    assert until(plane, number, is_over).error == "ZeroDivisionError: of two lines"
    with plane.sessions.begin() as session:
        session.get_one(Job, number).parameters = {"tasks": [{"do": "well"}]}
    assert ask(plane, "fail") == number
    job = until(plane, number, is_over)
    assert (job.state, job.error) == ("done", "")


def test_a_runner_that_closes_leaves_at_once_and_its_job_is_taken_by_the_next(plane: Plane) -> None:
    first = Runner(plane, KINDS)
    first.start()
    number = ask(plane, "wait")
    until(plane, number, lambda job: "begins" in job.log)
    began = time.monotonic()
    first.close()
    assert time.monotonic() - began < 10
    with plane.sessions.begin() as session:
        job = session.get_one(Job, number)
        assert (job.state, job.leased_until) == ("queued", None)
        job.parameters = {"tasks": [{"do": "short"}]}
    second = Runner(plane, KINDS)
    second.start()
    assert until(plane, number, is_over).state == "done"
    second.close()


def test_two_runners_do_not_take_the_same_job(plane: Plane, runner: Runner) -> None:
    other = Runner(replace(plane), KINDS)
    other.start()
    numbers = [ask(plane, "one", key=f"k{index}") for index in range(4)]
    for number in numbers:
        job = until(plane, number, is_over)
        assert (job.state, job.log.count("begins")) == ("done", 1)
    other.close()


PROGRAM = """
import sys, time
from control_plane.workers import Workers
from tests.integration.fleet.test_jobs import work

if __name__ == "__main__":
    workers = Workers("home", count=1)
    workers.submit(work, 1, {"do": "tell"}).result()
    print(workers.submit(work, 1, {"do": "tell"}).result()["pid"], flush=True)
    workers.submit(work, 1, {"do": "wait"})
    time.sleep(60)
"""


def test_workers_do_not_outlive_a_server_that_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    server = subprocess.Popen(
        [sys.executable, str(program)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert server.stdout is not None
    worker = int(server.stdout.readline())
    server.kill()
    server.wait()
    server.stdout.close()
    deadline = time.monotonic() + 10
    while _is_alive(worker):
        assert time.monotonic() < deadline, "expected the worker to leave, it stays"
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    # an orphan that has ended may wait for its new parent as a zombie
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"
