"""Encryption at rest: artifacts on this device's disk are sealed with a key that its owner keeps in a file elsewhere.

The file is read by the child that seals and opens, when it does; this process never holds the key. Where the file lies
is what the protection is worth: on the same disk it is worth little, on a token, a network share, or unsealed into
memory by a TPM at boot, a stolen disk has no model on it.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.fetching.unseal import OPEN, SEAL, Chunks
from skerry.delivery.durable import write_durably
from skerry.errors import Broken, Rejected
from skerry.wire.manifest import SEALED_CHUNK_BYTES


class RestVault:
    """Seals and opens what is kept on the disk; `close` ends the child until it is needed again."""

    def __init__(self, key_file: Path) -> None:
        self._chunks = Chunks({"rest_key_file": str(key_file)})

    @property
    def key_id(self) -> str:
        """What tells the key from another one."""
        with _ours():
            return self._chunks.key_id

    def seal(self, data: bytes, *, sha256: str, number: int) -> bytes:
        """Return a chunk as it is kept."""
        with _ours():
            sealed = self._chunks.ask(SEAL, data, sha256=sha256, number=number)
        if sealed is None:
            raise Broken("rest key: expected a sealed chunk, got a refusal")
        return sealed

    def open(self, kept: bytes, *, sha256: str, number: int) -> bytes | None:
        """Return a chunk that was kept, or None when it is not what was sealed there."""
        if len(kept) > SEALED_CHUNK_BYTES:
            return None
        with _ours():
            return self._chunks.ask(OPEN, kept, sha256=sha256, number=number)

    def close(self) -> None:
        """End the child."""
        self._chunks.close()


def open_vault(rest_key_file: str) -> RestVault | None:
    """Return the vault of a configuration; None where nothing is encrypted."""
    return RestVault(Path(rest_key_file)) if rest_key_file else None


def begin_to_encrypt(folder: Path, key_file: Path) -> None:
    """Make the key, unless it is there, and name it in the configuration of a state folder.

    Raises:
        Rejected: the configuration names another key already.
        Broken: a file cannot be written.
    """
    from agent.config import read_config

    there, wanted = read_config(folder, {}).rest_key_file, str(key_file.absolute())
    if there not in ("", wanted):
        raise Rejected(f"{folder / 'config.toml'}: expected no rest_key_file yet, got {there}; it stays as it is")
    if not key_file.exists():
        write_durably(key_file, secrets.token_bytes(32).hex().encode() + b"\n", mode=0o600)
    if not there:
        config = folder / "config.toml"
        text = config.read_text() if config.exists() else ""
        # on top: below a table it would belong to that
        write_durably(config, f"rest_key_file = {_quoted(wanted)}\n{text}".encode(), mode=0o600)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@contextmanager
def _ours() -> Iterator[None]:
    """A key file that is wrong is this machine's fault, never the artifact's."""
    try:
        yield
    except Rejected as error:
        raise Broken(f"rest key: {error}") from error
