"""Whether a signed record is known to have come into the control store."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the column. What is there already may have been made, or not."""
    op.add_column("policy_records", sa.Column("made", sa.Boolean, nullable=False, server_default=sa.false()))


def downgrade() -> None:
    """Drops it."""
    op.drop_column("policy_records", "made")
