"""Disks of a test's own that refuse: a file system in memory, made read-only, full, or well again. Needs root."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class Mounted:
    """A small file system mounted on a folder, holding what was in that."""

    def __init__(self, folder: Path, *, size: str = "24m") -> None:
        self.folder = folder
        kept = folder.with_name(f"{folder.name}.kept")
        folder.rename(kept)
        folder.mkdir(mode=0o700)
        if not _mount("-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder)):
            shutil.rmtree(folder)
            kept.rename(folder)
            pytest.skip("needs to be allowed to mount")
        shutil.copytree(kept, folder, dirs_exist_ok=True, symlinks=True)
        shutil.rmtree(kept)

    def make_read_only(self) -> None:
        assert _mount("-o", "remount,ro", str(self.folder))

    def make_writable(self) -> None:
        assert _mount("-o", "remount,rw", str(self.folder))

    @property
    def _ballast(self) -> Path:
        return self.folder / "filled"

    def fill(self) -> None:
        """Leave no byte of room."""
        with self._ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            for size in (1 << 16, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        pass
        room = os.statvfs(self.folder)
        assert room.f_bavail == 0

    def make_room(self) -> None:
        self._ballast.unlink()

    def unmount(self) -> None:
        subprocess.run(("/bin/umount", "--lazy", str(self.folder)), check=True)


@contextlib.contextmanager
def mounted(folder: Path, *, size: str = "24m") -> Iterator[Mounted]:
    """Have a folder on a disk of its own."""
    disk = Mounted(folder, size=size)
    try:
        yield disk
    finally:
        disk.unmount()


def _mount(*options: str) -> bool:
    return subprocess.run(("/bin/mount", *options), capture_output=True, check=False).returncode == 0
