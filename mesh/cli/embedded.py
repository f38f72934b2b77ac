"""The supervisor of `mesh.embedded`, as the commands use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

from mesh import embedded
from mesh.cli.context import Sites, Status, sites_of
from mesh.types import RegionId


class Embedded:
    """A mesh on this machine; see `mesh.cli.context.Supervisor`."""

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
        """Starts it."""
        embedded.up(home, regions, accelerator, detach, progress, domain=domain, ready=ready)

    def down(self, home: Path, *, progress: Callable[[str], None]) -> Sequence[Mapping[str, object]]:
        """Ends it."""
        return cast("Sequence[Mapping[str, object]]", embedded.down(home, progress)["stopped"])

    def recovery_epoch(
        self, home: Path, *, epochs: Mapping[RegionId, int], went_back: bool, progress: Callable[[str], None]
    ) -> int:
        """Begins the next control epoch, if need be."""
        return embedded.raise_epoch(home, progress) if went_back else max(epochs.values())

    def status(self, home: Path) -> Status:
        """Asks it."""
        return embedded.status(home)

    def sites(self, home: Path) -> Sites:
        """Those of its status."""
        return sites_of(self.status(home))
