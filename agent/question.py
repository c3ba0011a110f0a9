"""What passes between the agent and the short-lived process that judges for it: one question, files, one verdict.

    agent                                     agent.trust_child
    Question line  ------------------------->
                   <-------------------------  Said(wanted=Wanted("image", "timestamp.json", 16384)) line
    Given line, then that many bytes  ------>
                   <-------------------------  ... more of these ...
                   <-------------------------  Said(verdict=Verdict(...)) line

A line is one canonical JSON object. The child opens no connection and is told no key: it asks, by name and within a
limit, and answers. Stdlib only, because both sides import it.
"""

from dataclasses import dataclass
from enum import Enum
from typing import IO, Any, TypeVar

from skerry.errors import Unavailable
from skerry.wire import codec
from skerry.wire.messages import Anchor, Terms

IMAGE = "image"
DIRECTOR = "director"
MAX_LINE_BYTES = 1 << 20
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Held:
    """One manifest in a slot: its SHA-256, and the path of its target or of the other build's beside it."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be judged: is there an assignment that both repositories agree on for `device`?

    `folder` keeps the trusted metadata, `clock` is what this machine believes (seconds since 1970), `held` the
    manifests whose standing is asked for as well, `refuse_automatic` whether releases signed online are refused;
    `certificate` (PEM) is the device's own, empty where it has none.
    """

    anchor: Anchor
    device: str
    folder: str
    clock: float
    held: tuple[Held, ...] = ()
    refuse_automatic: bool = False
    certificate: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided. `later` means that something was missing or expired, and nothing was proven bad.

    `terms` are set as soon as the director's own signature held, so that a refusal can be reported to its deployment.
    `measure_length` and `measure_sha256` are of the target that `terms.measure` names, if it names one.
    `revoked` and `listed` are digests out of `Question.held`; one in neither could not be looked up.
    """

    ok: bool
    reason: str = ""
    later: bool = False
    terms: Terms | None = None
    path: str = ""
    length: int = 0
    sha256: str = ""
    measure_length: int = 0
    measure_sha256: str = ""
    decommission: bool = False
    revoked: tuple[str, ...] = ()
    listed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file that the child wants: of which repository, its name as TUF asks for it, and at most how many bytes."""

    repository: str
    name: str
    limit: int


@dataclass(frozen=True, slots=True)
class Said:
    """One line of the child: it wants a file, or has its verdict."""

    wanted: Wanted | None = None
    verdict: Verdict | None = None


class Status(Enum):
    """What became of a file that was wanted."""

    FOUND = "found"
    MISSING = "missing"  # the repository has no such file: for a root, there is no newer one
    UNAVAILABLE = "unavailable"  # it did not come: try again later


@dataclass(frozen=True, slots=True)
class Given:
    """The answer to a `Wanted`; `length` bytes follow when it was found, and `reason` says why not otherwise."""

    status: str
    length: int = 0
    reason: str = ""


def write_line(pipe: IO[bytes], value: Any, payload: bytes = b"") -> None:
    """Write one line, and the bytes that belong to it."""
    pipe.write(codec.encode(value) + b"\n" + payload)
    pipe.flush()


def read_line(pipe: IO[bytes], kind: type[T]) -> T:
    """Read one line as `kind`.

    Raises:
        Unavailable: the other side has ended.
        Rejected: the line is not a `kind`.
    """
    line = pipe.readline(MAX_LINE_BYTES)
    if not line:
        raise Unavailable("expected a line, got the end of the pipe")
    return codec.decode(kind, line)


def read_exactly(pipe: IO[bytes], length: int) -> bytes:
    """Read `length` bytes; raises `Unavailable` when the other side ends before."""
    data = pipe.read(length)
    if len(data) < length:
        raise Unavailable(f"expected {length} bytes, got {len(data)} and the end of the pipe")
    return data
