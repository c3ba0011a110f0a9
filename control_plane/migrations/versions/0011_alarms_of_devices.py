"""Alarms of devices, whose turn it was among the epochs of one, and how many samples were deleted, by their blobs."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema forward; who returns is counted from now on."""
    for name in ("samples_deleted", "turn", "returns"):
        op.add_column("outbox_mark", sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
    for name in ("heard_at", "returned_at"):
        op.add_column("outbox_mark", sa.Column(name, sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_outbox_mark_turn", "outbox_mark", ["device", "turn"], unique=False)
    op.create_index("ix_sample_blob", "sample", ["blob"], unique=False)
    op.create_table(
        "alarm",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("raised_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("cleared_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cleared", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_alarm_device", "alarm", ["device"], unique=False)
