"""Tables of data, models and their builds."""

from datetime import datetime
from typing import Any

from sqlalchemy import String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from control_plane.schema.tables import Table


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


class ModelSamples(Table):
    """Which inputs may leave the devices that run a model, by its next release; without a row, none may."""

    __tablename__ = "model_samples"
    model: Mapped[str] = mapped_column(String(63), primary_key=True)
    rows_per_window: Mapped[int]
    inputs: Mapped[list[Any]]
    max_bytes: Mapped[int]


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
