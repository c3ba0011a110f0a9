"""Releases that are revoked, and models that are signed online."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema forward."""
    op.create_table(
        "model_policy",
        sa.Column("model", sa.String(length=63), nullable=False),
        sa.Column("policy", sa.String(length=9), nullable=False),
        sa.PrimaryKeyConstraint("model"),
    )
    # in place: a table that others refer to cannot be made anew while foreign keys are enforced
    op.add_column("release", sa.Column("role", sa.String(length=80), nullable=False, server_default="targets"))
    op.add_column("release", sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True))
    op.drop_column("release", "payload")
    with op.batch_alter_table("deployment", schema=None) as batch_op:
        batch_op.alter_column("rollout", existing_type=sa.Integer(), nullable=True)
        batch_op.add_column(sa.Column("replaces", sa.String(length=63), nullable=False, server_default=""))
    # of another form now: a release that waited for signatures is staged again by `skerry release create`
    op.execute("DELETE FROM tuf_metadata WHERE repository LIKE 'staged/%'")
