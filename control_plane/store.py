"""Bytes of data, models and artifacts, content-addressed: a folder of files named by SHA-256, through obstore.

A blob is immutable and is verified each time it is read, so whoever holds a digest from the database gets those very
bytes or an error. Pointers to blobs are in the database; this module knows nothing of them.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from obstore.exceptions import BaseError
from obstore.store import LocalStore

from skerry.errors import Broken, Rejected

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Blobs:
    """The object store of one control plane; safe for several threads and processes at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._store = LocalStore(prefix=folder)
        except (OSError, BaseError) as error:
            raise Broken(
                f"blobs: expected a writable folder {folder}, got {error}; free it or set its rights"
            ) from error

    def put(self, data: bytes) -> str:
        """Store `data` durably and return its SHA-256; the same bytes twice are one blob.

        Raises:
            Broken: the disk is full or the folder cannot be written.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        if self._length(sha256) == len(data):
            return sha256
        try:
            # obstore writes a temporary file and renames it; what it leaves out is making both durable
            self._store.put(sha256, data)
            for path in (self._folder / sha256, self._folder):
                _sync(path)
        except (OSError, BaseError) as error:
            raise Broken(f"blobs: expected to write {len(data)} bytes to {self._folder}, got {error}") from error
        return sha256

    def get(self, sha256: str) -> bytes:
        """Return the bytes of a blob.

        Raises:
            Rejected: there is no such blob.
            Broken: what is on the disk is not what was put there.
        """
        if self._length(sha256) is None:
            raise Rejected(f"blob: expected one of this store, got {sha256!r:.80}")
        data = bytes(self._store.get(sha256).bytes())
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise Broken(f"blob {sha256}: expected these bytes, got {found}; the disk damaged it, restore a backup")
        return data

    def delete(self, names: Iterable[str]) -> None:
        """Delete blobs durably, of which some may be gone already; nothing may name them any more.

        Raises:
            Broken: the folder cannot be written.
        """
        try:
            for sha256 in filter(_SHA256.fullmatch, names):
                with contextlib.suppress(FileNotFoundError):
                    self._store.delete(sha256)
            _sync(self._folder)
        except (OSError, BaseError) as error:
            raise Broken(
                f"blobs: expected {self._folder} to be writable, got {error}; free it or set its rights"
            ) from error

    def part(self, sha256: str, start: int, end: int) -> bytes:
        """Return the bytes of a blob from `start` up to `end`, as they lie on the disk: its reader verifies them.

        Raises:
            Rejected: there is no such blob.
        """
        if self._length(sha256) is None:
            raise Rejected(f"blob: expected one of this store, got {sha256!r:.80}")
        return bytes(self._store.get_range(sha256, start=start, end=end))

    def exists(self, sha256: str) -> bool:
        """Say whether the store holds a blob of that name."""
        return self._length(sha256) is not None

    def size(self, sha256: str) -> int:
        """Return the length of a blob in bytes; raises `Rejected` when there is none."""
        length = self._length(sha256)
        if length is None:
            raise Rejected(f"blob: expected one of this store, got {sha256!r:.80}")
        return length

    def _length(self, sha256: str) -> int | None:
        if not _SHA256.fullmatch(sha256):
            return None
        try:
            return self._store.head(sha256)["size"]
        except FileNotFoundError:
            return None
        except BaseError as error:
            raise Broken(f"blobs: expected to read {self._folder}, got {error}") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
