"""Artifacts sealed with a content key."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema forward; what is published unsealed is withdrawn when the server connects to its broker."""
    op.create_table(
        "sealed_artifact",
        sa.Column("manifest", sa.String(length=64), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("manifest"),
    )
