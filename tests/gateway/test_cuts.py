"""Calls that may not go on: authority that ends, policies and keys that change, at each moment of a call's story."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from gateway.world import JP, KEY, SECRET, SG, TENANT, VN, Call, ScriptedHop, World, load, replica
from manual_clock import ManualClock

from mesh.control.store import StoreUnavailableError
from mesh.errors import Code, MeshError
from mesh.gateway.ports import Check
from mesh.policy.bundle import Spans, TenantKey
from mesh.policy.keys import make_key
from mesh.policy.shards import Shard
from mesh.types import AnswerHead, Facts, Jurisdiction, KeyId, ReplicaId, Revision, TenantState, Transfer

BOTH = {"allowed": ("VN", "SG"), "transfer": Transfer.WITHIN_ALLOWED}
OTHER_KEY = make_key(Jurisdiction("VN"), bytes([1] * 48), SECRET)
SPAN_S = 6.0
TICK_S = 0.05
"""What is over is cut within this."""


@dataclass
class Lab:
    """A world in which time passes when a test says so, and calls that run in it."""

    world: World
    clock: ManualClock
    group: asyncio.TaskGroup
    ends: dict[str, float] = field(default_factory=dict)
    codes: dict[str, Code] = field(default_factory=dict)

    def start(self, call: Call, name: str = "call", *, forwarded: bool = False) -> asyncio.Task[None]:
        story = self.world.story.serve_forwarded if forwarded else self.world.story.serve

        async def run() -> None:
            try:
                await story(call)
            except MeshError as error:
                self.codes[name] = error.code
            finally:
                self.ends[name] = self.clock.boot_s

        return self.group.create_task(run())

    def grant(self) -> None:
        self.world.authority.granted({}, self.clock.instant())

    async def advance(self, seconds: float, *, granted: bool = False) -> None:
        """Lets time pass, with a grant every second if it is `granted`."""
        while seconds > 0:
            if granted:
                self.grant()
            await self.clock.advance(min(1.0, seconds))
            seconds -= 1.0

    def confirm(self, name: str = "a") -> None:
        """A replica carries out all that it was told."""
        told = self.world.handouts.message(ReplicaId(name))
        self.world.handouts.pinged(ReplicaId(name), 2, told.message)


@asynccontextmanager
async def lab(**world: object) -> AsyncGenerator[Lab]:
    clock = ManualClock()
    made = World(**{**BOTH, "at": SG, "clock": clock, **world})
    async with asyncio.TaskGroup() as group:
        timer = group.create_task(made.running.run())
        yield Lab(made, clock, group)
        timer.cancel()


@dataclass
class Waits(Call):
    """A client that keeps its story waiting at one place."""

    at: str = ""
    there: asyncio.Event = field(default_factory=asyncio.Event)

    async def _wait(self, place: str) -> None:
        if self.at == place:
            self.there.set()
            await asyncio.Event().wait()

    async def receive(self, limit_bytes: int, check: Check) -> Facts:
        await self._wait("body")
        return await super().receive(limit_bytes, check)

    async def admitted(self, head: AnswerHead) -> None:
        await self._wait("hop")


def stream(pieces: int = 1_000_000) -> ScriptedHop:
    return ScriptedHop(pieces=pieces)


async def show(call: Call, hop: ScriptedHop, pieces: int) -> None:
    """Has the replica make some pieces, and waits until they were looked at."""
    await call.relaying.wait()
    for _ in range(pieces):
        hop.gate.put_nowait(None)
    for _ in range(10 * pieces + 10):
        await asyncio.sleep(0)


# --- authority ends


@pytest.mark.parametrize("place", ["body", "hop"])
@pytest.mark.parametrize("forwarded", [False, True])
async def test_a_call_that_waits_is_cut_when_its_authority_ends(place: str, *, forwarded: bool) -> None:
    async with lab() as made:
        call = Waits(at=place, entry=VN)
        task = made.start(call, forwarded=forwarded)
        await call.there.wait()
        await made.advance(SPAN_S - TICK_S)
        assert not task.done()
        began = made.clock.boot_s
        await made.advance(2 * TICK_S)
        await task
        assert made.codes == {"call": Code.POLICY_STALE}
        assert made.ends["call"] - began <= 2 * TICK_S
        assert made.world.hops.sent == []
        assert [one.code for one in made.world.settled] == ["policy_stale"]


async def test_before_any_body_byte_authority_is_looked_at() -> None:
    async with lab() as made:
        await made.advance(SPAN_S)
        call = Call()
        await made.start(call)
        assert (made.codes, call.received) == ({"call": Code.POLICY_STALE}, 0)


async def test_a_body_is_read_piece_by_piece_under_authority() -> None:
    """Time passes without the timer's turn, as where a process was stopped."""

    class Stopped(Call):
        async def receive(self, limit_bytes: int, check: Check) -> Facts:
            check()
            made.clock._pass(SPAN_S)
            check()
            raise AssertionError

    async with lab() as made:
        await made.start(Stopped())
        assert made.codes == {"call": Code.POLICY_STALE}


async def test_a_stream_is_cut_by_the_timer_and_nothing_follows() -> None:
    hop = stream()
    async with lab(hops={"a:1": [hop]}) as made:
        call = Call(stream=True)
        task = made.start(call)
        await show(call, hop, 2)
        await made.advance(3.0, granted=True)
        await made.advance(4.0)
        await show(call, hop, 1)
        assert (call.shown, task.done()) == (3, False)  # granted last at 2 s: until 8 s
        await made.advance(1.0 + TICK_S)
        assert task.done()
        await show(call, hop, 1)
        assert (call.shown, hop.closed) == (3, 1)
        assert made.ends["call"] - 1000.0 <= 8.0 + TICK_S
        [record] = made.world.settled
        assert (record.code, record.usage) == ("policy_stale", hop.usage)


async def test_no_piece_is_shown_after_a_stop_even_before_the_timers_turn() -> None:
    hop = stream()
    async with lab(hops={"a:1": [hop]}) as made:
        call = Call(stream=True)
        made.start(call)
        await call.relaying.wait()
        made.clock._pass(SPAN_S)
        await show(call, hop, 1)
        assert (call.shown, made.codes) == (0, {"call": Code.POLICY_STALE})


@pytest.mark.parametrize("change", ["wall", "drop"])
async def test_clocks_that_move_apart_and_a_store_that_went_back_end_all(change: str) -> None:
    hop = stream()
    async with lab(at=VN, hops={"a:1": [hop]}) as made:
        call = Call(stream=True)
        made.start(call)
        await call.relaying.wait()
        if change == "wall":
            made.clock.wall_ahead_s += 1.0
        else:
            made.world.authority.drop()
        await made.advance(TICK_S)
        assert made.codes == {"call": Code.POLICY_STALE}


async def test_where_the_home_is_it_ends_later_and_sending_away_as_elsewhere() -> None:
    here, away = stream(), stream()
    loads = (load(SG, "chat-sg", seen_s=1000.0),)
    async with lab(at=VN, hops={"a:1": [here], f"{SG}/g1:1": [away]}, loads=loads) as made:
        local, sent = Call(stream=True, timeout_s=1000.0), Call(stream=True, model="chat-sg")
        staying, going = made.start(local, "local"), made.start(sent, "sent")
        await show(local, here, 1)
        await show(sent, away, 1)
        ((_, leased), (_, head)) = sorted(made.world.hops.sent, key=lambda one: one[0])
        assert (head.key_id, head.span_s, head.lease) == (KEY.key_id, SPAN_S, None)
        assert (leased.key_id, leased.span_s) == (KEY.key_id, None)
        assert leased.lease is not None
        assert (leased.lease.ping, leased.lease.left_ms) == (1, 900_000)
        await made.advance(SPAN_S + TICK_S)
        assert (staying.done(), going.done()) == (False, True)
        assert made.codes == {"sent": Code.POLICY_STALE}
        made.clock._pass(900.0 - SPAN_S - TICK_S - 1.0)
        await made.advance(0.9)
        assert not staying.done()
        await made.advance(0.1 + TICK_S)
        assert staying.done()


async def test_the_way_back_takes_authority_too() -> None:
    hop = stream()
    async with lab(at=VN, hops={"a:1": [hop]}) as made:
        call = Call(stream=True, entry=SG)
        task = made.start(call, forwarded=True)
        await show(call, hop, 1)
        await made.advance(SPAN_S + TICK_S)
        assert (task.done(), made.codes) == (True, {"call": Code.POLICY_STALE})


# --- what the policy takes away


async def test_a_removal_lets_run_what_runs_for_the_drain_and_no_grant_moves_its_end() -> None:
    hop = stream()
    async with lab(hops={"a:1": [hop], "b:1": [stream()]}) as made:
        call = Call(stream=True)
        task = made.start(call)
        await show(call, hop, 1)
        await made.advance(1.0, granted=True)
        made.world.set_policy(2, ("VN",), Transfer.WITHIN_ALLOWED, drain_s=3.0)
        late = Call()
        await made.start(late, "late")
        assert (made.codes, late.received) == ({"late": Code.RESIDENCY_REFUSED}, 0)
        drain = made.world.running.draining()[TENANT]
        assert (drain.revision, drain.left_s) == (2, pytest.approx(3.0))
        await made.advance(2.0, granted=True)
        await show(call, hop, 1)
        assert call.shown == 2
        # It is in again: what was to end ends all the same, and until then no revision is acknowledged.
        made.world.set_policy(3, **BOTH)
        assert made.world.running.draining()[TENANT].revision == 3
        await made.advance(1.0 + TICK_S, granted=True)
        assert task.done()
        assert made.codes["call"] is Code.RESIDENCY_REFUSED
        assert made.ends["call"] - 1004.0 <= TICK_S
        # The replica has not said so yet.
        assert TENANT in made.world.running.draining()
        made.confirm()
        await made.clock.settle()
        assert made.world.running.draining() == {}
        assert [one.outside_pin for one in made.world.settled] == [True, False]


@pytest.mark.parametrize("drains", [True, False])
async def test_a_replica_that_stops_first_does_not_hide_why(drains: bool) -> None:
    # It ends what it works on a step before its deadline, which is the end of the drain.
    hop = ScriptedHop(pieces=2, fault=Code.POLICY_STALE)
    async with lab(hops={"a:1": [hop]}) as made:
        call = Call(stream=True)
        task = made.start(call)
        await show(call, hop, 1)
        if drains:
            made.world.set_policy(2, ("VN",), drain_s=3.0)
        await made.advance(2.5, granted=True)
        assert not task.done()
        await show(call, hop, 1)
        assert made.codes == {"call": Code.RESIDENCY_REFUSED if drains else Code.POLICY_STALE}
        # It was sent on while it was permitted, so nothing was shown to a country that was out.
        assert [one.outside_pin for one in made.world.settled] == [False]


async def test_a_drain_is_at_most_what_was_left_under_the_older_policy() -> None:
    hop = stream()
    async with lab(hops={"a:1": [hop]}) as made:
        call = Call(stream=True)
        made.start(call)
        await call.relaying.wait()
        await made.advance(4.0)
        made.world.set_policy(2, ("VN",), drain_s=30.0, authority=Spans(foreign_s=600.0))
        assert made.world.running.draining()[TENANT].left_s == pytest.approx(2.0)
        await made.advance(2.0 + TICK_S, granted=True)
        assert made.ends["call"] - 1006.0 <= TICK_S


async def test_what_was_not_sent_on_yet_does_not_drain() -> None:
    async with lab() as made:
        call = Waits(at="body")
        task = made.start(call)
        await call.there.wait()
        made.world.set_policy(2, ("VN",), drain_s=3.0)
        await task
        assert made.codes == {"call": Code.RESIDENCY_REFUSED}
        # It has shown its body to a country that was out by then.
        assert [one.outside_pin for one in made.world.settled] == [True]


async def test_only_what_uses_a_place_ends_with_it() -> None:
    here, away = stream(), stream()
    hops = {"a:1": [here], f"{SG}/g1:1": [away]}
    async with lab(at=VN, hops=hops, loads=(load(SG, "chat-sg", seen_s=1000.0),)) as made:
        local, sent = Call(stream=True), Call(stream=True, model="chat-sg")
        staying, going = made.start(local, "local"), made.start(sent, "sent")
        await show(local, here, 1)
        await show(sent, away, 1)
        made.world.set_policy(2, ("VN", "JP"), Transfer.WITHIN_ALLOWED)
        await made.clock.settle()
        assert (staying.done(), going.done(), away.closed) == (False, True, 1)
        # Nothing of it can be at a replica of this region: there is nobody to ask.
        assert made.world.running.draining() == {}
        await show(local, here, 1)
        assert local.shown == 2
        staying.cancel()


async def test_a_call_that_was_sent_on_here_ends_with_its_entry() -> None:
    hop = stream()
    async with lab(at=VN, allowed=("VN", "SG", "JP"), hops={"a:1": [hop]}) as made:
        call = Call(stream=True, entry=JP)
        task = made.start(call, forwarded=True)
        await show(call, hop, 1)
        made.world.set_policy(2, ("VN", "SG"), Transfer.WITHIN_ALLOWED)
        await made.clock.settle()
        assert (task.done(), made.codes) == (True, {"call": Code.RESIDENCY_REFUSED})


def suspend(world: World) -> None:
    world.set_policy(2, ("VN", "SG"), Transfer.WITHIN_ALLOWED, TenantState.SUSPENDED, drain_s=30.0)


def forget(world: World) -> None:
    world.book.drop_tenant(TENANT)


def revoke(world: World, key_id: KeyId = KEY.key_id) -> None:
    world.book.put_key(TenantKey(key_id=key_id, tenant=TENANT, hash="", revoked=True))


@pytest.mark.parametrize(
    ("change", "code"),
    [(suspend, Code.TENANT_SUSPENDED), (forget, Code.INVALID_API_KEY), (revoke, Code.INVALID_API_KEY)],
)
@pytest.mark.parametrize("forwarded", [False, True])
async def test_a_suspension_and_a_revocation_end_it_at_once(
    change: Callable[[World], None], code: Code, *, forwarded: bool
) -> None:
    hop = stream()
    async with lab(hops={"a:1": [hop]}) as made:
        call = Call(stream=True, entry=VN)
        task = made.start(call, forwarded=forwarded)
        await show(call, hop, 1)
        change(made.world)
        await made.clock.settle()
        assert (task.done(), made.codes, hop.closed) == (True, {"call": code}, 1)
        assert [one.code for one in made.world.settled] == [code]
        assert TENANT in made.world.running.draining()
        made.confirm()
        await made.clock.settle()
        assert made.world.running.draining() == {}


async def test_a_key_ends_only_its_own_calls() -> None:
    hops = {"a:1": [stream(), stream()]}
    async with lab(hops=hops) as made:
        made.world.book.put_key(
            TenantKey(key_id=OTHER_KEY.key_id, tenant=TENANT, hash=f"hash of {OTHER_KEY.text}", revoked=False)
        )
        one, other = Call(stream=True), Call(stream=True, credential=OTHER_KEY.text)
        ending, staying = made.start(one, "one"), made.start(other, "other")
        await one.relaying.wait()
        await other.relaying.wait()
        revoke(made.world)
        await made.clock.settle()
        assert (ending.done(), staying.done()) == (True, False)
        made.confirm()
        await made.clock.settle()
        assert made.world.running.draining() == {}  # what runs with another key does not keep it waiting
        staying.cancel()


@pytest.mark.parametrize("key_id", [KeyId("unknown"), OTHER_KEY.key_id, KEY.key_id])
async def test_a_call_that_was_sent_on_needs_a_good_key_of_its_tenant(key_id: KeyId) -> None:
    async with lab() as made:
        revoke(made.world)
        made.world.book.put_key(
            TenantKey(key_id=OTHER_KEY.key_id, tenant=TENANT.__class__("t_another"), hash="h", revoked=False)
        )
        call = Call(entry=VN, key_id=key_id)
        await made.start(call, forwarded=True)
        assert (made.codes, call.received) == ({"call": Code.INVALID_API_KEY}, 0)


async def test_who_hangs_up_while_the_call_is_cut_has_hung_up() -> None:
    hop = stream()
    async with lab(hops={"a:1": [hop]}) as made:
        call = Call(stream=True)
        task = made.start(call)
        await call.relaying.wait()
        task.cancel()
        revoke(made.world)
        await made.clock.settle()
        assert task.cancelled()
        assert [one.code for one in made.world.settled] == ["cancelled"]


# --- replicas


async def test_what_a_replica_may_work_on_is_said_by_the_number_it_was_sent_under() -> None:
    hops = {"a:1": [stream(), stream()]}
    async with lab(hops=hops) as made:
        first, second = Call(stream=True, entry=VN), Call(stream=True)
        made.start(first, "first", forwarded=True)
        await first.relaying.wait()
        shard = made.world.book.tenant(TENANT).shard
        made.world.set_policy(2, ("VN", "SG"), Transfer.NEVER, drain_s=2.0)
        made.world.authority.applied(shard, 1)
        running = made.start(second, "second")
        await second.relaying.wait()
        await made.advance(1.0, granted=True)
        now = made.clock.instant()
        held = {hold.number.number: hold.left_at(now) for hold in made.world.running.holds(ReplicaId("a"))}
        assert held == {0: pytest.approx(1.0), 1: pytest.approx(5.0)}
        await made.advance(1.0 + TICK_S)
        [fence] = made.world.handouts.message(ReplicaId("a")).fences
        assert (fence.below, fence.key_id) == ((0, 1), None)
        running.cancel()


async def test_no_lease_for_a_replica_that_was_never_heard() -> None:
    async with lab(hops={"a:1": [ScriptedHop()]}) as made:
        made.world.handouts.gone(ReplicaId("a"))
        await made.start(Call())
        assert (made.codes, made.world.hops.sent) == ({"call": Code.NO_CAPACITY}, [])


async def test_shorter_spans_count_when_every_replica_has_heard() -> None:
    async with lab() as made:
        made.world.set_policy(2, **BOTH, authority=Spans(foreign_s=2.0))
        await made.clock.settle()
        assert made.world.running.draining()[TENANT].revision == 2
        made.confirm()
        await made.clock.settle()
        assert made.world.running.draining() == {}
        made.world.set_policy(3, **BOTH, authority=Spans(foreign_s=60.0))
        assert made.world.running.draining() == {}


async def test_a_gateway_that_goes_asks_what_became_of_what_it_gave_up() -> None:
    hop = stream()
    async with lab(hops={"a:1": [ScriptedHop(), hop]}) as made:
        await made.start(Call(), "whole")
        call = Call(stream=True)
        task = made.start(call)
        await call.relaying.wait()
        assert not made.world.running.idle
        task.cancel()
        await made.clock.settle()
        leaving = made.group.create_task(made.world.running.leave())
        await made.clock.settle()
        assert (leaving.done(), made.world.running.idle) == (False, False)
        made.confirm()
        await made.clock.settle()
        assert (leaving.done(), made.world.running.idle) == (True, True)


async def test_a_gateway_whose_replica_says_nothing_goes_and_stays_a_member() -> None:
    hop = stream()
    async with lab(hops={"a:1": [hop]}) as made:
        call = Call(stream=True)
        task = made.start(call)
        await call.relaying.wait()
        task.cancel()
        await made.clock.settle()
        leaving = made.group.create_task(made.world.running.leave())
        await made.advance(3.0)
        assert leaving.done()
        assert not made.world.running.idle


# --- mesh-policy-at-least


async def test_a_caller_may_name_the_oldest_policy() -> None:
    async with lab(replicas=(replica("a"),), hops={"a:1": [ScriptedHop() for _ in range(3)]}) as made:
        asked: list[str] = []

        async def renewed() -> None:
            asked.append("renewed")
            shard = made.world.book.tenant(TENANT).shard
            made.world.authority.granted({shard: 1}, made.clock.instant())

        made.world.renewed = renewed
        await made.advance(1.0)
        await made.start(Call(wants=Revision(1)))
        assert (made.codes, asked) == ({}, [])
        newer = Call(wants=Revision(2))
        task = made.start(newer, "newer")
        await made.clock.settle()
        assert (asked, task.done(), newer.received) == (["renewed"], False, 0)
        shard = made.world.book.tenant(TENANT).shard
        made.world.set_policy(2, **BOTH)
        made.world.authority.applied(shard, 1)
        made.world.freshness.applied()
        await task
        assert (made.codes, [head.revision for head in newer.heads]) == ({}, [2])
        await made.start(Call(wants=Revision(3)), "unknown")
        assert made.codes == {"unknown": Code.POLICY_STALE}


async def test_a_control_store_that_does_not_answer_leaves_the_policy_too_old() -> None:
    async with lab() as made:

        async def renewed() -> None:
            raise StoreUnavailableError("UNAVAILABLE")

        made.world.renewed = renewed
        await made.start(Call(wants=Revision(2)), "away")

        async def granted() -> None:
            made.world.authority.granted({Shard(VN, one): 9 for one in range(16)}, made.clock.instant())

        made.world.renewed = granted
        task = made.start(Call(wants=Revision(2)), "slow")
        await made.advance(5.0 + TICK_S)
        assert (task.done(), made.codes) == (True, {"away": Code.POLICY_STALE, "slow": Code.POLICY_STALE})
