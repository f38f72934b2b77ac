"""What a command knows when it starts: the environment, read once, and the folder of the mesh.

The folder is the home of a mesh on this machine, or a *desk*: the settings and the operator's certificate of a mesh
that runs on other hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, cast

import typer

import mesh
from mesh.embedded.configuration import catalogue
from mesh.embedded.home import Home
from mesh.errors import Code, MeshError, SettingsError
from mesh.settings import Catalogue, Settings, load
from mesh.types import RegionId

HOME_VARIABLE = "MESH_HOME"
KEY_VARIABLE = "MESH_API_KEY"
DESK_PAGE = "docs/operator.md, 'From another machine'"
"""Where it stands what a desk needs."""


Status = Mapping[str, object]
"""What `mesh status --json` prints."""


@dataclass(frozen=True, slots=True)
class Site:
    """A region, as a command reaches it.

    Attributes:
        state: As in a status; empty where nobody was asked.
    """

    id: RegionId
    jurisdiction: str
    state: str
    http: str
    admin: str


@dataclass(frozen=True, slots=True)
class Sites:
    """The regions of a mesh.

    Attributes:
        ca: The file that a client of the doors must trust.
    """

    regions: Sequence[Site]
    ca: str


class Supervisor(Protocol):
    """Who knows how a mesh is and where its regions are, and starts it where it is on this machine."""

    def up(
        self,
        home: Path,
        *,
        regions: Sequence[str] | None,
        accelerator: str,
        domain: str | None,
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

    def recovery_epoch(
        self, home: Path, *, epochs: Mapping[RegionId, int], went_back: bool, progress: Callable[[str], None]
    ) -> int:
        """The control epoch in which the homes are to publish; the next one if the control store went back in time.

        Args:
            home: The mesh's folder.
            epochs: Those of the admins that answer.
            went_back: Whether anyone has seen it.
            progress: Told in words what is being done.

        Raises:
            MeshError: NOT_RUNNING, START_FAILED; INVALID_SETTINGS where only people can begin it, and how.
        """
        ...

    def status(self, home: Path) -> Status:
        """How the mesh is.

        Raises:
            MeshError: NOT_RUNNING; at a desk INVALID_SETTINGS.
        """
        ...

    def sites(self, home: Path) -> Sites:
        """Where the regions are.

        Raises:
            MeshError: As `status`.
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
        if is_desk(self.home):
            settings = desk_settings(self.home)
        elif (self.home / "config" / "mesh.yaml").is_file():
            settings = load(self.home / "config")
        else:
            return catalogue()
        return Catalogue(regions=settings.regions, models=settings.models)

    def machines(self) -> Catalogue:
        """The same with the machines and fronts of real regions: an embedded mesh leaves them out of its settings.

        Raises:
            MeshError: INVALID_SETTINGS, with every fault.
        """
        return self.catalogue() if is_desk(self.home) else catalogue()


def is_desk(folder: Path) -> bool:
    """Whether a folder has settings or certificates, and `mesh up` never began to make a mesh in it."""
    home = Home(folder)
    with suppress(OSError):  # a folder that cannot be looked into is told of by whoever needs it
        made = home.addresses.exists() or home.run.exists()
        return not made and (home.config.exists() or home.pki.exists())
    return False


def desk_settings(folder: Path) -> Settings:
    """The settings of a desk. Its certificates are its own, wherever those of the regions' hosts are.

    Raises:
        SettingsError: With every fault.
    """
    home = Home(folder)
    try:
        return replace(load(home.config), pki=home.pki)
    except SettingsError as error:
        where = f"{home.config}: must hold the mesh's settings, as its programs read them; see {DESK_PAGE}."
        raise SettingsError([*error.faults, where]) from None


def sites_of(status: Status) -> Sites:
    """The regions of a status."""
    rows = cast("list[Mapping[str, object]]", status["regions"])
    names = ("jurisdiction", "state", "http", "admin")
    regions = [Site(RegionId(str(row["id"])), *(str(row[name]) for name in names)) for row in rows]
    return Sites(regions, str(status["ca"]))


def home_of(environ: Mapping[str, str]) -> Path:
    """Finds the mesh's folder: `MESH_HOME`, else `.mesh/` of the checkout, else of the working directory.

    Raises:
        MeshError: INVALID_SETTINGS where `MESH_HOME` begins with the home of a user that is not there.
    """
    named = environ.get(HOME_VARIABLE)
    try:
        return Path(named).expanduser().absolute() if named else (checkout() or Path.cwd()) / ".mesh"
    except RuntimeError:
        raise MeshError(Code.INVALID_SETTINGS, hint="MESH_HOME begins with '~' of a user that is not there.") from None


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
