"""What passes between the agent and the short-lived process that judges for it: a question, files, a judgement.

    agent                                     agent.trust.trust_child
    Question line  ------------------------->
                   <-------------------------  Said(wanted=Wanted("image", "timestamp.json", 16384)) line
    Given line, then that many bytes  ------>
                   <-------------------------  ... more of these ...
                   <-------------------------  Said(judgement=Judgement(...)) line

A line is one canonical JSON object. The child opens no connection and is told no key: it asks, by name and within a
limit, and answers. Stdlib only, because both sides import it.
"""

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import IO, Any, TypeVar

from skerry.errors import Unavailable
from skerry.wire import codec
from skerry.wire.enrolment import Anchor
from skerry.wire.manifest import NO_SAMPLES, SamplePolicy
from skerry.wire.messages import Terms

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
    """What was decided on one component. `later` means that something was missing or expired, and nothing proven bad.

    `terms` are set as soon as the director's own signature held, so that a refusal can be reported to its deployment.
    `measure_length` and `measure_sha256` are of the target that `terms.measure` names, if it names one.
    `samples` is what the offline keys let leave a device of the artifact's inputs: nothing where an online one signed.
    `revoked`, `listed` and `allowed` are those of the `Judgement`.
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
    samples: SamplePolicy = NO_SAMPLES
    revoked: tuple[str, ...] = ()
    listed: tuple[str, ...] = ()
    allowed: dict[str, SamplePolicy] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was decided on all that one assignment lists: a verdict for each component.

    `whole` says that every target could be read, so that a component without a verdict is one that the director no
    longer lists. Where nothing could be said of some or any target, `reason` and `later` say why, as in a `Verdict`.
    `revoked` and `listed` are digests out of `Question.held`; one in neither could not be looked up. `allowed` are the
    sample policies of those that are listed and have any.
    """

    verdicts: tuple[Verdict, ...] = ()
    whole: bool = False
    reason: str = ""
    later: bool = False
    revoked: tuple[str, ...] = ()
    listed: tuple[str, ...] = ()
    allowed: dict[str, SamplePolicy] = field(default_factory=dict)

    def of(self, component: str) -> Verdict:
        """Return the verdict on a component; one without terms where there is nothing to decide on."""
        named = (each for each in self.verdicts if each.terms is not None and each.terms.component == component)
        found = next(named, Verdict(ok=False, reason=self.reason, later=self.later))
        return replace(found, revoked=self.revoked, listed=self.listed, allowed=self.allowed)

    @property
    def components(self) -> tuple[str, ...]:
        """The components that there is a verdict on."""
        return tuple(each.terms.component for each in self.verdicts if each.terms is not None)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file that the child wants: of which repository, its name as TUF asks for it, and at most how many bytes."""

    repository: str
    name: str
    limit: int


@dataclass(frozen=True, slots=True)
class Said:
    """One line of the child: it wants a file, or has decided."""

    wanted: Wanted | None = None
    judgement: Judgement | None = None


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
