"""Components of devices beside the unnamed one."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema forward; every device has its unnamed component, and every deployment so far was one of it."""
    op.create_table(
        "device_component",
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("manifest", sa.String(length=64), nullable=False),
        sa.Column("reported", sa.JSON(), nullable=False),
        sa.Column("added_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.name"]),
        sa.PrimaryKeyConstraint("device", "name"),
    )
    op.create_index("ix_device_component_manifest", "device_component", ["manifest"], unique=False)
    op.add_column("deployment", sa.Column("component", sa.String(length=63), nullable=False, server_default=""))
