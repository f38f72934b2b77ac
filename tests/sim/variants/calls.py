"""What a gateway lets begin and go on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sim.parts import SECRET, PlainHasher, RestingRunning

from mesh.gateway.keyring import Caller, Keyring
from mesh.gateway.story import Story
from mesh.policy.bundle import PolicyBook, TenantPolicy
from mesh.policy.decide import Permit, decide
from mesh.policy.shrink import Rights
from mesh.ports import Clock, Entropy, Instant
from mesh.types import KeyId, RegionId, TenantId


class DrainsAsGranted(RestingRunning):
    """What drains goes on for the whole drain while grants come."""

    _freezing = False

    def tenant_changes(self, before: TenantPolicy, after: TenantPolicy | None) -> None:
        self._freezing = True
        try:
            super().tenant_changes(before, after)
        finally:
            self._freezing = False

    def left_s(self, policy: TenantPolicy, uses: Rights, now: Instant) -> float:
        return 1e6 if self._freezing else super().left_s(policy, uses, now)


class DrainsTheFirst(RestingRunning):
    """Tells only of the oldest revision that it drains."""

    def tenant_changes(self, before: TenantPolicy, after: TenantPolicy | None) -> None:
        known = self._drains.of.get(before.tenant)
        first = None if known is None else known.revision
        super().tenant_changes(before, after)
        if first is not None:
            self._drains.of[before.tenant].revision = first


class BelievesSender(Story[Any, Any]):
    def _permit_forwarded(self, tenant: TenantId, key_id: KeyId, entry: RegionId) -> Permit:
        policy = self._book.tenant(tenant)
        assert policy is not None
        wide = replace(policy, allowed=policy.allowed | {self._here.jurisdiction})
        permit = decide(wide, self._here, lambda *_: 1.0)
        assert isinstance(permit, Permit)
        return permit


class Stale(Keyring):
    """Remembers a key's state with its hash."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._callers: dict[str, tuple[Caller, float]] = {}

    async def identify(self, credential: str | None) -> Caller:
        known = self._callers.get(credential or "")
        if known is None or self._clock.now_s() > known[1]:
            known = await super().identify(credential), self._clock.now_s() + 60.0
            self._callers[credential or ""] = known
        return known[0]


class BelievesKeyring(Story[Any, Any]):
    def _permit(self, key_id: KeyId, tenant: TenantId) -> Permit:
        policy = self._book.tenant(tenant)
        assert policy is not None
        permit = decide(policy, self._here, self._left_s)
        if not isinstance(permit, Permit):
            raise self.refusal(permit.code, policy)
        return permit


def stale_keyring(*, book: PolicyBook, clock: Clock, entropy: Entropy) -> Keyring:
    return Stale(book=book, mac_secret=SECRET, hasher=PlainHasher(), clock=clock, entropy=entropy)
