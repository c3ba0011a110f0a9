"""Tables of releases, and of who is to run them."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from control_plane.schema.tables import Table


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
    it said of both, with its signature, once that was verified. `component` is what of the device it is for.
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
    component: Mapped[str] = mapped_column(String(63), default="")


class TufMetadata(Table):
    """Signed metadata as published. `repository` is `image` or `director/DEVICE`, `name` such as `3.snapshot`."""

    __tablename__ = "tuf_metadata"
    repository: Mapped[str] = mapped_column(String(80), primary_key=True)
    name: Mapped[str] = mapped_column(String(80), primary_key=True)
    body: Mapped[bytes] = mapped_column(LargeBinary)
