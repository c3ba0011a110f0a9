"""Device keys, groups, claims that wait, issued and revoked certificates, nonces and tokens of devices."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema forward; certificates given out before are known by their last serial number alone."""
    op.add_column("claim_token", sa.Column("approve", sa.String(length=9), nullable=False, server_default=""))
    op.create_table(
        "device_group",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("approve", sa.String(length=9), nullable=False),
        sa.Column("refuse_automatic", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "pending_claim",
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("profile", sa.String(length=63), nullable=False),
        sa.Column("group_name", sa.String(length=63), nullable=False),
        sa.Column("csr", sa.Text(), nullable=False),
        sa.Column("ticket_sha256", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("certificate", sa.Text(), nullable=False),
        sa.Column("asked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("device"),
    )
    for name, times in (
        ("issued_certificate", ("issued_at", "expires")),
        ("revoked_certificate", ("expires", "revoked_at")),
    ):
        op.create_table(
            name,
            sa.Column("serial", sa.String(length=64), nullable=False),
            sa.Column("device", sa.String(length=63), nullable=False),
            *(sa.Column(each, sa.DateTime(timezone=True), nullable=False) for each in times),
            sa.PrimaryKeyConstraint("serial"),
        )
        op.create_index(f"ix_{name}_device", name, ["device"])
    for name in ("spent_nonce", "device_token"):
        op.create_table(
            name,
            sa.Column("sha256", sa.String(length=64), nullable=False),
            sa.Column("device", sa.String(length=63), nullable=False),
            sa.Column("expires", sa.DateTime(timezone=True), nullable=False),
            sa.PrimaryKeyConstraint("sha256"),
        )
        op.create_index(f"ix_{name}_device", name, ["device"])
    op.execute(
        "INSERT INTO issued_certificate (serial, device, issued_at, expires) "
        "SELECT certificate_serial, name, enrolled_at, certificate_expires FROM device WHERE certificate_serial <> ''"
    )
