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
# the component that is the agent itself; every other is named like its model, and one has no name
AGENT = "agent"
MAX_COMPONENTS = 8
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
    `component` is what of the device it is for: empty for its one model, else a further model's name, or `agent`.
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
    component: str = ""
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class Ack:
    """`down/ack`: all sequence numbers of `epoch` up to and including `up_to` are committed on the server.

    `ranges` are pairs of a first and a last number beyond it, committed too, as far as they were in the batch that is
    answered. `new_epoch` asks the device to start a new epoch: the same number came with another body; `conflicts` are
    those numbers in that batch. `window` is how many batches may be on their way at once, in any order and packed
    (`skerry.wire.batch`); 0 is an older control plane, to which one is said at a time, the oldest, in plain JSON.
    `at` is the control plane's clock, in seconds since 1970, by which a device finds its own ahead or behind.
    """

    epoch: str
    up_to: int
    new_epoch: bool = False
    ranges: tuple[tuple[int, ...], ...] = ()
    conflicts: tuple[int, ...] = ()
    window: int = 0
    at: float = 0.0
    v: int = VERSION

    def __post_init__(self) -> None:
        for each in self.ranges:
            if len(each) != 2 or not 1 <= each[0] <= each[1]:
                raise ValueError(f"expected pairs of a first and a last number, got {each!r:.60}")


@dataclass(frozen=True, slots=True)
class Request:
    """`down/request`: one remote request of an allow-list (`skerry.wire.requests`), answered on `up/answer` by its id.

    After `expires` (seconds since 1970; 0: never) a device no longer acts on it. `asked_by` is for the device's log.
    `only_repeat` asks for the answer that was given, and for nothing to be done.
    """

    id: str
    verb: str
    args: dict[str, Any] = field(default_factory=dict)
    expires: float = 0.0
    asked_by: str = ""
    only_repeat: bool = False
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class Answer:
    """`up/answer`: the result of a request; one that was refused has its `reason`.

    The same request, should it come again, has the same answer, and nothing is done twice.
    """

    id: str
    ok: bool
    result: dict[str, Any] = field(default_factory=dict)
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class Component:
    """What a device says of one of its named components; the fields mean what those of `Reported` do.

    `runs` is the word of `RunsReport` for its model; empty for the agent itself, and from an agent that does not say.
    """

    state: str
    release: str = ""
    manifest: str = ""
    deployment: str = ""
    inferences: int = 0
    last_error: str = ""
    progress: float = 0.0
    received: int = 0
    stalled: str = ""
    runs: str = ""


@dataclass(frozen=True, slots=True)
class SlotReport:
    """What a device says of one slot: its mark (empty, bad, pending, good), and which release is in it.

    `manifest` is the first 16 hex digits of the manifest's SHA-256.
    """

    mark: str
    release: str = ""
    manifest: str = ""
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class RunsReport:
    """What a device says of what runs its model: `word` is up, restarting, none, or down (none although it should).

    `since_s` is how many seconds ago that began, and `crashes` how often it ended by itself since the agent started.
    """

    word: str = ""
    since_s: int = 0
    crashes: int = 0


@dataclass(frozen=True, slots=True)
class Vitals:
    """What the system tells of itself; None where it does not, or nobody could measure it."""

    temperature_c: float | None = None
    memory_available_bytes: int | None = None
    memory_total_bytes: int | None = None
    disk_free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Reported:
    """`up/reported`, retained: the reported half of the twin. The last will is the same with `online` false.

    `state` is a lifecycle state, `manifest` the SHA-256 of the committed manifest (empty before the first),
    `event_time` the device's event clock in seconds since 1970, `outbox_depth` the entries not yet acknowledged.
    `progress` is the fraction of the bytes of the artifact under way that is here, `received` the bytes that came for
    it, `waiting` what its fetch waits for by the owner's limits, and `stalled` the SHA-256 of a sealed file that was
    asked for in vain. `desired_version` is the desired configuration that is obeyed, and `desired_refused` what of the
    newest one is not, and why. `components` are those beside the unnamed one, by name; an agent that knows of none
    leaves it out.

    `slots` are those of the unnamed component, `active` which of them runs. `clock_ahead_s` is by how much the device's
    clock was found ahead (below 0: behind), None when nothing told. `health` is ok, degraded or failing (empty: an
    agent that does not judge), with the `reasons`. `vitals`, `uptime_s` and the like are as of this message: they
    change all the time and are not news by themselves.
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
    components: dict[str, Component] | None = None
    active: str = ""
    slots: dict[str, SlotReport] = field(default_factory=dict)
    runs: RunsReport = RunsReport()
    vitals: Vitals = Vitals()
    certificate_expires: str = ""
    clock_ahead_s: float | None = None
    outbox_bytes: int = 0
    uptime_s: int = 0
    restarts: int = 0
    desired_refused: str = ""
    health: str = ""
    reasons: tuple[str, ...] = ()
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
    component: str = ""
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
class Index:
    """The retained, unsigned list of current metadata versions: what it omits it can only deny."""

    root: int
    timestamp: int
    snapshot: int
    targets: int
    v: int = VERSION
