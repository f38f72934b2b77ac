"""Whose record of a tenant counts: what lies under any home, genuine, forged, old or contradicting, and what follows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from memory_store import MemoryStore
from move_lab import K1, K2, A, B, C, Homes, in_memory
from trust_lab import signer_of, trust_in

from mesh.control import layout
from mesh.control.feed import PolicyFeed
from mesh.control.records import (
    Fault,
    KeyRecord,
    TenantRecord,
    decode_tenant,
    digest_of,
    encode_key,
    encode_tenant,
    next_revision,
)
from mesh.control.statements import Statement, make_statement
from mesh.control.store import Delete, Op, Put, StoreUnavailableError
from mesh.policy.bundle import PolicyBook, TenantKey
from mesh.policy.shards import Shard, shard_of
from mesh.runtime import SystemClock
from mesh.types import Jurisdiction, KeyId, RegionId, Revision, TenantId

JP = Jurisdiction("JP")
OTHER = TenantId("t_aaaaaaaaaaaaaaaa")
WIDE = frozenset({Jurisdiction("VN"), Jurisdiction("SG"), JP})


class Lies:
    """What somebody writes into the store by another way than an admin's."""

    def __init__(self, homes: Homes, store: MemoryStore) -> None:
        self.homes, self.store, self.tenant = homes, store, homes.tenant

    def at(self, home: RegionId) -> str:
        return layout.policy_key(home, self.tenant)

    def stands(self, home: RegionId) -> TenantRecord:
        item, at = self.store.value(self.at(home)), layout.parse(self.at(home))
        assert item is not None
        assert isinstance(at, layout.PolicyKey)
        return decode_tenant(at, item.value, trust_in())

    async def put(self, record: TenantRecord, by: RegionId | None = None, epoch: int = 1) -> None:
        home = record.policy.home
        await self.write(home, Put(self.at(home), encode_tenant(record, signer_of(by or home), epoch)))

    async def write(self, home: RegionId, *ops: Op) -> None:
        await self.store.txn((), [*ops, Put(layout.head_key(shard_of(home, self.tenant)), b"")], timeout_s=1)

    def says(self, by: RegionId, **changes: object) -> Statement:
        """A statement that a home's key signs, whatever it says."""
        terms: dict[str, object] = {
            "tenant": self.tenant, "moves": 1, "home": by, "new_home": C, "revision": Revision(3), "first": bytes(32),
            "epoch": 1, "made_s": 1_790_000_000,
        }  # fmt: skip
        return make_statement(**{**terms, **changes}, signer=signer_of(by))  # type: ignore[arg-type]


def under(record: TenantRecord, home: RegionId, **changes: object) -> TenantRecord:
    """The record as somebody says that another home has it, and wider."""
    places = trust_in().homes
    moved = {"home": home, "home_jurisdiction": places[home].jurisdiction, "allowed": WIDE, "out_since": {}}
    terms = {name: value for name, value in changes.items() if name in {"moves", "revision"}}
    rest = {name: value for name, value in changes.items() if name not in terms}
    return replace(record, policy=replace(record.policy, **{**moved, **terms}), **rest)  # type: ignore[arg-type]


async def read(store: MemoryStore, tenant: TenantId) -> tuple[RegionId | None, dict[Fault, int], PolicyBook]:
    """Which home's record a gateway takes that starts now, and its alarms."""
    book = PolicyBook()
    feed = PolicyFeed(store, book, SystemClock(), trust_in())
    await feed._load()
    policy = book.tenant(tenant)
    assert policy is None or JP not in policy.allowed, "nobody widens what the tenant's home has signed"
    return (None if policy is None else policy.home), dict(feed.invalid), book


async def nothing(lies: Lies) -> None:
    pass


async def takeover(lies: Lies) -> None:
    await lies.put(under(lies.stands(A), C))


async def a_first_record_that_nobody_asked_for(lies: Lies) -> None:
    await lies.put(under(lies.stands(A), C, moves=1, revision=99))


async def a_statement_of_its_own(lies: Lies) -> None:
    """C says in A's name that the tenant has left A, and signs it itself."""
    forged = replace(lies.says(C), home=A)
    await lies.put(under(lies.stands(A), C, moves=1, revision=99, chain=(forged,)))


async def a_statement_by_a_region_that_is_no_home_of_it(lies: Lies) -> None:
    await lies.put(under(lies.stands(A), A, moves=1, chain=(lies.says(C, new_home=A),)))


async def a_statement_about_another_tenant(lies: Lies) -> None:
    await lies.put(under(lies.stands(A), C, moves=1, chain=(lies.says(A, tenant=OTHER),)))


async def a_statement_of_a_later_epoch(lies: Lies) -> None:
    await lies.put(under(lies.stands(A), C, moves=1, chain=(lies.says(A, epoch=2),)))


async def a_statement_that_skips_one(lies: Lies) -> None:
    await lies.put(under(lies.stands(A), C, moves=2, chain=(lies.says(A, moves=2),)))


async def a_statement_from_a_time_of_no_calendar(lies: Lies) -> None:
    await lies.put(under(lies.stands(A), C, moves=1, chain=(lies.says(A, made_s=2**62),)))


@pytest.mark.parametrize(
    ("lie", "fault"),
    [
        (nothing, None),
        (takeover, Fault.HOME),
        (a_first_record_that_nobody_asked_for, None),
        (a_statement_of_its_own, Fault.SIGNATURE),
        (a_statement_about_another_tenant, Fault.CHAIN),
        (a_statement_of_a_later_epoch, Fault.CHAIN),
        (a_statement_that_skips_one, Fault.CHAIN),
        (a_statement_from_a_time_of_no_calendar, Fault.CHAIN),
    ],
)
async def test_what_another_region_writes_of_a_tenant_that_never_moved(
    lie: Callable[[Lies], Awaitable[None]], fault: Fault | None
) -> None:
    homes, store = in_memory()
    await homes.begin()
    await lie(Lies(homes, store))
    home, faults, _ = await read(store, homes.tenant)
    assert (home, faults) == (A, {} if fault is None else {fault: 1})


async def test_a_home_that_says_nonsense_about_itself_has_no_record() -> None:
    homes, store = in_memory()
    await homes.begin()
    await a_statement_by_a_region_that_is_no_home_of_it(Lies(homes, store))
    home, faults, _ = await read(store, homes.tenant)
    assert (home, faults) == (None, {Fault.CHAIN: 1, Fault.TENANT: 1}), "nor does its key count"


async def the_first_record_again(lies: Lies) -> None:
    """What the old home had before, put back: signed once."""
    word = lies.stands(A)
    before = replace(word.policy, revision=word.chain[-1].revision, moves=0)
    await lies.put(replace(word, policy=before, chain=(), left=False))


async def a_newer_one_by_the_old_home(lies: Lies) -> None:
    word = lies.stands(A)
    await lies.put(replace(under(word, A, moves=0, revision=99), chain=(), left=False))


async def nothing_under_the_old_home(lies: Lies) -> None:
    await lies.write(A, Delete(lies.at(A)))


async def nothing_under_the_new_home(lies: Lies) -> None:
    await lies.write(B, Delete(lies.at(B)))


async def rubbish_under_the_new_home(lies: Lies) -> None:
    await lies.write(B, Put(lies.at(B), b"\xff\xff"))


async def another_last_word(lies: Lies) -> None:
    """The thief of the old home's key says that the tenant went elsewhere."""
    word = lies.stands(A)
    other = lies.says(A, revision=word.chain[-1].revision)
    await lies.put(replace(word, chain=(other,)))


async def a_further_move_that_the_new_home_never_made(lies: Lies) -> None:
    chain = lies.stands(B).chain
    forged = lies.says(A, moves=2, home=A)
    await lies.put(under(lies.stands(B), C, moves=2, revision=99, chain=(*chain, forged)))


@pytest.mark.parametrize(
    ("lie", "home", "faults"),
    [
        (nothing, B, {}),
        (the_first_record_again, B, {Fault.OLDER: 1}),
        (a_newer_one_by_the_old_home, B, {Fault.OLDER: 1}),
        (nothing_under_the_old_home, B, {}),
        (nothing_under_the_new_home, None, {}),
        (rubbish_under_the_new_home, None, {Fault.ENCODING: 1}),
        (another_last_word, None, {Fault.FORK: 1}),
        (a_further_move_that_the_new_home_never_made, B, {Fault.CHAIN: 1}),
    ],
)
async def test_what_is_put_where_a_tenant_was_and_is(
    lie: Callable[[Lies], Awaitable[None]], home: RegionId | None, faults: dict[Fault, int]
) -> None:
    """Never by the old record, whatever is left; what contradicts itself is refused."""
    homes, store = in_memory()
    await homes.begin()
    await homes.move(A, B)
    await lie(Lies(homes, store))
    found, seen, _ = await read(store, homes.tenant)
    seen.pop(Fault.TENANT, None)  # of keys whose record is gone
    assert (found, dict.fromkeys(seen, 1)) == (home, faults)


async def test_a_first_record_that_is_not_the_one_named_does_not_count() -> None:
    homes, store = in_memory()
    await homes.begin()
    await homes.admins[B].moves.prepare(homes.tenant, A)
    await homes.admins[A].moves.leave(homes.tenant, B)
    lies = Lies(homes, store)
    real = lies.stands(B)
    await lies.put(replace(real, policy=replace(real.policy, allowed=WIDE)))
    assert (await read(store, homes.tenant))[:2] == (None, {Fault.CHAIN: 1})
    await lies.put(real, epoch=1)
    assert (await read(store, homes.tenant))[:2] == (B, {})
    assert digest_of(real) == lies.stands(A).chain[-1].first


async def test_the_longer_chain_counts_wherever_it_lies() -> None:
    homes, store = in_memory()
    await homes.begin()
    await homes.move(A, B)
    old = Lies(homes, store).stands(B)
    await homes.move(B, C)
    lies = Lies(homes, store)
    assert (await read(store, homes.tenant))[:2] == (C, {})
    await lies.put(replace(old, policy=replace(old.policy, revision=Revision(99))))
    assert (await read(store, homes.tenant))[0] == C, "however often B goes on by the shorter one"
    await lies.write(A, Delete(lies.at(A)))
    assert (await read(store, homes.tenant))[0] == C


async def test_keys_count_under_the_home_of_now_alone() -> None:
    homes, store = in_memory()
    await homes.begin()
    await homes.move(A, B)
    lies, key_id = Lies(homes, store), KeyId("Z" * 12)
    key = TenantKey(key_id=key_id, tenant=homes.tenant, hash="sha256$00", revoked=False)
    for home, moves in ((A, 0), (A, 1), (B, 0), (C, 1)):
        made = KeyRecord(
            key=key, home=home, moves=moves, created_revision=Revision(1), revision=Revision(1), created_s=1,
            revoked_s=None,
        )  # fmt: skip
        at = layout.key_key(home, homes.tenant, key_id)
        await lies.write(home, Put(at, encode_key(made, signer_of(home), 1)))
        assert (await read(store, homes.tenant))[2].key(key_id) is None
        await lies.write(home, Delete(at))


async def test_who_saw_a_statement_never_goes_back_behind_it() -> None:
    """The move is not finished: nothing but a gateway's own memory says that there was a statement."""
    homes, store = in_memory()
    await homes.begin()
    tenant, lies = homes.tenant, Lies(homes, store)
    before = lies.stands(A)
    book = PolicyBook()
    feed = PolicyFeed(store, book, SystemClock(), trust_in())
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(feed.run())
        await homes.admins[B].moves.prepare(tenant, A)
        await homes.admins[A].moves.leave(tenant, B)
        while (policy := book.tenant(tenant)) is None or policy.home != B:
            await asyncio.sleep(0)
        await lies.put(before)
        while not feed.invalid[Fault.OLDER]:
            await asyncio.sleep(0)
        policy = book.tenant(tenant)
        assert policy is not None
        assert policy.home == B
        await lies.write(B, Delete(lies.at(B)))
        while book.tenant(tenant) is not None:
            await asyncio.sleep(0)
        await lies.put(next_revision(before))
        while feed.invalid[Fault.OLDER] < 2:
            await asyncio.sleep(0)
        assert book.tenant(tenant) is None, "never by the old record"
        running.cancel()


async def test_a_home_that_is_read_again_alone_takes_the_other_one_along() -> None:
    """Events are lost: of the old home's shard the last word is read before anything of the new home is known."""
    homes, store = in_memory()
    await homes.begin()
    tenant = homes.tenant
    for old, new in ((A, B), (B, C), (C, A)):
        book, heard = Kept(tenant), list[tuple[Shard, RegionId | None]]()

        class Listener:
            def applied(self, shard: Shard, number: int) -> None:
                policy = book.tenant(tenant)  # noqa: B023 - of this round
                heard.append((shard, None if policy is None else policy.home))  # noqa: B023

            def went_back(self) -> None:
                raise AssertionError

        feed = PolicyFeed(store, book, SystemClock(), trust_in(), None, Listener())
        await feed._load()
        heard.clear()
        await homes.move(old, new)
        shard = shard_of(old, tenant)
        item = store.value(layout.head_key(shard))
        assert item is not None
        assert await feed.catch_up(shard, item.version)
        policy = book.tenant(tenant)
        assert policy is not None
        assert policy.home == new
        assert book.dropped == 0, "what runs goes on"
        assert {shard for shard, _ in heard} == {shard, shard_of(new, tenant)}
        assert {home for _, home in heard} == {new}, "nothing is told before it is acted on"
        assert not feed.invalid


@pytest.mark.parametrize("replayed", [False, True])
async def test_what_the_watch_tells_late_of_a_home_that_the_tenant_has_left_is_no_alarm(replayed: bool) -> None:
    """The new home's shard was read meanwhile. What was put over the last word is one, however late that is told."""
    homes, store = in_memory()
    await homes.begin()
    tenant, lies = homes.tenant, Lies(homes, store)
    book = Kept(tenant)
    feed = PolicyFeed(store, book, SystemClock(), trust_in())
    await feed._load()
    await homes.admins[A].set_label(tenant, "acme")
    await homes.admins[A].create_key(tenant, K2, "sha256$1")
    before = lies.stands(A)
    await homes.move(A, B)
    if replayed:
        await lies.put(before)
    item = store.value(layout.head_key(shard_of(B, tenant)))
    assert item is not None
    assert await feed.catch_up(shard_of(B, tenant), item.version)
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(feed._follow())
        while feed.applied < store.revision:
            await asyncio.sleep(0)
        assert dict(feed.invalid) == ({Fault.OLDER: 1} if replayed else {})
        policy = book.tenant(tenant)
        assert policy is not None
        assert (policy.home, policy.label, book.dropped) == (B, "acme", 0)
        assert {key.key_id for key in book.all_keys()} == {K1, K2}
        seen = feed.invalid[Fault.OLDER]
        await lies.put(next_revision(before))
        while feed.invalid[Fault.OLDER] == seen:
            await asyncio.sleep(0)
        assert book.tenant(tenant) == policy
        following.cancel()


async def test_a_home_that_cannot_be_read_leaves_its_tenant_refused() -> None:
    homes, store = in_memory()
    await homes.begin()
    tenant = homes.tenant
    book = Kept(tenant)
    feed = PolicyFeed(store, book, SystemClock(), trust_in())
    await feed._load()
    await homes.move(A, B)
    item = store.value(layout.head_key(shard_of(A, tenant)))
    assert item is not None
    reads = feed._reread

    async def fail(shard: Shard) -> None:
        if shard.home == B:
            raise StoreUnavailableError("UNAVAILABLE")
        await reads(shard)

    feed._reread = fail
    with pytest.raises(StoreUnavailableError):
        await feed.catch_up(shard_of(A, tenant), item.version)
    assert book.tenant(tenant) is None, "never by the old record"
    assert feed.number(shard_of(A, tenant)) == item.version
    feed._reread = reads
    item = store.value(layout.head_key(shard_of(B, tenant)))
    assert item is not None
    await feed.catch_up(shard_of(B, tenant), item.version)
    policy = book.tenant(tenant)
    assert policy is not None
    assert policy.home == B


class Kept(PolicyBook):
    """Counts how often the tenant had no record."""

    def __init__(self, tenant: TenantId) -> None:
        super().__init__()
        self.dropped = 0
        self.loaded = True
        self._kept = tenant

    def drop_tenant(self, tenant: TenantId) -> None:
        self.dropped += tenant == self._kept and self.tenant(tenant) is not None
        super().drop_tenant(tenant)
