"""What is kept on a device's disk, as it is or sealed with the owner's key: one port, and files over it by chunks.

A chunk that is kept sealed is bound to its file and place, as on the broker (`sealed`), under another key.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from skerry.wire.manifest import CHUNK_BYTES, SEALED_CHUNK_BYTES


class Vault(Protocol):
    """Whoever seals what is kept; `agent.fetching.rest` does."""

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


def read_pieces(vault: Vault | None, path: Path, *, sha256: str) -> Iterator[bytes | None]:
    """Yield the file that is kept in `path` chunk by chunk, and None for the first one that does not open, at last."""
    with path.open("rb") as file:
        number = 0
        while kept := file.read(stride(vault)):
            opened = kept if vault is None else vault.open(kept, sha256=sha256, number=number)
            yield opened
            if opened is None:
                return
            number += 1


def read_kept(vault: Vault | None, path: Path, *, sha256: str) -> bytes | None:
    """Return the file that is kept in `path`, or None when a chunk does not open; its digest is for the caller."""
    data = bytearray()
    for piece in read_pieces(vault, path, sha256=sha256):
        if piece is None:
            return None
        data += piece
    return bytes(data)


def check_kept(vault: Vault | None, path: Path, *, sha256: str) -> bool:
    """Say whether the file that is kept in `path` has this SHA-256, with memory for one chunk."""
    digest = hashlib.sha256()
    for piece in read_pieces(vault, path, sha256=sha256):
        if piece is None:
            return False
        digest.update(piece)
    return digest.hexdigest() == sha256
