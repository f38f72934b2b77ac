"""What a gateway knows of tenants and keys: frozen records, and the book that holds the newest of each.

The book is filled by `control` and borrowed by readers, who never wait for the control store. It changes only
between two steps of the event loop, and what it hands out never changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from mesh.policy.shards import Shard, shard_of
from mesh.types import Jurisdiction, KeyId, RegionId, Revision, TenantId, TenantState, Transfer


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """How long a gateway may act on a tenant's policy after it was last granted, in seconds.

    It is the one knob: how long a gateway that is cut off may keep serving is how long a removal may have to wait.

    Attributes:
        home_s: In the jurisdiction of the tenant's home.
        foreign_s: In every other one, and for sending there.
    """

    home_s: float = 900.0
    foreign_s: float = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantPolicy:
    """Where a tenant's content may be. `revision` grows with every change, those of its keys included.

    Attributes:
        home_jurisdiction: Of the region `home`.
        moves: How often the home has changed.
        authority: For how long a grant is good.
        authority_before: By jurisdiction, the longest such time of an older policy that may still be in use somewhere.
        out_since: For each jurisdiction that was once allowed and is not now, since which revision.
        drain_s: How long what runs may go on where this policy no longer allows it.
        label: What the tenant's hostnames begin with instead of its id; empty where it has chosen none.
    """

    tenant: TenantId
    home: RegionId
    home_jurisdiction: Jurisdiction
    revision: Revision
    state: TenantState
    allowed: frozenset[Jurisdiction]
    transfer: Transfer
    moves: int = 0
    authority: Spans = Spans()
    authority_before: Mapping[Jurisdiction, float] = field(default_factory=dict)
    out_since: Mapping[Jurisdiction, Revision] = field(default_factory=dict)
    drain_s: float = 0.0
    label: str = ""

    @property
    def shard(self) -> Shard:
        """What its authority is granted by."""
        return shard_of(self.home, self.tenant)

    @property
    def place(self) -> tuple[int, Revision]:
        """Where in the order of the tenant's policies it is: no home can be behind one that it has left."""
        return self.moves, self.revision

    def span_s(self, place: Jurisdiction) -> float:
        """For how long a grant is good in a jurisdiction, or for sending there."""
        return self.authority.home_s if place == self.home_jurisdiction else self.authority.foreign_s


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantKey:
    """A key that is, or was, good. `hash` is bcrypt's own format, or `sha256$` and hex."""

    key_id: KeyId
    tenant: TenantId
    hash: str
    revoked: bool


class PolicyWatcher(Protocol):
    """Is told of each change just before the book makes it, while what was known still stands."""

    def tenant_changes(self, before: TenantPolicy, after: TenantPolicy | None) -> None:
        """A tenant's policy is about to be replaced; None where no valid record is left."""
        ...

    def key_ends(self, key: TenantKey) -> None:
        """A key that was good is about to be revoked or forgotten."""
        ...


class PolicyBook:
    """The newest policy of every tenant, and every key."""

    def __init__(self) -> None:
        self.watcher: PolicyWatcher | None = None
        self._tenants: dict[TenantId, TenantPolicy] = {}
        self._keys: dict[KeyId, TenantKey] = {}
        self._floors: dict[TenantId, tuple[int, Revision]] = {}
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
        if policy.place >= self._floors.get(policy.tenant, policy.place):
            before = self._tenants.get(policy.tenant)
            if before is not None and self.watcher is not None and before != policy:
                self.watcher.tenant_changes(before, policy)
            self._floors[policy.tenant] = policy.place
            self._tenants[policy.tenant] = policy

    def put_key(self, key: TenantKey) -> None:
        """Replaces a key. A revoked one stays revoked."""
        known = self._keys.get(key.key_id)
        if known is None or not known.revoked:
            if known is not None and key.revoked:
                self._end(known)
            self._keys[key.key_id] = key

    def drop_tenant(self, tenant: TenantId) -> None:
        """Forgets a tenant without a valid record: it is refused. An older record than was seen never counts again."""
        before = self._tenants.get(tenant)
        if before is not None:
            if self.watcher is not None:
                self.watcher.tenant_changes(before, None)
            del self._tenants[tenant]

    def drop_key(self, key_id: KeyId) -> None:
        """Forgets a key that has no valid record. A revoked one is kept: no older record may bring it back."""
        known = self._keys.get(key_id)
        if known is not None and not known.revoked:
            self._end(known)
            del self._keys[key_id]

    def _end(self, key: TenantKey) -> None:
        if self.watcher is not None:
            self.watcher.key_ends(key)
