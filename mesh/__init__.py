"""A multi-region routing mesh for AI inference that pins each tenant to the jurisdictions it allows."""
