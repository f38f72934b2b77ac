"""Tenants and keys of one home: the ledger knows their names, the control store their policies.

A new tenant is first an account that is not ready, with the random part of its id; then a record in the control store;
then a ready account. Whoever creates the same name again goes on where it stopped, with the same id: the name and the
record cannot part ways. While the store is away nothing is begun.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from mesh.admin.names import checked_allowed, checked_drain_s, checked_label, checked_name, checked_transfer
from mesh.control.changes import Changes, Outcome
from mesh.control.hashing import KeyHasher
from mesh.control.records import NONCE_BYTES, KeyRecord, TenantRecord, is_tenant_id, tenant_id
from mesh.errors import Code, MeshError
from mesh.ledger import Account, AccountExistsError, Ledger
from mesh.policy.bundle import Spans, TenantPolicy
from mesh.policy.keys import make_key
from mesh.ports import Clock, Entropy
from mesh.types import Here, KeyId, RegionId, Revision, TenantId, TenantState

_KEY_BYTES = 48
_BROUGHT_S = 86_400
"""For so long the name of a tenant that may come here is kept for it: whoever moves it brings the name each time."""


@dataclass(frozen=True, slots=True)
class NamedTenant:
    """A tenant's policy with its name; empty where the ledger has none."""

    policy: TenantPolicy
    name: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key's record and, this once, the key itself."""

    record: KeyRecord
    text: str = field(repr=False)


class Tenants:
    """What an operator may do with the tenants whose home is here.

    Every method raises MeshError; its code is the contract's.
    """

    def __init__(
        self,
        *,
        here: Here,
        ledger: Ledger,
        changes: Changes,
        hasher: KeyHasher,
        mac_secret: bytes,
        clock: Clock,
        entropy: Entropy,
        reserved: frozenset[str] = frozenset(),
    ) -> None:
        """See the class; `reserved` are labels that no tenant can choose: names of the mesh itself."""
        self._here = here
        self._reserved = reserved
        self._ledger = ledger
        self._changes = changes
        self._hasher = hasher
        self._mac_secret = mac_secret
        self._clock = clock
        self._entropy = entropy
        self._creating = asyncio.Lock()

    async def create(self, name: str, allowed: list[str], transfer: str, label: str = "") -> NamedTenant:
        """Makes a tenant, or finishes making it."""
        name = checked_name(name)
        pin, moves = checked_allowed(allowed, self._here.jurisdiction), checked_transfer(transfer)
        label = checked_label(label, self._reserved)
        # One at a time: of two that want the same name, the second must find the first one's finished.
        async with self._creating:
            account = await self._account_named(name)
            # One that is not ready and did not begin here is of a tenant that may come here.
            if account is not None and (account.ready or not self._began_here(account)):
                raise MeshError(Code.TENANT_EXISTS, param="name")
            await self._check_free(label, None if account is None else account.tenant)
            if account is None:
                account = await self._begin(name)
            outcome = await self._changes.create_tenant(account.nonce, pin, moves, label=label)
            await self._ledger.set_ready(account.tenant)
        policy = outcome.tenant.policy
        if (policy.allowed, policy.transfer, policy.label) != (pin, moves, label):
            # An earlier attempt, whose answer was lost, had made it with another pin.
            raise MeshError(Code.TENANT_EXISTS, param="name")
        return NamedTenant(policy, name)

    async def find(self, tenant: str) -> NamedTenant:
        """A tenant by name or id."""
        known, account = await self._known(tenant)
        record = await self._changes.tenant(known)
        if account is not None and not account.ready:
            await self._ledger.set_ready(account.tenant)
        return NamedTenant(record.policy, account.name if account else "")

    async def all(self) -> list[NamedTenant]:
        """Every tenant of this home, by name."""
        names = {account.tenant: account.name for account in await self._ledger.accounts()}
        found = [
            NamedTenant(record.policy, names.get(record.policy.tenant, "")) for record in await self._changes.tenants()
        ]
        return sorted(found, key=lambda tenant: (tenant.name, tenant.policy.tenant))

    async def resume(self, tenant: str) -> NamedTenant:
        """Serves a suspended tenant again."""
        known, account = await self._known(tenant)
        return _named(await self._changes.set_state(known, TenantState.ACTIVE), account)

    async def suspend(self, tenant: str, op_id: str | None) -> Outcome:
        """Stops serving a tenant."""
        known, _ = await self._known(tenant)
        return await self._changes.set_state(known, TenantState.SUSPENDED, op_id=op_id)

    async def pin(self, tenant: str, allowed: list[str], drain_s: float, op_id: str | None) -> Outcome:
        """Sets the jurisdictions that a tenant allows."""
        pin = checked_allowed(allowed, self._here.jurisdiction)
        known, _ = await self._known(tenant)
        return await self._changes.set_allowed(known, pin, drain_s=checked_drain_s(drain_s), op_id=op_id)

    async def set_label(self, tenant: str, label: str) -> NamedTenant:
        """Sets a tenant's public label; empty is none."""
        label = checked_label(label, self._reserved)
        known, account = await self._known(tenant)
        async with self._creating:
            await self._check_free(label, known)
            return _named(await self._changes.set_label(known, label), account)

    async def set_transfer(self, tenant: str, transfer: str, op_id: str | None) -> Outcome:
        """Sets whether a tenant's calls may be forwarded inside its pin."""
        known, _ = await self._known(tenant)
        return await self._changes.set_transfer(known, checked_transfer(transfer), op_id=op_id)

    async def set_authority(
        self, tenant: str, home_s: float | None, foreign_s: float | None, op_id: str | None
    ) -> Outcome:
        """Sets for how long a grant is good; None leaves one of the two as it is."""
        record = await self._record(tenant)
        was = record.policy.authority
        spans = Spans(
            home_s=was.home_s if home_s is None else home_s,
            foreign_s=was.foreign_s if foreign_s is None else foreign_s,
        )
        return await self._changes.set_authority(record.policy.tenant, spans, op_id=op_id)

    async def settle_authority(self, tenant: TenantId, revision: Revision) -> Outcome:
        """Nobody acts on an older span than that of `revision` any more: a later removal need not wait for it."""
        return await self._changes.settle_authority(tenant, revision)

    async def prepare_move(self, tenant: str, old_home: str, name: str) -> NamedTenant:
        """Makes this region ready for a tenant of another home. Whoever moves it brings its name along."""
        if not is_tenant_id(tenant):
            raise MeshError(Code.TENANT_NOT_FOUND, param="tenant")
        known, name = TenantId(tenant), checked_name(name)
        async with self._creating:
            account = await self._account_named(name)
            if account is not None and account.tenant != known:
                raise MeshError(Code.TENANT_EXISTS, param="name", hint="So this tenant cannot move here by its name.")
            record = await self._changes.moves.prepare(known, RegionId(old_home))
            await self._check_free(record.policy.label, known)
            if account is None:
                # One by another name is of an earlier time here.
                await self._ledger.drop_account(known)
                await self._add(
                    Account(
                        tenant=known,
                        home=self._here.region,
                        name=name,
                        nonce=record.nonce,
                        created_s=int(self._clock.wall_s()),
                        ready=False,
                    )
                )
        return NamedTenant(record.policy, name)

    async def leave_home(self, tenant: str, new_home: str, op_id: str | None) -> Outcome:
        """Says that a tenant has moved. Its name is kept by its new home and forgotten here."""
        known, _ = await self._known(tenant)
        outcome = await self._changes.moves.leave(known, RegionId(new_home), op_id=op_id)
        if outcome.tenant.left:  # a late question for an earlier move finds it back here
            await self._ledger.drop_account(known)
        return outcome

    async def finish_move(self, tenant: str) -> tuple[Outcome, TenantRecord]:
        """Completes a tenant's move to here; see `Moves.finish`."""
        known, _ = await self._known(tenant)
        found = await self._changes.moves.finish(known)
        await self._ledger.set_ready(known)
        return found

    async def name_of(self, tenant: TenantId) -> str:
        """A tenant's name; empty where the ledger has none."""
        account = await self._ledger.account(tenant)
        return account.name if account else ""

    async def create_key(self, tenant: str) -> NewKey:
        """Makes a key."""
        record = await self._record(tenant)
        key = make_key(self._here.jurisdiction, self._entropy.token(_KEY_BYTES), self._mac_secret)
        hashed = await self._hasher.hash(key.text)
        outcome = await self._changes.create_key(record.policy.tenant, key.key_id, hashed)
        return NewKey(_key(outcome), key.text)

    async def keys(self, tenant: str) -> tuple[KeyRecord, ...]:
        """A tenant's keys, oldest first."""
        record = await self._record(tenant)
        return await self._changes.keys(record.policy.tenant)

    async def key(self, key_id: str) -> KeyRecord:
        """A key of a tenant of this home."""
        return await self._changes.key(KeyId(key_id))

    async def revoke_key(self, key_id: str, op_id: str | None) -> Outcome:
        """Ends a key for good."""
        return await self._changes.revoke_key(KeyId(key_id), op_id=op_id)

    async def id_of(self, tenant: str) -> TenantId:
        """The id of a tenant of any home by id, or of this home by name."""
        return (await self._known(tenant))[0]

    async def _begin(self, name: str) -> Account:
        """The account of a tenant that is not made yet. Nothing is begun while the store is away."""
        nonce = self._entropy.token(NONCE_BYTES)
        tenant = tenant_id(self._here.region, nonce)
        await self._changes.check()
        account = Account(
            tenant=tenant,
            home=self._here.region,
            name=name,
            nonce=nonce,
            created_s=int(self._clock.wall_s()),
            ready=False,
        )
        await self._add(account)
        return account

    async def _check_free(self, label: str, tenant: TenantId | None) -> None:
        """Raises `tenant_exists` where another tenant of this home has chosen a label."""
        if label and any(
            record.policy.label == label and record.policy.tenant != tenant for record in await self._changes.tenants()
        ):
            raise MeshError(Code.TENANT_EXISTS, param="label", hint="Another tenant of this home has this label.")

    async def _add(self, account: Account) -> None:
        try:
            await self._ledger.add_account(account)
        except AccountExistsError:
            raise MeshError(Code.TENANT_EXISTS, param="name") from None

    async def _account_named(self, name: str) -> Account | None:
        """The account of a name. That of a tenant that has left is forgotten, and of one that never came."""
        account = await self._ledger.account_named(name)
        if account is None:
            return None
        if account.ready:
            gone = await self._changes.moves.has_left(account.tenant)
        else:
            late = self._clock.wall_s() - account.created_s > _BROUGHT_S
            gone = late and not self._began_here(account) and not await self._is_here(account.tenant)
        if gone:
            await self._ledger.drop_account(account.tenant)
        return None if gone else account

    def _began_here(self, account: Account) -> bool:
        return account.tenant == tenant_id(self._here.region, account.nonce)

    async def _is_here(self, tenant: TenantId) -> bool:
        try:
            await self._changes.tenant(tenant)
        except MeshError as error:
            if error.code is not Code.TENANT_NOT_FOUND:
                raise
            return False
        return True

    async def _record(self, tenant: str) -> TenantRecord:
        known, _ = await self._known(tenant)
        return await self._changes.tenant(known)

    async def _known(self, tenant: str) -> tuple[TenantId, Account | None]:
        """The id behind a name or an id, and the account where there is one."""
        if is_tenant_id(tenant):
            return TenantId(tenant), await self._ledger.account(TenantId(tenant))
        try:
            account = await self._ledger.account_named(checked_name(tenant))
        except MeshError as error:
            if error.code is not Code.INVALID_PARAMETER:
                raise
            account = None  # no tenant has such a name
        if account is None:
            raise MeshError(Code.TENANT_NOT_FOUND, param="tenant")
        return account.tenant, account


def _named(outcome: Outcome, account: Account | None) -> NamedTenant:
    return NamedTenant(outcome.tenant.policy, account.name if account else "")


def _key(outcome: Outcome) -> KeyRecord:
    if outcome.key is None:
        raise MeshError(Code.KEY_NOT_FOUND)
    return outcome.key
