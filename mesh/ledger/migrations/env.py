"""What Alembic runs: upgrades the connection that `mesh.ledger.database` hands it."""

from __future__ import annotations

from alembic import context

from mesh.ledger.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
