"""Runtimes that cannot live beside ours: where their own Python is, and how it is made.

    find_runtime("tflite-runtime")            # Found(python, version), or Refused with what to do
    prepare_environment("tflite-runtime", log=print)

`tflite-runtime` 2.14 needs NumPy 1 and Python 3.11 at most. Its Python is looked for in this one, then in the variable
SKERRY_TFLITE_RUNTIME_PYTHON, then where `prepare_environment` puts it.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from skerry.errors import Broken, Unavailable
from skerry.runtimes.session import Refused, RuntimeInfo, probe, probe_elsewhere

PYTHON_VARIABLE = "SKERRY_TFLITE_RUNTIME_PYTHON"
REQUIREMENTS = {"tflite-runtime": ("tflite-runtime==2.14.0", "numpy>=1.26,<2")}
INTERPRETER = "python3.11"
INSTALL_S = 600.0


@dataclass(frozen=True, slots=True)
class Found:
    """A runtime that can run here: by which Python (the path of its program), and in which version."""

    python: str
    version: str


def find_runtime(runtime: str) -> Found | Refused:
    """Say by which Python a runtime can be run in a child process, and in which version."""
    here = probe(runtime)
    if isinstance(here, RuntimeInfo):
        return Found(python=sys.executable, version=here.version)
    if runtime not in REQUIREMENTS:
        return here
    named = os.environ.get(PYTHON_VARIABLE, "")
    python = named or str(_python(environment_folder(runtime)))
    if not named and not Path(python).exists():
        return here
    found = probe_elsewhere(python)
    return found if isinstance(found, Refused) else Found(python=python, version=found.version)


def environment_folder(runtime: str) -> Path:
    """Return the folder of a runtime's own environment, below the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "skerry" / "environments" / runtime


def prepare_environment(
    runtime: str, *, log: Callable[[str], None], folder: Path | None = None, interpreter: str = INTERPRETER
) -> Found:
    """Make the environment of a runtime with `venv` and `pip`, unless it is there already.

    Raises:
        Broken: there is no such environment, no Python 3.11, or what was installed does not run.
        Unavailable: pip could not fetch or install the packages; its last line says why.
    """
    if runtime not in REQUIREMENTS:
        raise Broken(f"runtime: expected one with its own environment ({', '.join(REQUIREMENTS)}), got {runtime!r}")
    folder = folder or environment_folder(runtime)
    python = _python(folder)
    if not python.exists() or isinstance(probe_elsewhere(str(python)), Refused):
        program = shutil.which(interpreter)
        if program is None:
            raise Broken(f"expected {interpreter} for {runtime}, got none: install it, or set {PYTHON_VARIABLE}")
        log(f"{runtime}: {program} -m venv {folder}")
        _call([program, "-m", "venv", "--clear", str(folder)], Broken)
        log(f"{runtime}: pip install {' '.join(REQUIREMENTS[runtime])}")
        _call([str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS[runtime]], Unavailable)
        probe_elsewhere.cache_clear()
    found = probe_elsewhere(str(python))
    if isinstance(found, Refused):
        raise Broken(found.reason)
    log(f"{runtime}: {found.version}, ready in {folder}")
    return Found(python=str(python), version=found.version)


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def _call(command: list[str], failure: type[Broken] | type[Unavailable]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise failure(f"expected {command[0]} to end well, got {type(error).__name__}") from error
    if done.returncode:
        last = ((done.stderr.strip() or done.stdout.strip()).splitlines() or ["no message"])[-1][:200]
        raise failure(f"expected {' '.join(command[1:4])} to end well, got: {last}")
