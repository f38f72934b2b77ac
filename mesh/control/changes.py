"""Changes of policy: each is one transaction, made once, and grows its tenant's revision by one.

A transaction compares the record that it replaces and that its op key is not there, and puts the tenant's record, the
key's record where a key changes, the shard's head and the op key. When its answer is lost, the op key tells whether it
was made. A change that changes nothing writes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace

from mesh.control import layout
from mesh.control.ops import new_op_id
from mesh.control.records import (
    KeyRecord,
    RecordError,
    TenantRecord,
    Trust,
    decode_key,
    decode_op,
    decode_tenant,
    encode_head,
    encode_key,
    encode_op,
    encode_tenant,
    next_revision,
    tenant_id,
)
from mesh.control.store import (
    Compare,
    KeyValue,
    Op,
    Put,
    Range,
    Store,
    StoreDeniedError,
    StoreUnavailableError,
    prefix_end,
)
from mesh.errors import Code, MeshError
from mesh.policy.bundle import TenantKey, TenantPolicy
from mesh.policy.shards import shard_of
from mesh.ports import Clock, Entropy
from mesh.types import Jurisdiction, KeyId, RegionId, Revision, TenantId, TenantState, Transfer

DEADLINE_S = 4.0
"""For a whole change or read, tries included: `admin` says within 5 s that the store is away."""
_TRIES = 8
_CALL_S = 2.0
_CHECK_S = 1.0
_PAUSE_S = 0.1
_PAGE = 500


@dataclass(frozen=True, slots=True)
class _Before:
    """What a change starts from: the records and at which store revision each was put; 0 where there is none."""

    tenant: TenantRecord | None
    tenant_at: int
    key: KeyRecord | None
    key_at: int
    op: Revision | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The records after a change. `changed` is false where they already said so."""

    tenant: TenantRecord
    key: KeyRecord | None
    changed: bool


class Changes:
    """Reads and changes the records of the tenants whose home is one region.

    Every method raises MeshError: `policy_store_unavailable` within `DEADLINE_S`, `tenant_not_found`, `key_not_found`.
    """

    def __init__(self, store: Store, home: RegionId, clock: Clock, entropy: Entropy, *, trust: Trust) -> None:
        self._store = store
        self._home = home
        self._clock = clock
        self._entropy = entropy
        self._trust = trust

    async def check(self) -> None:
        """Asks the store for anything: whether it is there, with a quorum."""
        try:
            await self._store.range(Range(layout.home_prefix(self._home)), timeout_s=_CHECK_S)
        except StoreUnavailableError:
            raise MeshError(Code.POLICY_STORE_UNAVAILABLE) from None
        except StoreDeniedError:
            raise MeshError(Code.INTERNAL_ERROR, hint="The control store refuses this program's certificate.") from None

    async def create_tenant(self, nonce: bytes, allowed: frozenset[Jurisdiction], transfer: Transfer) -> Outcome:
        """Makes the tenant that this nonce stands for. If it is there, it stays as it is, and `changed` is false."""
        tenant = tenant_id(self._home, nonce)
        policy = TenantPolicy(
            tenant=tenant,
            home=self._home,
            home_jurisdiction=self._trust.homes[self._home].jurisdiction,
            revision=Revision(1),
            state=TenantState.ACTIVE,
            allowed=allowed,
            transfer=transfer,
        )
        new = TenantRecord(policy=policy, genesis=self._home, nonce=nonce)
        return await self._change(
            tenant, None, lambda before: Outcome(before.tenant or new, None, changed=before.tenant is None)
        )

    async def set_state(self, tenant: TenantId, state: TenantState) -> Outcome:
        """Suspends or resumes a tenant."""
        return await self._change_policy(tenant, lambda policy: replace(policy, state=state))

    async def set_allowed(self, tenant: TenantId, allowed: frozenset[Jurisdiction]) -> Outcome:
        """Sets a tenant's pin."""
        return await self._change_policy(tenant, lambda policy: replace(policy, allowed=allowed))

    async def create_key(self, tenant: TenantId, key_id: KeyId, hashed: str) -> Outcome:
        """Adds a key."""
        created_s = int(self._clock.wall_s())

        def edit(before: _Before) -> Outcome:
            record = next_revision(_existing(before))
            if before.key is not None:
                raise MeshError(Code.INTERNAL_ERROR, hint="A key of this id exists.")  # and may be revoked: for good
            key = TenantKey(key_id=key_id, tenant=tenant, hash=hashed, revoked=False)
            revision = record.policy.revision
            made = KeyRecord(
                key=key,
                home=self._home,
                created_revision=revision,
                revision=revision,
                created_s=created_s,
                revoked_s=None,
            )
            return Outcome(record, made, changed=True)

        return await self._change(tenant, key_id, edit)

    async def revoke_key(self, key_id: KeyId) -> Outcome:
        """Ends a key for good. One that is revoked keeps its time."""
        tenant = await self._tenant_of(key_id)
        revoked_s = int(self._clock.wall_s())

        def edit(before: _Before) -> Outcome:
            record, key = _existing(before), before.key
            if key is None:
                raise MeshError(Code.KEY_NOT_FOUND)
            if key.key.revoked:
                return Outcome(record, key, changed=False)
            record = next_revision(record)
            revoked = replace(
                key, key=replace(key.key, revoked=True), revision=record.policy.revision, revoked_s=revoked_s
            )
            return Outcome(record, revoked, changed=True)

        return await self._change(tenant, key_id, edit)

    async def tenant(self, tenant: TenantId) -> TenantRecord:
        """A tenant's record."""
        key = layout.policy_key(self._home, tenant)
        async for item in self._read(key, None):
            found = _tenant_record(item, self._trust)
            if found is not None:
                return found
        raise MeshError(Code.TENANT_NOT_FOUND)

    async def tenants(self) -> tuple[TenantRecord, ...]:
        """All tenants of this home, by id within a shard."""
        prefix = layout.home_prefix(self._home)
        items = [_tenant_record(item, self._trust) async for item in self._read(prefix, prefix_end(prefix))]
        return tuple(record for record in items if record is not None)

    async def keys(self, tenant: TenantId) -> tuple[KeyRecord, ...]:
        """A tenant's keys, oldest first, revoked ones included."""
        found = [_key_record(item) async for item in self._read(*layout.tenant_range(self._home, tenant))]
        return tuple(sorted((key for key in found if key), key=lambda key: key.created_revision))

    async def _change_policy(self, tenant: TenantId, edit: Callable[[TenantPolicy], TenantPolicy]) -> Outcome:
        def edit_record(before: _Before) -> Outcome:
            record = _existing(before)
            policy = edit(record.policy)
            if policy == record.policy:
                return Outcome(record, None, changed=False)
            return Outcome(next_revision(replace(record, policy=policy)), None, changed=True)

        return await self._change(tenant, None, edit_record)

    async def _change(self, tenant: TenantId, key_id: KeyId | None, edit: Callable[[_Before], Outcome]) -> Outcome:
        """Reads, edits and commits, again while others change the same record, and until the outcome is known."""
        op_at = layout.op_key(self._home, tenant, new_op_id(self._clock, self._entropy))
        deadline_s = self._clock.now_s() + DEADLINE_S
        sent: dict[Revision, Outcome] = {}
        lost = False
        for _ in range(_TRIES):
            if self._left_s(deadline_s) <= 0:
                break
            try:
                before = await self._before(tenant, key_id, op_at, deadline_s)
                if before.op is not None and before.op in sent:
                    return sent[before.op]
                outcome = edit(before)
                if not outcome.changed:
                    return outcome
                sent[outcome.tenant.policy.revision] = outcome
                lost = True  # until the store says what became of it
                if await self._commit(before, outcome, op_at, deadline_s):
                    return outcome
                lost = False
            except StoreUnavailableError:
                await self._clock.sleep(_PAUSE_S)
            except StoreDeniedError:
                raise MeshError(
                    Code.INTERNAL_ERROR, hint="The control store refuses this program's certificate."
                ) from None
        raise MeshError(
            Code.POLICY_STORE_UNAVAILABLE,
            hint="Its last answer was lost, so the change may have been made: look before you repeat it."
            if lost
            else "",
        )

    async def _before(self, tenant: TenantId, key_id: KeyId | None, op_at: str, deadline_s: float) -> _Before:
        """The records and the op, all as of one revision."""
        places = [layout.policy_key(self._home, tenant), op_at]
        if key_id is not None:
            places.append(layout.key_key(self._home, tenant, key_id))
        answer = await self._store.txn((), [Range(place) for place in places], timeout_s=self._left_s(deadline_s))
        record, op, *key = (result.items[0] if result.items else None for result in answer.ranges)
        held = key[0] if key else None
        tenant_record = _tenant_record(record, self._trust) if record else None
        if record is not None and tenant_record is None:
            # Readers refuse it as it is; to write over it could widen what it was meant to be.
            raise MeshError(Code.INTERNAL_ERROR, hint="The tenant's record in the control store is not valid.")
        return _Before(
            tenant=tenant_record,
            tenant_at=record.mod_revision if record else 0,
            key=_key_record(held) if held else None,
            key_at=held.mod_revision if held else 0,
            op=decode_op(op.value) if op else None,
        )

    async def _commit(self, before: _Before, outcome: Outcome, op_at: str, deadline_s: float) -> bool:
        """Whether it was made; False when another change came first."""
        policy = outcome.tenant.policy
        changed = record_at = layout.policy_key(self._home, policy.tenant)
        compares = [Compare(record_at, before.tenant_at), Compare(op_at, 0)]
        # The tenant's record first: a reader takes a key only after its tenant.
        puts: list[Op] = [Put(record_at, encode_tenant(outcome.tenant))]
        if outcome.key is not None:
            changed = layout.key_key(self._home, policy.tenant, outcome.key.key.key_id)
            compares.append(Compare(changed, before.key_at))
            puts.append(Put(changed, encode_key(outcome.key)))
        puts.append(Put(layout.head_key(shard_of(self._home, policy.tenant)), encode_head(changed)))
        puts.append(Put(op_at, encode_op(policy.revision)))
        return (await self._store.txn(compares, puts, timeout_s=self._left_s(deadline_s))).succeeded

    async def _tenant_of(self, key_id: KeyId) -> TenantId:
        prefix = layout.home_prefix(self._home)
        async for item in self._read(prefix, prefix_end(prefix)):
            at = layout.parse(item.key)
            if isinstance(at, layout.KeyKey) and at.key_id == key_id:
                return at.tenant
        raise MeshError(Code.KEY_NOT_FOUND)

    async def _read(self, key: str, end: str | None) -> AsyncGenerator[KeyValue]:
        """A range in pages, as of one revision."""
        deadline_s, revision = self._clock.now_s() + DEADLINE_S, 0
        while True:
            try:
                answer = await self._store.range(
                    Range(key, end, limit=_PAGE, revision=revision), timeout_s=self._left_s(deadline_s)
                )
            except StoreUnavailableError:
                raise MeshError(Code.POLICY_STORE_UNAVAILABLE) from None
            except StoreDeniedError:
                raise MeshError(
                    Code.INTERNAL_ERROR, hint="The control store refuses this program's certificate."
                ) from None
            revision = revision or answer.revision
            for item in answer.items:
                yield item
            if not answer.more:
                return
            key = answer.items[-1].key + "\0"

    def _left_s(self, deadline_s: float) -> float:
        return min(_CALL_S, deadline_s - self._clock.now_s())


def _existing(before: _Before) -> TenantRecord:
    if before.tenant is None:
        raise MeshError(Code.TENANT_NOT_FOUND)
    return before.tenant


def _tenant_record(item: KeyValue, trust: Trust) -> TenantRecord | None:
    at = layout.parse(item.key)
    if not isinstance(at, layout.PolicyKey):
        return None
    try:
        return decode_tenant(at, item.value, trust)
    except RecordError:
        return None


def _key_record(item: KeyValue) -> KeyRecord | None:
    at = layout.parse(item.key)
    if not isinstance(at, layout.KeyKey):
        return None
    try:
        return decode_key(at, item.value)
    except RecordError:
        return None
