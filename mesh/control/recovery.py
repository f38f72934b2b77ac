"""After the control store was lost or restored: publishes a home's policy again, from its ledger, in a new epoch.

Records of an older control epoch do not count anywhere, so until then the home's tenants are refused. Every tenant is
published by itself, and only where its record, or one of its keys', is not yet of this epoch: what was broken off is
taken up again by the next call, and a second call finds nothing to do. What the store knows and the ledger does not is
told, and never made up.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from mesh.control import layout
from mesh.control.drafts import Journal
from mesh.control.epoch import EpochStart, decode_recovery, encode_recovery
from mesh.control.history import StoreHistory
from mesh.control.ops import new_op_id
from mesh.control.records import (
    FIRST_EPOCH,
    KeyRecord,
    RecordError,
    TenantRecord,
    Trust,
    decode_key,
    decode_tenant,
    encode_head,
    encode_key,
    encode_tenant,
    epoch_of,
)
from mesh.control.restored import Signed, allows_less, restored_key, restored_tenant, surely_made
from mesh.control.signing import Signer
from mesh.control.store import (
    Compare,
    KeyValue,
    Put,
    Range,
    Store,
    StoreDeniedError,
    StoreError,
    TxnResult,
    prefix_end,
)
from mesh.errors import Code, MeshError
from mesh.policy.shards import shard_of
from mesh.ports import Clock, Entropy
from mesh.telemetry.log import Log
from mesh.types import KeyId, RegionId, Revision, TenantId

_TIMEOUT_S = 4.0
_TRIES = 8
_PAUSE_S = 0.5
_PERIOD_S = 2.0
_PAGE = 500
_BATCH = 50
"""Records in one transaction: with their compares far below the store's limit of 128."""
_Record = TypeVar("_Record", TenantRecord, KeyRecord)


class Kept(Protocol):
    """A record that the home signed, as its ledger has it; see `mesh.ledger.SignedRecord`."""

    @property
    def at(self) -> str:
        """Its key in the store."""
        ...

    @property
    def value(self) -> bytes:
        """The record."""
        ...

    @property
    def epoch(self) -> int:
        """That it was signed for."""
        ...

    @property
    def revision(self) -> Revision:
        """Of its tenant, that the change made."""
        ...

    @property
    def made(self) -> bool:
        """Whether it surely came into the store."""
        ...


class Memory(Journal, Protocol):
    """The journal, read again."""

    async def signed_since_made(self) -> Sequence[Kept]:
        """Of each key the newest record surely made, and all not older, in the order of signing."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """How far a recovery has come.

    Attributes:
        tenants: How many this home's ledger has.
        looked_at: Of them.
        published: By this call.
        narrowed: Tenants that allow less than their last record that was surely made.
        keys_left_out: Keys of which it is not known that they were ever made.
        unknown: Tenants that were not published: the store knows more of them than the ledger, or nothing that the
            ledger has of them verifies.
        done: The last one.
    """

    tenants: int
    looked_at: int = 0
    published: int = 0
    narrowed: tuple[TenantId, ...] = ()
    keys_left_out: tuple[KeyId, ...] = ()
    unknown: tuple[TenantId, ...] = ()
    done: bool = False


@dataclass(slots=True)
class _Plan:
    """What is to be put for one tenant, the tenant's record first."""

    records: dict[str, TenantRecord | KeyRecord]
    left_out: list[KeyId]
    narrowed: bool
    unknown: bool


class Recovery:
    """One home's recovery. Knows whether the store lacks what the ledger says was made."""

    def __init__(
        self,
        *,
        store: Store,
        home: RegionId,
        signer: Signer | None,
        trust: Trust,
        memory: Memory,
        history: StoreHistory,
        start: EpochStart,
        clock: Clock,
        entropy: Entropy,
        log: Log | None = None,
    ) -> None:
        self.compared = False
        """Whether the ledger was compared with the store since this process began."""
        self._store = store
        self._home = home
        self._signer = signer
        self._trust = trust
        self._memory = memory
        self._history = history
        self._start = start
        self._clock = clock
        self._entropy = entropy
        self._log = log

    async def run(self) -> None:
        """Compares the ledger with the store, as soon as both answer, and then looks at the store now and then."""
        while True:
            try:
                await self._look()
                if not self.compared:
                    await self.compare()
            except (MeshError, StoreError):
                pass  # either is away; or the store went back, which is known then
            await self._clock.sleep(_PERIOD_S if self.compared else _PAUSE_S)

    async def compare(self) -> None:
        """Finds out whether the store lacks anything that the ledger says was made in this epoch.

        A process that has seen nothing before a restore cannot see by the store alone that there was one.

        Raises:
            StoreError, MeshError: One of the two does not answer.
        """
        # The ledger first: what was made by then is in the store now.
        made = [one for one in await self._memory.signed_since_made() if one.made and one.epoch == self._trust.epoch]
        revision, items = await self._all()
        if any(self._lacks(items.get(one.at), one) for one in made):
            self._history.went_back_at(revision)
        self.compared = True

    async def recover(self) -> AsyncGenerator[Recovered]:
        """Publishes what is not published in this epoch, and tells how far it has come.

        Raises:
            MeshError: `policy_store_unavailable`: call again; also where the store went back in this epoch, which must
                be raised first.
        """
        if self._trust.epoch == FIRST_EPOCH:
            yield Recovered(tenants=0, done=True)
            return
        try:
            await self.compare()
            self._history.check()
            await self._mark(complete=False)
            kept: dict[TenantId, list[Kept]] = {}
            for one in await self._memory.signed_since_made():
                at = layout.parse(one.at)
                if isinstance(at, layout.PolicyKey | layout.KeyKey) and at.shard.home == self._home:
                    kept.setdefault(at.tenant, []).append(one)
            _, items = await self._all()
            strangers = {
                at.tenant for key in items if isinstance(at := layout.parse(key), layout.PolicyKey)
            } - kept.keys()
            state = Recovered(tenants=len(kept), unknown=tuple(sorted(strangers)))
            for tenant in sorted(kept):
                state = await self._publish(tenant, kept[tenant], state)
                yield state
            await self._mark(complete=True)
        except StoreDeniedError:
            hint = "The control store refuses this program's certificate."
            raise MeshError(Code.INTERNAL_ERROR, hint=hint) from None
        except StoreError:
            raise MeshError(Code.POLICY_STORE_UNAVAILABLE, hint="Call again: it goes on where it stopped.") from None
        if self._log is not None:
            self._log.warning("policy.recovered", tenants=state.tenants, count=state.published)
        yield replace(state, done=True)

    async def _publish(self, tenant: TenantId, kept: Sequence[Kept], state: Recovered) -> Recovered:
        """Publishes one tenant, if it is not, against whoever else may be at it."""
        published, tries, at = False, 0, layout.policy_key(self._home, tenant)
        while True:
            words = await self._memory.last_words(at)  # before the store: of what is signed later it tells nothing
            items = await self._tenant(tenant)
            plan = self._plan(tenant, kept, items)
            if plan.unknown:
                return replace(state, looked_at=state.looked_at + 1, unknown=(*state.unknown, tenant))
            batch = dict(list(plan.records.items())[:_BATCH])
            if not batch:
                return replace(
                    state,
                    looked_at=state.looked_at + 1,
                    published=state.published + published,
                    keys_left_out=(*state.keys_left_out, *plan.left_out),
                )
            record = batch.get(at)
            if isinstance(record, TenantRecord) and not record.left:
                # It has not left, so what would have said so never was made.
                for number, _ in words:
                    await self._memory.unmade(number)
            if await self._put(tenant, batch, items):
                published = True
                if plan.narrowed:
                    state = replace(state, narrowed=(*state.narrowed, tenant))
            elif (tries := tries + 1) == _TRIES:
                raise MeshError(
                    Code.POLICY_STORE_UNAVAILABLE, hint="A tenant is being changed all the time: call again."
                )

    def _plan(self, tenant: TenantId, kept: Sequence[Kept], items: Mapping[str, KeyValue]) -> _Plan:
        """What of a tenant is not of this epoch yet, and what it is to be."""
        plan = _Plan(records={}, left_out=[], narrowed=False, unknown=False)
        at = layout.policy_key(self._home, tenant)
        by_key: dict[str, list[Kept]] = {}
        for one in kept:
            by_key.setdefault(one.at, []).append(one)
        own = self._signed(at, by_key.get(at, ()), items.get(at), TenantRecord)
        floor = Revision(max(one.revision for one in kept))
        newest = max((_revision(found) for key, item in items.items() if (found := self._found(key, item))), default=0)
        if not own or (newest > floor and not self._is_current(at, items.get(at))):
            plan.unknown = True
            return plan
        if not self._is_current(at, items.get(at)):
            record = restored_tenant(own, floor)
            if record is None:
                plan.unknown = True
                return plan
            plan.records[at] = record
            plan.narrowed = allows_less(record.policy, surely_made(own))
        # What stands, or will: keys count with their home's record only, and a home that the tenant left has none.
        stands = plan.records.get(at) or self._decode(at, items[at].value, self._trust.epoch)
        if not isinstance(stands, TenantRecord) or stands.left:
            return plan
        for key, rows in sorted(by_key.items()):
            parsed = layout.parse(key)
            if not isinstance(parsed, layout.KeyKey) or self._is_current(key, items.get(key)):
                continue
            found = self._signed(key, rows, items.get(key), KeyRecord)
            if found and all(one.record.moves != stands.policy.moves for one in found):
                continue  # of an earlier stay here: it did not come back with its tenant
            restored = restored_key(found) if found else None
            if restored is None:
                plan.left_out.append(parsed.key_id)
            else:
                plan.records[key] = replace(restored, moves=stands.policy.moves)
        return plan

    def _signed(
        self, at: str, kept: Sequence[Kept], item: KeyValue | None, kind: type[_Record]
    ) -> list[Signed[_Record]]:
        """What verifies of the records that the ledger has for a key. What stands in the store surely was made."""
        found: list[Signed[_Record]] = []
        for one in kept:
            record = self._decode(at, one.value, one.epoch)
            if isinstance(record, kind):
                made = one.made or (item is not None and item.value == one.value)
                found.append(Signed(record, one.epoch, one.revision, made))
        return found

    def _decode(self, at: str, value: bytes, epoch: int) -> TenantRecord | KeyRecord | None:
        """A record that this home once signed, by any key that it has had: what it signed does not end with a key."""
        homes = {
            home: replace(trusted, keys=tuple(replace(key, valid_from=None, valid_until=None) for key in trusted.keys))
            if home == self._home
            else trusted
            for home, trusted in self._trust.homes.items()
        }
        trust = replace(self._trust, homes=homes, epoch=epoch)
        parsed = layout.parse(at)
        try:
            match parsed:
                case layout.PolicyKey():
                    return decode_tenant(parsed, value, trust)
                case layout.KeyKey():
                    return decode_key(parsed, value, trust)
                case _:
                    return None
        except RecordError:
            return None

    def _found(self, at: str, item: KeyValue) -> TenantRecord | KeyRecord | None:
        """What stands in the store, of whatever epoch."""
        return self._decode(at, item.value, epoch_of(at, item.value))

    def _is_current(self, at: str, item: KeyValue | None) -> bool:
        """Whether a key's record counts in this epoch."""
        parsed = layout.parse(at)
        if item is None:
            return False
        try:
            match parsed:
                case layout.PolicyKey():
                    decode_tenant(parsed, item.value, self._trust)
                case layout.KeyKey():
                    decode_key(parsed, item.value, self._trust)
                case _:
                    return False
        except RecordError:
            return False
        return True

    def _lacks(self, item: KeyValue | None, made: Kept) -> bool:
        """Whether what stands at a key is older than what was made there. What is no record at all is another fault."""
        if item is None or 0 < epoch_of(made.at, item.value) < made.epoch:
            return True
        found = self._found(made.at, item)
        return found is not None and _revision(found) < made.revision

    async def _put(
        self, tenant: TenantId, records: Mapping[str, TenantRecord | KeyRecord], items: Mapping[str, KeyValue]
    ) -> bool:
        """One transaction; False if somebody else was faster."""
        signer, epoch = self._signer, self._trust.epoch
        if signer is None:
            hint = f"regions/{self._home}.yaml has no 'policy_keys', so nothing of this home's ledger can be signed."
            raise MeshError(Code.INVALID_SETTINGS, hint=hint)
        puts = [
            Put(
                at,
                encode_tenant(record, signer, epoch)
                if isinstance(record, TenantRecord)
                else encode_key(record, signer, epoch),
            )
            for at, record in records.items()
        ]
        numbers = list[int]()
        for put, record in zip(puts, records.values(), strict=True):
            if isinstance(record, TenantRecord) and (record.left or record.is_first):
                kept = self._memory.signed_move(put.key, put.value, epoch, _revision(record), last=record.left)
            else:
                kept = self._memory.signed(put.key, put.value, epoch, _revision(record))
            numbers.append(await kept)
        compares = [Compare(put.key, items[put.key].mod_revision if put.key in items else 0) for put in puts]
        head = Put(
            layout.head_key(shard_of(self._home, tenant)),
            encode_head(puts[-1].key, new_op_id(self._clock, self._entropy)),
        )
        answer = await self._ask(compares, [*puts, head])
        if answer.succeeded:
            await self._memory.made(numbers)
        else:
            for number in numbers:
                await self._memory.unmade(number)
        return answer.succeeded

    async def _mark(self, *, complete: bool) -> None:
        """Leaves the mark that the recovery has begun, or has ended. A mark of this epoch is not made younger."""
        at, epoch = layout.recovery_key(self._home), self._trust.epoch
        while True:
            item = await self._look()
            found = decode_recovery(item.value) if item is not None else None
            if found is not None and found.epoch == epoch and (found.complete or not complete):
                return
            await self._ask(
                [Compare(at, item.mod_revision if item else 0)], [Put(at, encode_recovery(epoch, complete=complete))]
            )

    async def _look(self) -> KeyValue | None:
        """Reads the mark: also to know, from what is seen since, that the store has not gone back."""
        answer = await self._ask((), [Range(layout.recovery_key(self._home))])
        item = answer.ranges[0].items[0] if answer.ranges[0].items else None
        self._start.take(item, self._clock.instant())
        return item

    async def _tenant(self, tenant: TenantId) -> dict[str, KeyValue]:
        answer = await self._ask((), [Range(*layout.tenant_range(self._home, tenant))])
        return {item.key: item for item in answer.ranges[0].items}

    async def _ask(self, compares: Sequence[Compare], ops: Sequence[Put | Range]) -> TxnResult:
        """A transaction, held against what was seen of the store."""
        seen = self._history.seen()
        answer = await self._store.txn(compares, ops, timeout_s=_TIMEOUT_S)
        self._history.take(answer, seen)
        return answer

    async def _all(self) -> tuple[int, dict[str, KeyValue]]:
        """All records of this home, as of one revision."""
        prefix = layout.home_prefix(self._home)
        key, end, revision = prefix, prefix_end(prefix), 0
        found: dict[str, KeyValue] = {}
        while True:
            answer = await self._store.range(Range(key, end, limit=_PAGE, revision=revision), timeout_s=_TIMEOUT_S)
            revision = revision or answer.revision
            found.update((item.key, item) for item in answer.items)
            if not answer.more:
                return revision, found
            key = answer.items[-1].key + "\0"


def _revision(record: TenantRecord | KeyRecord) -> Revision:
    return record.policy.revision if isinstance(record, TenantRecord) else record.revision
