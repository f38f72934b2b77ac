"""What a gateway knows of tenants and keys: frozen records, and the book that holds the newest of each.

The book is filled by `control` and borrowed by readers, who never wait for the control store. It changes only
between two steps of the event loop, and what it hands out never changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mesh.types import Jurisdiction, KeyId, RegionId, Revision, TenantId, TenantState, Transfer


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantPolicy:
    """Where a tenant's content may be. `revision` grows with every change, those of its keys included."""

    tenant: TenantId
    home: RegionId
    revision: Revision
    state: TenantState
    allowed: frozenset[Jurisdiction]
    transfer: Transfer


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantKey:
    """A key that is, or was, good. `hash` is bcrypt's own format, or `sha256$` and hex."""

    key_id: KeyId
    tenant: TenantId
    hash: str
    revoked: bool


class PolicyBook:
    """The newest policy of every tenant, and every key."""

    def __init__(self) -> None:
        self._tenants: dict[TenantId, TenantPolicy] = {}
        self._keys: dict[KeyId, TenantKey] = {}
        self._floors: dict[TenantId, Revision] = {}
        self.loaded = False
        """Whether the whole was read at least once: until then nobody can be told apart from nobody."""

    def tenant(self, tenant: TenantId) -> TenantPolicy | None:
        """A tenant's policy, or None."""
        return self._tenants.get(tenant)

    def key(self, key_id: KeyId) -> TenantKey | None:
        """A key, revoked ones included, or None."""
        return self._keys.get(key_id)

    def tenants(self) -> Iterator[TenantPolicy]:
        """All policies, in no order."""
        return iter(self._tenants.values())

    def all_keys(self) -> Iterator[TenantKey]:
        """All keys, revoked ones included, in no order."""
        return iter(self._keys.values())

    def put_tenant(self, policy: TenantPolicy) -> None:
        """Replaces a tenant's policy, unless a newer one is here."""
        if policy.revision >= self._floors.get(policy.tenant, 0):
            self._floors[policy.tenant] = policy.revision
            self._tenants[policy.tenant] = policy

    def put_key(self, key: TenantKey) -> None:
        """Replaces a key. A revoked one stays revoked."""
        known = self._keys.get(key.key_id)
        if known is None or not known.revoked:
            self._keys[key.key_id] = key

    def drop_tenant(self, tenant: TenantId) -> None:
        """Forgets a tenant without a valid record: it is refused. An older record than was seen never counts again."""
        self._tenants.pop(tenant, None)

    def drop_key(self, key_id: KeyId) -> None:
        """Forgets a key that has no valid record. A revoked one is kept: no older record may bring it back."""
        known = self._keys.get(key_id)
        if known is not None and not known.revoked:
            del self._keys[key_id]
