"""The program that answers clients: one or more processes a region. Never imports Ray."""
