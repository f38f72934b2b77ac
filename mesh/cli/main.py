"""`mesh`: the command line of a platform operator. A program's start: reads the environment and the arguments."""

from __future__ import annotations

import os
import sys

from mesh.cli.output import report
from mesh.errors import MeshError
from mesh.tls import prepare_process


def main() -> None:
    """The `mesh` command."""
    environ = os.environ  # noqa: TID251 - a program's start
    try:
        prepare_process(environ)
    except MeshError as error:
        sys.exit(report(error, as_json="--json" in sys.argv))
    # Only now: the commands bring grpc along, which reads at its import what was just prepared.
    from mesh.cli.app import run  # noqa: PLC0415
    from mesh.cli.context import here  # noqa: PLC0415
    from mesh.cli.embedded import Embedded  # noqa: PLC0415

    sys.exit(run(sys.argv[1:], here(environ, Embedded())))


if __name__ == "__main__":
    main()
