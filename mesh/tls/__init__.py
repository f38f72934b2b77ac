"""TLS 1.3 and nothing older: contexts, identities, the start-up self-check."""
