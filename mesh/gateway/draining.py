"""What drains at a gateway: what a change has ended, until every replica has confirmed that it refuses it.

A tenant is *draining* while something that a change ended has not ended, or a replica has not confirmed that it refuses
what may still be on its way there. Nothing of the tenant is acknowledged meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from mesh.gateway.ports import Fenced, Replicas
from mesh.types import PolicyNumber, Revision, TenantId


@dataclass(slots=True)
class Draining:
    """What a tenant's changes have ended, and what is still to be confirmed.

    Attributes:
        revision: The newest that was applied since.
        below: What replicas must refuse once all that a change ended has ended here; None where no change asks for it.
        lowered: Whether replicas must be told of shorter deadlines.
        fences: What replicas have been told.
    """

    revision: Revision
    below: PolicyNumber | None = None
    lowered: bool = False
    fences: list[Fenced] = field(default_factory=list["Fenced"])


class Drains:
    """All tenants that are draining, and what was given up and may still wait at a replica.

    Attributes:
        of: What drains, by tenant.
    """

    def __init__(self, replicas: Replicas) -> None:
        """Nothing drains."""
        self.of: dict[TenantId, Draining] = {}
        self._replicas = replicas
        # Tenants of which a hop was given up, and under which number the last such was sent.
        self._abandoned: dict[TenantId, PolicyNumber] = {}
        self._quiet = asyncio.Event()

    @property
    def idle(self) -> bool:
        """Whether nothing drains, and nothing that was given up can begin at a replica."""
        return not self.of and not self._abandoned

    def begin(self, tenant: TenantId, revision: Revision) -> Draining:
        """A tenant drains now, if it did not; this revision is among what is being drained."""
        draining = self.of.setdefault(tenant, Draining(revision))
        draining.revision = max(draining.revision, revision)
        return draining

    def abandoned(self, tenant: TenantId, number: PolicyNumber) -> None:
        """A parcel was sent to a replica under this number, and it is not known that the replica has done with it."""
        self._abandoned[tenant] = max(number, self._abandoned.get(tenant, number))

    def advance(self, tenant: TenantId, *, ending: bool, calls: bool) -> bool:
        """Tells the replicas what is due; whether all has been confirmed, so that the tenant drains no more.

        Args:
            tenant: One that is draining.
            ending: Whether something that a change ended runs still.
            calls: Whether anything of the tenant runs.
        """
        draining, replicas = self.of[tenant], self._replicas
        if draining.lowered:
            draining.lowered = False
            draining.fences.append(replicas.lowered(tenant))
        if ending:
            return False
        if draining.below is not None:
            # Only now: it also ends what may go on until then.
            draining.fences.append(replicas.fence(tenant, draining.below))
            draining.below = None
            if not calls:
                self._abandoned.pop(tenant, None)
        if not all(fence.confirmed for fence in draining.fences):
            return False
        del self.of[tenant]
        self._quiet.set()
        return True

    def end_abandoned(self, revision_of: Callable[[TenantId], Revision]) -> None:
        """Once nothing runs any more: has the replicas refuse what was given up, as after a change of policy."""
        for tenant, sent in self._abandoned.items():
            draining = self.begin(tenant, revision_of(tenant))
            above = PolicyNumber(sent.moves, sent.number + 1)
            draining.below = above if draining.below is None else max(above, draining.below)

    async def emptied(self) -> None:
        """Returns once nothing drains."""
        while self.of:
            self._quiet.clear()
            await self._quiet.wait()
