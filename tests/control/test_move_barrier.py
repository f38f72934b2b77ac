"""When a move is over, nobody acts on what the old home said; and what the new home removes holds meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest
from manual_clock import ManualClock
from member_lab import ABROAD, HOME, SG, VN, Gateway, World, drain
from trust_lab import changes_in, trust_in

from mesh.control import layout
from mesh.control.changes import Changes, Outcome
from mesh.control.later import LaterChanges
from mesh.control.ops import new_op_id
from mesh.control.standing import Standing
from mesh.errors import Code, MeshError
from mesh.policy.authority import wait_s
from mesh.policy.bundle import Spans
from mesh.policy.shards import shard_of
from mesh.runtime import SystemEntropy
from mesh.types import KeyId, RegionId, TenantId, TenantState, Transfer

HOME_S = 60.0
NEARBY = RegionId("vn-10")
K1, K2 = KeyId("K" * 12), KeyId("L" * 12)
STATES = {"suspend": TenantState.SUSPENDED, "resume": TenantState.ACTIVE}


async def begun(world: World) -> tuple[TenantId, Gateway, Gateway, Changes]:
    """A tenant of HOME, a gateway in each place that has authority, and the admin of the home that it may come to."""
    tenant = await world.tenant()
    await world.changes.set_authority(tenant, Spans(home_s=HOME_S, foreign_s=6))
    made = await world.changes.tenant(tenant)
    await world.changes.settle_authority(tenant, made.policy.revision)
    home, abroad = world.gateway(HOME), world.gateway(ABROAD)
    await world.clock.advance(2.5)
    assert min(home.left_s(tenant, VN), abroad.left_s(tenant, SG)) > 0
    return tenant, home, abroad, changes_in(world.store, ABROAD, world.clock)


async def test_a_move_returns_at_once_where_everybody_knows_of_it() -> None:
    async with World().running() as world:
        tenant, home, abroad, new = await begun(world)
        await new.moves.prepare(tenant, HOME)
        await world.clock.advance(0)
        await world.changes.moves.leave(tenant, ABROAD)
        outcome, _ = await new.moves.finish(tenant)
        told = world.wait(outcome)
        await world.clock.advance(0.5)
        assert told.state.done
        assert set(told.standings()) == {Standing.ACKNOWLEDGED}
        for gateway in (home, abroad):
            policy = gateway.book.tenant(tenant)
            assert policy is not None
            assert (policy.home, policy.home_jurisdiction) == (ABROAD, SG)
            assert min(gateway.left_s(tenant, place) for place in (VN, SG)) > 0, "it never stopped serving"


@pytest.mark.parametrize("which", [0, 1])
async def test_a_gateway_that_is_cut_off_is_waited_for_by_the_old_homes_times(which: int) -> None:
    async with World(ManualClock()).running() as world:
        tenant, *gateways, new = await begun(world)
        await new.moves.prepare(tenant, HOME)
        await world.clock.advance(2.5)
        lost = gateways[which]
        await lost.membership.renew()
        lost.link.set_cut(True)
        await world.changes.moves.leave(tenant, ABROAD)
        outcome, record = await new.moves.finish(tenant)
        acted = list[float]()

        def look(_: object) -> None:
            acted.append(max(lost.left_s(tenant, place) for place in (VN, SG)))

        told = world.wait(outcome, look)
        await world.clock.advance(HOME_S - 1)
        assert not told.state.done
        assert acted[-1] > 0, "it still acts on what the old home said"
        await world.clock.advance(wait_s(HOME_S) - HOME_S + 2)
        assert told.state.done
        assert acted[-1] == 0
        assert sorted(told.standings()) == [Standing.ACKNOWLEDGED, Standing.TIMED_OUT]
        settled = await new.settle_authority(tenant, record.policy.revision)
        assert not settled.tenant.policy.authority_before


async def test_what_the_new_home_removes_before_the_move_is_over_waits_by_both_homes_times() -> None:
    async with World(ManualClock()).running() as world:
        tenant, home, _, new = await begun(world)
        await new.moves.prepare(tenant, HOME)
        await world.clock.advance(2.5)
        await home.membership.renew()
        home.link.set_cut(True)
        await world.changes.moves.leave(tenant, ABROAD)
        await new.moves.finish(tenant)
        pinned = await new.set_allowed(tenant, frozenset({SG}))
        assert pinned.shrink is not None
        assert pinned.shrink.span_s == HOME_S, "in Hanoi somebody may act by the time of a home"
        told = world.wait(pinned)
        await world.clock.advance(HOME_S - 1)
        assert not told.state.done
        assert home.left_s(tenant, VN) > 0
        await world.clock.advance(wait_s(HOME_S) - HOME_S + 2)
        assert told.state.done
        assert home.left_s(tenant, VN) == 0


async def test_the_end_of_a_move_does_not_forget_times_that_the_new_home_has_lowered_meanwhile() -> None:
    """Who knows that the tenant has left need not know what its new home has said since, and goes by longer times."""
    async with World(ManualClock()).running() as world:
        tenant, _, abroad, new = await begun(world)
        await world.changes.set_authority(tenant, Spans(home_s=HOME_S, foreign_s=HOME_S))
        await new.moves.prepare(tenant, HOME)
        await world.changes.moves.leave(tenant, ABROAD)
        await world.clock.advance(2.5)
        await abroad.membership.renew()
        abroad.link.set_cut(True)
        await new.set_authority(tenant, Spans(home_s=6, foreign_s=6))
        outcome, record = await new.moves.finish(tenant)
        told = world.wait(outcome)
        await world.clock.advance(HOME_S - 10)
        assert abroad.left_s(tenant, SG) > 6
        if told.state.done:
            await new.settle_authority(tenant, record.policy.revision)
        pinned = await new.set_allowed(tenant, frozenset({SG}))
        removed = world.wait(pinned)
        await world.clock.advance(7)
        assert abroad.left_s(tenant, VN) > 0
        assert not removed.state.done, "it still acts on the first times"


@pytest.mark.parametrize(
    ("first", "then", "superseded"),
    [
        ("suspend", ["move"], False),
        ("suspend", ["move", "key"], False),
        ("suspend", ["move", "resume"], True),
        ("suspend", ["move", "resume", "suspend"], True),
        ("suspend", ["resume", "suspend", "move"], True),
        ("suspend", ["move", "back"], True),  # what the other home put is not looked for
        ("suspend", ["move", "resume", "suspend", "back"], True),
        ("pin", ["move"], False),
        ("pin", ["move", "suspend"], False),
        ("pin", ["move", "allow"], True),
        ("pin", ["move", "allow", "pin"], True),
        ("suspend", ["move", "ready", "resume"], True),
        ("suspend", ["move", "ready", "key"], False),
        ("key", ["move", "resume"], False),
    ],
)
async def test_what_the_next_home_gave_back_is_superseded(first: str, then: list[str], superseded: bool) -> None:
    async with World().running() as world:
        tenant, _home, _abroad, new = await begun(world)
        old = at = world.changes
        await old.create_key(tenant, K1, "sha256$00")

        async def change(name: str) -> Outcome | None:
            nonlocal at
            match name:
                case "suspend" | "resume":
                    return await at.set_state(tenant, STATES[name])
                case "pin" | "allow":
                    return await at.set_allowed(tenant, frozenset({SG} if name == "pin" else {SG, VN}))
                case "key":
                    return await at.revoke_key(K1) if at is old else await at.create_key(tenant, K2, "sha256$00")
                case "ready":  # to come back, which it does not
                    await old.moves.prepare(tenant, ABROAD)
                    return None
                case _:
                    there, here = (new, HOME) if name == "move" else (old, ABROAD)
                    await there.moves.prepare(tenant, here)
                    await at.moves.leave(tenant, ABROAD if name == "move" else HOME)
                    await there.moves.finish(tenant)
                    at = there
                    return None

        outcome = await change(first)
        assert outcome is not None
        for name in then:
            await change(name)
        told = world.wait(outcome)
        await world.clock.advance(0.5)
        assert told.state.superseded is superseded
        assert told.state.done is not superseded


@pytest.mark.parametrize(
    ("then", "superseded"), [([], False), (["suspend"], False), (["allow"], True), (["allow", "pin"], True)]
)
@pytest.mark.parametrize("compacted", [False, True])
async def test_a_home_that_is_ready_for_the_tenant_to_come_back_does_not_tell_of_it(
    then: list[str], superseded: bool, compacted: bool
) -> None:
    """What it has put over its last word is a copy, which says nothing of what the other home changes after it."""
    async with World().running() as world:
        tenant, _home, _abroad, _ = await begun(world)
        old, new = world.changes, changes_in(world.store, NEARBY, world.clock)
        pinned = await old.set_allowed(tenant, frozenset({VN}))
        await new.moves.prepare(tenant, HOME)
        await old.moves.leave(tenant, NEARBY)
        await new.moves.finish(tenant)
        await old.moves.prepare(tenant, NEARBY)
        for name in then:
            if name == "suspend":
                await new.set_state(tenant, TenantState.SUSPENDED)
            else:
                await new.set_allowed(tenant, frozenset({VN} if name == "pin" else {SG, VN}))
        if compacted:
            world.store.compact(world.store.revision)
        told = world.wait(pinned)
        await world.clock.advance(0.5)
        assert told.state.superseded is superseded
        assert told.state.done is not superseded


async def test_what_the_next_home_gives_back_while_the_last_gateway_drains_is_superseded() -> None:
    """The watch of a wait tells of the record of the home that made the change, and that is not put any more."""
    async with World().running() as world:
        tenant, _home, abroad, _ = await begun(world)
        old, new = world.changes, changes_in(world.store, NEARBY, world.clock)
        pinned = await old.set_allowed(tenant, frozenset({VN}))
        await new.moves.prepare(tenant, HOME)
        await old.moves.leave(tenant, NEARBY)
        await new.moves.finish(tenant)
        abroad.draining[tenant] = drain(int(pinned.revision) + 9)
        told = world.wait(pinned)
        await world.clock.advance(0.1)
        assert sorted(told.standings()) == ["acknowledged", "draining"]
        await new.set_allowed(tenant, frozenset({SG, VN}))
        abroad.draining.clear()
        abroad.membership.changed()
        await world.clock.advance(0.1)
        assert (told.state.done, told.state.superseded) == (False, True)


@pytest.mark.parametrize("store_answers", [False, True])
@pytest.mark.parametrize("allowed", [False, True])
async def test_a_change_that_a_former_home_has_made_is_not_made_again(store_answers: bool, allowed: bool) -> None:
    """Whoever asks again with its op id asks the home of now, which is to wait for it, whatever was changed since."""
    async with World().running() as world:
        tenant, _home, _abroad, _ = await begun(world)
        old, op_id = world.changes, new_op_id(world.clock, SystemEntropy())
        new = changes_in(world.store, NEARBY, world.clock, store_answers=store_answers)
        pinned = await old.set_allowed(tenant, frozenset({VN}), op_id=op_id)
        await new.moves.prepare(tenant, HOME)
        await old.moves.leave(tenant, NEARBY)
        await new.moves.finish(tenant)
        if allowed:
            await new.set_allowed(tenant, frozenset({SG, VN}))
        before = await new.tenant(tenant)
        again = await new.set_allowed(tenant, frozenset({VN}), op_id=op_id)
        assert await new.tenant(tenant) == before, "nothing is changed"
        assert (again.resumed, again.revision, again.shrink) == (True, pinned.revision, pinned.shrink)
        told = world.wait(again)
        await world.clock.advance(0.5)
        assert told.state.superseded is allowed
        assert told.state.done is not allowed
        for other in (new.set_allowed(tenant, frozenset({SG}), op_id=op_id), new.moves.leave(tenant, HOME, op_id)):
            with pytest.raises(MeshError) as caught:
                await other
            assert (caught.value.code, caught.value.param) == (Code.INVALID_PARAMETER, "op_id")


@pytest.mark.parametrize("what", ["suspend", "transfer", "authority"])
@pytest.mark.parametrize("back", ["never", "before", "after"])
@pytest.mark.parametrize(
    "path", [[(HOME, NEARBY)], [(HOME, NEARBY), (NEARBY, ABROAD)], [(HOME, NEARBY), (NEARBY, HOME)]]
)
@pytest.mark.parametrize("finished", [True, False])
async def test_whether_a_former_homes_change_still_holds_its_own_history_tells(
    what: str, back: str, path: list[tuple[RegionId, RegionId]], finished: bool
) -> None:
    """Asked at the home of now, whose history begins with the move."""
    async with World().running() as world:
        tenant, _home, _abroad, _ = await begun(world)
        op_id, wide = new_op_id(world.clock, SystemEntropy()), Spans(home_s=HOME_S, foreign_s=6)
        homes = {HOME: world.changes, **{home: changes_in(world.store, home, world.clock) for home in (NEARBY, ABROAD)}}

        async def change(at: Changes, taken: bool, op_id: str | None = None) -> Outcome:
            match what:
                case "suspend":
                    return await at.set_state(tenant, STATES["suspend" if taken else "resume"], op_id)
                case "transfer":
                    return await at.set_transfer(tenant, Transfer.NEVER if taken else Transfer.WITHIN_ALLOWED, op_id)
                case _:
                    return await at.set_authority(tenant, replace(wide, home_s=20.0 if taken else HOME_S), op_id)

        made = await change(world.changes, True, op_id)
        if back == "before":
            await change(world.changes, False)
            await change(world.changes, True)
        for old, new in path:
            await homes[new].moves.prepare(tenant, old)
            await homes[old].moves.leave(tenant, new)
            if finished:
                await homes[new].moves.finish(tenant)
        if back == "after":
            await change(homes[path[-1][1]], False)
            await change(homes[path[-1][1]], True)
        again = await change(homes[path[-1][1]], True, op_id)
        assert (again.resumed, again.revision) == (True, made.revision)
        item = world.store.value(layout.policy_key(path[-1][1], tenant))
        assert item is not None
        # Of a tenant that has come back the last word is gone by which it left.
        told = back != "never" or (path[-1][1] == HOME and finished)
        assert await LaterChanges(world.store, trust_in(), again).gave_back(item) is told


@pytest.mark.parametrize("what", ["pin", "key"])
async def test_whoever_asks_again_at_a_home_that_is_not_finished_is_told_when_it_holds(what: str) -> None:
    """A gateway may know all of the new home's shard and go by the old home: it has not heard that the tenant left."""
    async with World().running() as world:
        old = changes_in(world.store, NEARBY, world.clock)
        made = await old.create_tenant(bytes(16), frozenset({VN, SG}), Transfer.WITHIN_ALLOWED)
        tenant = made.tenant.policy.tenant
        await old.create_key(tenant, K1, "sha256$1")
        gateway = world.gateway(ABROAD)
        await world.clock.advance(2.5)
        gateway.link._open.clear()  # its watch stays up and tells nothing
        await gateway.membership.renew()

        async def take(changes: Changes) -> Outcome:
            return await (changes.set_allowed(tenant, frozenset({VN})) if what == "pin" else changes.revoke_key(K1))

        await take(old)
        await world.changes.moves.prepare(tenant, NEARBY)
        await old.moves.leave(tenant, HOME)
        assert await gateway.feed.catch_up(shard_of(HOME, tenant), 1)
        told = world.wait(await take(world.changes))
        await world.clock.advance(0.5)
        key = gateway.book.key(K1)
        assert gateway.left_s(tenant, SG) > 0
        assert key is not None
        assert not key.revoked
        assert not told.state.done
        await world.clock.advance(5)
        assert told.state.done
        assert set(told.standings()) == {Standing.ACKNOWLEDGED}
        key = gateway.book.key(K1)
        assert key is not None
        assert (gateway.left_s(tenant, SG) == 0, key.revoked) == ((True, False) if what == "pin" else (False, True))
