"""Programs of this machine that emulators need: found, run within a time limit, or named with the way to get them."""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from skerry.errors import Broken, Unavailable

Log = Callable[[str], None]


def missing_programs(programs: Mapping[str, str]) -> dict[str, str]:
    """Return those of `programs` (name: Debian package) that are not on the PATH."""
    return {program: package for program, package in programs.items() if find(program) is None}


def find(program: str) -> str | None:
    """Return the path of a program; system folders are searched too, which a user's PATH may leave out."""
    return shutil.which(program, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin")))


def how_to_install(packages: Sequence[str]) -> str:
    """Return the command that installs Debian packages."""
    return f"apt-get install --no-install-recommends {' '.join(sorted(set(packages)))}"


def install(packages: Sequence[str], log: Log) -> None:
    """Install Debian packages on this machine; raises `Broken` where that needs root or another system."""
    packages = sorted(set(packages))
    if os.geteuid() != 0 or find("apt-get") is None:
        raise Broken(f"expected to install as root on Debian, got neither: have it run {how_to_install(packages)}")
    log(f"installing on this machine: {', '.join(packages)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    run(command, what="apt-get install", wall_s=600, environment=environment)


def run(
    command: Sequence[str],
    *,
    what: str,
    wall_s: float,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a program that fetches or builds, and return what it printed; raises `Unavailable` with its last line."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            timeout=wall_s,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{what}: expected an end within {wall_s:g} s, got a timeout: try again") from error
    except OSError as error:
        raise Broken(f"{what}: expected to start {command[0]}, got {error.strerror}") from error
    if done.returncode:
        raise Unavailable(f"{what}: expected success, got exit code {done.returncode}: {last_line(done.stderr)}")
    return done.stdout


def last_line(text: str) -> str:
    """Return the last line with anything on it, cut to what fits a message."""
    return next((line.strip() for line in reversed(text.split("\n")) if line.strip()), "no message")[:200]
