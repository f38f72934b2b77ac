"""A gateway's grant: what its authority counts from, what takes it away, and who else may not have it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from member_lab import ABROAD, HOME, SG, VN, Gateway, World, drain

from mesh.control import layout
from mesh.control.grants import ClonedError, bury
from mesh.control.memberships import Ack, Drain, Grant, decode_ack, decode_grant, encode_ack, encode_grant
from mesh.control.store import Delete, Put, StoreUnavailableError
from mesh.policy.shards import SHARDS, Shard
from mesh.types import GatewayId, RegionId, Revision, TenantId


def grant_of(world: World, gateway: Gateway) -> Grant | None:
    item = world.store.value(layout.grant_key(ABROAD, gateway.membership.member))
    return decode_grant(item.value) if item else None


def ack_of(world: World, gateway: Gateway) -> Ack | None:
    item = world.store.value(layout.ack_key(ABROAD, gateway.membership.member))
    return decode_ack(item.value) if item else None


async def test_authority_counts_from_before_the_asking() -> None:
    async with World().running() as world:
        tenant = await world.tenant()
        gateway = world.gateway()
        await world.clock.advance(0)
        assert gateway.left_s(tenant, SG) == pytest.approx(6)
        gateway.link.arrive.clear()
        await world.clock.advance(3)  # asked at 2, no answer yet
        assert gateway.left_s(tenant, SG) == pytest.approx(3)
        gateway.link.arrive.set()
        await world.clock.advance(0)
        assert gateway.left_s(tenant, SG) == pytest.approx(5)
        assert gateway.membership.grant_age_s == pytest.approx(1)


async def test_whoever_has_authority_is_a_member_already() -> None:
    async with World().running() as world:
        tenant = await world.tenant()
        gateway = world.gateway()
        gateway.link.arrive.clear()
        await world.clock.advance(0)
        assert grant_of(world, gateway) is not None
        assert gateway.left_s(tenant, SG) == 0
        assert gateway.membership.grant_age_s is None
        gateway.link.arrive.set()
        await world.clock.advance(0)
        assert gateway.left_s(tenant, SG) > 0
        assert set((await world.pin(tenant, VN)).members) == {gateway.membership.member}


async def test_it_renews_every_two_seconds_from_start_to_start() -> None:
    async with World().running() as world:
        gateway = world.gateway()
        began_s = world.clock.now_s()
        await world.clock.advance(0)
        gateway.link.arrive.clear()
        await world.clock.advance(2.5)
        gateway.link.arrive.set()
        await world.clock.advance(5.6)
        grants = [at_s - began_s for at_s in gateway.link.asked_at_s if (at_s - began_s) % 2 == 0]
        assert grants[-4:] == [2, 4, 6, 8]
        assert gateway.membership.renewals == 5
        assert gateway.membership.failures == 0


async def test_what_the_watch_tells_is_no_authority() -> None:
    async with World().running() as world:
        tenant = await world.tenant()
        gateway = world.gateway()
        await world.clock.advance(0.5)
        gateway.link.keep_late = True
        for _ in range(5):
            await world.clock.advance(1)
            await world.pin(tenant, VN, SG)
            await world.changes.set_transfer(tenant, "never")  # type: ignore[arg-type]
            await world.changes.set_transfer(tenant, "within_allowed")  # type: ignore[arg-type]
            await world.clock.advance(0)
        policy = gateway.book.tenant(tenant)
        assert policy is not None
        assert gateway.authority.number(policy.shard) == world.store.value(layout.head_key(policy.shard)).version  # type: ignore[union-attr]
        assert gateway.left_s(tenant, SG) == pytest.approx(0.5)
        await world.clock.advance(0.5)
        assert gateway.left_s(tenant, SG) == 0


async def test_a_store_that_is_away_never_stops_renewals() -> None:
    async with World().running() as world:
        tenant = await world.tenant()
        gateway = world.gateway()
        await world.clock.advance(0)
        gateway.link.set_cut(True)
        await world.clock.advance(30)
        assert gateway.left_s(tenant, SG) == 0
        assert gateway.left_s(tenant, VN) == pytest.approx(900 - 30)
        assert gateway.membership.failures >= 10
        gateway.link.set_cut(False)
        await world.clock.advance(2.1)  # one that is on its way has to fail first
        assert gateway.left_s(tenant, SG) > 3


async def test_a_lost_answer_is_found_out_and_costs_no_authority() -> None:
    async with World().running() as world:
        tenant = await world.tenant()
        gateway = world.gateway()
        await world.clock.advance(1)
        member = gateway.membership.member
        world.store.lose_answers = 1
        await world.clock.advance(1.2)
        assert gateway.membership.failures == 1
        assert gateway.membership.member == member
        assert gateway.left_s(tenant, SG) == pytest.approx(6 - 0.1)
        assert gateway.membership.renewals == 2


async def test_the_first_answer_may_be_lost_too() -> None:
    async with World().running() as world:
        tenant = await world.tenant()
        world.store.lose_answers = 1
        gateway = world.gateway()
        await world.clock.advance(0.2)
        assert gateway.left_s(tenant, SG) == pytest.approx(6 - 0.1)


async def test_attempts_without_an_answer_are_not_remembered_without_end() -> None:
    """A day of them is: any may be the one that stands. Then another member begins, which has nothing."""
    async with World().running() as world:
        tenant = await world.tenant()
        gateway = world.gateway()
        await world.clock.advance(0.5)
        first = gateway.membership.member
        gateway.link.keep_late = True
        await world.clock.advance(3)
        # As if a day had gone by; the one that stands in the end is the first.
        gateway.membership._unheard.update(number.to_bytes(16, "big") for number in range(199_990))
        assert (await gateway.link.late[0]()).succeeded
        await world.clock.advance(30)
        assert len(gateway.membership._unheard) < 100
        assert gateway.membership.member != first
        assert gateway.left_s(tenant, VN) == 0
        gateway.link.keep_late = False
        await world.clock.advance(5)
        assert gateway.left_s(tenant, VN) > 0
        assert grant_of(world, gateway) is not None


async def test_an_attempt_that_was_given_up_never_comes_late() -> None:
    async with World().running() as world:
        gateway = world.gateway()
        await world.clock.advance(0.5)
        gateway.link.keep_late = True
        await world.clock.advance(3)
        gateway.link.keep_late = False
        await world.clock.advance(3)
        stands = grant_of(world, gateway)
        assert gateway.link.late
        for late in gateway.link.late:
            assert not (await late()).succeeded
        assert grant_of(world, gateway) == stands


async def test_a_grant_that_was_taken_away_is_not_brought_back_and_another_member_begins() -> None:
    async with World().running() as world:
        tenant = await world.tenant()
        gateway = world.gateway()
        await world.clock.advance(0.5)
        first = gateway.membership.member
        await world.store.txn([], [Delete(layout.grant_key(ABROAD, first))], timeout_s=1)
        gateway.link.arrive.clear()
        await world.clock.advance(1.6)
        gateway.link.arrive.set()
        await asyncio.sleep(0)
        while gateway.membership.member == first:
            await asyncio.sleep(0)
        assert gateway.left_s(tenant, SG) == 0  # from nothing
        await world.clock.advance(0)
        assert gateway.left_s(tenant, SG) == pytest.approx(6)
        assert world.store.value(layout.grant_key(ABROAD, first)) is None
        assert grant_of(world, gateway) is not None
        ack = ack_of(world, gateway)
        assert ack is not None
        assert ack.applied


async def test_a_copy_of_the_process_is_found_out() -> None:
    world = World()
    tenant = await world.tenant()
    gateway, twin = (Gateway(world.store, world.clock, ABROAD) for _ in range(2))
    cloned: list[Gateway] = []
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(_run(gateway, cloned))
        await world.clock.advance(0.5)
        one, other = gateway.membership, twin.membership
        other.member, other._mod_revision, other._last = one.member, one._mod_revision, one._last
        second = tasks.create_task(_run(twin, cloned))
        await world.clock.advance(0)
        assert twin.left_s(tenant, SG) > 0
        await world.clock.advance(1.6)
        assert cloned == [gateway]
        assert first.done()
        assert gateway.left_s(tenant, SG) == 0
        second.cancel()


async def _run(gateway: Gateway, cloned: list[Gateway]) -> None:
    try:
        await gateway.run()
    except* ClonedError:
        cloned.append(gateway)


async def test_two_copies_that_cannot_tell_each_other_apart_by_revision_are_told_by_their_attempts() -> None:
    async with World().running() as world:
        gateway = Gateway(world.store, world.clock, ABROAD)
        with pytest.RaisesGroup(ClonedError, flatten_subgroups=True):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(gateway.run())
                await world.clock.advance(0.5)
                gateway.membership._last = bytes(16)
                await world.clock.advance(2)


async def test_a_store_that_went_back_ends_all_authority_for_good() -> None:
    async with World().running() as world:
        tenant = await world.tenant()
        gateway = world.gateway()
        await world.clock.advance(1)
        gateway.link.set_cut(True)  # so that the feed does not see it first
        backup = world.store.revision
        await world.pin(tenant, VN)
        gateway.link.set_cut(False)
        await world.clock.advance(3)
        gateway.link.set_cut(True)
        world.store.restore(backup)
        gateway.link._open.clear()  # the watch stays cut
        gateway.link.cut = False
        await world.clock.advance(3)
        assert gateway.membership.went_back_once
        assert gateway.left_s(tenant, VN) == 0
        gateway.link.set_cut(False)
        await world.clock.advance(10)
        assert gateway.left_s(tenant, VN) == 0
        with pytest.raises(StoreUnavailableError):
            await gateway.membership.renew()


@pytest.mark.parametrize("what", ["revision", "head", "applied", "cluster", "rewritten", "gone"])
async def test_an_answer_below_what_was_seen_before_the_asking_does_not_count(what: str) -> None:
    async with World().running() as world:
        tenant = await world.tenant()
        gateway = world.gateway()
        await world.clock.advance(1)
        policy = gateway.book.tenant(tenant)
        assert policy is not None
        head = world.store._states[-1][layout.head_key(policy.shard)]
        gateway.link._open.clear()
        match what:
            case "revision":
                gateway.membership._seen.revision += 5
            case "head":
                world.store._states[-1][head.key] = replace(head, version=head.version - 1)
                gateway.membership._applied.clear()
            case "applied":
                gateway.membership.applied(policy.shard, head.version + 1)
            case "cluster":
                world.store.cluster = 2
            case "rewritten":
                world.store._states[-1][head.key] = replace(head, mod_revision=head.mod_revision - 1)
            case _:
                del world.store._states[-1][head.key]
        await world.clock.advance(1.1)
        assert gateway.membership.went_back_once
        assert gateway.left_s(tenant, VN) == 0


async def test_what_the_feed_saw_counts_as_well() -> None:
    async with World().running() as world:
        tenant = await world.tenant()
        gateway = world.gateway()
        await world.clock.advance(1)
        gateway.membership.went_back()
        assert gateway.left_s(tenant, VN) == 0
        await world.clock.advance(4)
        assert gateway.left_s(tenant, VN) == 0


async def test_clocks_that_moved_apart_leave_no_authority_until_the_next_grant() -> None:
    async with World().running() as world:
        tenant = await world.tenant()
        gateway = world.gateway()
        await world.clock.advance(1)
        world.clock.wall_ahead_s += 5
        assert gateway.left_s(tenant, VN) == 0
        gateway.link.set_cut(True)
        await world.clock.advance(3)
        world.clock.wall_ahead_s -= 5  # set back: what was lost stays lost
        assert gateway.left_s(tenant, VN) == 0
        gateway.link.set_cut(False)
        await world.clock.advance(2)
        assert gateway.left_s(tenant, VN) > 890


async def test_clocks_that_moved_apart_begin_another_member_and_the_first_one_is_waited_for() -> None:
    """It may be a copy of a process that lives: that one keeps its grant, and the acknowledgement is its own to put."""
    async with World().running() as world:
        tenant = await world.tenant()
        gateway = world.gateway()
        await world.clock.advance(1.1)
        first, was = gateway.membership.member, ack_of(world, gateway)
        world.clock.wall_ahead_s += 5
        pinned = await world.pin(tenant, VN)
        await world.clock.advance(0.1)
        stands = world.store.value(layout.ack_key(ABROAD, first))
        assert stands is not None
        assert decode_ack(stands.value) == was, "nothing is acknowledged on the other's behalf"
        await world.clock.advance(2)
        assert gateway.membership.member != first
        assert {first} == set(pinned.members)
        assert world.store.value(layout.grant_key(ABROAD, first)) is not None
        assert ack_of(world, gateway) == Ack({pinned.tenant.policy.shard: pinned.number}, {})
        assert gateway.left_s(tenant, VN) > 890


async def test_a_process_whose_grant_another_has_put_acknowledges_nothing() -> None:
    world = World()
    tenant = await world.tenant()
    gateway = Gateway(world.store, world.clock, ABROAD)
    cloned: list[Gateway] = []
    running = asyncio.ensure_future(_run(gateway, cloned))
    await world.clock.advance(0.5)
    was = ack_of(world, gateway)
    key = layout.grant_key(ABROAD, gateway.membership.member)
    copys = Put(key, encode_grant(Grant(GatewayId("gw1"), bytes(16), gateway.membership._last)))
    await world.store.txn([], [copys], timeout_s=1)
    pinned = await world.pin(tenant, VN)
    await world.clock.advance(1)
    assert gateway.membership._applied == {pinned.tenant.policy.shard: pinned.number}
    assert ack_of(world, gateway) == was
    await world.clock.advance(1)
    await running
    assert cloned == [gateway]
    assert ack_of(world, gateway) == was


async def test_an_acknowledgement_that_meets_a_renewal_is_put_once_that_is_answered() -> None:
    async with World().running() as world:
        tenant = await world.tenant()
        gateway = world.gateway()
        await world.clock.advance(1.9)
        gateway.link.arrive.clear()
        await world.clock.advance(0.2)  # the renewal is in the store, and its answer on its way
        pinned = await world.pin(tenant, VN)
        await world.clock.advance(0.1)
        gateway.link.arrive.set()
        await world.clock.advance(0)
        assert ack_of(world, gateway) == Ack({pinned.tenant.policy.shard: pinned.number}, {})


async def test_renewals_that_are_wanted_all_the_time_keep_back_no_acknowledgement() -> None:
    async with World().running() as world:
        tenant = await world.tenant()
        gateway = world.gateway()
        await world.clock.advance(0.5)

        async def want() -> None:
            while True:
                await gateway.membership.renew()

        wanting = [asyncio.ensure_future(want()) for _ in range(2)]
        for _ in range(100):
            await asyncio.sleep(0)
        before = gateway.membership.renewals
        pinned = await world.pin(tenant, VN)
        for _ in range(200):
            await asyncio.sleep(0)
        assert ack_of(world, gateway) == Ack({pinned.tenant.policy.shard: pinned.number}, {})
        assert gateway.membership.renewals > before + 2
        for task in wanting:
            task.cancel()


async def test_what_only_waits_for_replicas_is_told_once_they_have_confirmed_or_a_moment_later() -> None:
    async with World().running() as world:
        tenant = await world.tenant()
        gateway = world.gateway()
        await world.clock.advance(0.5)
        written = gateway.membership._acks.written
        gateway.draining[tenant] = drain(2, 0.0)
        pinned = await world.pin(tenant, VN)
        await world.clock.advance(0.02)
        assert gateway.membership._acks.written == written
        gateway.draining.clear()
        gateway.membership.changed()
        await world.clock.advance(0)
        assert ack_of(world, gateway) == Ack({pinned.tenant.policy.shard: pinned.number}, {})
        assert gateway.membership._acks.written == written + 1
        gateway.draining[tenant] = drain(2, 0.0)
        gateway.membership.changed()
        await world.clock.advance(0.06)
        assert ack_of(world, gateway) == Ack({pinned.tenant.policy.shard: pinned.number}, {tenant: drain(2, 0.0)})


async def test_a_renewal_that_is_wanted_now_begins_now_and_is_shared() -> None:
    async with World().running() as world:
        gateway = world.gateway()
        await world.clock.advance(0.5)
        before = gateway.membership.renewals
        gateway.link.arrive.clear()
        early = asyncio.ensure_future(gateway.membership.renew())
        await world.clock.advance(0.1)
        asked = len(gateway.link.asked_at_s)
        # One is on its way: it may have been answered before these wanted to know, so they share the next.
        late = [asyncio.ensure_future(gateway.membership.renew()) for _ in range(10)]
        await world.clock.advance(0.1)
        assert len(gateway.link.asked_at_s) == asked
        assert not early.done()
        gateway.link.arrive.set()
        await world.clock.advance(0)
        assert early.done()
        await asyncio.gather(*late)
        assert gateway.membership.renewals == before + 2


async def test_a_renewal_that_fails_says_so_and_one_without_a_store_ends_in_time() -> None:
    async with World().running() as world:
        gateway = world.gateway()
        await world.clock.advance(0.5)
        gateway.link.set_cut(True)
        wanted = asyncio.ensure_future(gateway.membership.renew())
        await world.clock.advance(1.6)
        with pytest.raises(StoreUnavailableError):
            await wanted
        world.kill(gateway)
        await world.clock.settle()
        wanted = asyncio.ensure_future(gateway.membership.renew())
        await world.clock.advance(10)
        with pytest.raises(StoreUnavailableError):
            await wanted


async def test_leaving_deletes_both_keys_and_no_renewal_brings_them_back() -> None:
    async with World().running() as world:
        tenant = await world.tenant()
        gateway = world.gateway()
        await world.clock.advance(0.5)
        gateway.link.keep_late = True
        await world.clock.advance(2)  # a renewal that will come late
        gateway.link.keep_late = False
        await gateway.membership.leave()
        assert gateway.left_s(tenant, VN) == 0
        await world.clock.advance(6)
        for late in gateway.link.late:
            assert not (await late()).succeeded
        await world.clock.advance(6)
        assert grant_of(world, gateway) is None
        assert ack_of(world, gateway) is None
        assert gateway.left_s(tenant, VN) == 0


async def test_a_renewal_that_was_on_its_way_when_it_left_grants_nothing() -> None:
    async with World().running() as world:
        tenant = await world.tenant()
        gateway = world.gateway()
        await world.clock.advance(1.9)
        gateway.link.arrive.clear()
        await world.clock.advance(0.2)
        leaving = asyncio.ensure_future(gateway.membership.leave())
        await world.clock.advance(0)
        gateway.link.arrive.set()
        await leaving
        await world.clock.advance(5)
        assert gateway.left_s(tenant, VN) == 0
        assert not [key for key in world.store._states[-1] if key.startswith((*layout.GRANTS, *layout.ACKS))]


async def test_a_successor_buries_earlier_processes_of_its_gateway_and_nobody_else() -> None:
    async with World().running() as world:
        dead, other, abroad = world.gateway(), world.gateway(name="gw2"), world.gateway(RegionId("jp-1"))
        await world.clock.advance(1)
        world.kill(dead)
        heir = world.gateway()
        await world.clock.advance(1)
        heir.link.set_cut(True)
        burying = bury(heir.link, ABROAD, GatewayId("gw1"), heir.membership, world.clock)
        world.spawn(burying, burying)
        await world.clock.advance(7)
        assert grant_of(world, dead) is not None
        heir.link.set_cut(False)  # tried until the store takes it
        await world.clock.advance(12)
        assert grant_of(world, dead) is None
        assert ack_of(world, dead) is None
        assert grant_of(world, other) is not None
        assert grant_of(world, heir) is not None
        assert world.store.value(layout.grant_key(RegionId("jp-1"), abroad.membership.member)) is not None


async def test_a_successor_does_not_bury_what_is_renewed_nor_an_id_that_was_its_own() -> None:
    async with World().running() as world:
        lives, heir = world.gateway(), world.gateway()
        await world.clock.advance(1)
        first = heir.membership.member
        world.clock.wall_ahead_s += 5  # it may be a copy, and its first id another's
        await world.clock.advance(2)
        assert heir.membership.member != first
        member = lives.membership.member
        burying = bury(heir.link, ABROAD, GatewayId("gw1"), heir.membership, world.clock)
        world.spawn(burying, burying)
        await world.clock.advance(6)
        assert world.store.value(layout.grant_key(ABROAD, first)) is not None
        assert lives.membership.member == member


async def test_leaving_without_a_store_ends_in_time() -> None:
    async with World().running() as world:
        gateway = world.gateway()
        await world.clock.advance(0.5)
        gateway.link.set_cut(True)
        leaving = asyncio.ensure_future(gateway.membership.leave())
        await world.clock.advance(2.1)
        assert leaving.done()
        await leaving


async def test_an_acknowledgement_says_what_is_applied_and_what_drains_and_stands_in_the_end() -> None:
    async with World().running() as world:
        tenant = await world.tenant()
        gateway = world.gateway()
        await world.clock.advance(0.5)
        policy = gateway.book.tenant(tenant)
        assert policy is not None
        assert ack_of(world, gateway) == Ack({policy.shard: 1}, {})
        gateway.draining[tenant] = drain(2)
        gateway.link.keep_late = True
        await world.pin(tenant, VN)
        await world.clock.advance(2)
        gateway.link.keep_late = False
        assert ack_of(world, gateway) == Ack({policy.shard: 1}, {})
        await world.clock.advance(3)
        assert ack_of(world, gateway) == Ack({policy.shard: 2}, {tenant: drain(2)})
        gateway.draining.clear()
        gateway.membership.changed()
        await world.clock.advance(0)
        done = ack_of(world, gateway)
        assert done == Ack({policy.shard: 2}, {})
        for late in gateway.link.late:
            await late()
        assert ack_of(world, gateway) == done


async def test_an_acknowledgement_is_written_once_for_one_state_and_not_at_every_change() -> None:
    async with World().running() as world:
        tenant = await world.tenant()
        gateway = world.gateway()
        await world.clock.advance(0.5)
        written = gateway.membership._acks.written
        for _ in range(5):
            gateway.membership.changed()
            await world.clock.advance(0)
        assert gateway.membership._acks.written == written
        gateway.link.arrive.clear()
        for _ in range(20):
            await world.changes.set_transfer(tenant, "never")  # type: ignore[arg-type]
            await world.changes.set_transfer(tenant, "within_allowed")  # type: ignore[arg-type]
            await world.clock.settle()
        gateway.link.arrive.set()
        await world.clock.advance(0)
        assert gateway.membership._acks.written == written + 2
        ack = ack_of(world, gateway)
        assert ack is not None
        assert list(ack.applied.values()) == [41]


shards = st.builds(Shard, st.sampled_from(["vn-1", "sg-1"]).map(RegionId), st.integers(0, SHARDS - 1))
tenants = st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=16, max_size=16).map(lambda text: TenantId("t_" + text))
drains = st.builds(Drain, st.integers(1, 2**62).map(Revision), st.integers(0, 10**8).map(lambda ms: ms / 1000))
acks = st.builds(Ack, st.dictionaries(shards, st.integers(1, 2**62)), st.dictionaries(tenants, drains))


@given(acks)
def test_acknowledgements_are_read_as_they_were_written(ack: Ack) -> None:
    assert decode_ack(encode_ack(ack)) == ack


@given(st.binary(max_size=60))
def test_junk_is_no_acknowledgement_that_says_anything_else(junk: bytes) -> None:
    found = decode_ack(junk)
    assert found is None or decode_ack(encode_ack(found)) == found
    grant = decode_grant(junk)
    assert grant is None or decode_grant(encode_grant(grant)) == grant


@pytest.mark.parametrize(
    ("applied", "draining", "covers"),
    [
        (4, None, False),
        (5, None, True),
        (9, None, True),
        (9, 2, True),  # an older revision than the one that is asked for
        (9, 3, False),
        (9, 7, False),  # a later one: what runs may have been running then
    ],
)
def test_what_an_acknowledgement_covers(applied: int, draining: int | None, covers: bool) -> None:
    tenant, shard = TenantId("t_" + "a" * 16), Shard(HOME, 3)
    other = {TenantId("t_" + "b" * 16): drain(9)}
    ack = Ack({shard: applied}, other | ({tenant: drain(draining)} if draining else {}))
    assert ack.covers(shard, 5, tenant, Revision(3)) is covers
    assert not ack.covers(Shard(HOME, 4), 5, tenant, Revision(3))


def test_a_grant_is_one_in_every_part_or_none() -> None:
    good = Grant(GatewayId("gw1"), bytes(16), b"")
    assert decode_grant(encode_grant(good)) == good
    for bad in (
        replace(good, gateway=GatewayId("no gateway of ours")),
        replace(good, attempt=bytes(15)),
        replace(good, last=bytes(1)),
    ):
        assert decode_grant(encode_grant(bad)) is None
