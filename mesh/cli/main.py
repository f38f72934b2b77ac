"""`mesh`: the command line of a platform operator. A program's start: reads the environment and the arguments."""

from __future__ import annotations

import io
import os
import sys

from mesh.cli.output import report
from mesh.errors import MeshError
from mesh.tls import prepare_process


def main() -> None:
    """The `mesh` command."""
    _open_all()
    environ = os.environ  # noqa: TID251 - a program's start
    try:
        prepare_process(environ)
    except MeshError as error:
        sys.exit(report(error, as_json="--json" in sys.argv))
    # Only now: the commands bring grpc along, which reads at its import what was just prepared.
    from mesh.cli.app import run  # noqa: PLC0415
    from mesh.cli.context import Here, Supervisor, home_of, is_desk  # noqa: PLC0415

    try:
        home = home_of(environ)
    except MeshError as error:
        sys.exit(report(error, as_json="--json" in sys.argv))
    supervisor: Supervisor
    if is_desk(home):
        from mesh.cli.desk import Desk  # noqa: PLC0415 - not every command needs what it brings

        supervisor = Desk()
    else:
        from mesh.cli.embedded import Embedded  # noqa: PLC0415

        supervisor = Embedded()
    sys.exit(run(sys.argv[1:], Here(environ, home, supervisor)))


def _open_all() -> None:
    """Gives what was started without stdin, stdout or stderr one that leads nowhere; both outputs take any text."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for as long as we live
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows few letters


if __name__ == "__main__":
    main()
