"""How a command answers: one JSON object on stdout, or tables for people; errors on stderr; exit statuses.

0 done · 1 refused or failed · 2 wrong usage · 3 no mesh runs here, or it cannot be reached.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mesh.errors import Code, MeshError

EXIT_REFUSED, EXIT_USAGE, EXIT_NOT_RUNNING = 1, 2, 3
_REMEDIES = {
    Code.NOT_RUNNING: "Start one with 'mesh up', or set MESH_HOME to the folder of the one that runs.",
    Code.ALREADY_RUNNING: "Stop it with 'mesh down', or set MESH_HOME to another folder.",
    Code.REGION_UNREACHABLE: "'mesh status' says what is wrong with it.",
    Code.TENANT_NOT_FOUND: "'mesh tenant list' lists all.",
    Code.KEY_NOT_FOUND: "'mesh key list TENANT' lists a tenant's keys.",
    Code.UNKNOWN_REGION: "'mesh region list' lists all.",
    Code.MODEL_NOT_FOUND: "'mesh model list' lists all.",
    Code.POLICY_STORE_UNAVAILABLE: "'mesh status' shows the control store; try again when it is healthy.",
    Code.NO_CAPACITY: "'mesh status' shows the replicas.",
    Code.INVALID_API_KEY: "'mesh key create TENANT' makes a key; give it with --key or MESH_API_KEY.",
}
_STATE_COLOURS = {
    "ready": "green",
    "active": "green",
    "serve": "green",
    "forward": "green",
    "taken": "green",
    "starting": "yellow",
    "stopping": "yellow",
    "draining": "yellow",
    "degraded": "yellow",
    "suspended": "yellow",
    "down": "red",
    "dead": "red",
    "refuse": "red",
}


class UsageFault(Exception):
    """A command that was typed wrongly. The text is ours and repeats nothing that was typed."""

    def __init__(self, text: str, *, param: str | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.param = param


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: its heading, and the field of a row that it shows."""

    heading: str
    field: str


def words() -> Console:
    """Where progress and words go: stderr, so that stdout holds the answer only."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def people() -> Console:
    """Where an answer for people goes: stdout."""
    # Into a pipe or a file a line is as long as it is: cut addresses help nobody.
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=240)


def print_json(value: object) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def show_items(
    items: Sequence[Mapping[str, object]], columns: Sequence[Column], *, as_json: bool, more: Mapping[str, object] = {}
) -> None:
    """A list: `{"items": [...]}` with `more` beside it, or a table."""
    if as_json:
        print_json({"items": list(items), **more})
        return
    if not items:
        words().print("There are none.", style="dim")
    else:
        people().print(table(items, columns))
    warn_unreachable(more.get("unreachable"))


def show_object(value: Mapping[str, object], *, as_json: bool) -> None:
    """One object: itself, or a line a field."""
    if as_json:
        print_json(value)
        return
    grid = Table.grid(padding=(0, 2))
    tables: list[Table | str] = []
    for name, item in value.items():
        rows = _rows(item)
        if rows:
            tables += [f"\n[dim]{name}[/]", table(rows, [Column(key, key) for key in rows[0]])]
        else:
            grid.add_row(f"[dim]{name}[/]", cell(item))
    console = people()
    console.print(grid, *tables, sep="\n")


def _rows(value: object) -> list[Mapping[str, object]]:
    """The rows of a list of objects; nothing for any other value."""
    items = cast("list[object]", value) if isinstance(value, list) else []
    return [cast("Mapping[str, object]", item) for item in items if isinstance(item, dict)]


def table(items: Sequence[Mapping[str, object]], columns: Sequence[Column]) -> Table:
    """Rows under headings."""
    shown = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        numbers = all(isinstance(item.get(column.field), int | float) for item in items)
        lists = any(isinstance(item.get(column.field), list) for item in items)
        shown.add_column(
            column.heading, justify="right" if numbers and items else "left", overflow="fold", no_wrap=not lists
        )
    for item in items:
        shown.add_row(*(cell(item.get(column.field)) for column in columns))
    return shown


def cell(value: object) -> str:
    """A value for people."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(cell(item) for item in cast("Sequence[object]", value)) or "-"
    if isinstance(value, float):
        return f"{value:g}"
    text = escape(str(value))
    colour = _STATE_COLOURS.get(text)
    return f"[{colour}]{text}[/]" if colour else text


def warn_unreachable(regions: object) -> None:
    """Tells people which regions are missing from an answer."""
    if isinstance(regions, list) and regions:
        names = ", ".join(map(str, cast("list[object]", regions)))
        words().print(f"Not in this answer, since they do not answer: {names}", style="yellow")


def report(error: MeshError | UsageFault, *, as_json: bool) -> int:
    """Tells an error on stderr; returns the exit status."""
    if isinstance(error, UsageFault):
        code, message, param, remedy = (
            Code.INVALID_PARAMETER.value,
            error.text,
            error.param,
            "Add --help to see it all.",
        )
        status = EXIT_USAGE
    else:
        code, message, param = error.code.value, error.row.message, error.param
        remedy = error.hint or _REMEDIES.get(error.code)
        status = EXIT_NOT_RUNNING if error.code is Code.NOT_RUNNING else EXIT_REFUSED
    if as_json:
        fields = {"code": code, "message": message, "param": param, "remedy": remedy}
        body = {name: value for name, value in fields.items() if value is not None}
        sys.stderr.write(json.dumps({"error": body}) + "\n")
        sys.stderr.flush()
        return status
    console = words()
    where = f" ({escape(param)})" if param else ""
    console.print(f"[bold red]Error:[/] {escape(message)}{where}")
    if remedy:
        console.print(f"  {escape(remedy)}")
    return status
