"""Who may be served where. Pure: it is given everything and waits for nothing."""
