"""Which inputs may leave the devices that run a model."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema forward; nothing was allowed before."""
    op.create_table(
        "model_samples",
        sa.Column("model", sa.String(length=63), nullable=False),
        sa.Column("rows_per_window", sa.Integer(), nullable=False),
        sa.Column("inputs", sa.JSON(), nullable=False),
        sa.Column("max_bytes", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("model"),
    )
