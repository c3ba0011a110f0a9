"""Wheels as a slot keeps them, made into a Python environment and checked again: what the agent's own updates run from.

    environment/bin/python                                   a link to the Python that runs the launcher
    environment/lib/pythonX.Y/site-packages/                 what the wheels bring
    environment/lib/pythonX.Y/site-packages/skerry-base.pth  where everything else is: the installation beneath

The environment is made from the wheels without a network or an installer, and can be made again at any time, so
nothing of it needs to survive a power cut: whoever starts from it compares it with the wheels first. Standard library
alone: the launcher imports this.
"""

import os
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import zipfile

MAX_UNPACKED_BYTES = 1 << 30
MAX_MEMBERS = 50_000
BASE = "skerry-base.pth"
_COPY_BYTES = 1 << 18
# of a wheel's own folders for what does not lie where packages do, these do after all (PEP 427)
_SPREAD = ("purelib", "platlib")


class BadWheel(Exception):
    """A wheel that is none, or that would write elsewhere, or too much."""


def python_of(environment: Path) -> Path:
    """Return the Python of an environment."""
    return environment / "bin" / "python"


def packages_of(environment: Path) -> Path:
    """Return where the packages of an environment lie, for the Python that runs now."""
    return environment / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def make_environment(wheels: Sequence[Path], environment: Path) -> None:
    """Make an environment of wheels over the installation that this program runs from.

    Raises:
        BadWheel: one is no wheel, or not one that we unpack.
        OSError: the disk refused.
    """
    shutil.rmtree(environment, ignore_errors=True)
    packages = packages_of(environment)
    packages.mkdir(parents=True)
    (environment / "bin").mkdir()
    base = Path(getattr(sys, "_base_executable", "") or sys.executable)
    python_of(environment).symlink_to(base)
    (environment / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n")
    for wheel in wheels:
        _unpack(wheel, packages)
    (packages / BASE).write_text(_lines(folders_of_now()))


def is_whole(wheels: Sequence[Path], environment: Path) -> bool:
    """Say whether an environment is what the wheels make here and now: every file of them, by length and CRC."""
    import zipfile

    packages = packages_of(environment)
    try:
        if (packages / BASE).read_text() != _lines(folders_of_now()) or not python_of(environment).exists():
            return False
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                for name, member in _members(archive):
                    file = packages / name
                    if file.stat().st_size != member.file_size or _crc(file) != member.CRC:
                        return False
    except (OSError, BadWheel, zipfile.BadZipFile, ValueError):
        return False
    return True


def folders_of_now() -> list[str]:
    """Return the folders that this Python takes packages from, but its standard library's and an environment's own."""
    import sysconfig  # here: an agent that was installed, and never updated, needs none of it

    paths = sysconfig.get_paths()
    ours = {os.path.realpath(paths[name]) for name in ("stdlib", "platstdlib")}
    # what comes first by default is where the program lies, or whoever called it: never where an update takes code from
    found = sys.path if sys.flags.safe_path else sys.path[1:]
    return [
        str(Path(each).absolute())
        for each in dict.fromkeys(found)
        if each
        and os.path.realpath(each) not in ours
        and not each.endswith(("lib-dynload", ".zip"))
        and not (Path(each) / BASE).exists()
    ]


def _lines(folders: Sequence[str]) -> str:
    return "".join(f"{each}\n" for each in folders)


def _unpack(wheel: Path, packages: Path) -> None:
    import zipfile

    try:
        with zipfile.ZipFile(wheel) as archive:
            for name, member in _members(archive):
                file = packages / name
                file.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, file.open("wb") as target:
                    shutil.copyfileobj(source, target, _COPY_BYTES)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, ValueError, EOFError) as error:
        raise BadWheel(f"{wheel.name}: expected a wheel, got: {error}") from error


def _members(archive: "zipfile.ZipFile") -> Iterator[tuple[PurePosixPath, "zipfile.ZipInfo"]]:
    """Yield what of a wheel goes among the packages, and where; raises `BadWheel`."""
    members = archive.infolist()
    if len(members) > MAX_MEMBERS or sum(each.file_size for each in members) > MAX_UNPACKED_BYTES:
        raise BadWheel(f"expected at most {MAX_MEMBERS} files of {MAX_UNPACKED_BYTES} bytes in a wheel, got more")
    for member in members:
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in member.filename or "\0" in member.filename:
            raise BadWheel(f"expected plain paths in a wheel, got {member.filename[:80]!r}")
        if member.is_dir():
            continue
        if path.parts[0].endswith(".data"):
            if len(path.parts) < 3 or path.parts[1] not in _SPREAD:
                # programs, headers and manuals: an agent is started by its module
                continue
            path = PurePosixPath(*path.parts[2:])
        if path.suffix == ".pth" and len(path.parts) == 1:
            # they run code at every start of Python, before anybody can look
            raise BadWheel(f"expected no {path} in a wheel of the agent's")
        yield path, member


def _crc(file: Path) -> int:
    found = 0
    with file.open("rb") as opened:
        while piece := opened.read(_COPY_BYTES):
            found = zlib.crc32(piece, found)
    return found
