"""Outboxes that are heard in any order, and samples."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema forward; a gap set of single numbers is still read (`control_plane.outbox_mark`)."""
    op.add_column("outbox_mark", sa.Column("recent", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("outbox_mark", sa.Column("conflict", sa.Integer(), nullable=False, server_default="0"))
    op.create_table(
        "sample",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("epoch", sa.String(length=32), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("manifest", sa.String(length=16), nullable=False),
        sa.Column("window", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("crc", sa.Integer(), nullable=False),
        sa.Column("blob", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("taken_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("device", "epoch", "sequence"),
    )
    op.create_index("ix_sample_window", "sample", ["manifest", "device", "window"], unique=False)
