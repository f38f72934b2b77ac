"""The commands of `mesh` under one root, and how each ends: an answer, or an error that is told once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

import typer

# Typer carries click within it and exports only some of its errors.
from typer._click import exceptions as click

from mesh.cli.chat import chat
from mesh.cli.context import Here
from mesh.cli.control import control
from mesh.cli.lifecycle import down, status, up
from mesh.cli.moves import move_tenant
from mesh.cli.output import EXIT_REFUSED, EXIT_USAGE, UsageFault, report
from mesh.cli.pins import gateways, pins
from mesh.cli.regions import models, regions
from mesh.cli.tenants import keys, routes, tenants, usage
from mesh.errors import Code, MeshError

app = typer.Typer(
    name="mesh",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Runs a mesh of regions that serve AI models, and pins each tenant to the jurisdictions it allows.\n\n"
    "Every command takes --json. Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 no mesh runs here. "
    "MESH_HOME names the folder of the mesh, by default .mesh/ of the checkout, or the desk of one on other hosts.",
)
_RUN, _TENANTS, _ASK = "Run a mesh", "Tenants", "Look and ask"
app.command(rich_help_panel=_RUN)(up)
app.command(rich_help_panel=_RUN)(down)
app.command(rich_help_panel=_RUN)(status)
tenants.command("move")(move_tenant)
app.add_typer(tenants, name="tenant", rich_help_panel=_TENANTS)
app.add_typer(keys, name="key", rich_help_panel=_TENANTS)
app.add_typer(pins, name="pin", rich_help_panel=_TENANTS)
app.command(rich_help_panel=_TENANTS)(usage)
app.add_typer(routes, name="route", rich_help_panel=_ASK)
app.add_typer(regions, name="region", rich_help_panel=_ASK)
app.add_typer(models, name="model", rich_help_panel=_ASK)
app.add_typer(gateways, name="gateway", rich_help_panel=_RUN)
app.add_typer(control, name="control", rich_help_panel=_RUN)
app.command(rich_help_panel=_ASK)(chat)


@app.callback()
def root() -> None:
    """Nothing of its own: the commands do it all."""


def run(arguments: Sequence[str], found: Here) -> int:
    """Runs one command; returns its exit status."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    as_json = "--json" in options
    if any("\udc80" <= char <= "\udcff" for argument in arguments for char in argument):
        return report(UsageFault("The arguments are not UTF-8."), as_json=as_json)
    try:
        status = app(list(arguments), prog_name="mesh", standalone_mode=False, obj=found)
    except click.NoArgsIsHelpError:
        return EXIT_USAGE  # the help was shown, and says more
    except click.ClickException as error:
        return report(_usage(error), as_json=as_json)
    except (MeshError, UsageFault) as error:
        return report(error, as_json=as_json)
    except (typer.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read our answer has left: nothing more to say, and nothing to say it to at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_REFUSED
    except OSError as error:
        # The mesh's folder, as a rule: its name is too long, or it may not be entered.
        where = f"{error.filename}: " if error.filename else ""
        return report(MeshError(Code.INTERNAL_ERROR, hint=f"{where}{error.strerror}."), as_json=as_json)
    return status if isinstance(status, int) else 0


def _usage(error: click.ClickException) -> UsageFault:
    """Wrong usage in our own words: Typer's repeat what was typed, which for `chat` is a prompt."""
    match error:
        case click.NoSuchOption():
            return UsageFault("There is no such option.")
        case click.MissingParameter(param=param):
            name = (param.metavar or param.name or "").strip("[]") if param else ""
            if param is not None and param.param_type_name == "option":
                name = max(param.opts, key=len)
            return UsageFault(f"{name or 'A value'} is missing.", param=_name(error))
        case click.BadParameter():
            return UsageFault("This value is not possible here.", param=_name(error))
        case _:
            return UsageFault("There is no such command, or it takes other arguments.")


def _name(error: click.BadParameter) -> str | None:
    return error.param.name if error.param else None
