"""A Python program in a process with limits, for work on files that may be hostile.

    failure = run_confined("skerry.runtimes.child", folder, limits)    # in the parent: None, or how it failed
    confine(request)                                                   # in the child, before it reads the file

The two halves share a folder: what is asked lies there, and what comes of it. Only the standard library is imported.
"""

import os
import resource
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "LANG", "LC_ALL", "TMPDIR")
"""What the child sees of the environment: a hostile model has no business with passphrases and tokens."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a child may use: address space and output files in bytes, CPU and wall clock in seconds."""

    address_space_bytes: int = 4 << 30
    file_bytes: int = 256 << 20
    cpu_s: int = 60
    wall_s: float = 90.0


@dataclass(frozen=True, slots=True)
class Failure:
    """How a child ended: by a `crash`, the name of its signal, by a `timeout`, or else by what it `said` at last."""

    said: str = ""
    crash: str = ""
    timeout: bool = False


def run_confined(
    module: str,
    folder: Path,
    limits: Limits,
    *,
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
    descriptors: tuple[int, ...] = (),
) -> Failure | None:
    """Run `python -m MODULE FOLDER` until it ends or its time is up; what it prints goes to `stderr` in the folder.

    `descriptors` stay open in the child.
    """
    import subprocess  # here: the child needs none of it

    # -P: the working folder is not searched for modules; one thread: a measurement is of one core
    command = [python, "-P", "-m", module, str(folder)]
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    passed |= {**(environment or {}), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with (folder / "stderr").open("wb") as stderr:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=passed,
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            start_new_session=True,
            pass_fds=descriptors,
        )
        try:
            code = child.wait(timeout=limits.wall_s)
        except subprocess.TimeoutExpired:
            return Failure(timeout=True)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    if code == 0:
        return None
    return Failure(crash=signal.Signals(-code).name) if code < 0 else Failure(f"exit code {code}: {_last(folder)}")


def confine(request: Mapping[str, Any]) -> None:
    """Limit this process to what a request says in the fields of `Limits`, and to no core file."""
    for what, most in (
        (resource.RLIMIT_AS, request["address_space_bytes"]),
        (resource.RLIMIT_FSIZE, request["file_bytes"]),
        (resource.RLIMIT_CPU, request["cpu_s"]),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (limit, limit))


def _last(folder: Path) -> str:
    with (folder / "stderr").open("rb") as stderr:
        stderr.seek(-min(4096, os.fstat(stderr.fileno()).st_size), os.SEEK_END)
        lines = stderr.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")[:200]
    return "".join(each if each.isprintable() else " " for each in last)
