"""The watch and the feed on a real etcd that is cut off, killed and compacted: no event is lost, none comes twice."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import aclosing
from pathlib import Path

import pytest
from etcd_lab import Lab, Proxy, running_etcd
from trust_lab import changes_in, trust_in
from waiting import eventually

from mesh.control.changes import Changes
from mesh.control.feed import PolicyFeed
from mesh.control.roles import set_up
from mesh.control.store import (
    CompactedError,
    Put,
    Range,
    Store,
    StoreError,
    StoreUnavailableError,
    WatchBatch,
    WatchDown,
    WatchUp,
    prefix_end,
)
from mesh.errors import Code, MeshError
from mesh.policy.bundle import PolicyBook
from mesh.types import Jurisdiction, KeyId, RegionId, Role, TenantState, Transfer

HOME = RegionId("vn-1")
VN, BOTH = frozenset({Jurisdiction("VN")}), frozenset({Jurisdiction("VN"), Jurisdiction("SG")})


async def collect(store: Store, start: int, count: int, downs: list[str] | None = None) -> list[int]:
    """The numbers in the values of the first `count` events under /w/."""
    seen: list[int] = []
    async with aclosing(store.watch("/w/", "/w0", start)) as watch:
        async for news in watch:
            if isinstance(news, WatchBatch):
                seen.extend(int(event.value or b"-1") for event in news.events)
                if len(seen) >= count:
                    return seen
            elif isinstance(news, WatchDown) and downs is not None:
                downs.append(news.reason)
    raise AssertionError("a watch does not end")


async def test_a_connection_cut_in_the_middle_of_catching_up_loses_nothing(tmp_path: Path) -> None:
    async with running_etcd(tmp_path) as lab, Proxy(lab.etcd.port).running() as proxy:
        root, far = await lab.root(), await lab.root(proxy.endpoint)
        first = (await root.range(Range("/w/"), timeout_s=30)).revision + 1
        for at in range(0, 1000, 50):
            # 50 keys a revision, of 2 KB each: many messages, some of them in fragments.
            puts = [Put(f"/w/{at + n}", b"%d" % (at + n) + b" " * 2000) for n in range(50)]
            await root.txn([], puts, timeout_s=30)
        await far.range(Range("/w/"), timeout_s=30)
        downs: list[str] = []
        proxy.cut_after(600_000)
        assert await collect(far, first, 1000, downs) == list(range(1000))
        assert proxy.cuts == 1
        assert len(downs) == 1


async def test_a_message_in_fragments_counts_when_it_is_whole(tmp_path: Path) -> None:
    async with running_etcd(tmp_path) as lab:
        root = await lab.root()
        first = (await root.range(Range("/w/"), timeout_s=30)).revision + 1
        for at in range(0, 30, 10):
            await root.txn(
                [], [Put(f"/w/{at + n}", b"%d" % (at + n) + b" " * 100_000) for n in range(10)], timeout_s=30
            )
        async with aclosing(root.watch("/w/", "/w0", first)) as watch:
            batches: list[WatchBatch] = []
            async for news in watch:
                if isinstance(news, WatchBatch):
                    batches.append(news)
                    if sum(len(batch.events) for batch in batches) == 30:
                        break
        for batch in batches:
            revisions = [event.mod_revision for event in batch.events]
            assert all(revisions.count(revision) == 10 for revision in revisions)


async def test_a_store_that_is_killed_while_written_loses_nothing(tmp_path: Path) -> None:
    async with running_etcd(tmp_path) as lab:
        root = await lab.root()
        first = (await root.range(Range("/w/"), timeout_s=30)).revision + 1
        written: set[int] = set()

        async def write() -> None:
            number = 0
            while len(written) < 400:
                number += 1
                try:
                    await root.txn([], [Put(f"/w/{number}", b"%d" % number)], timeout_s=1)
                except StoreUnavailableError:
                    await asyncio.sleep(0.02)  # etcd is away
                else:
                    written.add(number)

        async def kill() -> None:
            await eventually(lambda: len(written) >= 150)
            lab.etcd.kill()
            lab.etcd.start()

        seen: list[int] = []
        last: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def watch_all() -> None:
            async with aclosing(root.watch("/w/", "/w0", first)) as watch:
                async for news in watch:
                    if isinstance(news, WatchBatch):
                        seen.extend(int(event.value or b"-1") for event in news.events)
                        if last.done() and last.result() in seen:
                            return

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watch_all())
            async with asyncio.TaskGroup() as writers:
                writers.create_task(write())
                writers.create_task(kill())
            await root.txn([], [Put("/w/last", b"1000000")], timeout_s=20)
            last.set_result(1_000_000)
            # One more, so that a watch that had seen the last one already looks again.
            await root.txn([], [Put("/w/end", b"1000001")], timeout_s=20)
        assert written <= set(seen)
        assert len(seen) == len(set(seen))


async def test_a_compacted_watch_says_so(tmp_path: Path) -> None:
    async with running_etcd(tmp_path) as lab:
        root = await lab.root()
        first = (await root.range(Range("/w/"), timeout_s=30)).revision + 1
        for number in range(10):
            await root.txn([], [Put("/w/x", b"%d" % number)], timeout_s=30)
        await root.compact(first + 5, timeout_s=30)
        with pytest.raises(CompactedError) as gone:
            await collect(root, first, 10)
        assert gone.value.revision == first + 5


async def changes_of(lab: Lab) -> Changes:
    return changes_in(await lab.store(HOME, Role.ADMIN), HOME, lab.clock)


async def same_as_store(lab: Lab, book: PolicyBook, changes: Changes) -> None:
    """The book is what the store holds."""
    policies = {record.policy.tenant: record.policy for record in await changes.tenants()}
    assert {policy.tenant: policy for policy in book.tenants()} == policies
    keys = {key.key.key_id: key.key for tenant in policies for key in await changes.keys(tenant)}
    assert {key.key_id: key for key in book.all_keys()} == keys


async def mix(changes: Changes, number: int) -> None:
    """Some changes of one tenant."""
    tenant = (await changes.create_tenant(number.to_bytes(16, "big"), VN, Transfer.NEVER)).tenant.policy.tenant
    key_id = KeyId(f"key{number:09d}")
    await changes.create_key(tenant, key_id, "sha256$00")
    await changes.set_allowed(tenant, BOTH)
    if number % 2:
        await changes.revoke_key(key_id)
    else:
        await changes.set_state(tenant, TenantState.SUSPENDED)


@pytest.mark.timeout(60)
async def test_a_member_that_falls_silent_is_left_for_another(tmp_path: Path) -> None:
    """Nothing is closed: only a ping tells. Found within this test's own time limit, which is less than grpc's minute."""
    async with running_etcd(tmp_path) as lab, Proxy(lab.etcd.port).running() as proxy:
        root, far = await lab.root(), await lab.root(proxy.endpoint, lab.etcd.endpoint)
        first = (await root.range(Range("/w/"), timeout_s=30)).revision + 1
        async with aclosing(far.watch("/w/", "/w0", first)) as watch:
            assert isinstance(await anext(watch), WatchUp)
            proxy.hold()
            await root.txn((), [Put("/w/1", b"1")], timeout_s=30)
            assert isinstance(await anext(watch), WatchDown)
            assert isinstance(await anext(watch), WatchUp)
            batch = await anext(watch)
            assert isinstance(batch, WatchBatch)
            assert [event.key for event in batch.events] == ["/w/1"]


async def test_the_feed_survives_cuts_a_kill_and_compaction(tmp_path: Path) -> None:
    async with running_etcd(tmp_path) as lab, Proxy(lab.etcd.port).running() as proxy:
        changes, root = await changes_of(lab), await lab.root()
        book = PolicyBook()
        feed = PolicyFeed(await lab.store(HOME, Role.GATEWAY, proxy.endpoint), book, lab.clock, trust_in())
        for number in range(5):
            await mix(changes, number)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(feed.run())

            async def caught_up() -> None:
                # Only heads, ops and policies are told of, so the newest of those is what to wait for.
                everything = await root.range(Range("/mesh/head/", "/mesh/policy0"), timeout_s=20)
                newest = max(item.mod_revision for item in everything.items)
                await eventually(lambda: feed.applied >= newest)
                await same_as_store(lab, book, changes)

            await caught_up()
            assert book.loaded
            await eventually(lambda: feed.live)
            for number in range(5, 15):
                if number % 3 == 0:
                    proxy.cut_now()
                await mix(changes, number)
            await caught_up()
            assert feed.gaps == 0, "a cut connection is no gap"

            lab.etcd.kill()
            await eventually(lambda: not feed.live)
            assert len(list(book.tenants())) == 15, "the last good policy stays"
            lab.etcd.start()
            await root.range(Range("/ready"), timeout_s=30)
            await mix(changes, 15)
            await caught_up()

            async with asyncio.TaskGroup() as away:
                # While no connection lasts, history moves on and is forgotten.
                cutting = away.create_task(_keep_cutting(proxy))
                for number in range(16, 20):
                    await mix(changes, number)
                now = (await root.range(Range("/ready"), timeout_s=30)).revision
                await root.compact(now, timeout_s=30)
                cutting.cancel()
            await mix(changes, 20)
            await caught_up()
            running.cancel()


async def test_the_feed_follows_a_store_that_began_anew(tmp_path: Path) -> None:
    async with running_etcd(tmp_path) as lab:
        changes, book = await changes_of(lab), PolicyBook()
        feed = PolicyFeed(await lab.store(HOME, Role.GATEWAY), book, lab.clock, trust_in())
        for number in range(5):
            await mix(changes, number)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(feed.run())
            await eventually(lambda: feed.live)
            before = feed.applied
            lab.etcd.kill()
            await eventually(lambda: not feed.live)
            shutil.rmtree(tmp_path / "data")
            lab.etcd.start()
            await set_up_again(lab)
            with pytest.raises(MeshError) as refused:
                await changes.create_tenant(b"n" * 16, VN, Transfer.NEVER)
            assert refused.value.code is Code.POLICY_STORE_UNAVAILABLE, "who saw the lost history changes nothing"
            changes = await changes_of(lab)
            tenant = (await changes.create_tenant(b"n" * 16, VN, Transfer.NEVER)).tenant.policy.tenant
            await eventually(lambda: book.tenant(tenant) is not None)
            assert feed.applied < before, "the new history has not got as far as the old one had"
            assert [policy.tenant for policy in book.tenants()] == [tenant]
            running.cancel()


async def set_up_again(lab: Lab) -> None:
    root = await lab.root()
    while True:
        try:
            await set_up(root, [HOME])
        except StoreError:
            await asyncio.sleep(0.1)  # it is starting
        else:
            return


async def _keep_cutting(proxy: Proxy) -> None:
    while True:
        proxy.cut_now()
        await asyncio.sleep(0)


async def test_a_change_that_changes_nothing_writes_nothing(tmp_path: Path) -> None:
    async with running_etcd(tmp_path) as lab:
        changes, root = await changes_of(lab), await lab.root()
        made = await changes.create_tenant(bytes(16), VN, Transfer.NEVER)
        tenant = made.tenant.policy.tenant
        assert (made.changed, made.tenant.policy.revision) == (True, 1)
        before = (await root.range(Range("/ready"), timeout_s=30)).revision
        for same in (
            await changes.create_tenant(bytes(16), BOTH, Transfer.NEVER),
            await changes.set_allowed(tenant, VN),
            await changes.set_state(tenant, TenantState.ACTIVE),
        ):
            assert (same.changed, same.tenant) == (False, made.tenant)
        assert (await root.range(Range("/ready"), timeout_s=30)).revision == before
        first, second = KeyId("A" * 12), KeyId("B" * 12)
        assert (await changes.create_key(tenant, first, "sha256$00")).tenant.policy.revision == 2
        assert (await changes.create_key(tenant, second, "sha256$11")).tenant.policy.revision == 3
        revoked = await changes.revoke_key(first)
        assert revoked.tenant.policy.revision == 4
        again = await changes.revoke_key(first)
        assert (again.tenant, again.key, again.changed) == (revoked.tenant, revoked.key, False)
        assert [key.key.revoked for key in await changes.keys(tenant)] == [True, False]
        heads = await root.range(Range("/mesh/head/", prefix_end("/mesh/head/")), timeout_s=30)
        assert [head.version for head in heads.items] == [4], "one head, one more with each change"
        for unknown in (changes.revoke_key(KeyId("C" * 12)), changes.keys(tenant)):
            try:
                assert await unknown
            except MeshError as error:
                assert error.code is Code.KEY_NOT_FOUND


async def test_changes_of_one_tenant_at_once_all_count(tmp_path: Path) -> None:
    async with running_etcd(tmp_path) as lab:
        changes = await changes_of(lab)
        tenant = (await changes.create_tenant(bytes(16), VN, Transfer.NEVER)).tenant.policy.tenant
        made = await asyncio.gather(
            *(changes.create_key(tenant, KeyId(f"key{number:09d}"), "sha256$00") for number in range(4))
        )
        assert sorted(outcome.tenant.policy.revision for outcome in made) == [2, 3, 4, 5]
        assert len(await changes.keys(tenant)) == 4
