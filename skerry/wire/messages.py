"""The control messages between a device and the control plane, one frozen dataclass each.

All are JSON (`skerry.wire.codec`) and carry `v`, the version of the wire. What is measured on a device travels as the
binary body of an outbox entry instead (`skerry.wire.report`).
"""

import re
from dataclasses import dataclass, field
from typing import Any

from skerry.wire.manifest import CHUNK_BYTES, chunk_count

VERSION = 1
# the last `Reported.state` of a device that was told to wipe itself
DECOMMISSIONED = "decommissioned"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Desired:
    """`down/desired`, retained: the configuration that the control plane wants, versioned."""

    version: int
    config: dict[str, Any] = field(default_factory=dict)
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class Assign:
    """`down/assign`, retained: the director's signed metadata for this one device, as text by role.

    Roles are `timestamp`, `snapshot` and `targets`, and `N.root` where the director's root has been rotated.
    """

    metadata: dict[str, str]
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class Delta:
    """A shorter way to one file of an artifact: `length` bytes that make it from a file that the device may have.

    `source` is the SHA-256 of that file's plaintext, empty where the file is packed by itself; `chunks` are the
    SHA-256 of each 64 KiB of the delta's plaintext and `sha256` that of all of it; `sealed` is that of its sealed form,
    which is sealed with the artifact's content key and bound to `sha256`, as files are to theirs.
    """

    file: str
    source: str
    length: int
    sha256: str
    chunks: tuple[str, ...]
    sealed: str

    def __post_init__(self) -> None:
        named = [self.sha256, self.sealed, *self.chunks, *([self.source] if self.source else [])]
        for sha256 in named:
            if not _SHA256.fullmatch(sha256):
                raise ValueError(f"expected a SHA-256 in the delta of {self.file!r:.80}, got {sha256!r:.80}")
        if self.length < 0 or len(self.chunks) != chunk_count(self.length):
            raise ValueError(
                f"expected one hash per {CHUNK_BYTES} bytes of the delta of {self.file!r:.80}, got {len(self.chunks)} "
                f"for {self.length} bytes"
            )


@dataclass(frozen=True, slots=True)
class Content:
    """How to come by an artifact's bytes, which are sealed wherever they are public.

    `key` is the base64 of the artifact's content key, sealed to this device's own key; `files` maps the names of the
    artifact's files, `manifest.json` among them, to the SHA-256 of their sealed form: its chunks are on `blob/THAT/N`.
    `deltas` are shorter ways to some of them, and `roads` how to fetch any of it, the preferred one first.
    """

    key: str
    files: dict[str, str]
    deltas: tuple[Delta, ...] = ()
    roads: tuple[str, ...] = ("mqtt",)

    def __post_init__(self) -> None:
        for name, sha256 in self.files.items():
            # it becomes a topic's level
            if not _SHA256.fullmatch(sha256):
                raise ValueError(f"expected a SHA-256 for {name!r:.80}, got {sha256!r:.80}")
        if not self.roads or not set(self.roads) <= {"mqtt", "https"}:
            raise ValueError(f"expected roads of mqtt and https, got {self.roads!r:.80}")


@dataclass(frozen=True, slots=True)
class Terms:
    """What an assignment grants: the `custom` part of the one target in the director's targets metadata.

    `measure` is the path of the manifest of the profile's other build, and `measure_sha256` its digest, where the
    device shall measure that one as well and say so in an `Evidence`; `measure_content` is how it comes by that one.
    `enrolled` is empty but in an offline bundle that brings a device its certificate: then it is the SHA-256 of what
    the bundle says of itself and of that answer, so that both are signed. `key_sha256` is in an order to wipe: the
    SHA-256 of the public key (PEM) of the device that is meant, which another of the same name does not have.
    """

    device: str
    counter: int
    issued: str
    deployment: str
    release: str
    rollback: bool = False
    grace_s: int = 86400
    trial_inferences: int = 20
    measure: str = ""
    measure_sha256: str = ""
    content: Content | None = None
    measure_content: Content | None = None
    enrolled: str = ""
    key_sha256: str = ""
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class Ack:
    """`down/ack`: all sequence numbers of `epoch` up to and including `up_to` are committed on the server.

    `new_epoch` asks the device to start a new epoch: the same number came with another body.
    """

    epoch: str
    up_to: int
    new_epoch: bool = False
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class Request:
    """`down/request`: one remote request of an allow-list, answered on `up/answer` with the same id."""

    id: str
    verb: str
    args: dict[str, Any] = field(default_factory=dict)
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class Answer:
    """`up/answer`: the result of a request."""

    id: str
    ok: bool
    result: dict[str, Any] = field(default_factory=dict)
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class Reported:
    """`up/reported`, retained: the reported half of the twin. The last will is the same with `online` false.

    `state` is a lifecycle state, `manifest` the SHA-256 of the committed manifest (empty before the first),
    `event_time` the device's event clock in seconds since 1970, `outbox_depth` the entries not yet acknowledged.
    `progress` is the fraction of the bytes of the artifact under way that is here, `received` the bytes that came for
    it, `waiting` what its fetch waits for by the owner's limits, and `stalled` the SHA-256 of a sealed file that was
    asked for in vain. `desired_version` is the desired configuration that is obeyed.
    """

    version: int
    online: bool
    state: str
    agent: str
    profile: str
    runtime: str
    architecture: str
    simulated: bool = False
    release: str = ""
    manifest: str = ""
    deployment: str = ""
    desired_version: int = 0
    outbox_depth: int = 0
    event_time: float = 0.0
    inferences: int = 0
    last_error: str = ""
    progress: float = 0.0
    received: int = 0
    waiting: str = ""
    stalled: str = ""
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the outbox: `body` is base64, `crc` its CRC-32 before encoding."""

    sequence: int
    kind: str
    event_time: float
    crc: int
    body: str


@dataclass(frozen=True, slots=True)
class Outbox:
    """`up/outbox`: entries in order of sequence; `epoch` names the device's database, random per database."""

    epoch: str
    entries: tuple[Entry, ...]
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class DeploymentEvent:
    """Body (JSON) of an outbox entry of kind `deployment`: the lifecycle moved."""

    deployment: str
    release: str
    manifest: str
    state: str
    reason: str = ""
    bytes_received: int = 0
    measured: dict[str, float] = field(default_factory=dict)
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class Gap:
    """Body (JSON) of an outbox entry of kind `gap`: entries that the device no longer has, never silently.

    The entry stands at the sequence number `first` and accounts for all numbers from `first` to `last`, so whoever
    counts the numbers takes the whole range as heard: a run of one `kind` that was given up for lack of room before it
    was published, or that was damaged; or numbers of `any` kind that a control plane restored from a copy forgot.
    """

    kind: str
    first: int
    last: int
    count: int
    reason: str
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class EnrolRequest:
    """HTTPS `POST /v1/enrol`: a claim token and a certificate signing request (PEM).

    `architecture` is what `platform.machine()` says on the device and `runtimes` what it can load, so that the server
    may refuse a device that is not of the profile before the token is spent; `simulated` waives the architecture.
    """

    token: str
    csr: str
    profile: str
    agent: str = ""
    architecture: str = ""
    simulated: bool = False
    runtimes: tuple[str, ...] = ()
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The answer to an enrolment: the name that the CA chose, a certificate (PEM) and where the broker is.

    `broker_ca` is empty where the broker speaks no TLS: the embedded one, on loopback alone. `architecture` and
    `runtime` are those of the profile: the device checks them against itself before it keeps anything. `state` is
    enrolled; or pending while no operator has accepted the device: then there is no certificate, and `ticket` is what
    it asks again with. `refuse_automatic` is the rule of the device's group.
    """

    project: str
    device: str
    certificate: str
    broker: str
    broker_ca: str = ""
    architecture: str = ""
    runtime: str = ""
    state: str = "enrolled"
    ticket: str = ""
    refuse_automatic: bool = False
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class TicketRequest:
    """HTTPS `POST /v1/enrol/ticket`: asks again for a claim that was pending; the answer is an `Enrolled`."""

    device: str
    ticket: str
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class NonceRequest:
    """HTTPS `POST /v1/proof/nonce`: asks for a nonce to sign."""

    device: str
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class Nonce:
    """The answer: a nonce for this device alone, good once and for `expires_s` seconds."""

    nonce: str
    expires_s: int
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class RenewRequest:
    """HTTPS `POST /v1/renew`: a signing request for the same key, signed (`skerry.wire.proof`, base64) by that key.

    `certificate` is the present one (PEM), needed only by a server that enrolled the device before it kept its key.
    The answer is an `Enrolled`.
    """

    device: str
    nonce: str
    csr: str
    signature: str
    certificate: str = ""
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """HTTPS `POST /v1/token`: the same proof buys a short token."""

    device: str
    nonce: str
    signature: str
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class Token:
    """The answer: a bearer token for HTTPS, good for `expires_s` seconds."""

    token: str
    expires_s: int
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class Anchor:
    """What a join string pins: the two TUF roots and the server's CA, served at `/v1/anchor`.

    The hash of these very bytes is in the join string, so all three are trusted, or none.
    """

    project: str
    image_root: str
    director_root: str
    server_ca: str
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class Index:
    """The retained, unsigned list of current metadata versions: what it omits it can only deny."""

    root: int
    timestamp: int
    snapshot: int
    targets: int
    v: int = VERSION
