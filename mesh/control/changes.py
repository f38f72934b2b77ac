"""Changes of policy, as an admin makes them: each is one transaction, and grows its tenant's revision by one.

A change that changes nothing writes nothing. `commits.py` is how each is committed, `edits.py` what it makes of a
policy.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

from mesh.control import edits, layout
from mesh.control.commits import DEADLINE_S, Commits
from mesh.control.drafts import Before, Draft, Journal, Outcome, existing, key_record, tenant_record
from mesh.control.history import StoreHistory
from mesh.control.moves import Moves
from mesh.control.records import (
    KeyRecord,
    TenantRecord,
    Trust,
    next_revision,
    tenant_id,
)
from mesh.control.signing import Signer, listed
from mesh.control.store import (
    Range,
    Store,
    StoreDeniedError,
    StoreUnavailableError,
    prefix_end,
)
from mesh.errors import Code, MeshError
from mesh.policy.bundle import Spans, TenantKey, TenantPolicy
from mesh.policy.shrink import Shrink
from mesh.ports import Clock, Entropy
from mesh.types import Jurisdiction, KeyId, RegionId, Revision, TenantId, TenantState, Transfer

__all__ = ["DEADLINE_S", "Changes", "Journal", "Outcome"]

LEAST_SPAN_S = 3.0
"""A gateway renews its grant every 2 s: what is good for less than this would run out between two renewals."""
_CHECK_S = 1.0


class Changes:
    """Reads and changes the records of the tenants whose home is one region.

    Every method raises MeshError: `policy_store_unavailable` within `DEADLINE_S`, `tenant_not_found`, `key_not_found`.
    Those that change something take an op id, a UUIDv7 of the caller's: with the one of an earlier call they change
    nothing and tell what that call did. They raise `invalid_parameter` (`op_id`) where it is older than six days or was
    another change's, and `invalid_settings` where this region has no policy key.
    """

    def __init__(
        self,
        store: Store,
        home: RegionId,
        clock: Clock,
        entropy: Entropy,
        signer: Signer | None,
        trust: Trust,
        journal: Journal,
        history: StoreHistory | None = None,
        store_answers: Callable[[], bool] = lambda: False,
    ) -> None:
        """See `Commits`; `store_answers` tells whether the store has just answered a linearizable read."""
        self._store = store
        self._home = home
        self._clock = clock
        self._trust = trust
        self._commits = Commits(
            store, home, clock, entropy, signer, trust, journal, history or StoreHistory(), store_answers
        )
        self.moves = Moves(self._commits, home, clock, entropy, trust, journal)

    async def check(self) -> None:
        """Asks the store for anything: whether it is there, with a quorum."""
        try:
            await self._store.range(Range(layout.home_prefix(self._home)), timeout_s=_CHECK_S)
        except StoreUnavailableError:
            raise MeshError(Code.POLICY_STORE_UNAVAILABLE) from None
        except StoreDeniedError:
            raise MeshError(Code.INTERNAL_ERROR, hint="The control store refuses this program's certificate.") from None

    async def create_tenant(
        self,
        nonce: bytes,
        allowed: frozenset[Jurisdiction],
        transfer: Transfer,
        op_id: str | None = None,
        label: str = "",
    ) -> Outcome:
        """Makes the tenant that this nonce stands for. If it is there, it stays as it is, and `changed` is false."""
        tenant, spans = tenant_id(self._home, nonce), Spans()
        policy = TenantPolicy(
            tenant=tenant,
            home=self._home,
            home_jurisdiction=self._trust.homes[self._home].jurisdiction,
            revision=Revision(1),
            state=TenantState.ACTIVE,
            allowed=allowed,
            transfer=transfer,
            authority=Spans(
                home_s=min(spans.home_s, self._trust.cap_s), foreign_s=min(spans.foreign_s, self._trust.cap_s)
            ),
            label=label,
        )
        new = TenantRecord(policy=policy, genesis=self._home, nonce=nonce)

        def edit(before: Before) -> Draft:
            if before.tenant is None and before.found is not None:
                raise MeshError(Code.TENANT_EXISTS, hint="It has moved to another home.")
            return Draft(tenant=before.tenant or new, changed=before.tenant is None)

        asked = ("create_tenant", listed(sorted(allowed)), transfer, label)
        return await self._commits.change(tenant, op_id, edit, asked)

    async def set_state(self, tenant: TenantId, state: TenantState, op_id: str | None = None) -> Outcome:
        """Suspends or resumes a tenant."""

        def edit(policy: TenantPolicy) -> tuple[TenantPolicy, Shrink | None]:
            after = edits.with_state(policy, state)
            return after, edits.taken_by_state(policy, after)

        return await self._change_policy(tenant, op_id, edit, ("set_state", state))

    async def set_allowed(
        self, tenant: TenantId, allowed: frozenset[Jurisdiction], drain_s: float = 0.0, op_id: str | None = None
    ) -> Outcome:
        """Sets a tenant's pin.

        Args:
            tenant: Whose.
            allowed: The pin.
            drain_s: How long what runs in a removed jurisdiction may go on, in [0, the cap of authority].
            op_id: See above.
        """
        if not 0 <= drain_s <= self._trust.cap_s:
            raise MeshError(Code.INVALID_PARAMETER, param="drain", hint=f"It is 0 to {self._trust.cap_s:g} seconds.")

        def edit(policy: TenantPolicy) -> tuple[TenantPolicy, Shrink | None]:
            after = edits.with_allowed(policy, allowed, drain_s)
            return after, edits.taken_by_pin(policy, after)

        asked = ("set_allowed", listed(sorted(allowed)), round(drain_s * 1000))
        return await self._change_policy(tenant, op_id, edit, asked, drain_s=drain_s)

    async def set_transfer(self, tenant: TenantId, transfer: Transfer, op_id: str | None = None) -> Outcome:
        """Sets whether a tenant's calls may be forwarded inside its pin."""

        def edit(policy: TenantPolicy) -> tuple[TenantPolicy, Shrink | None]:
            after = edits.with_transfer(policy, transfer)
            return after, edits.taken_by_transfer(policy, after)

        return await self._change_policy(tenant, op_id, edit, ("set_transfer", transfer))

    async def set_label(self, tenant: TenantId, label: str, op_id: str | None = None) -> Outcome:
        """Sets a tenant's public label; empty is none."""

        def edit(policy: TenantPolicy) -> tuple[TenantPolicy, Shrink | None]:
            return edits.with_label(policy, label), None

        return await self._change_policy(tenant, op_id, edit, ("set_label", label))

    async def set_authority(self, tenant: TenantId, authority: Spans, op_id: str | None = None) -> Outcome:
        """Sets for how long a grant is good, each time in [`LEAST_SPAN_S`, the cap].

        Where that is lower than before, the old times stay noted in the record, and every shrink waits for them, until
        `settle_authority`.
        """
        for span_s in (authority.home_s, authority.foreign_s):
            if not LEAST_SPAN_S <= span_s <= self._trust.cap_s:
                hint = f"Each is {LEAST_SPAN_S:g} to {self._trust.cap_s:g} seconds."
                raise MeshError(Code.INVALID_PARAMETER, param="authority", hint=hint)

        def edit(policy: TenantPolicy) -> tuple[TenantPolicy, Shrink | None]:
            after = edits.with_authority(policy, authority)
            return after, edits.taken_by_authority(after)

        asked = ("set_authority", round(authority.home_s * 1000), round(authority.foreign_s * 1000))
        return await self._change_policy(tenant, op_id, edit, asked)

    async def settle_authority(self, tenant: TenantId, revision: Revision, op_id: str | None = None) -> Outcome:
        """Forgets older, longer times of authority, once a wait for `revision` has ended.

        A record that has changed since keeps them: they may be those of a later change, which nobody has waited for.
        """

        def edit(policy: TenantPolicy) -> tuple[TenantPolicy, Shrink | None]:
            return (edits.settled(policy) if policy.revision == revision else policy), None

        return await self._change_policy(tenant, op_id, edit, ("settle_authority", revision))

    async def create_key(self, tenant: TenantId, key_id: KeyId, hashed: str, op_id: str | None = None) -> Outcome:
        """Adds a key."""
        created_s = int(self._clock.wall_s())

        def edit(before: Before) -> Draft:
            record = next_revision(existing(before))
            if before.key is not None or before.key_at:
                raise MeshError(Code.INTERNAL_ERROR, hint="A key of this id exists.")  # and may be revoked: for good
            key = TenantKey(key_id=key_id, tenant=tenant, hash=hashed, revoked=False)
            revision = record.policy.revision
            made = KeyRecord(
                key=key,
                home=self._home,
                moves=record.policy.moves,
                created_revision=revision,
                revision=revision,
                created_s=created_s,
                revoked_s=None,
            )
            return Draft(tenant=record, key=made, changed=True)

        return await self._commits.change(tenant, op_id, edit, ("create_key", key_id, hashed), key_id)

    async def revoke_key(self, key_id: KeyId, op_id: str | None = None) -> Outcome:
        """Ends a key for good. One that is revoked keeps its time."""
        tenant = await self._tenant_of(key_id)
        revoked_s = int(self._clock.wall_s())

        def edit(before: Before) -> Draft:
            record, key = before.tenant, before.key
            if record is None or key is None or key.moves != record.policy.moves:
                raise MeshError(Code.KEY_NOT_FOUND)
            taken = edits.taken_with_key(record.policy)
            if key.key.revoked:
                return Draft(tenant=record, key=key, changed=False, shrink=taken, key_id=key_id)
            record = next_revision(record)
            revoked = replace(
                key, key=replace(key.key, revoked=True), revision=record.policy.revision, revoked_s=revoked_s
            )
            return Draft(tenant=record, key=revoked, changed=True, shrink=taken, key_id=key_id)

        return await self._commits.change(tenant, op_id, edit, ("revoke_key", key_id), key_id)

    async def tenant(self, tenant: TenantId) -> TenantRecord:
        """A tenant's record."""
        key = layout.policy_key(self._home, tenant)
        async with aclosing(self._commits.read(key, None)) as items:
            async for item in items:
                found = await self._counting(tenant_record(item, self._trust))
                if found is not None:
                    return found
        raise MeshError(Code.TENANT_NOT_FOUND)

    async def tenants(self) -> tuple[TenantRecord, ...]:
        """All tenants of this home, by id within a shard."""
        prefix = layout.home_prefix(self._home)
        items = [tenant_record(item, self._trust) async for item in self._commits.read(prefix, prefix_end(prefix))]
        found = [await self._counting(record) for record in items]
        return tuple(record for record in found if record is not None)

    async def keys(self, tenant: TenantId) -> tuple[KeyRecord, ...]:
        """A tenant's keys, oldest first, revoked ones included."""
        moves = (await self.tenant(tenant)).policy.moves
        found = [
            key_record(item, self._trust) async for item in self._commits.read(*layout.tenant_range(self._home, tenant))
        ]
        own = (key for key in found if key is not None and key.moves == moves)
        return tuple(sorted(own, key=lambda key: key.created_revision))

    async def key(self, key_id: KeyId) -> KeyRecord:
        """A key of any tenant of this home."""
        tenant = await self._tenant_of(key_id)
        try:
            found = [key for key in await self.keys(tenant) if key.key.key_id == key_id]
        except MeshError as error:
            if error.code is not Code.TENANT_NOT_FOUND:
                raise
            found = []  # its tenant has another home
        if not found:
            raise MeshError(Code.KEY_NOT_FOUND)
        return found[0]

    async def _counting(self, record: TenantRecord | None) -> TenantRecord | None:
        try:
            return await self._commits.counting(record)
        except StoreUnavailableError:
            raise MeshError(Code.POLICY_STORE_UNAVAILABLE) from None

    async def _change_policy(
        self,
        tenant: TenantId,
        op_id: str | None,
        edit: Callable[[TenantPolicy], tuple[TenantPolicy, Shrink | None]],
        asked: tuple[bytes | str | int, ...],
        *,
        drain_s: float = 0.0,
    ) -> Outcome:
        def edit_record(before: Before) -> Draft:
            record = existing(before)
            policy, shrink = edit(record.policy)
            changed = policy != record.policy
            return Draft(tenant=replace(record, policy=policy), changed=changed, shrink=shrink, drain_s=drain_s)

        return await self._commits.change(tenant, op_id, edit_record, asked)

    async def _tenant_of(self, key_id: KeyId) -> TenantId:
        prefix = layout.home_prefix(self._home)
        async with aclosing(self._commits.read(prefix, prefix_end(prefix))) as items:
            async for item in items:
                at = layout.parse(item.key)
                if isinstance(at, layout.KeyKey) and at.key_id == key_id:
                    return at.tenant
        raise MeshError(Code.KEY_NOT_FOUND)
