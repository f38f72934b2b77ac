"""The timer over many calls: it looks at one of each kind, and cuts exactly what has come to its end."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from gateway.world import VN
from hypothesis import given
from hypothesis import strategies as st
from manual_clock import ManualClock

from mesh.errors import MeshError
from mesh.gateway.ongoing import CutError, Ongoing
from mesh.gateway.running import Running
from mesh.policy.authority import Authority
from mesh.policy.bundle import PolicyBook, Spans, TenantPolicy
from mesh.policy.shards import shard_of
from mesh.policy.shrink import Right, Rights
from mesh.ports import Instant
from mesh.transport.handouts import HandOuts
from mesh.types import Here, Jurisdiction, KeyId, RegionId, Revision, TenantId, TenantState, Transfer

HERE, HOME, FAR = (Jurisdiction(code) for code in ("SG", "VN", "JP"))
ABROAD = RegionId("ap-southeast-1")
TENANTS = [tenant for number in range(200) if shard_of(VN, tenant := TenantId(f"t_{number:016d}")).index == 0][:4]
"""All of one shard of their home; every other one's home is here."""
USES: list[Rights] = [frozenset({Right(HERE, False)}), frozenset({Right(HERE, True), Right(HOME, False)})]
SPANS = [Spans(), Spans(foreign_s=3.0), Spans(home_s=4.0, foreign_s=20.0)]


class Counting(Authority):
    """Counts how often it is asked."""

    asked = 0

    def left_s(self, policy: TenantPolicy, place: Jurisdiction, now: Instant) -> float:
        self.asked += 1
        return super().left_s(policy, place, now)


class Ground:
    """A gateway abroad, with tenants of two homes."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.book = PolicyBook()
        self.authority = Counting()
        self.running = Running(
            here=Here(region=ABROAD, jurisdiction=HERE),
            book=self.book,
            authority=self.authority,
            replicas=HandOuts(self.clock),
            clock=self.clock,
        )
        self.book.watcher = self.running
        self.authority.granted({}, self.clock.instant())
        self.calls: list[Ongoing] = []

    def policy(
        self, tenant: TenantId, revision: int, spans: Spans, *places: Jurisdiction, drain_s: float = 0.0
    ) -> None:
        at_home = TENANTS.index(tenant) % 2 if tenant in TENANTS else 0
        self.book.put_tenant(
            TenantPolicy(
                tenant=tenant,
                home=ABROAD if at_home else VN,
                home_jurisdiction=HERE if at_home else HOME,
                revision=Revision(revision),
                state=TenantState.ACTIVE,
                allowed=frozenset(places),
                transfer=Transfer.WITHIN_ALLOWED,
                authority=spans,
                drain_s=drain_s,
            )
        )

    def begin(self, tenant: TenantId, uses: Rights) -> Ongoing:
        call = self.running.enter(tenant=tenant, key_id=KeyId("k"), uses=uses)
        self.calls.append(call.__enter__())
        return call

    def end(self, call: Ongoing) -> None:
        self.calls.remove(call)
        with suppress(MeshError):
            call.__exit__(None, None, None)


steps = st.one_of(
    st.tuples(st.just("time"), st.sampled_from([0.5, 1.9, 3.1])),
    st.tuples(st.just("time"), st.sampled_from([0.5, 1.9, 3.1])),
    st.tuples(st.just("begin"), st.sampled_from(TENANTS), st.sampled_from(USES)),
    st.tuples(st.just("begin"), st.sampled_from(TENANTS), st.sampled_from(USES)),
    st.tuples(st.just("reach"), st.integers(0, 9)),
    st.tuples(st.just("returned"), st.integers(0, 9)),
    st.tuples(st.just("end"), st.integers(0, 9)),
    st.tuples(st.just("grant"), st.booleans()),
    st.tuples(
        st.just("policy"), st.sampled_from(TENANTS), st.sampled_from(SPANS), st.booleans(), st.sampled_from([0.0, 2.0])
    ),
    st.tuples(st.just("gone"), st.sampled_from(TENANTS)),
    st.tuples(st.just("wall")),
    st.tuples(st.just("drop")),
)


def take(ground: Ground, revision: int, step: tuple[object, ...]) -> None:
    match step:
        case ("time", float(seconds)):
            ground.clock._pass(seconds)
        case ("begin", str(tenant), uses):
            ground.begin(TenantId(tenant), uses)  # pyright: ignore[reportArgumentType]
        case (("reach" | "returned" | "end") as what, int(number)) if ground.calls:
            call = ground.calls[number % len(ground.calls)]
            if what == "end":
                ground.end(call)
            elif what == "returned":
                call.returned(whole=True)
            else:
                with suppress(CutError, MeshError):
                    call.reach(Right(FAR, True))
        case ("grant", _):
            ground.authority.granted({}, ground.clock.instant())
        case ("policy", str(tenant), Spans() as spans, bool(wide), float(drain_s)):
            places = (HERE, HOME, FAR) if wide else (HERE, HOME)
            ground.policy(TenantId(tenant), revision, spans, *places, drain_s=drain_s)
        case ("gone", str(tenant)):
            ground.book.drop_tenant(TenantId(tenant))
        case ("wall",):
            ground.clock.wall_ahead_s += 5
        case ("drop",):
            ground.authority.drop()
        case _:
            pass


@given(st.lists(steps, min_size=4, max_size=25))
def test_the_timer_cuts_exactly_what_has_come_to_its_end(taken: list[tuple[object, ...]]) -> None:
    async def scenario() -> None:
        ground = Ground()
        for tenant in TENANTS:
            ground.policy(tenant, 1, Spans(), HERE, HOME, FAR)
        for number, step in enumerate(taken):
            take(ground, 2 + number, step)
            before = [call.code for call in ground.calls]
            ground.running.review()
            now = ground.clock.instant()
            for call, code in zip(ground.calls, before, strict=True):
                assert (call.code is not None) == (code is not None or call.left_s(now) <= 0)
        for call in list(ground.calls):
            ground.end(call)
        assert not list(ground.running._alike.groups())

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(scenario())
    finally:
        loop.close()


async def test_calls_that_were_alike_end_apart() -> None:
    """Each change of what a call's authority comes from, while another call of the same kind was there before it."""
    ground = Ground()
    near = TENANTS[1]
    for tenant in TENANTS:
        ground.policy(tenant, 1, Spans(), HERE, HOME, FAR)
    far = Right(FAR, True)
    stays, comes_back, reaches, is_away = (ground.begin(near, USES[0]) for _ in range(4))  # at home: for 15 minutes
    for call in (comes_back, reaches, is_away):
        call.reach(far)
    comes_back.returned(whole=True)
    first = ground.begin(TENANTS[0], USES[0])

    def cut() -> list[Ongoing]:
        ground.running.review()
        return [call for call in ground.calls if call.code is not None]

    assert cut() == []
    ground.clock._pass(6.0)
    assert cut() == [reaches, is_away, first]
    assert [call.code for call in (stays, comes_back)] == [None, None]


async def test_a_change_of_one_tenants_policy_moves_its_calls_only() -> None:
    ground = Ground()
    for tenant in TENANTS:
        ground.policy(tenant, 1, Spans(), HERE, HOME, FAR)
    one, other = TENANTS[0], TENANTS[2]
    first, drains = ground.begin(one, USES[0]), ground.begin(other, USES[0])
    drains.handed = True
    ground.policy(other, 2, Spans(), HOME, drain_s=2.0)
    ground.clock._pass(2.0)
    ground.running.review()
    assert [call.code is None for call in (first, drains)] == [True, False]
    ground.end(drains)
    ground.policy(other, 3, Spans(), HERE, HOME)
    lowered = ground.begin(other, USES[0])
    ground.policy(other, 4, Spans(foreign_s=3.0), HERE, HOME)
    ground.clock._pass(1.0)
    ground.running.review()
    assert [call.code is None for call in (first, lowered)] == [True, False]


async def test_a_look_at_many_calls_costs_as_much_as_one_at_few() -> None:
    ground = Ground()
    tenants = [TenantId(f"t_many{number:012d}") for number in range(500)]
    for tenant in tenants:
        ground.policy(tenant, 1, Spans(), HERE, HOME)
        for uses in USES:
            ground.begin(tenant, uses)
    ground.authority.asked = 0
    ground.running.review()
    # 16 shards, and two sets of rights, one of them with two places: none of it for each tenant or call.
    assert 0 < ground.authority.asked <= 16 * 3
    assert all(call.code is None for call in ground.calls)
    ground.clock._pass(6.0)
    ground.running.review()
    assert all(call.code is not None for call in ground.calls)
