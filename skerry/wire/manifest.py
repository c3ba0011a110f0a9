"""The manifest: the signed description of an artifact, itself a TUF target that binds every other file by digest."""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

from skerry.errors import Rejected

CHUNK_BYTES = 64 * 1024
# what sealing adds to a chunk: a nonce of 12 bytes and a tag of 16 (`skerry.delivery.sealed`)
SEALING_BYTES = 28
SEALED_CHUNK_BYTES = CHUNK_BYTES + SEALING_BYTES
MAX_FILES = 16
MAX_FILE_BYTES = 1 << 30
_SECOND = ".second"
_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of an artifact: its name, length in bytes, SHA-256, and the SHA-256 of each 64 KiB chunk."""

    name: str
    length: int
    sha256: str
    chunks: tuple[str, ...]

    def __post_init__(self) -> None:
        if not _FILE_NAME.fullmatch(self.name):
            raise ValueError(f"expected a plain lower-case file name, got {self.name!r}")
        if not 0 <= self.length <= MAX_FILE_BYTES:
            raise ValueError(f"expected a length of 0 to {MAX_FILE_BYTES} bytes, got {self.length}")
        if len(self.chunks) != chunk_count(self.length):
            raise ValueError(f"expected {chunk_count(self.length)} chunks, got {len(self.chunks)}")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of the model: name, shape (without a dynamic batch: 1 comes first) and NumPy dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an output may be from its golden vector: |got - expected| <= atol + rtol * |expected|."""

    atol: float
    rtol: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artifact is, for which profile, how to run it, how to check it, and what to watch.

    `monitor` is the JSON of `skerry.drift.Monitor`; `observe` says which output feeds it: `features` (its elements
    are the first scalars, in order) and `probabilities` (whose argmax and maximum are prediction and confidence).
    """

    model: str
    version: int
    profile: str
    runtime: str
    model_file: str
    golden_file: str
    gate_file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    tolerances: dict[str, Tolerance]
    observe: dict[str, str]
    monitor: dict[str, Any]
    files: tuple[FileEntry, ...]
    latency_budget_ms: float
    created: str
    lineage: dict[str, str] = field(default_factory=dict)
    v: int = 1

    def file(self, name: str) -> FileEntry:
        """Return the entry of the file `name`; raises `Rejected` when the manifest has none."""
        for entry in self.files:
            if entry.name == name:
                return entry
        raise Rejected(f"manifest of {self.model} {self.version}: expected a file {name!r}, got none")


def chunk_count(length: int) -> int:
    """Return how many 64 KiB chunks `length` bytes make."""
    return -(-length // CHUNK_BYTES)


def sealed_length(length: int) -> int:
    """Return how many bytes the sealed chunks of `length` bytes are together."""
    return length + chunk_count(length) * SEALING_BYTES


def describe_file(name: str, data: bytes) -> FileEntry:
    """Return the manifest's entry for `data`."""
    chunks = tuple(
        hashlib.sha256(data[start : start + CHUNK_BYTES]).hexdigest() for start in range(0, len(data), CHUNK_BYTES)
    )
    return FileEntry(name=name, length=len(data), sha256=hashlib.sha256(data).hexdigest(), chunks=chunks)


# a field of the delegation to `automatic-MODEL`, under the offline signatures: the moment when that grant ends, such as
# 2026-01-31T12:00:00Z. TUF itself knows no end of a delegation, and ignores fields that it does not know.
GRANTED_UNTIL = "x-skerry-until"


def target_name(model: str, version: int, profile: str, file: str, *, second: bool = False) -> str:
    """Return the TUF target path of a file of an artifact: `models/MODEL/VERSION/PROFILE/FILE`.

    A release may keep a second build for a profile, for the first devices to measure; its files are listed under
    `models/MODEL/VERSION/PROFILE.second/FILE`. No profile's name has a dot, and a path keeps its depth, which is what
    the path patterns of delegations go by.
    """
    return f"models/{model}/{version}/{profile}{_SECOND if second else ''}/{file}"


def other_build(path: str) -> str:
    """Return the path of the same file in the other build of the profile; empty for a path that is none of a file."""
    parts = path.split("/")
    if len(parts) != 5:
        return ""
    profile = parts[3].removesuffix(_SECOND)
    parts[3] = profile if profile != parts[3] else profile + _SECOND
    return "/".join(parts)
