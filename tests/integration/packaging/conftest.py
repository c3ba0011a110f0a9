"""The packages, built once for all tests of a run; and roots of Debian machines to install them in."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
EPOCH = "1780000000"
# what pip says where it reaches no index
_UNREACHED = ("No matching distribution found", "connection broken by", "Could not fetch URL")


def needed(program: str, package: str) -> str:
    """Return the path of a program of the system; a missing one skips the test, and in CI fails it."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin")
    if found:
        return found
    missing = f"expected {program}, got none: apt-get install {package}"
    if os.environ.get("SKERRY_REQUIRE_SERVERS") == "1":
        pytest.fail(missing)
    pytest.skip(missing)


def build(out: Path, arch: str, *, sources: Path = ROOT) -> Path:
    """Build both packages for an architecture into a folder; returns it."""
    needed("dpkg-deb", "dpkg")
    command = [sys.executable, str(sources / "packaging/deb/build"), "--out", str(out), "--arch", arch]
    done = subprocess.run(
        command,
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    expect_success(done)
    return out


def expect_success(done: subprocess.CompletedProcess[str]) -> None:
    """Fail where a build did; where all that it lacked is a package index, that skips the test, and in CI fails it."""
    unreached = any(each in done.stderr for each in _UNREACHED)
    if done.returncode and unreached and os.environ.get("SKERRY_REQUIRE_SERVERS") != "1":
        pytest.skip(f"no package index was reached: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


@dataclass(frozen=True, slots=True)
class Machine:
    """The root of a Debian machine, and how a program is run in it."""

    root: Path
    enter: tuple[str, ...]

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program inside, to its end."""
        return subprocess.run(
            [*self.enter, *command],
            capture_output=True,
            text=True,
            timeout=600,
            check=check,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"},
        )


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that builds the packages of an architecture, once, and returns their folder."""
    built: dict[str, Path] = {}

    def of(arch: str) -> Path:
        if arch not in built:
            built[arch] = build(tmp_path_factory.mktemp(f"debs-{arch}"), arch)
        return built[arch]

    return of
