"""Logs, metrics and traces that cannot hold content: see `mesh.telemetry.attributes`."""

from mesh.telemetry.log import Log
from mesh.telemetry.process import speak_through
from mesh.telemetry.program import Telemetry
from mesh.telemetry.tracing import NO_SPAN, Span

__all__ = ["NO_SPAN", "Log", "Span", "Telemetry", "speak_through"]
