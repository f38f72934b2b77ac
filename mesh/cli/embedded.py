"""The supervisor of `mesh.embedded`, as the commands use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

from mesh import embedded
from mesh.cli.context import Status


class Embedded:
    """A mesh on this machine; see `mesh.cli.context.Supervisor`."""

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
        """Starts it."""
        embedded.up(home, regions, accelerator, detach, progress, ready=ready)

    def down(self, home: Path, *, progress: Callable[[str], None]) -> Sequence[Mapping[str, object]]:
        """Ends it."""
        return cast("Sequence[Mapping[str, object]]", embedded.down(home, progress)["stopped"])

    def raise_epoch(self, home: Path, *, progress: Callable[[str], None]) -> int:
        """Begins the next control epoch."""
        return embedded.raise_epoch(home, progress)

    def status(self, home: Path) -> Status:
        """Asks it."""
        return embedded.status(home)
