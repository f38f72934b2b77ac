"""No number of a signed record is ever given to another one, also where the newest was forgotten."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Copies the table in SQLite, which gives a number again otherwise."""
    _copy(autoincrement=True)


def downgrade() -> None:
    """Copies it back."""
    _copy(autoincrement=False)


def _copy(*, autoincrement: bool) -> None:
    if op.get_bind().dialect.name == "sqlite":
        how = {"sqlite_autoincrement": autoincrement}
        with op.batch_alter_table("policy_records", recreate="always", table_kwargs=how):
            pass
