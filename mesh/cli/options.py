"""Options that several commands share, and what people type into them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

import typer

from mesh.cli.output import UsageFault
from mesh.errors import Code, MeshError
from mesh.settings import JURISDICTIONS

Json = Annotated[bool, typer.Option("--json", help="Answer with one JSON object on stdout.")]
TenantArgument = Annotated[str, typer.Argument(metavar="TENANT", help="A tenant's name or id.", show_default=False)]
Allow = Annotated[
    str, typer.Option("--allow", metavar="VN,SG", help="Jurisdictions, comma-separated.", show_default=False)
]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Wait for acknowledgements only, never for a gateway's authority to run out."),
]
Timeout = Annotated[
    str | None,
    typer.Option(metavar="30s", help="Give up waiting after this; the change stays made.", show_default=False),
]
Resume = Annotated[
    str | None,
    typer.Option(metavar="OP_ID", help="Go on waiting for a change that was interrupted.", show_default=False),
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def split(text: str, param: str) -> list[str]:
    """The items of a comma-separated list, each once, in order.

    Raises:
        UsageFault: When one of them is empty.
    """
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise UsageFault("The list has an empty item.", param=param)
    return list(dict.fromkeys(items))


def jurisdictions(text: str) -> list[str]:
    """Jurisdictions as `--allow` takes them, in any case.

    Raises:
        MeshError: UNKNOWN_JURISDICTION.
        UsageFault: When one of them is empty.
    """
    codes = [code.upper() for code in split(text, "allow")]
    if any(code not in JURISDICTIONS for code in codes):
        raise MeshError(
            Code.UNKNOWN_JURISDICTION, param="allow", hint=f"Known are: {', '.join(sorted(JURISDICTIONS))}."
        )
    return codes


def moment(text: str, param: str) -> datetime:
    """A time by RFC 3339, or a date, which means its first moment in UTC.

    Raises:
        UsageFault: When it is neither, has no offset, or is before 1970.
    """
    try:
        value = datetime.fromisoformat(text)
        if value.tzinfo is None:
            value = value.replace(tzinfo=UTC) if len(text) == len("2026-01-31") else None
        else:
            value = value.astimezone(UTC)
    except (ValueError, OverflowError):
        value = None
    if value is None or value < _EPOCH:
        raise UsageFault("This is no time: write 2026-01-31 or 2026-01-31T09:00:00Z.", param=param)
    return value


def rfc3339(value: datetime) -> str:
    """A time as the contract writes it: whole seconds, UTC."""
    return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(ms|s|m|h)")
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds_of(text: str | None, param: str) -> float | None:
    """A duration such as `500ms`, `5s`, `15m` or `24h`, in seconds; None stays None.

    Raises:
        UsageFault: When it is none.
    """
    if text is None:
        return None
    found = _DURATION.fullmatch(text)
    if found is None:
        raise UsageFault("This is no duration: write 500ms, 5s, 15m or 24h.", param=param)
    return float(found[1]) * _UNITS_S[found[2]]


def spans_of(text: str) -> tuple[float | None, float | None]:
    """`home=15m,foreign=6s`, in seconds; None for the one that is not named.

    Raises:
        UsageFault: When it is not of that form.
    """
    spans: dict[str, float | None] = {}
    for item in split(text, "authority"):
        name, _, value = item.partition("=")
        if name not in ("home", "foreign") or name in spans:
            raise UsageFault("Write home=15m,foreign=6s, or one of the two.", param="authority")
        spans[name] = seconds_of(value, "authority")
    return spans.get("home"), spans.get("foreign")
