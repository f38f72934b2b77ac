"""The ledger's migrations, run by `mesh.ledger` whenever it is opened."""
