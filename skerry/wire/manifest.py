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
PYTHON = "python"
"""The runtime of the agent's own artifacts: their files are wheels, and there is nothing to infer."""
MAX_FILE_BYTES = 1 << 30
# a sample is one entry of the outbox, and a batch of those has 48 KiB
MAX_SAMPLE_ROWS = 1000
MAX_SAMPLE_BYTES = 32 * 1024
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
class SamplePolicy:
    """What of its inputs a device may keep and send: nothing, unless said otherwise.

    `rows_per_window` rows of each window at most, of each the tensors named in `inputs`, together no more than
    `max_bytes`. It stands in the manifest and, for whoever signs to see, beside the manifest in the targets that the
    offline keys sign (`SAMPLES`): a device keeps to the narrower of both. Its owner may allow less, never more.
    """

    rows_per_window: int = 0
    inputs: tuple[str, ...] = ()
    max_bytes: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rows_per_window <= MAX_SAMPLE_ROWS or not 0 <= self.max_bytes <= MAX_SAMPLE_BYTES:
            raise ValueError(
                f"expected at most {MAX_SAMPLE_ROWS} rows of a window and {MAX_SAMPLE_BYTES} bytes of each, "
                f"got {self.rows_per_window} and {self.max_bytes}"
            )

    def narrowed(self, other: "SamplePolicy") -> "SamplePolicy":
        """Return what both allow."""
        return SamplePolicy(
            rows_per_window=min(self.rows_per_window, other.rows_per_window),
            inputs=tuple(name for name in self.inputs if name in other.inputs),
            max_bytes=min(self.max_bytes, other.max_bytes),
        )


NO_SAMPLES = SamplePolicy()
"""Nothing leaves."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artifact is, for which profile, how to run it, how to check it, and what to watch.

    `monitor` is the JSON of `skerry.drift.Monitor`; `observe` says which output feeds it: `features` (its elements
    are the first scalars, in order) and `probabilities` (whose argmax and maximum are prediction and confidence).
    `samples` says which inputs may leave the device. `memory_budget_bytes` is how much a process that runs it may grow
    by over the bare runtime; 0 where nothing is said.
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
    samples: SamplePolicy = NO_SAMPLES
    v: int = 1
    memory_budget_bytes: int = 0

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


# a field of a manifest's entry in the targets: its sample policy, for people to see and for the device to hold it to
SAMPLES = "samples"

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
