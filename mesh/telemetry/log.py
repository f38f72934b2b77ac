"""Log lines of a program: one JSON object a line, with known names and values that cannot be free text."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection
from datetime import UTC, datetime
from typing import LiteralString, TextIO

from mesh.telemetry.attributes import is_said, log_rules

_EVENT = re.compile(r"[a-z0-9_]{1,40}(?:\.[a-z0-9_]{1,40}){0,4}", re.ASCII)


class Log:
    """Writes events. A field that may not be said is left out, and counted in the line as `dropped`.

    An event's name is written in the code: the type checker refuses one that was put together.
    """

    def __init__(
        self, program: str, region: str, out: TextIO, *, models: Collection[str] = (), strict: bool = False
    ) -> None:
        """A log.

        Args:
            program: `gateway`, `admin`, `replica`, `supervisor`.
            region: Where it runs; `-` for none.
            out: Where lines go, standard error as a rule.
            models: The catalogue's ids: other models are never named.
            strict: For tests: a field that may not be said raises `ValueError`.
        """
        if not _EVENT.fullmatch(program):
            raise ValueError("a program's name is a word")
        self._program = program
        self._region = region
        self._out = out
        self._rules = log_rules(models)
        self._strict = strict
        self.dropped = 0
        """Fields that were left out since the start, and lines that could not be written."""

    def info(self, event: LiteralString, **fields: str | int | float | bool | None) -> None:
        """What an operator may want to know."""
        self._write("info", event, fields)

    def warning(self, event: LiteralString, **fields: str | int | float | bool | None) -> None:
        """What went wrong and was handled."""
        self._write("warning", event, fields)

    def error(self, event: LiteralString, **fields: str | int | float | bool | None) -> None:
        """What needs an operator."""
        self._write("error", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, str | int | float | bool | None]) -> None:
        dropped = 0
        if not _EVENT.fullmatch(event):
            self._refuse("the event")
            event, dropped = "log.unnamed", 1
        at = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, object] = {
            "at": at,
            "level": level,
            "event": event,
            "program": self._program,
            "region": self._region,
        }
        for name, value in fields.items():
            if value is None:
                continue
            if not is_said(self._rules, name, value):
                self._refuse(name)
                dropped += 1
            else:
                # A region that an event is about must not hide the one that says it.
                line["of_region" if name == "region" else name] = value
        if dropped:
            self.dropped += dropped
            line["dropped"] = dropped
        try:
            self._out.write(json.dumps(line, separators=(",", ":")) + "\n")
            self._out.flush()
        except (OSError, ValueError):
            # Nobody reads any more: a program does not die of that.
            self.dropped += 1

    def _refuse(self, name: str) -> None:
        if self._strict:
            raise ValueError(f"{name} may not be logged, or not with this value: see mesh/telemetry/attributes.py")
