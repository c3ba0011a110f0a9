"""Preparing an emulator, and saying what is missing of one, whichever kind it is."""

from collections.abc import Callable
from pathlib import Path

from converters.emulators.arm64 import prepare_arm64, status_arm64
from converters.emulators.cortex_m import prepare_cortex_m, status_cortex_m
from converters.emulators.ends import KINDS, Status
from skerry.errors import Rejected

Log = Callable[[str], None]


def prepare(kind: str, folder: Path, log: Log, *, install: bool = False) -> Status:
    """Prepare an emulator in a folder and return its status; a second call finds it ready and does nothing.

    `install` allows packages to be installed on this machine, by apt-get and as root: without it the packages that are
    missing are named and nothing outside the folder is touched.

    Raises:
        Rejected: there is no such kind.
        Unavailable: a package or wheel cannot be fetched.
        Broken: this machine cannot do it; the message says what it needs.
    """
    _check(kind)
    do = {"arm64": prepare_arm64, "cortex-m": prepare_cortex_m}[kind]
    return do(folder.expanduser(), log, install=install)


def status(kind: str, folder: Path) -> Status:
    """Say what there is of an emulator in a folder, and what is missing."""
    _check(kind)
    return {"arm64": status_arm64, "cortex-m": status_cortex_m}[kind](folder.expanduser())


def _check(kind: str) -> None:
    if kind not in KINDS:
        raise Rejected(f"emulator: expected {' or '.join(KINDS)}, got {kind!r}")
