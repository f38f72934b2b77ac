"""The store model: etcd's rules on its data, and what a client sees of a cluster that breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

import pytest
from sim.client import SimStore
from sim.kv import Data, InvalidError
from sim.net import Trouble
from sim.trial import HEAD, JP, RECORD, SG, VN, Trial
from sim.world import World

from mesh.control import layout
from mesh.control.store import (
    CompactedError,
    Compare,
    Delete,
    Put,
    Range,
    Store,
    StoreDeniedError,
    StoreUnavailableError,
    WatchBatch,
    WatchDown,
    WatchUp,
)
from mesh.types import MemberId, RegionId, Role

CUT = Trouble(cut=True)
GRANT = layout.grant_key(RegionId(VN), MemberId("m"))


def test_versions_and_revisions() -> None:
    data = Data()
    first, _ = data.txn([], [Put("a", b"1"), Put("b", b"1")], [])
    assert (first.revision, data.get("a"), data.get("b")) == (2, data.get("a", 2), data.get("b", 2))
    data.txn([], [Put("a", b"2")], [])
    found = data.get("a")
    assert found is not None
    assert (found.version, found.mod_revision, found.value) == (2, 3, b"2")
    data.txn([], [Delete("a")], [])
    assert data.get("a") is None
    data.txn([], [Put("a", b"3")], [])
    again = data.get("a")
    assert again is not None
    assert (again.version, again.mod_revision) == (1, 5), "begins again, while revisions go on"
    assert [item.value for item in data.range(Range("a", "z", revision=3)).items] == [b"2", b"1"]
    page = data.range(Range("a", "z", limit=1))
    assert ([item.key for item in page.items], page.more) == (["a"], True)


def test_a_transaction_sees_what_it_has_done_and_not_what_it_will_do() -> None:
    data = Data()
    data.txn([], [Put("a", b"1")], [])
    done, events = data.txn(
        [Compare("a", 2), Compare("b", 0)], [Range("a", "z"), Put("a", b"2"), Range("a", "z"), Delete("x", "z")], []
    )
    before, after = done.ranges
    assert (done.succeeded, done.revision) == (True, 3)
    assert (before.revision, [item.value for item in before.items]) == (2, [b"1"])
    assert (after.revision, [item.version for item in after.items]) == (3, [2])
    assert [event.before and event.before.value for event in events] == [b"1"]
    failed, events = data.txn([Compare("a", 2)], [Put("a", b"3")], [Range("a")])
    assert (failed.succeeded, failed.revision, events) == (False, 3, ())
    assert failed.ranges[0].items[0].value == b"2"


@pytest.mark.parametrize("ops", [[Put("a", b""), Put("a", b"")], [Put("b", b""), Delete("a", "c")]])
def test_a_key_is_changed_once_in_a_transaction(ops: list[Put | Delete]) -> None:
    data = Data()
    with pytest.raises(InvalidError):
        data.txn([], ops, [])
    assert data.revision == 1


def test_what_compaction_takes() -> None:
    data = Data()
    for value in (b"1", b"2", b"3"):
        data.txn([], [Put("a", value)], [])
    data.compact(3)
    assert data.range(Range("a", revision=3)).items[0].value == b"2"
    with pytest.raises(CompactedError):
        data.range(Range("a", revision=2))
    with pytest.raises(CompactedError):
        data.since(2, 9, "a", "b")
    told = [event for _, events in data.since(3, 9, "a", "b") for event in events]
    assert [(event.mod_revision, event.before is None) for event in told] == [(3, True), (4, False)]


def test_going_back_uses_revisions_again() -> None:
    data = Data()
    for value in (b"1", b"2", b"3"):
        data.txn([], [Put("a", value), Put(f"b{value[0]}", value)], [])
    data.go_back_to(2)
    assert [item.value for item in data.range(Range("a", "z")).items] == [b"1", b"1"]
    data.txn([], [Put("a", b"other")], [])
    assert [(at, [event.value for event in events]) for at, events in data.since(2, 9, "a", "z")] == [
        (2, [b"1", b"1"]),
        (3, [b"other"]),
    ]


class Lab:
    """Three members, and an admin at the first's site."""

    def __init__(self) -> None:
        self.world = World("store")
        self.cluster = self.world.add_store([VN, SG, JP])
        self.host = self.world.add_host("admin", VN)
        self.gateway = self.world.add_host("gateway", SG)
        self.store = self.world.store_for(self.host, Role.ADMIN, RegionId(VN))

    def play(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        assert self.world.play(main()).errors == ()

    def cut(self, one: str, other: str) -> Callable[[], None]:
        links = [self.world.net.link(one, other), self.world.net.link(other, one)]
        for link in links:
            link.worsen(CUT)

        def mend() -> None:
            for link in links:
                link.heal(CUT)

        return mend


def test_it_is_a_store_and_its_moments_are_fired() -> None:
    lab = Lab()
    store: Store = lab.store

    async def main() -> None:
        await store.txn([], [Put(RECORD, b"1"), Put(HEAD, b"")], timeout_s=4)
        await store.txn([], [Put(GRANT, b"1"), Range(*layout.HEADS)], timeout_s=4)
        took = lab.world.loop.time()
        assert 0.05 < took < 0.2, "two round trips of a quorum"
        assert (await store.range(Range(RECORD), timeout_s=4)).items[0].value == b"1"

    lab.play(main)
    moments = [f"{kind}_{what}" for kind in ("change", "grant") for what in ("sent", "committed", "answered")]
    assert [lab.world.moments.seen[name] for name in moments] == [1] * 6


def test_a_certificate_may_do_what_its_role_says() -> None:
    lab = Lab()

    async def main() -> None:
        gateway = lab.world.store_for(lab.gateway, Role.GATEWAY, RegionId(SG))
        foreign = lab.world.store_for(lab.gateway, Role.ADMIN, RegionId(SG))
        for store, put in ((gateway, RECORD), (gateway, GRANT), (foreign, RECORD), (foreign, HEAD)):
            with pytest.raises(StoreDeniedError):
                await store.txn([], [Put(put, b"")], timeout_s=4)
        await gateway.txn([], [Put(layout.grant_key(RegionId(SG), MemberId("m")), b"")], timeout_s=4)
        await gateway.range(Range(*layout.FEED), timeout_s=4)
        with pytest.raises(StoreDeniedError):
            await gateway.range(Range("/mesh/", "/mesh0"), timeout_s=4)
        assert lab.cluster.data.revision == 2

    lab.play(main)


def test_without_a_quorum_nothing_commits_and_it_may_yet() -> None:
    lab = Lab()

    async def main() -> None:
        heal = [lab.cut(f"etcd-{VN}", f"etcd-{SG}"), lab.cut(f"etcd-{VN}", f"etcd-{JP}")]
        heal.append(lab.cut(f"etcd-{SG}", f"etcd-{JP}"))
        with pytest.raises(StoreUnavailableError):
            await lab.store.txn([], [Put(RECORD, b"late")], timeout_s=2)
        with pytest.raises(StoreUnavailableError):
            await lab.store.range(Range(RECORD), timeout_s=2)
        assert lab.cluster.data.revision == 1
        for mended in heal:
            mended()
        await asyncio.sleep(5)
        assert lab.cluster.data.get(RECORD) is not None, "nobody waits for it, and it has run"

    lab.play(main)


def test_another_member_leads_when_the_leader_is_alone() -> None:
    lab = Lab()

    async def main() -> None:
        old = lab.cluster.leader
        lab.cut(f"etcd-{VN}", f"etcd-{SG}")
        lab.cut(f"etcd-{VN}", f"etcd-{JP}")
        with pytest.raises(StoreUnavailableError):
            await lab.store.txn([], [Put(RECORD, b"1")], timeout_s=1)
        await asyncio.sleep(3)
        assert lab.cluster.leader is not old
        await lab.store.txn([], [Put(RECORD, b"2")], timeout_s=4)

    lab.play(main)


def test_an_answer_that_is_lost_says_nothing() -> None:
    lab = Lab()

    async def main() -> None:
        lab.cluster.lose_answers = 1
        with pytest.raises(StoreUnavailableError):
            await lab.store.txn([], [Put(RECORD, b"1")], timeout_s=2)
        assert lab.cluster.data.get(RECORD) is not None

    lab.play(main)


async def told(store: SimStore, start: int, upto: int) -> tuple[list[tuple[int, bytes | None]], list[str]]:
    """What a watch tells up to a revision, and what else happened to it."""
    got: list[tuple[int, bytes | None]] = []
    news: list[str] = []
    async with aclosing(store.watch(*layout.FEED, start)) as watch:
        async for one in watch:
            match one:
                case WatchBatch(events):
                    got += [(event.mod_revision, event.value) for event in events]
                    if got[-1][0] >= upto:
                        return got, news
                case WatchUp():
                    news.append("up")
                case WatchDown():
                    news.append("down")
    raise AssertionError


@pytest.mark.parametrize("fault", ["none", "cut watches", "wire", "member off", "lag", "alone"])
def test_a_watch_tells_everything_once_whatever_breaks(fault: str) -> None:
    lab = Lab()

    async def main() -> None:
        store = lab.world.store_for(lab.gateway, Role.GATEWAY, RegionId(SG))
        near = next(member for member in lab.cluster.members if member.host.site == SG)
        match fault:
            case "cut watches":
                for at in range(1, 9):
                    lab.world.net.later(at * 2.0, lab.cluster.cut_watches)
            case "wire":
                lab.world.net.later(5, lab.cut, "gateway", f"etcd-{SG}")
            case "member off":
                lab.world.net.later(5, setattr, near.host, "on", False)
            case "lag":
                near.lag_s = 7.0
            case "alone":
                lab.world.net.later(5, lab.cut, f"etcd-{VN}", f"etcd-{SG}")
                lab.world.net.later(5, lab.cut, f"etcd-{JP}", f"etcd-{SG}")
            case _:
                pass

        async def write() -> None:
            for at in range(20):
                await lab.store.txn([], [Put(RECORD, bytes([at])), Put(HEAD, b"")], timeout_s=4)
                await asyncio.sleep(1)

        writing = lab.world.loop.create_task(write())
        async with asyncio.timeout(120):
            got, news = await told(store, 2, 21)
        await writing
        assert got == [(at + 2, value) for at in range(20) for value in (bytes([at]), b"")]
        assert news.count("down") == {"none": 0, "lag": 0, "cut watches": 8}.get(fault, 1)

    lab.play(main)


def test_a_watch_on_what_was_compacted_fails() -> None:
    lab = Lab()

    async def main() -> None:
        for at in range(5):
            await lab.store.txn([], [Put(RECORD, bytes([at]))], timeout_s=4)
        lab.cluster.compact(5)
        with pytest.raises(CompactedError):
            await told(lab.store, 3, 9)
        assert (await told(lab.store, 5, 6))[0] == [(5, bytes([3])), (6, bytes([4]))]

    lab.play(main)


def test_a_restored_backup_is_older_and_another_cluster() -> None:
    lab = Lab()

    async def main() -> None:
        for at in range(5):
            await lab.store.txn([], [Put(RECORD, bytes([at]))], timeout_s=4)
        cluster_id = lab.cluster.cluster_id
        lab.cluster.restore(3)
        answer = await lab.store.range(Range(RECORD), timeout_s=4)
        assert (answer.revision, answer.items[0].value) == (3, bytes([1]))
        assert lab.cluster.cluster_id != cluster_id
        assert (await lab.store.txn([], [Put(RECORD, b"new")], timeout_s=4)).revision == 4

    lab.play(main)


@pytest.mark.parametrize("seed", range(40, 52))
def test_followers_end_where_the_store_is(seed: int) -> None:
    trial = Trial(seed, settle_s=40.0)
    assert trial.run().errors == ()
    held = trial.cluster.data.range(Range(*layout.FEED)).items
    assert held
    for known in trial.known.values():
        assert known == {item.key: item.value for item in held}
