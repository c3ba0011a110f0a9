"""The second build of a profile, and what canaries chose."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema forward."""
    with op.batch_alter_table("build", schema=None) as batch_op:
        batch_op.add_column(sa.Column("second", sa.String(length=64), nullable=False, server_default=""))
        batch_op.create_index(batch_op.f("ix_build_second"), ["second"], unique=False)
    with op.batch_alter_table("deployment", schema=None) as batch_op:
        batch_op.add_column(sa.Column("measures", sa.String(length=64), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("evidence", sa.JSON(), nullable=False, server_default="{}"))
    with op.batch_alter_table("device", schema=None) as batch_op:
        batch_op.add_column(sa.Column("public_key", sa.Text(), nullable=False, server_default=""))
    with op.batch_alter_table("release", schema=None) as batch_op:
        batch_op.add_column(sa.Column("choices", sa.JSON(), nullable=False, server_default="{}"))
