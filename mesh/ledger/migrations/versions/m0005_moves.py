"""Which signed records are a home's last word of a tenant, or the first one of a home that it may come to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the column. Nothing has moved before."""
    op.add_column("policy_records", sa.Column("move", sa.String(5), nullable=False, server_default=""))


def downgrade() -> None:
    """Drops it."""
    op.drop_column("policy_records", "move")
