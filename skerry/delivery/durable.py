"""The one durable write: a file is either the old one or the new one, whatever moment the power goes.

Order matters and is all there is to it: temporary file, write, fsync, replace, fsync the folder. Without the last step
the *name* can be lost although the bytes are safe.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from skerry.errors import Broken

_COPY_BYTES = 1 << 18


def write_durably(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace the file `path` by `data`; afterwards both are on the disk.

    Raises:
        Broken: the disk refused (full, read-only); the old file is untouched.
    """
    _replace(path, [data], mode=mode)


def copy_durably(source: Path, path: Path) -> None:
    """Replace the file `path` by a copy of `source`, with memory for a small piece of it; raises as `write_durably`."""
    try:
        with source.open("rb") as file:
            _replace(path, iter(lambda: file.read(_COPY_BYTES), b""), mode=0o644)
    except OSError as error:
        raise Broken(f"expected to read {source}, got: {error.strerror}; check the disk") from error


def _replace(path: Path, pieces: Iterable[bytes], *, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.new")
    try:
        # a leftover of an earlier power cut may have another mode: O_EXCL after unlink sets ours from the first byte
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise Broken(f"expected to write {path}, got: {error.strerror}; check the disk") from error


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable (created, renamed or removed files)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Make a folder durably, and those above it; what is kept in it would be lost with its name. Raises `OSError`."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=mode, exist_ok=True)
    sync_folder(folder.parent)
