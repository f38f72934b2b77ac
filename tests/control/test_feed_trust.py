"""What the feed takes and what it refuses, and what it tells of how far it is."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from etcd_lab import running_etcd
from memory_store import MemoryStore
from trust_lab import changes_in, signer_of, trust_in

from mesh.control import layout
from mesh.control.changes import Changes
from mesh.control.feed import PolicyFeed
from mesh.control.records import Fault, TenantRecord, encode_key, encode_tenant, next_revision, tenant_id
from mesh.control.signing import Signer
from mesh.control.store import KeyValue, Put, Store
from mesh.policy.bundle import PolicyBook
from mesh.policy.shards import Shard, shard_of
from mesh.runtime import SystemClock
from mesh.telemetry import Log
from mesh.types import Jurisdiction, KeyId, RegionId, Role, TenantId, TenantState, Transfer

HOME, OTHER = RegionId("vn-1"), RegionId("sg-1")
VN, SG = Jurisdiction("VN"), Jurisdiction("SG")


class Quick(SystemClock):
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


class Told:
    """What a listener heard."""

    def __init__(self) -> None:
        self.numbers: dict[Shard, int] = {}
        self.backs = 0

    def applied(self, shard: Shard, number: int) -> None:
        self.numbers[shard] = number

    def went_back(self) -> None:
        self.numbers.clear()
        self.backs += 1


async def until(holds: Callable[[], bool]) -> None:
    """Waits for a condition; the test's own time limit is the only one."""
    while not holds():
        await asyncio.sleep(0)


class World:
    """A store with a tenant, and a gateway's feed on it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.changes: Changes = changes_in(store, HOME, SystemClock())
        self.book, self.told, self.out = PolicyBook(), Told(), io.StringIO()
        log = Log("gateway", HOME, self.out, strict=True)
        self.feed = PolicyFeed(store, self.book, Quick(), trust_in(), log, self.told)
        self.tenant = TenantId("")

    async def put(self, record: TenantRecord, signer: Signer, epoch: int = 1) -> int:
        """Writes a record with its head, as whoever may write there could; answers the store's revision."""
        policy = record.policy
        puts = [
            Put(layout.policy_key(policy.home, policy.tenant), encode_tenant(record, signer, epoch)),
            Put(layout.head_key(policy.shard), b""),
        ]
        return (await self.store.txn((), puts, timeout_s=30)).revision

    async def applied(self, revision: int) -> None:
        await until(lambda: self.feed.applied >= revision)

    def said(self, event: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in self.out.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event]


@asynccontextmanager
async def following(store: Store) -> AsyncGenerator[World]:
    world = World(store)
    made = await world.changes.create_tenant(bytes(16), frozenset({VN}), Transfer.NEVER)
    world.tenant = made.tenant.policy.tenant
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(world.feed.run())
        await until(lambda: world.feed.live and world.book.tenant(world.tenant) is not None)
        yield world
        running.cancel()


async def what_others_write_does_not_count(world: World) -> None:
    """Unsigned, another home's, another epoch's: the tenant is refused until its home writes again."""
    tenant, faults = world.tenant, 0
    for fault, put in (
        (Fault.SIGNATURE, lambda record: world.put(record, signer_of(OTHER))),
        (Fault.SIGNATURE, lambda record: world.put(record, Signer(signer_of(OTHER)._key, "k1"))),
        (Fault.EPOCH, lambda record: world.put(record, signer_of(HOME), epoch=2)),
    ):
        real = await world.changes.tenant(tenant)
        wide = next_revision(real, allowed=frozenset({VN, SG}))
        put_: Callable[[TenantRecord], Awaitable[int]] = put
        await world.applied(await put_(wide))
        faults += 1
        assert world.book.tenant(tenant) is None, "refused: neither the wide pin nor the one before it"
        assert world.feed.invalid[fault] >= 1
        assert world.said("policy.invalid_record")[-1]["fault"] == fault
        assert world.said("policy.invalid_record")[-1]["tenant"] == tenant
        good = await world.put(next_revision(real), signer_of(HOME))
        await until(lambda: world.book.tenant(tenant) is not None)
        await world.applied(good)
        assert world.book.tenant(tenant) == next_revision(real).policy
    assert world.feed.invalid.total() >= faults


async def test_what_others_write_does_not_count() -> None:
    async with following(MemoryStore()) as world:
        await what_others_write_does_not_count(world)


async def test_an_older_record_put_back_does_not_count() -> None:
    store = MemoryStore()
    async with following(store) as world:
        at = layout.policy_key(HOME, world.tenant)
        old = store.value(at)
        assert old is not None
        made = await world.changes.set_state(world.tenant, TenantState.SUSPENDED)
        await until(lambda: world.told.numbers.get(made.tenant.policy.shard) == made.number)
        head = layout.head_key(made.tenant.policy.shard)
        replayed = await store.txn((), [Put(at, old.value), Put(head, b"")], timeout_s=1)
        await world.applied(replayed.revision)
        assert world.book.tenant(world.tenant) is None, "signed once, and still not what was seen last"
        assert world.feed.invalid[Fault.OLDER] == 1
        again = await world.put(made.tenant, signer_of(HOME))
        await world.applied(again)
        assert world.book.tenant(world.tenant) == made.tenant.policy


async def test_a_revoked_key_put_back_opens_nothing() -> None:
    store = MemoryStore()
    async with following(store) as world:
        key_id = KeyId("K" * 12)
        made = await world.changes.create_key(world.tenant, key_id, "sha256$00")
        ended = await world.changes.revoke_key(key_id)
        assert made.key is not None
        at, head = layout.key_key(HOME, world.tenant, key_id), layout.head_key(made.tenant.policy.shard)
        puts = [Put(at, encode_key(made.key, signer_of(HOME), 1)), Put(head, b"")]
        await world.applied((await store.txn((), puts, timeout_s=1)).revision)
        assert world.feed.invalid[Fault.OLDER] == 1
        known = world.book.key(key_id)
        assert known is not None
        assert known.revoked
        forged = replace(made.key, key=replace(made.key.key, key_id=KeyId("F" * 12)))
        puts = [
            Put(layout.key_key(HOME, world.tenant, KeyId("F" * 12)), encode_key(forged, signer_of(OTHER), 1)),
            Put(head, b""),
        ]
        await world.applied((await store.txn((), puts, timeout_s=1)).revision)
        assert world.book.key(KeyId("F" * 12)) is None
        assert world.feed.invalid[Fault.SIGNATURE] == 1
        assert ended.tenant.policy == world.book.tenant(world.tenant)


async def test_the_listener_hears_each_number_once_it_is_in_the_book() -> None:
    store = MemoryStore()
    async with following(store) as world:
        shard = (await world.changes.tenant(world.tenant)).policy.shard
        assert world.told.numbers == {shard: 1}, "of the load"
        for number in range(2, 6):
            state = TenantState.SUSPENDED if number % 2 else TenantState.ACTIVE
            made = await world.changes.set_allowed(world.tenant, frozenset({VN, SG} if number % 2 else {VN}))
            made = await world.changes.set_state(world.tenant, state)
            await until(lambda number=made.number: world.told.numbers[shard] == number)
            assert world.book.tenant(world.tenant) == made.tenant.policy
        store.forget = 1  # an event is lost: the shard is read again
        await world.changes.set_allowed(world.tenant, frozenset({VN}))
        await until(lambda: store.forget == 0)
        made = await world.changes.set_allowed(world.tenant, frozenset({VN, SG}))
        await until(lambda: world.told.numbers[shard] == made.number)
        assert (world.feed.gaps, world.told.backs) == (1, 0)


async def test_a_store_that_went_back_is_told_and_what_it_lost_does_not_come_back() -> None:
    store = MemoryStore()
    async with following(store) as world:
        backup = store.revision
        made = await world.changes.set_state(world.tenant, TenantState.SUSPENDED)
        await until(lambda: world.told.numbers.get(made.tenant.policy.shard) == made.number)
        store.restore(backup)
        await until(lambda: world.told.backs == 1 and world.feed.live)
        assert world.feed.backs == 1
        assert world.said("policy.store_went_back")
        assert world.told.numbers == {made.tenant.policy.shard: 1}, "of the new load"
        assert world.book.tenant(world.tenant) is None, "it was suspended: the record from before is older"
        assert world.feed.invalid[Fault.OLDER] >= 1


async def test_a_store_that_went_back_and_has_got_further_since_is_found_out() -> None:
    """Its revision and its heads are higher than all that was seen: only its history tells."""
    store = MemoryStore()
    async with following(store) as world:
        backup = store.revision
        for state in (TenantState.SUSPENDED, TenantState.ACTIVE):
            made = await world.changes.set_state(world.tenant, state)
        await until(lambda: world.told.numbers.get(made.tenant.policy.shard) == made.number)
        # Restored where the feed cannot see it, and gone on from there.
        restored = MemoryStore()
        restored.revision, restored._states = backup, list(store._states[: backup + 1])
        restored.history = [event for event in store.history if event.mod_revision <= backup]
        other = changes_in(restored, HOME, SystemClock())
        for number in range(4):
            made = await other.set_allowed(world.tenant, frozenset({VN} if number % 2 else {VN, SG}))
        assert restored.revision > world.feed.applied
        head = layout.head_key(made.tenant.policy.shard)
        lost, now = store.value(head), restored._states[store.revision][head]
        assert lost is not None
        assert (lost.version, lost.mod_revision) == (now.version, now.mod_revision), "alike but for their op ids"
        store.revision, store._states, store.history = restored.revision, restored._states, restored.history
        store.cut()
        await until(lambda: world.told.backs == 1 and world.feed.live)
        assert world.said("policy.store_went_back")
        assert world.told.numbers == {made.tenant.policy.shard: made.number}


async def test_a_cut_connection_is_no_other_history() -> None:
    store = MemoryStore()
    async with following(store) as world:
        for number in range(6):
            store.cut()
            await world.changes.set_allowed(world.tenant, frozenset({VN, SG} if number % 2 else {VN}))
            if number == 3:
                store.compact(store.revision)
        made = await world.changes.set_state(world.tenant, TenantState.SUSPENDED)
        await until(lambda: world.told.numbers.get(made.tenant.policy.shard) == made.number)
        assert (world.told.backs, world.feed.invalid.total()) == (0, 0)


async def test_on_etcd_what_is_unsigned_or_older_does_not_count(tmp_path: Path) -> None:
    async with running_etcd(tmp_path) as lab, following(await lab.store(HOME, Role.ADMIN)) as world:
        await what_others_write_does_not_count(world)
        record = await world.changes.tenant(world.tenant)
        made = await world.changes.set_state(world.tenant, TenantState.SUSPENDED)
        await until(lambda: world.told.numbers.get(made.tenant.policy.shard) == made.number)
        await world.applied(await world.put(record, signer_of(HOME)))
        assert world.book.tenant(world.tenant) is None
        assert world.feed.invalid[Fault.OLDER] == 1
        assert (world.told.backs, world.feed.backs) == (0, 0)


async def test_a_shards_first_head_follows_on_nothing_so_the_shard_is_read() -> None:
    """An event of before was lost, and the head's version began again at 1: nobody can tell that from its first put."""
    store = MemoryStore()
    async with following(store) as world:
        known = shard_of(HOME, world.tenant)
        nonces = (bytes([number]) * 16 for number in range(1, 99))
        nonce = next(nonce for nonce in nonces if shard_of(HOME, tenant_id(HOME, nonce)) != known)
        made = await changes_in(MemoryStore(), HOME, SystemClock()).create_tenant(
            nonce, frozenset({VN}), Transfer.NEVER
        )
        policy = made.tenant.policy
        at = layout.policy_key(HOME, policy.tenant)
        store._states[-1][at] = KeyValue(at, encode_tenant(made.tenant, signer_of(HOME), 1), store.revision, 1)
        stray = layout.key_key(HOME, policy.tenant, KeyId("K" * 12))
        await world.applied(
            (await store.txn((), [Put(stray, b""), Put(layout.head_key(policy.shard), b"")], timeout_s=1)).revision
        )
        assert world.book.tenant(policy.tenant) == policy
        assert world.told.numbers[policy.shard] == 1
        assert world.feed.gaps == 0, "it is no fault"
