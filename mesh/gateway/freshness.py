"""Policy at least as new as a caller has seen elsewhere: asks the control store, and waits for what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from mesh.control.store import StoreError
from mesh.errors import Code, MeshError
from mesh.policy.authority import Authority
from mesh.policy.bundle import PolicyBook
from mesh.ports import Clock
from mesh.types import Revision, TenantId

WITHIN_S = 5.0


class Freshness:
    """Answers a caller who names a revision; who names none is never kept waiting."""

    def __init__(
        self, *, book: PolicyBook, authority: Authority, renew: Callable[[], Awaitable[None]], clock: Clock
    ) -> None:
        """Takes what it looks at; `renew` has a grant asked for and answered, and raises `StoreError`."""
        self._book = book
        self._authority = authority
        self._renew = renew
        self._clock = clock
        self._moved = asyncio.Event()

    def applied(self) -> None:
        """Something was applied."""
        self._moved.set()
        self._moved = asyncio.Event()

    async def reach(self, tenant: TenantId, revision: Revision) -> None:
        """Returns once the tenant's policy here is of that revision, or of a later one.

        Raises:
            MeshError: POLICY_STALE where the control store knows of none, or does not answer.
        """
        if not self._is_old(tenant, revision):
            return
        asked = self._clock.instant()
        try:
            async with self._clock.timeout(WITHIN_S):
                await self._renew()
                while self._is_old(tenant, revision) and not self._is_current(tenant, asked.boot_s):
                    moved = self._moved
                    await moved.wait()
        except (StoreError, TimeoutError):
            raise MeshError(Code.POLICY_STALE) from None
        if self._is_old(tenant, revision):
            raise MeshError(Code.POLICY_STALE, hint="The control store knows of no such revision.")

    def _is_old(self, tenant: TenantId, revision: Revision) -> bool:
        policy = self._book.tenant(tenant)
        return policy is not None and policy.revision < revision

    def _is_current(self, tenant: TenantId, asked_s: float) -> bool:
        """Whether all that had been decided when it was asked is applied."""
        policy = self._book.tenant(tenant)
        since = None if policy is None else self._authority.since(policy.shard)
        return since is not None and since.boot_s >= asked_s
