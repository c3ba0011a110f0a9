"""Tables of what is published for devices to fetch."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from control_plane.schema.tables import Table


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
