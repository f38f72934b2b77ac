"""Refusals at doors outside a tenant's pin."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the table."""
    op.create_table(
        "disclosures",
        sa.Column("day", sa.Integer, primary_key=True),
        sa.Column("request_id", sa.String(64), primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("region", sa.String(64), nullable=False),
        sa.Column("jurisdiction", sa.String(2), nullable=False),
        sa.Column("tenant", sa.String(18), nullable=False),
        sa.Column("key_id", sa.String(12), nullable=False),
        sa.Column("door", sa.String(8), nullable=False),
    )
    op.create_index("ix_disclosures_tenant", "disclosures", ["tenant", "at_ms", "request_id"])


def downgrade() -> None:
    """Drops it."""
    op.drop_table("disclosures")
