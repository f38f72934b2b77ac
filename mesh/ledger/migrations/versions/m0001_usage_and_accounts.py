"""Usage records and accounts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the two tables."""
    op.create_table(
        "usage",
        sa.Column("day", sa.Integer, primary_key=True),
        sa.Column("request_id", sa.String(64), primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("region", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(18), nullable=False),
        sa.Column("key_id", sa.String(12), nullable=False),
        sa.Column("operation", sa.String(16), nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("door", sa.String(8), nullable=False),
        sa.Column("code", sa.String(32), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("duration_ms", sa.BigInteger, nullable=False),
        sa.Column("first_byte_ms", sa.BigInteger),
        sa.Column("entry_region", sa.String(64), nullable=False),
    )
    op.create_index("ix_usage_tenant", "usage", ["tenant", "at_ms"])
    op.create_table(
        "accounts",
        sa.Column("tenant", sa.String(18), primary_key=True),
        sa.Column("home", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("nonce", sa.LargeBinary(16), nullable=False),
        sa.Column("created_s", sa.BigInteger, nullable=False),
        sa.Column("ready", sa.Boolean, nullable=False),
    )
    op.create_index("uq_accounts_name", "accounts", ["home", "name"], unique=True)


def downgrade() -> None:
    """Drops them."""
    op.drop_table("accounts")
    op.drop_table("usage")
