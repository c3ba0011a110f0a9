"""What is kept on a device's disk, as it is or sealed with the owner's key: one port, and files over it by chunks.

A chunk that is kept sealed is bound to its file and place, as on the broker (`sealed`), under another key.
"""

import hashlib
from pathlib import Path
from typing import Protocol

from skerry.wire.manifest import CHUNK_BYTES, SEALED_CHUNK_BYTES


class Vault(Protocol):
    """Whoever seals what is kept; `agent.rest` does."""

    @property
    def key_id(self) -> str:
        """What tells the key from another one."""

    def seal(self, data: bytes, *, sha256: str, number: int) -> bytes:
        """Return chunk `number` of the file with this SHA-256 as it is kept."""

    def open(self, kept: bytes, *, sha256: str, number: int) -> bytes | None:
        """Return a chunk that was kept, or None when it is not what was sealed there."""

    def close(self) -> None:
        """Let go of the key until it is needed again."""


def stride(vault: Vault | None) -> int:
    """Return how many bytes from the beginning of a chunk that is kept to the next."""
    return SEALED_CHUNK_BYTES if vault else CHUNK_BYTES


def keep(vault: Vault | None, data: bytes, *, sha256: str, number: int) -> bytes:
    """Return a chunk as it is kept."""
    return vault.seal(data, sha256=sha256, number=number) if vault else data


def keep_file(vault: Vault | None, data: bytes) -> bytes:
    """Return a whole file as it is kept."""
    if vault is None:
        return data
    sha256 = hashlib.sha256(data).hexdigest()
    starts = range(0, len(data), CHUNK_BYTES)
    return b"".join(
        vault.seal(data[start : start + CHUNK_BYTES], sha256=sha256, number=number)
        for number, start in enumerate(starts)
    )


def read_kept(vault: Vault | None, path: Path, *, sha256: str) -> bytes | None:
    """Return the file that is kept in `path`, or None when a chunk does not open; its digest is for the caller."""
    if vault is None:
        return path.read_bytes()
    data = bytearray()
    with path.open("rb") as file:
        number = 0
        while kept := file.read(SEALED_CHUNK_BYTES):
            opened = vault.open(kept, sha256=sha256, number=number)
            if opened is None:
                return None
            data += opened
            number += 1
    return bytes(data)
