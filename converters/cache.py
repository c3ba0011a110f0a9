"""Results of earlier compilations by content: whoever asks the same again gets what was measured then.

    cache = Cache(home / "cache")
    key = key_of({"source": digest, "precision": "int8", ...})
    found = cache.get(key)                     # bytes, or None
    cache.put(key, data)

An entry is one file: the SHA-256 of its body, then the body. An entry that is not what was put there is deleted and
counts as missing: a cache may forget, never lie. The folder is bounded: what was not used for longest goes first. What
must be part of a key is the caller's to say; `tool_versions` and `writer_version` are what every result depends on.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIMIT_BYTES = 1 << 30
MAX_ENTRY_BYTES = 256 << 20
TOOLS = ("numpy", "onnx", "onnxruntime", "ai-edge-litert", "tflite-micro", "scikit-learn")
_KEY = re.compile(r"[a-z0-9][a-z0-9-]{0,120}")
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder of results; safe for several threads and processes at once, because entries appear whole or not at all.

    `limit_bytes` bounds the folder. A full or read-only disk is no error: then nothing is kept.
    """

    folder: Path
    limit_bytes: int = LIMIT_BYTES

    def get(self, key: str) -> bytes | None:
        """Return what was put under a key; None when there is nothing, or it is damaged."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size > MAX_ENTRY_BYTES:
                    return None
                whole = file.read()
            digest, body = whole[:_DIGEST_BYTES], whole[_DIGEST_BYTES:]
            if hashlib.sha256(body).digest() != digest:
                path.unlink(missing_ok=True)
                return None
            os.utime(path)
        except OSError:
            return None
        return body

    def put(self, key: str, body: bytes) -> None:
        """Keep a result, and let the least recently used ones go when the folder is over its limit."""
        path = self._path(key)
        if len(body) + _DIGEST_BYTES > min(MAX_ENTRY_BYTES, self.limit_bytes):
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # no fsync: an entry that a power cut tore is found by its digest and measured again
            descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=self.folder)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(hashlib.sha256(body).digest() + body)
                Path(temporary).replace(path)
            except OSError:
                Path(temporary).unlink(missing_ok=True)
                return
            self._trim()
        except OSError:
            return

    def keys(self, prefix: str) -> tuple[str, ...]:
        """Return the keys that begin with a prefix, in order."""
        try:
            return tuple(sorted(path.name for path in self.folder.glob(f"{prefix}*") if _KEY.fullmatch(path.name)))
        except OSError:
            return ()

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"expected a key of lower-case letters, digits and dashes, got {key!r:.80}")
        return self.folder / key

    def _trim(self) -> None:
        entries = []
        for path in self.folder.iterdir():
            try:
                status = path.stat()
            except OSError:
                continue  # another process let it go meanwhile
            entries.append((status.st_mtime_ns, path.name, status.st_size, path))
        total = sum(size for _, _, size, _ in entries)
        for _, _, size, path in sorted(entries):
            if total <= self.limit_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size


def key_of(parts: Mapping[str, Any]) -> str:
    """Return the key of a result: the digest of all that it depends on, as JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def tool_versions() -> dict[str, str]:
    """Return the versions of the libraries that write and run candidates; "none" for what is not installed."""
    return {name: _version(name) for name in TOOLS}


@cache
def writer_version() -> str:
    """Return the digest of the code that writes and measures candidates: a changed writer never meets old results."""
    digest = hashlib.sha256()
    ours = Path(__file__).parent
    shared = ours.parent / "skerry"
    for folder in (ours, shared / "runtimes", shared / "delivery" / "delta"):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix in (".py", ".h", ".c", ".cc", ".ld"):
                digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
