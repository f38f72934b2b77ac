"""What a command knows when it starts: the environment, read once, and the folder of the mesh."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import typer

import mesh
from mesh.embedded.configuration import catalogue
from mesh.errors import Code, MeshError
from mesh.settings import Catalogue, load

HOME_VARIABLE = "MESH_HOME"
KEY_VARIABLE = "MESH_API_KEY"


Status = Mapping[str, object]
"""What `mesh status --json` prints."""


class Supervisor(Protocol):
    """Who starts a mesh on this machine, and knows how it is."""

    def up(
        self,
        home: Path,
        *,
        regions: Sequence[str] | None,
        accelerator: str,
        detach: bool,
        progress: Callable[[str], None],
        ready: Callable[[Status], None],
    ) -> None:
        """Starts a mesh; returns when it is ready (`detach`) or ended. `ready` is called once, when it is ready.

        Raises:
            MeshError: ALREADY_RUNNING, START_FAILED and others.
        """
        ...

    def down(self, home: Path, *, progress: Callable[[str], None]) -> Sequence[Mapping[str, object]]:
        """Ends what was started; tells the name and pid of each process.

        Raises:
            MeshError: NOT_RUNNING.
        """
        ...

    def raise_epoch(self, home: Path, *, progress: Callable[[str], None]) -> int:
        """Begins the next control epoch, in every program of the mesh, and tells which it is.

        Raises:
            MeshError: NOT_RUNNING, START_FAILED.
        """
        ...

    def status(self, home: Path) -> Status:
        """How the mesh is.

        Raises:
            MeshError: NOT_RUNNING.
        """
        ...


@dataclass(frozen=True, slots=True)
class Here:
    """The environment of a command, and the folder of the mesh that it is about."""

    environ: MutableMapping[str, str]
    home: Path
    supervisor: Supervisor

    @property
    def key(self) -> str | None:
        """The API key of the environment."""
        return self.environ.get(KEY_VARIABLE) or None

    @property
    def pki(self) -> Path:
        """The mesh's certificates."""
        return self.home / "pki"

    def catalogue(self) -> Catalogue:
        """The regions and models of this mesh as it was last started; before that, those of the checkout.

        Raises:
            MeshError: INVALID_SETTINGS, with every fault.
        """
        if not (self.home / "config" / "mesh.yaml").is_file():
            return catalogue()
        settings = load(self.home / "config")
        return Catalogue(regions=settings.regions, models=settings.models)


def here(environ: MutableMapping[str, str], supervisor: Supervisor) -> Here:
    """Finds the mesh's folder: `MESH_HOME`, else `.mesh/` of the checkout, else of the working directory.

    Raises:
        MeshError: INVALID_SETTINGS where `MESH_HOME` begins with the home of a user that is not there.
    """
    named = environ.get(HOME_VARIABLE)
    try:
        home = Path(named).expanduser().absolute() if named else (checkout() or Path.cwd()) / ".mesh"
    except RuntimeError:
        raise MeshError(Code.INVALID_SETTINGS, hint="MESH_HOME begins with '~' of a user that is not there.") from None
    return Here(environ, home, supervisor)


def here_of(context: typer.Context) -> Here:
    """What the root command found."""
    found = context.find_object(Here)
    if found is None:
        raise LookupError("commands run below the root command")
    return found


def checkout() -> Path | None:
    """The repository that this package is installed from, if it is one."""
    root = Path(mesh.__file__).parents[1]
    return root if (root / "regions").is_dir() else None
