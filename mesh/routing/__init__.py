"""Which replica serves a call, and why not another. Pure."""
