"""Moved to `proof_report`."""

from proof_report import Report, Way, render, table

__all__ = ["Report", "Way", "render", "table"]
