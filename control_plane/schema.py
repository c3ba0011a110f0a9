"""The database schema: one set of tables for SQLite and PostgreSQL, made by Alembic, read through SQLAlchemy.

Times are UTC; `event_time` columns are the devices' event clocks in seconds since 1970. Bytes of models, data and
artifacts are not here but in the object store, named by SHA-256.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, ForeignKey, Index, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """A datetime that is always aware and UTC: SQLite forgets the zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002 -- the interface
        """Refuse naive datetimes, convert the others to UTC."""
        if value is not None and value.tzinfo is None:
            raise ValueError("expected an aware datetime, got a naive one")
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002 -- same
        """Return aware datetimes."""
        if value is not None and value.tzinfo is None:
            return value.replace(tzinfo=UTC)
        return value


class Table(DeclarativeBase):
    """The declarative root of all tables."""

    type_annotation_map = {  # noqa: RUF012 -- SQLAlchemy reads this class attribute, it is not an instance's
        datetime: UtcDateTime,
        dict[str, Any]: JSON,
        list[Any]: JSON,
    }


class Device(Table):
    """One agent identity. `reported` is the last `Reported` message, `public_key` (PEM) what its key proves.

    `state`: pending (an operator has not accepted it), offline (named for installs from a file, not enrolled yet),
    enrolled, revoked, decommissioning (told to wipe itself, not heard since), decommissioned.
    """

    __tablename__ = "device"
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    profile: Mapped[str] = mapped_column(String(63))
    group: Mapped[str] = mapped_column("group_name", String(63), default="default")
    state: Mapped[str] = mapped_column(String(16), default="enrolled")
    certificate_serial: Mapped[str] = mapped_column(String(64))
    certificate_expires: Mapped[datetime]
    enrolled_at: Mapped[datetime]
    online: Mapped[bool] = mapped_column(default=False)
    last_seen: Mapped[datetime | None]
    reported: Mapped[dict[str, Any]] = mapped_column(default=dict)
    assign_counter: Mapped[int] = mapped_column(default=0)
    public_key: Mapped[str] = mapped_column(Text, default="")


class DeviceGroup(Table):
    """The rules of a group that has any. `approve`: automatic, or pending until an operator accepts each device."""

    __tablename__ = "device_group"
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    approve: Mapped[str] = mapped_column(String(9), default="automatic")
    refuse_automatic: Mapped[bool] = mapped_column(default=False)


class ClaimToken(Table):
    """A claim token, stored as SHA-256, bound to a profile and group and, where given, to one device name.

    `approve` is automatic, pending, or empty where the rule of the group decides.
    """

    __tablename__ = "claim_token"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    profile: Mapped[str] = mapped_column(String(63))
    group: Mapped[str] = mapped_column("group_name", String(63), default="default")
    device: Mapped[str] = mapped_column(String(63), default="")
    uses_left: Mapped[int] = mapped_column(default=1)
    expires: Mapped[datetime]
    approve: Mapped[str] = mapped_column(String(9), default="")


class PendingClaim(Table):
    """A claim that waits for an operator, or whose answer waits for the device. `state`: pending, accepted, rejected.

    The device asks with its ticket, of which the SHA-256 is kept; `certificate` (PEM) is there once it was accepted.
    """

    __tablename__ = "pending_claim"
    device: Mapped[str] = mapped_column(String(63), primary_key=True)
    profile: Mapped[str] = mapped_column(String(63))
    group: Mapped[str] = mapped_column("group_name", String(63))
    csr: Mapped[str] = mapped_column(Text)
    ticket_sha256: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(8), default="pending")
    certificate: Mapped[str] = mapped_column(Text, default="")
    asked_at: Mapped[datetime]
    expires: Mapped[datetime]


class IssuedCertificate(Table):
    """A certificate that the device CA has signed and that has not ended: all of a device's are revoked with it."""

    __tablename__ = "issued_certificate"
    serial: Mapped[str] = mapped_column(String(64), primary_key=True)
    device: Mapped[str] = mapped_column(String(63), index=True)
    issued_at: Mapped[datetime]
    expires: Mapped[datetime]


class RevokedCertificate(Table):
    """A certificate that is no longer good although it has not ended: what the revocation list names."""

    __tablename__ = "revoked_certificate"
    serial: Mapped[str] = mapped_column(String(64), primary_key=True)
    device: Mapped[str] = mapped_column(String(63), index=True)
    expires: Mapped[datetime]
    revoked_at: Mapped[datetime]


class SpentNonce(Table):
    """A nonce that has served: kept, as SHA-256, until it would have ended anyway."""

    __tablename__ = "spent_nonce"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    device: Mapped[str] = mapped_column(String(63), index=True)
    expires: Mapped[datetime]


class DeviceToken(Table):
    """A device's bearer token for HTTPS, as SHA-256."""

    __tablename__ = "device_token"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    device: Mapped[str] = mapped_column(String(63), index=True)
    expires: Mapped[datetime]


class DatasetPart(Table):
    """One upload of a data set. `role` is train (may be learnt from) or gate (labelled in the field, gates alone)."""

    __tablename__ = "dataset_part"
    __table_args__ = (UniqueConstraint("dataset", "role", "sha256"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    dataset: Mapped[str] = mapped_column(String(63))
    role: Mapped[str] = mapped_column(String(8))
    sha256: Mapped[str] = mapped_column(String(64))
    rows: Mapped[int]
    summary: Mapped[dict[str, Any]] = mapped_column(default=dict)
    added_at: Mapped[datetime]


class ModelVersion(Table):
    """A trained, unconverted model with its lineage: data digests, recipe, metrics. `bundle` is its blob."""

    __tablename__ = "model_version"
    model: Mapped[str] = mapped_column(String(63), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    dataset: Mapped[str] = mapped_column(String(63))
    parts: Mapped[list[Any]] = mapped_column(default=list)
    recipe: Mapped[dict[str, Any]] = mapped_column(default=dict)
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    bundle: Mapped[str] = mapped_column(String(64))
    trained_at: Mapped[datetime]


class Build(Table):
    """The outcome of compiling one model version for one profile: the gate's report and, if passed, the artifact.

    `gate` is passed, refused or "not run"; `manifest` is the SHA-256 of the artifact's manifest, empty unless passed;
    `files` maps file names to SHA-256; `report` is the gate report with its candidates. `second` is the SHA-256 of the
    manifest of the other build that a release lists for the profile, if it does; its files are in the report.
    """

    __tablename__ = "build"
    __table_args__ = (UniqueConstraint("model", "version", "profile"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(String(63))
    version: Mapped[int]
    profile: Mapped[str] = mapped_column(String(63))
    gate: Mapped[str] = mapped_column(String(8))
    manifest: Mapped[str] = mapped_column(String(64), default="", index=True)
    second: Mapped[str] = mapped_column(String(64), default="", index=True)
    files: Mapped[dict[str, Any]] = mapped_column(default=dict)
    report: Mapped[dict[str, Any]] = mapped_column(default=dict)
    built_at: Mapped[datetime]


class Release(Table):
    """One model version with its artifact for each profile.

    `state`: staged (signatures missing), live (threshold met, published), revoked. `role` is the TUF role that signs
    it: `targets`, offline, or `automatic-MODEL`, online. `choices` says by profile which of two builds the first
    devices chose, and why; profiles with one build are not in it.
    """

    __tablename__ = "release"
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    model: Mapped[str] = mapped_column(String(63))
    version: Mapped[int]
    state: Mapped[str] = mapped_column(String(8))
    role: Mapped[str] = mapped_column(String(80), default="targets")
    created_at: Mapped[datetime]
    live_at: Mapped[datetime | None]
    choices: Mapped[dict[str, Any]] = mapped_column(default=dict)
    revoked_at: Mapped[datetime | None]


class ModelPolicy(Table):
    """Who signs the releases of a model: `manual`, the offline keys (the default), or `automatic`, an online key."""

    __tablename__ = "model_policy"
    model: Mapped[str] = mapped_column(String(63), primary_key=True)
    policy: Mapped[str] = mapped_column(String(9))


class Rollout(Table):
    """The plan that moves a fleet to a release. `state`: running, paused, done, cancelled."""

    __tablename__ = "rollout"
    id: Mapped[int] = mapped_column(primary_key=True)
    release: Mapped[str] = mapped_column(ForeignKey("release.name"))
    state: Mapped[str] = mapped_column(String(12))
    reason: Mapped[str] = mapped_column(default="")
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class Wave(Table):
    """An ordered group of a rollout. `state`: waiting, running, done, failed."""

    __tablename__ = "wave"
    rollout: Mapped[int] = mapped_column(ForeignKey("rollout.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(63))
    state: Mapped[str] = mapped_column(String(12))
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class Deployment(Table):
    """One device's attempt. `state` is waiting (not assigned yet), then a lifecycle state as the device reports it.

    It belongs to a wave of a rollout, or it `replaces` a revoked release, whose name that is, and has no rollout.
    `measures` is the SHA-256 of the other build's manifest where the device measures that one too; `evidence` is what
    it said of both, with its signature, once that was verified.
    """

    __tablename__ = "deployment"
    __table_args__ = (Index("ix_deployment_rollout", "rollout", "wave"),)
    id: Mapped[str] = mapped_column(String(63), primary_key=True)
    rollout: Mapped[int | None] = mapped_column(ForeignKey("rollout.id"))
    wave: Mapped[int] = mapped_column(default=0)
    replaces: Mapped[str] = mapped_column(String(63), default="")
    device: Mapped[str] = mapped_column(ForeignKey("device.name"), index=True)
    release: Mapped[str] = mapped_column(ForeignKey("release.name"))
    manifest: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(default="")
    bytes_received: Mapped[int] = mapped_column(default=0)
    measured: Mapped[dict[str, Any]] = mapped_column(default=dict)
    assigned_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    committed_event_time: Mapped[float | None]
    measures: Mapped[str] = mapped_column(String(64), default="")
    evidence: Mapped[dict[str, Any]] = mapped_column(default=dict)


class TufMetadata(Table):
    """Signed metadata as published. `repository` is `image` or `director/DEVICE`, `name` such as `3.snapshot`."""

    __tablename__ = "tuf_metadata"
    repository: Mapped[str] = mapped_column(String(80), primary_key=True)
    name: Mapped[str] = mapped_column(String(80), primary_key=True)
    body: Mapped[bytes] = mapped_column(LargeBinary)


class SealedArtifact(Table):
    """The one sealed form of an artifact: its content key, and the blobs of its sealed files by file name."""

    __tablename__ = "sealed_artifact"
    manifest: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[bytes] = mapped_column(LargeBinary)
    files: Mapped[dict[str, Any]] = mapped_column(default=dict)


class MadeDelta(Table):
    """What came of making the file `target` from `source`, both SHA-256; from nothing (packed) where that is empty.

    `sha256`, `length` and `chunks` describe the delta; they are empty where it is not worth sending, and `reason` says
    why.
    """

    __tablename__ = "delta"
    source: Mapped[str] = mapped_column(String(64), primary_key=True)
    target: Mapped[str] = mapped_column(String(64), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), default="")
    length: Mapped[int] = mapped_column(default=0)
    chunks: Mapped[list[Any]] = mapped_column(default=list)
    reason: Mapped[str] = mapped_column(default="")


class SealedDelta(Table):
    """The one sealed form of a delta under the content key of an artifact; `sealed` names the blob."""

    __tablename__ = "sealed_delta"
    manifest: Mapped[str] = mapped_column(String(64), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    sealed: Mapped[str] = mapped_column(String(64))


class Publication(Table):
    """A sealed blob whose chunks are retained on the broker; `bytes_sent` counts all bytes ever published for it.

    `published_at` is when the last of them was handed over, none while that is not done or no longer known to hold;
    `asked_at` when a device last said that it waits for them in vain.
    """

    __tablename__ = "publication"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    release: Mapped[str] = mapped_column(ForeignKey("release.name"), index=True)
    length: Mapped[int]
    bytes_sent: Mapped[int] = mapped_column(default=0)
    published_at: Mapped[datetime | None]
    asked_at: Mapped[datetime | None]


class Configuration(Table):
    """What an operator wants of a device, or of all of a group. `scope`: device or group."""

    __tablename__ = "configuration"
    scope: Mapped[str] = mapped_column(String(6), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    config: Mapped[dict[str, Any]] = mapped_column(default=dict)


class DesiredState(Table):
    """The desired half of a device's twin as published: group and device taken together, under its version."""

    __tablename__ = "desired"
    device: Mapped[str] = mapped_column(String(63), primary_key=True)
    version: Mapped[int]
    config: Mapped[dict[str, Any]] = mapped_column(default=dict)


class OutboxMark(Table):
    """What of one device's epoch has been merged: everything up to `up_to`, and the sequence numbers in `beyond`."""

    __tablename__ = "outbox_mark"
    device: Mapped[str] = mapped_column(String(63), primary_key=True)
    epoch: Mapped[str] = mapped_column(String(32), primary_key=True)
    up_to: Mapped[int] = mapped_column(default=0)
    beyond: Mapped[dict[str, Any]] = mapped_column(default=dict)
    merged: Mapped[int] = mapped_column(default=0)
    repeated: Mapped[int] = mapped_column(default=0)
    conflicts: Mapped[int] = mapped_column(default=0)
    first_seen: Mapped[datetime]


class Window(Table):
    """The counts of one window of one device, merged exactly once. `tables` are lists of counts per bin."""

    __tablename__ = "window"
    __table_args__ = (
        UniqueConstraint("device", "epoch", "sequence"),
        Index("ix_window_manifest", "manifest", "device", "number"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    device: Mapped[str] = mapped_column(String(63))
    epoch: Mapped[str] = mapped_column(String(32))
    sequence: Mapped[int]
    manifest: Mapped[str] = mapped_column(String(16))
    monitor: Mapped[str] = mapped_column(String(16))
    number: Mapped[int]
    start: Mapped[int]
    end: Mapped[int]
    rows: Mapped[int]
    labelled: Mapped[int]
    correct: Mapped[int]
    latency_p50_us: Mapped[int]
    latency_p99_us: Mapped[int]
    crc: Mapped[int]
    tables: Mapped[list[Any]] = mapped_column(default=list)
    merged_at: Mapped[datetime]


class Gap(Table):
    """Entries that a device gave up for lack of room, as its gap records say."""

    __tablename__ = "gap"
    device: Mapped[str] = mapped_column(String(63), primary_key=True)
    epoch: Mapped[str] = mapped_column(String(32), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    first: Mapped[int]
    last: Mapped[int]
    count: Mapped[int]
    reason: Mapped[str]


class Finding(Table):
    """Something that drift statistics concluded. `kind`: local (one device) or world (the fleet).

    `windows` counts the windows from the commissioning's end (or the last quiet decision) to the finding.
    """

    __tablename__ = "finding"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(8))
    device: Mapped[str] = mapped_column(String(63), default="")
    model: Mapped[str] = mapped_column(String(63))
    version: Mapped[int]
    log_e: Mapped[float]
    severity: Mapped[float] = mapped_column(default=0.0)
    event_time: Mapped[float]
    window: Mapped[int]
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)
    found_at: Mapped[datetime]


class Job(Table):
    """Long work with its record. `state`: queued, running, done, failed; `key` makes asking twice one job."""

    __tablename__ = "job"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    key: Mapped[str] = mapped_column(String(200), unique=True)
    state: Mapped[str] = mapped_column(String(8))
    parameters: Mapped[dict[str, Any]] = mapped_column(default=dict)
    log: Mapped[str] = mapped_column(default="")
    result: Mapped[dict[str, Any]] = mapped_column(default=dict)
    error: Mapped[str] = mapped_column(default="")
    leased_until: Mapped[datetime | None]
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class Event(Table):
    """The timeline that pages and scripts follow: one line a person can read, with its data."""

    __tablename__ = "event"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    kind: Mapped[str] = mapped_column(String(24))
    subject: Mapped[str] = mapped_column(String(80))
    text: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)
