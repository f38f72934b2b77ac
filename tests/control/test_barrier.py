"""The return rule of a pin: whom it waits for, what counts as an answer, and when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

import pytest
from manual_clock import ManualClock
from member_lab import ABROAD, BOTH, HOME, SG, VN, Gateway, World, drain
from trust_lab import trust_in

from mesh.control import layout
from mesh.control.barrier import Barrier, Standing
from mesh.control.history import StoreHistory
from mesh.control.members import Members
from mesh.control.memberships import Ack, Grant, encode_ack, encode_grant
from mesh.control.store import Delete, Put, TxnResult
from mesh.control.sweep import MemberSweeper
from mesh.errors import Code, MeshError
from mesh.policy.authority import wait_s
from mesh.policy.bundle import Spans
from mesh.policy.shards import shard_of
from mesh.runtime import TaskGroupTasks
from mesh.types import GatewayId, KeyId, MemberId, RegionId, TenantId, TenantState, Transfer

W = wait_s(6.0)


async def two(world: World) -> tuple[TenantId, Gateway, Gateway]:
    """A tenant, and a gateway at home and abroad that have authority."""
    tenant = await world.tenant()
    home, abroad = world.gateway(HOME), world.gateway(ABROAD)
    await world.clock.advance(1.5)
    assert min(home.left_s(tenant, VN), abroad.left_s(tenant, SG)) > 0
    return tenant, home, abroad


async def cut_off(gateway: Gateway) -> None:
    """Right after it was granted authority, before the admin could see that."""
    await gateway.membership.renew()
    gateway.link.set_cut(True)


async def test_it_returns_when_every_member_has_acknowledged_by_one_read_after_the_last() -> None:
    async with World().running() as world:
        tenant, _home, abroad = await two(world)
        outcome = await world.pin(tenant, VN)
        abroad.link.arrive.clear()  # its acknowledgement is put, and it does not know
        reads = world.admin.txns
        told = world.wait(outcome)
        await world.clock.advance(0)
        assert told.state.done
        assert told.state.current
        assert set(told.standings()) == {Standing.ACKNOWLEDGED}
        assert told.state.waited_ms == 0
        assert world.admin.txns - reads <= 2
        assert [state.done for state in told.states[:-1]] == [False] * (len(told.states) - 1)


async def test_each_acknowledgement_is_told_and_after_the_last_nothing_is_asked_any_more() -> None:
    async with World().running() as world:
        tenant, home, abroad = await two(world)
        for gateway in (home, abroad):
            gateway.draining[tenant] = drain(2)
        outcome = await world.pin(tenant, VN)
        told = world.wait(outcome)
        await world.clock.advance(0)
        assert set(told.standings()) == {Standing.DRAINING}
        assert [member.left_s for member in told.state.members] == [pytest.approx(5)] * 2
        reads = world.admin.txns
        home.draining.clear()
        home.membership.changed()
        await world.clock.advance(0)
        assert sorted(told.standings()) == ["acknowledged", "draining"]
        assert world.admin.txns == reads
        abroad.draining.clear()
        abroad.membership.changed()
        await world.clock.advance(0)
        assert told.state.done
        assert told.state.current
        assert world.admin.txns == reads


async def _another(world: World, tenant: TenantId) -> None:
    await world.changes.create_key(tenant, KeyId("key000000001"), "sha256$00")


async def _given_back(world: World, tenant: TenantId) -> None:
    await world.pin(tenant, VN, SG)


async def _break(world: World, tenant: TenantId) -> None:
    world.store.cut()


@pytest.mark.parametrize(
    ("happens", "superseded"), [(_break, False), (_another, False), (_given_back, True)], ids=["break", "key", "back"]
)
async def test_what_a_watch_has_told_counts_only_where_it_is_all_that_happened(
    happens: Callable[[World, TenantId], Awaitable[None]], superseded: bool
) -> None:
    """Across a break nobody knows what else happened; and what the record says now must be read."""
    async with World().running() as world:
        tenant, home, abroad = await two(world)
        for gateway in (home, abroad):
            gateway.draining[tenant] = drain(2)
        outcome = await world.pin(tenant, VN)
        told = world.wait(outcome)
        await world.clock.advance(0)
        reads = world.admin.txns
        await happens(world, tenant)
        for gateway in (home, abroad):
            gateway.draining.clear()
            gateway.membership.changed()
        await world.clock.advance(0)
        assert (told.state.done, told.state.superseded) == (not superseded, superseded)
        assert world.admin.txns == reads + 1


async def test_what_drains_of_a_later_revision_is_not_acknowledged() -> None:
    async with World().running() as world:
        tenant, _home, abroad = await two(world)
        outcome = await world.pin(tenant, VN)
        abroad.draining[tenant] = drain(int(outcome.revision) + 1)
        later = await world.changes.set_transfer(tenant, Transfer.NEVER)
        told, after = world.wait(outcome), world.wait(later)
        await world.clock.advance(0.5)
        assert sorted(told.standings()) == ["acknowledged", "draining"]
        assert sorted(after.standings()) == ["acknowledged", "draining"]


async def test_a_member_that_says_nothing_is_waited_for_exactly_as_long_as_it_may_act() -> None:
    async with World().running() as world:
        tenant, _home, abroad = await two(world)
        await cut_off(abroad)
        told = world.wait(await world.pin(tenant, VN))
        await world.clock.advance(W - 0.01)
        assert not told.state.done
        assert sorted(told.standings()) == ["acknowledged", "waiting"]
        waiting = next(member for member in told.state.members if not member.accounted)
        assert 0 < waiting.left_s <= 1.2
        assert waiting.until_s == pytest.approx(world.clock.wall_s(), abs=0.02)
        assert abroad.left_s(tenant, SG) == 0
        await world.clock.advance(0.02)
        assert told.state.done
        assert sorted(told.standings()) == ["acknowledged", "timed_out"]
        assert told.state.waited_ms == pytest.approx(W * 1000, abs=15)


@pytest.mark.parametrize("back", [False, True])
async def test_when_the_timer_is_over_no_answer_is_waited_for_unless_the_record_was_put(back: bool) -> None:
    async with World().running() as world:
        tenant, _home, abroad = await two(world)
        await cut_off(abroad)
        told = world.wait(await world.pin(tenant, VN))
        await world.clock.advance(W - 0.3)
        if back:
            await world.pin(tenant, VN, SG)
        else:
            world.admin.arrive.clear()
        await world.clock.advance(0.32)
        assert (told.state.done, told.state.superseded) == (not back, back)
        assert told.state.current
        assert told.state.waited_ms <= W * 1000 + 15


@pytest.mark.parametrize("raw_rate", [0.9, 1.1])
async def test_the_slower_of_the_clocks_counts(raw_rate: float) -> None:
    async with World(ManualClock(raw_rate)).running() as world:
        tenant, _home, abroad = await two(world)
        await cut_off(abroad)
        told = world.wait(await world.pin(tenant, VN))
        slower = W / min(1.0, raw_rate)
        await world.clock.advance(slower - 0.02)
        assert not told.state.done
        await world.clock.advance(0.05)
        assert told.state.done


async def test_the_longest_span_that_is_affected_counts_also_one_that_was_lowered() -> None:
    async with World().running() as world:
        tenant, _home, abroad = await two(world)
        await world.changes.set_authority(tenant, Spans(home_s=900.0, foreign_s=20.0))
        await world.clock.advance(3)
        await world.changes.set_authority(tenant, Spans(home_s=900.0, foreign_s=3.0))
        await cut_off(abroad)
        told = world.wait(await world.pin(tenant, VN))
        await world.clock.advance(wait_s(20) - 0.05)
        assert not told.state.done
        await world.clock.advance(0.1)
        assert told.state.done


async def test_it_tells_something_at_least_once_a_second() -> None:
    async with World().running() as world:
        tenant, _home, abroad = await two(world)
        abroad.link.set_cut(True)
        told = world.wait(await world.pin(tenant, VN))
        for cut in (False, True):
            world.admin.set_cut(cut)
            for _ in range(2):
                before = len(told.states)
                await world.clock.advance(1.05)
                assert len(told.states) > before
        reads = world.admin.txns
        await world.clock.advance(1)
        assert world.admin.txns <= reads + 2  # and does not spin


@pytest.mark.parametrize("silent_s", [W + 1.2, W - 1.3])
async def test_a_member_that_was_silent_for_long_enough_costs_no_wait(silent_s: float) -> None:
    async with World().running() as world:
        tenant, _home, abroad = await two(world)
        await world.clock.advance(3)  # renewed since it was first seen
        world.kill(abroad)
        await world.clock.advance(silent_s)
        told = world.wait(await world.pin(tenant, VN))
        await world.clock.advance(0)
        assert told.state.done is (silent_s > W)
        await world.clock.advance(3)
        assert told.state.done  # by then it was silent for W, and that is all it takes
        assert sorted(told.standings()) == ["acknowledged", "lapsed" if silent_s > W else "timed_out"]


async def test_an_admin_that_has_just_started_has_seen_nobody_be_silent() -> None:
    async with World().running() as world:
        tenant, _home, abroad = await two(world)
        world.kill(abroad)
        await world.clock.advance(60)
        world.kill(world.members)
        members = Members(world.admin, world.clock, TaskGroupTasks)
        world.barrier = Barrier(store=world.admin, region=HOME, members=members, trust=trust_in(), clock=world.clock)
        world.spawn(members, members.run())
        await world.clock.advance(2)
        told = world.wait(await world.pin(tenant, VN))
        await world.clock.advance(W - 2.1)
        assert not told.state.done
        await world.clock.advance(0.3)
        assert told.state.done
        assert sorted(told.standings()) == ["acknowledged", "timed_out"]


async def test_a_grant_that_was_renewed_unseen_is_not_silent() -> None:
    async with World().running() as world:
        tenant, _home, abroad = await two(world)
        abroad.link.set_cut(True)
        await world.clock.advance(W + 1)
        world.admin.set_cut(True)
        await world.clock.advance(1.5)
        # It comes back for one renewal, and the admin, which cannot see it, commits by another way.
        abroad.link.set_cut(False)
        abroad.link._open.clear()
        await world.clock.advance(2.5)
        assert abroad.left_s(tenant, SG) > 0
        abroad.link.set_cut(True)
        outcome = await world.pin(tenant, VN)
        world.admin.set_cut(False)
        told = world.wait(outcome)
        await world.clock.advance(0.3)
        assert not told.state.done
        assert abroad.left_s(tenant, SG) > 0
        await world.clock.advance(W)
        assert told.state.done


async def test_a_member_that_nobody_had_seen_yet_is_waited_for() -> None:
    async with World().running() as world:
        tenant, _home, _ = await two(world)
        late = world.gateway(ABROAD, "gw2")
        late.link._open.clear()
        await world.clock.advance(0)  # granted between two looks of the admin
        late.link.set_cut(True)
        outcome = await world.pin(tenant, VN)
        assert late.membership.member in outcome.members
        told = world.wait(outcome)
        await world.clock.advance(3)
        assert not told.state.done
        assert late.left_s(tenant, SG) > 0


async def test_strict_takes_no_timer_and_no_silence_but_that_a_member_is_gone() -> None:
    async with World().running() as world:
        tenant, _home, abroad = await two(world)
        world.kill(abroad)
        await world.clock.advance(W + 2)
        told = world.wait(await world.pin(tenant, VN), strict=True)
        await world.clock.advance(3 * W)
        assert not told.state.done
        assert sorted(told.standings()) == ["acknowledged", "waiting"]
        assert [member.left_s for member in told.state.members] == [0, 0]
        there = Barrier(store=world.store, region=ABROAD, members=world.members, trust=trust_in(), clock=world.clock)
        assert await there.attest(abroad.membership.member) == "gw1"
        await world.clock.advance(1.1)
        assert told.state.done
        assert sorted(told.standings()) == ["acknowledged", "lapsed"]


async def test_patience_ends_a_wait_and_not_the_change() -> None:
    async with World().running() as world:
        tenant, _home, abroad = await two(world)
        abroad.link.set_cut(True)
        outcome = await world.pin(tenant, VN)
        told = world.wait(outcome, deadline_s=2.5)
        await world.clock.advance(2.4)
        assert not told.state.over
        await world.clock.advance(0.2)
        assert told.state.out_of_patience
        assert not told.state.done
        assert [state.over for state in told.states].count(True) == 1
        again = world.wait(outcome)
        await world.clock.advance(W - 2.5)
        assert again.state.done


async def test_a_wait_that_is_left_leaves_nothing_behind() -> None:
    async with World().running() as world:
        tenant, _home, abroad = await two(world)
        abroad.link.set_cut(True)
        outcome = await world.pin(tenant, VN)
        async with aclosing(world.barrier.wait(outcome)) as states:
            async for state in states:
                assert not state.done
                break
        told = world.wait(outcome)
        await world.clock.advance(1)
        world.kill(told)
        await world.clock.advance(1)
        assert not world.members._waiting


async def test_without_a_store_a_wait_ends_by_its_timer() -> None:
    async with World().running() as world:
        tenant, _home, abroad = await two(world)
        abroad.link.set_cut(True)
        outcome = await world.pin(tenant, VN)
        world.admin.set_cut(True)
        told = world.wait(outcome)
        await world.clock.advance(W - 0.01)
        assert not told.state.done
        await world.clock.advance(1.1)  # one more try to read
        assert told.state.done
        assert not told.state.current
        assert set(told.standings()) == {Standing.TIMED_OUT}


async def test_without_a_store_no_acknowledgement_ends_a_wait() -> None:
    async with World().running() as world:
        tenant, _home, _abroad = await two(world)
        outcome = await world.pin(tenant, VN)
        await world.clock.advance(0)  # all acknowledgements are heard of
        world.admin.set_cut(True)
        told = world.wait(outcome)
        await world.clock.advance(3)
        assert set(told.standings()) == {Standing.ACKNOWLEDGED}
        assert not told.state.done
        world.admin.set_cut(False)
        await world.clock.advance(1.1)
        assert told.state.done


@pytest.mark.parametrize(
    ("first", "then", "superseded"),
    [
        ("pin", ["allow"], True),
        ("pin", ["allow", "pin"], True),
        ("pin", ["suspend"], False),
        ("pin", ["key"], False),
        ("suspend", ["resume"], True),
        ("suspend", ["resume", "suspend"], True),
        ("suspend", ["key"], False),
        ("suspend", ["pin"], False),
        ("transfer", ["transfer_on"], True),
        ("transfer", ["transfer_on", "transfer"], True),
        ("transfer", ["key"], False),
        ("lower", ["raise"], True),
        ("lower", ["lower_more"], True),
        ("lower", ["key"], False),
    ],
)
async def test_what_a_later_change_gave_back_is_superseded(first: str, then: list[str], superseded: bool) -> None:
    async with World().running() as world:
        tenant, _home, _abroad = await two(world)
        changes = world.changes
        keys = iter(range(10))

        def change(name: str):
            match name:
                case "pin":
                    return world.pin(tenant, VN)
                case "allow":
                    return world.pin(tenant, VN, SG)
                case "suspend":
                    return changes.set_state(tenant, TenantState.SUSPENDED)
                case "resume":
                    return changes.set_state(tenant, TenantState.ACTIVE)
                case "transfer":
                    return changes.set_transfer(tenant, Transfer.NEVER)
                case "transfer_on":
                    return changes.set_transfer(tenant, Transfer.WITHIN_ALLOWED)
                case "lower":
                    return changes.set_authority(tenant, Spans(home_s=800, foreign_s=5))
                case "lower_more":
                    return changes.set_authority(tenant, Spans(home_s=800, foreign_s=4))
                case "raise":
                    return changes.set_authority(tenant, Spans(home_s=900, foreign_s=6))
                case _:
                    return changes.create_key(tenant, KeyId(f"key00000000{next(keys)}"), "sha256$00")

        outcome = await change(first)
        for name in then:
            await change(name)
        told = world.wait(outcome)
        await world.clock.advance(0.5)
        assert told.state.superseded is superseded
        assert told.state.done is not superseded


async def test_history_that_is_forgotten_cannot_vouch_for_a_suspension() -> None:
    async with World().running() as world:
        tenant, _home, _abroad = await two(world)
        outcome = await world.changes.set_state(tenant, TenantState.SUSPENDED)
        await world.changes.create_key(tenant, KeyId("key000000000"), "sha256$00")
        await world.changes.create_key(tenant, KeyId("key000000001"), "sha256$00")
        world.store.compact(world.store.revision)
        told = world.wait(outcome)
        await world.clock.advance(0.5)
        assert told.state.superseded


async def test_a_change_that_takes_nothing_away_is_done_at_once() -> None:
    async with World().running() as world:
        tenant = await world.tenant()
        told = world.wait(await world.pin(tenant, *BOTH))
        await world.clock.settle()
        assert told.state.done


async def test_a_member_that_left_is_not_waited_for() -> None:
    async with World().running() as world:
        tenant, _home, abroad = await two(world)
        abroad.link._open.clear()  # it does not hear of the change
        told = world.wait(await world.pin(tenant, VN))
        await world.clock.advance(0.5)
        assert not told.state.done
        await abroad.membership.leave()
        await world.clock.advance(1)
        assert told.state.done
        assert sorted(told.standings()) == ["acknowledged", "lapsed"]


async def test_nobody_acknowledges_for_another_region_or_hides_its_members() -> None:
    async with World().running() as world:
        tenant, _home, abroad = await two(world)
        abroad.link.set_cut(True)
        victim = abroad.membership.member
        forger = RegionId("ap-southeast-1")  # before the victim's in the store's order
        everything = encode_ack(Ack({shard_of(HOME, tenant): 99}, {}))
        forged = encode_grant(Grant(GatewayId("gw1"), bytes(16), b""))
        await world.store.txn(
            [],
            [Put(layout.grant_key(forger, victim), forged), Put(layout.ack_key(forger, victim), everything)],
            timeout_s=1,
        )
        outcome = await world.pin(tenant, VN)
        assert len(outcome.members) == 3
        told = world.wait(outcome)
        await world.clock.advance(2)
        standings = {(member.region, member.standing) for member in told.state.members}
        assert standings == {
            (forger, Standing.ACKNOWLEDGED),
            (HOME, Standing.ACKNOWLEDGED),
            (ABROAD, Standing.WAITING),
        }


async def test_a_store_that_went_back_during_a_wait_is_no_answer() -> None:
    async with World().running() as world:
        tenant, _home, abroad = await two(world)
        abroad.link.set_cut(True)
        backup = world.store.revision
        outcome = await world.pin(tenant, VN)
        world.store.restore(backup)
        with pytest.raises(MeshError) as refused:
            async for _ in world.barrier.wait(outcome):
                pass
        assert refused.value.code is Code.INTERNAL_ERROR


async def test_a_read_of_an_older_store_is_no_answer_though_it_has_the_change() -> None:
    async with World().running() as world:
        tenant, _home, abroad = await two(world)
        abroad.link.set_cut(True)
        outcome = await world.pin(tenant, VN)
        backup = world.store.revision

        async def listen() -> None:
            async for _ in world.barrier.wait(outcome):
                pass

        waiting = asyncio.ensure_future(listen())
        await world.clock.advance(3)
        world.store.restore(backup)
        await world.clock.advance(1)
        assert waiting.done()
        with pytest.raises(MeshError) as refused:
            await waiting
        assert refused.value.code is Code.INTERNAL_ERROR


async def test_a_wait_sees_a_store_that_went_back_by_all_that_its_admin_has_seen() -> None:
    """What was lost is of others: the change, its members and what they said are all there."""
    async with World().running() as world:
        tenant, _home, _abroad = await two(world)
        outcome, history = await world.pin(tenant, VN), StoreHistory()
        await world.clock.advance(0.1)
        history.take(TxnResult(world.store.revision + 9, succeeded=True), history.seen())
        barrier = Barrier(
            store=world.admin,
            region=HOME,
            members=world.members,
            trust=trust_in(),
            clock=world.clock,
            history=history,
        )
        with pytest.raises(MeshError) as refused:
            async for _ in barrier.wait(outcome):
                pass
        assert refused.value.code is Code.INTERNAL_ERROR
        assert history.went_back, "and nothing is changed by it any more"


async def test_status_tells_how_far_each_member_is() -> None:
    async with World().running() as world:
        tenant, home, abroad = await two(world)
        abroad.link.set_cut(True)
        home.draining[tenant] = drain(2)
        await world.pin(tenant, VN)
        await world.clock.advance(10)
        rows = {row.region: row for row in await world.barrier.status()}
        shard = shard_of(HOME, tenant)
        assert rows[HOME].shards == {shard: (2, 2)}
        assert rows[ABROAD].shards == {shard: (1, 2)}
        assert rows[HOME].draining == {tenant: drain(2)}
        assert rows[HOME].grant_age_s < 3
        assert rows[ABROAD].grant_age_s > 9
        assert rows[ABROAD].gateway == "gw1"


async def test_only_who_is_dead_and_of_this_region_is_attested_and_only_once() -> None:
    async with World().running() as world:
        _tenant, home, abroad = await two(world)
        for unknown in (abroad.membership.member, MemberId("nobody"), MemberId("../x")):
            with pytest.raises(MeshError) as refused:
                await world.barrier.attest(unknown)
            assert refused.value.code is Code.MEMBER_NOT_FOUND

        def renew() -> None:
            world.store.before_txn = lambda: None
            world.store.revision += 1
            world.store._states.append(dict(world.store._states[-1]))
            key = layout.grant_key(HOME, home.membership.member)
            old = world.store._states[-1][key]
            world.store._states[-1][key] = replace(old, mod_revision=world.store.revision)

        world.kill(home)
        await world.clock.settle()
        here = Barrier(
            store=_Renewing(world, renew), region=HOME, members=world.members, trust=trust_in(), clock=world.clock
        )
        with pytest.raises(MeshError) as refused:
            await here.attest(home.membership.member)
        assert refused.value.code is Code.INVALID_PARAMETER
        assert await world.barrier.attest(home.membership.member) == "gw1"
        with pytest.raises(MeshError) as refused:
            await world.barrier.attest(home.membership.member)
        assert refused.value.code is Code.MEMBER_NOT_FOUND


class _Renewing:
    """The store, in which a grant is renewed between a read and the transaction that follows."""

    def __init__(self, world: World, renew: Callable[[], None]) -> None:
        self._store = world.store
        self._renew = renew
        self.range = world.store.range
        self.watch = world.store.watch

    async def txn(self, *args, **kwargs):
        self._renew()
        return await self._store.txn(*args, **kwargs)


CAP_S = 20.0


async def test_the_sweeper_takes_what_stood_for_the_longest_authority_there_may_be_and_no_sooner() -> None:
    async with World().running() as world:
        _tenant, home, abroad = await two(world)
        sweeper = MemberSweeper(world.store, ABROAD, CAP_S, world.clock)
        world.kill(abroad)
        await world.clock.settle()
        assert await sweeper.sweep() == 0
        await world.clock.advance(wait_s(CAP_S) - 0.01)
        assert await sweeper.sweep() == 0
        await world.clock.advance(0.02)
        assert await sweeper.sweep() == 2
        member = abroad.membership.member
        assert world.store.value(layout.grant_key(ABROAD, member)) is None
        assert world.store.value(layout.ack_key(ABROAD, member)) is None
        assert world.store.value(layout.grant_key(HOME, home.membership.member)) is not None


async def test_the_sweeper_leaves_who_lives_and_who_came_back() -> None:
    async with World().running() as world:
        _tenant, _home, abroad = await two(world)
        sweeper = MemberSweeper(world.store, ABROAD, CAP_S, world.clock)
        for _ in range(30):
            assert await sweeper.sweep() == 0
            await world.clock.advance(2)
        abroad.link.set_cut(True)
        await world.clock.advance(2)
        await sweeper.sweep()
        await world.clock.advance(wait_s(CAP_S) + 1)
        key = layout.grant_key(ABROAD, abroad.membership.member)

        class Racing:
            async def txn(self, compares, then, otherwise=(), *, timeout_s):
                if any(isinstance(op, Delete) for op in then):
                    item = world.store.value(key)
                    assert item is not None
                    await world.store.txn([], [Put(key, item.value)], timeout_s=1)
                return await world.store.txn(compares, then, otherwise, timeout_s=timeout_s)

        sweeper._store = Racing()  # type: ignore[assignment]
        assert await sweeper.sweep() == 0
        assert world.store.value(key) is not None


async def test_the_sweeper_takes_acknowledgements_that_no_grant_goes_with() -> None:
    async with World().running() as world:
        orphan, other = layout.ack_key(ABROAD, MemberId("a")), layout.ack_key(HOME, MemberId("a"))
        await world.store.txn([], [Put(orphan, b""), Put(other, b"")], timeout_s=1)
        sweeper = MemberSweeper(world.store, ABROAD, CAP_S, world.clock)
        assert await sweeper.sweep() == 0
        await world.clock.advance(wait_s(CAP_S) + 0.1)
        assert await sweeper.sweep() == 1
        assert world.store.value(orphan) is None
        assert world.store.value(other) is not None


async def test_what_was_heard_before_a_break_is_no_answer_after_it() -> None:
    """A member acknowledged a number in a history that was lost, and is cut off; the number is another change's now."""
    async with World().running() as world:
        tenant, home, abroad = await two(world)
        backup = world.store.revision
        await world.changes.create_key(tenant, KeyId("key000000001"), "sha256$00")
        await world.clock.advance(0)
        await cut_off(abroad)
        world.kill(home)
        lost = world.store.revision
        world.store.restore(backup)
        while world.store.revision < lost:
            await world.store.txn((), [Put("/elsewhere", b"")], timeout_s=1)
        home = world.gateway(HOME, "gw2")
        await world.clock.advance(0.1)
        home.draining[tenant] = drain(2)
        outcome = await world.pin(tenant, VN)
        told = world.wait(outcome)
        await world.clock.advance(0)
        home.draining.clear()
        home.membership.changed()
        await world.clock.advance(0)
        assert abroad.left_s(tenant, SG) > 0
        assert "acknowledged" in told.standings()
        assert not told.state.done
