"""Logs, metrics and traces, from allow-lists of names and values."""
