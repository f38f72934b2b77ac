"""When a gateway may be started: not while the control store is older than a home's ledger.

Who runs while a store is restored sees it. A gateway that begins afterwards knows nothing of what the older store
lacks, and would serve by what that still allows. The admins' ledgers know.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from mesh.embedded.watching import View


class OlderStore:
    """What the admins have said of the store since this mesh began."""

    def __init__(self, view: Callable[[], Awaitable[View]]) -> None:
        self._view = view
        self._compared = False

    async def is_excluded(self) -> bool:
        """Whether no admin sees an older store, and each has compared it with its ledger once.

        At the mesh's start all are waited for; later one that is away holds no gateway back.
        """
        said = (await self._view()).control.values()
        if any(one is not None and one.went_back for one in said):
            return False
        self._compared = self._compared or all(one is not None and one.compared for one in said)
        return self._compared
