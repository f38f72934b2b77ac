"""A change is made once, is signed and kept before it is sent, and says what a wait for it must know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from etcd_lab import running_etcd
from hypothesis import given
from hypothesis import strategies as st
from memory_store import MemoryStore
from trust_lab import Notebook, changes_in, trust_in

from mesh.control import edits, layout
from mesh.control.changes import Changes, Outcome
from mesh.control.ops import new_op_id
from mesh.control.records import OpMark, decode_op, decode_tenant, encode_op
from mesh.control.store import Compare, Op, Put, Range, StoreUnavailableError, TxnResult
from mesh.errors import Code, MeshError
from mesh.policy.bundle import Spans, TenantPolicy
from mesh.policy.shrink import Right, Shrink, rights_of
from mesh.runtime import SystemClock, SystemEntropy
from mesh.types import (
    Jurisdiction,
    KeyId,
    MemberId,
    RegionId,
    Revision,
    Role,
    TenantId,
    TenantState,
    Transfer,
)
from mesh.v1 import control_pb2 as pb

HOME = RegionId("vn-1")
VN, SG, JP = (Jurisdiction(code) for code in ("VN", "SG", "JP"))
DAY_S = 86_400
CLOCK = SystemClock()


class Past(SystemClock):
    """A clock that is so many days behind."""

    def __init__(self, days: float) -> None:
        self._days = days

    def wall_s(self) -> float:
        return super().wall_s() - self._days * DAY_S


def op_id(days_old: float = 0) -> str:
    return new_op_id(Past(days_old), SystemEntropy())


class World:
    """A store, a home's admin, its ledger, and two gateways with grants."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.journal = Notebook()
        self.changes = changes_in(self.store, HOME, CLOCK, journal=self.journal)
        self.tenant = TenantId("")

    async def begin(self, *allowed: Jurisdiction) -> World:
        for region, member in (("vn-1", "u1"), ("sg-1", "u2")):
            value = pb.GrantRecord(gateway="g1", attempt=bytes(16)).SerializeToString()
            await self.store.txn((), [Put(layout.grant_key(RegionId(region), MemberId(member)), value)], timeout_s=1)
        made = await self.changes.create_tenant(bytes(16), frozenset(allowed), Transfer.NEVER)
        self.tenant = made.tenant.policy.tenant
        return self

    @property
    def op_keys(self) -> list[str]:
        return [key for key in self.store._at(self.store.revision) if key.startswith("/mesh/op/")]


async def refused(work: object) -> MeshError:
    with pytest.raises(MeshError) as caught:
        await work  # pyright: ignore[reportGeneralTypeIssues]
    return caught.value


async def test_an_outcome_says_what_a_wait_must_know() -> None:
    world = await World().begin(VN, SG, JP)
    before = CLOCK.instant()
    made = await world.changes.set_allowed(world.tenant, frozenset({VN}), drain_s=5)
    assert (made.changed, made.resumed, made.revision, made.number, made.drain_s) == (True, False, 2, 2, 5)
    grants = {member: (one.region, one.gateway) for member, one in made.members.items()}
    assert grants == {MemberId("u1"): ("vn-1", "g1"), MemberId("u2"): ("sg-1", "g1")}
    assert {one.mod_revision for one in made.members.values()} == {2, 3}
    assert made.shrink == Shrink(removed=frozenset({Right(SG, False), Right(JP, False)}), lowered=frozenset(), span_s=6)
    assert made.committed.least_since(before) >= 0
    policy = made.tenant.policy
    assert (policy.out_since, policy.drain_s) == ({SG: 2, JP: 2}, 5)
    back = await world.changes.set_allowed(world.tenant, frozenset({VN, SG}))
    assert back.shrink is None
    assert (back.tenant.policy.out_since, back.number) == ({JP: 2}, 3)
    again = await world.changes.set_allowed(world.tenant, frozenset({VN}))
    assert again.tenant.policy.out_since == {SG: 4, JP: 2}
    head = world.store.value(layout.head_key(policy.shard))
    assert head is not None
    assert head.version == again.number == 4


async def test_the_same_op_id_is_one_change() -> None:
    world = await World().begin(VN, SG)
    op = op_id()
    first = await world.changes.set_allowed(world.tenant, frozenset({VN}), op_id=op)
    await world.changes.set_allowed(world.tenant, frozenset({VN, SG}))  # somebody else, in between
    value = pb.GrantRecord(gateway="g2").SerializeToString()
    await world.store.txn((), [Put(layout.grant_key(HOME, MemberId("u3")), value)], timeout_s=1)
    stood = world.store.revision
    other = changes_in(world.store, HOME, CLOCK)  # the admin was started anew
    again = await other.set_allowed(world.tenant, frozenset({VN}), op_id=op)
    assert world.store.revision == stood, "nothing was written"
    assert (first.resumed, again.resumed, again.op_id) == (False, True, op)
    assert (again.revision, again.shrink, again.key_id) == (first.revision, first.shrink, None)
    assert again.tenant.policy.revision == 3, "as it stands now"
    assert again.number >= first.number
    assert set(again.members) == {"u1", "u2", "u3"}, "those who are there now"
    key = KeyId("K" * 12)
    await world.changes.create_key(world.tenant, key, "sha256$00")
    ended = [await world.changes.revoke_key(key, op_id=op_id) for op_id in [new_op_id(CLOCK, SystemEntropy())] * 2]
    assert [(one.resumed, one.key_id, one.shrink) for one in ended] == [
        (False, key, ended[0].shrink),
        (True, key, ended[0].shrink),
    ]
    assert ended[0].shrink is not None
    assert ended[1].key is not None
    assert ended[1].key.key.revoked


async def test_an_op_id_is_for_one_thing_and_a_few_days() -> None:
    world = await World().begin(VN, SG)
    op = op_id()
    await world.changes.set_allowed(world.tenant, frozenset({VN}), op_id=op)
    cases = [
        world.changes.set_allowed(world.tenant, frozenset({VN, SG}), op_id=op),
        world.changes.set_allowed(world.tenant, frozenset({VN}), drain_s=1, op_id=op),
        world.changes.set_state(world.tenant, TenantState.SUSPENDED, op_id=op),
        *(
            world.changes.set_state(world.tenant, TenantState.SUSPENDED, op_id=bad)
            for bad in ("", "x", "0" * 36, op_id(days_old=6.01), op_id(days_old=-1), op.upper())
        ),
    ]
    for case in cases:
        error = await refused(case)
        assert (error.code, error.param) == (Code.INVALID_PARAMETER, "op_id")
    record = await world.changes.tenant(world.tenant)
    assert (record.policy.revision, record.policy.state) == (2, TenantState.ACTIVE)
    made = await world.changes.set_state(world.tenant, TenantState.SUSPENDED, op_id=op_id(days_old=5.99))
    assert made.changed


async def test_a_lost_answer_is_found_again() -> None:
    world = await World().begin(VN, SG)
    world.store.lose_answers = 1
    made = await world.changes.set_allowed(world.tenant, frozenset({VN}))
    assert (made.changed, made.resumed, made.revision, made.number) == (True, False, 2, 2)
    assert made.shrink is not None
    assert set(made.members) == {"u1", "u2"}
    assert len(world.op_keys) == 2


async def test_what_was_signed_is_in_the_ledger_before_it_is_sent() -> None:
    world = await World().begin(VN, SG)
    kept = len(world.journal.rows)
    seen: list[int] = []
    world.store.before_txn = lambda: seen.append(len(world.journal.rows))
    made = await world.changes.set_allowed(world.tenant, frozenset({VN}))
    assert seen == [kept + 1]
    at, value, epoch, revision = world.journal.rows[kept + 1]
    stored = world.store.value(at)
    assert stored is not None
    assert (stored.value, epoch, revision) == (value, 1, made.revision)
    await world.changes.create_key(world.tenant, KeyId("K" * 12), "sha256$00")
    assert seen == [kept + 1, kept + 3], "the tenant's record and the key's"


async def test_a_store_that_fails_leaves_the_row() -> None:
    world = await World().begin(VN, SG)
    kept = dict(world.journal.rows)

    def fail() -> None:
        raise StoreUnavailableError("UNAVAILABLE")

    world.store.before_txn = fail
    error = await refused(world.changes.set_allowed(world.tenant, frozenset({VN})))
    assert error.code is Code.POLICY_STORE_UNAVAILABLE
    text = str(error).lower()
    assert "nothing was changed" in text or "may have been made" in text
    assert not ("nothing was changed" in text and "may have been made" in text), "one of them is not true"
    assert ("may have been made" in text) == (len(world.journal.rows) > len(kept)), "what was not sent was not made"
    rows = [row for number, row in world.journal.rows.items() if number not in kept]
    assert rows, "it may have come through, for all that is known"
    at = layout.parse(rows[0][0])
    assert isinstance(at, layout.PolicyKey)
    assert decode_tenant(at, rows[0][1], trust_in()).policy.allowed == {VN}


async def test_a_ledger_that_fails_keeps_anything_from_being_sent() -> None:
    world = await World().begin(VN, SG)
    stood = world.store.revision

    class Broken(Notebook):
        async def signed(self, key: str, value: bytes, epoch: int, revision: Revision) -> int:
            raise MeshError(Code.INTERNAL_ERROR)

    changes = changes_in(world.store, HOME, CLOCK, journal=Broken())
    assert (await refused(changes.set_allowed(world.tenant, frozenset({VN})))).code is Code.INTERNAL_ERROR
    assert world.store.revision == stood


async def test_what_lost_a_race_is_not_kept() -> None:
    world = await World().begin(VN, SG)
    other = changes_in(world.store, HOME, CLOCK)

    class Slow(Notebook):
        raced = False

        async def signed(self, key: str, value: bytes, epoch: int, revision: Revision) -> int:
            if not self.raced:
                self.raced = True
                await other.set_state(world.tenant, TenantState.SUSPENDED)
            return await super().signed(key, value, epoch, revision)

    journal = Slow()
    made = await changes_in(world.store, HOME, CLOCK, journal=journal).set_allowed(world.tenant, frozenset({VN}))
    assert (made.revision, made.tenant.policy.state) == (3, TenantState.SUSPENDED)
    assert [row[3] for row in journal.rows.values()] == [3], "the attempt of revision 2 surely never came through"


class Behind(MemoryStore):
    """A store whose nearest member has come to `applied`; None is all of it. `asked` counts linearizable reads."""

    applied: int | None = None
    asked = 0

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = (), *, timeout_s: float
    ) -> TxnResult:
        if any(isinstance(op, Range) and op.serializable for op in then):
            at = self.revision if self.applied is None else self.applied
            reads = [replace(op, revision=at) for op in then if isinstance(op, Range)]
            return replace(await super().txn((), reads, timeout_s=timeout_s), revision=at)
        self.asked += all(isinstance(op, Range) for op in then)
        return await super().txn(compares, then, otherwise, timeout_s=timeout_s)


async def near(behind: int | None = None) -> tuple[World, Changes]:
    """A world, and an admin that asks the nearest member first: one that is so many revisions behind from here on."""
    world = World()
    world.store = store = Behind()
    world.changes = changes_in(store, HOME, CLOCK, journal=world.journal)
    await world.begin(VN, SG)
    store.applied = None if behind is None else store.revision - behind
    store.asked = 0
    return world, changes_in(store, HOME, CLOCK, store_answers=True)


async def test_where_the_nearest_member_is_up_to_date_a_change_is_one_round_of_the_store() -> None:
    world, changes = await near()
    made = await changes.set_allowed(world.tenant, frozenset({VN}))
    assert (made.changed, made.revision, made.number, world.store.asked) == (True, 2, 2, 0)
    assert set(made.members) == {"u1", "u2"}
    slow = changes_in(world.store, HOME, CLOCK, store_answers=False)
    await slow.set_allowed(world.tenant, frozenset({VN, SG}))
    assert world.store.asked == 1, "where the store may be away, that is found out before anything is sent"


async def test_a_member_that_is_behind_decides_nothing() -> None:
    world, changes = await near(behind=1)  # to which the tenant does not exist
    made = await changes.set_allowed(world.tenant, frozenset({VN}))
    assert (made.changed, made.revision) == (True, 2)
    world, changes = await near(behind=0)
    op = op_id()
    await world.changes.set_allowed(world.tenant, frozenset({VN}), op_id=op)
    back = await changes.set_allowed(world.tenant, frozenset({VN, SG}))  # so it is, by what that member has
    assert (back.changed, back.revision) == (True, 3)
    again = await changes.set_allowed(world.tenant, frozenset({VN}), op_id=op)  # which has not heard of it
    assert (again.resumed, again.revision, again.tenant.policy.revision) == (True, 2, 3)
    made = await changes.set_state(world.tenant, TenantState.SUSPENDED)
    assert (made.revision, made.tenant.policy.allowed) == (4, {VN, SG})
    assert (await refused(changes.revoke_key(KeyId("K" * 12)))).code is Code.KEY_NOT_FOUND


async def test_a_store_that_went_back_is_told_by_nobody_in_between() -> None:
    world, changes = await near()
    await changes.set_allowed(world.tenant, frozenset({VN}))
    await changes.set_allowed(world.tenant, frozenset({VN, SG}))
    stood = world.store.revision - 1
    world.store.restore(stood)
    for _ in range(2):
        error = await refused(changes.set_state(world.tenant, TenantState.SUSPENDED))
        assert error.code is Code.POLICY_STORE_UNAVAILABLE
        assert world.store.revision == stood, "nothing is written into it"
        for _ in range(3):  # by others, so that it is further than it was
            await world.store.txn((), [Put("/more", b"")], timeout_s=1)
        stood = world.store.revision


async def test_a_region_without_a_policy_key_is_no_home() -> None:
    store = MemoryStore()
    changes = Changes(store, HOME, CLOCK, SystemEntropy(), None, trust_in(), Notebook())
    error = await refused(changes.create_tenant(bytes(16), frozenset({VN}), Transfer.NEVER))
    assert error.code is Code.INVALID_SETTINGS
    assert "policy_keys" in str(error)
    assert await changes.tenants() == ()


async def test_an_admin_that_sees_the_store_go_back_changes_nothing_more() -> None:
    world = await World().begin(VN, SG)
    backup = world.store.revision
    await world.changes.set_allowed(world.tenant, frozenset({VN}))
    world.store.restore(backup)
    for _ in range(2):
        error = await refused(world.changes.set_allowed(world.tenant, frozenset({VN})))
        assert (error.code, "restored" in str(error)) == (Code.POLICY_STORE_UNAVAILABLE, True)
        await world.store.txn((), [Put("/more", b"")] * 1, timeout_s=1)
    assert world.store.value(layout.policy_key(HOME, world.tenant)) is not None
    assert (await changes_in(world.store, HOME, CLOCK).tenant(world.tenant)).policy.allowed == {VN, SG}


async def test_what_stands_already_is_waited_for_again() -> None:
    """Whoever asked first may have gone before it held: the same words again must not return at once."""
    world = await World().begin(VN, SG)
    key = KeyId("K" * 12)
    await world.changes.create_key(world.tenant, key, "sha256$00")
    nothing = await world.changes.set_allowed(world.tenant, frozenset({VN, SG}))
    assert (nothing.changed, nothing.shrink) == (False, None)
    calls: list[Callable[[], object]] = [
        lambda: world.changes.set_allowed(world.tenant, frozenset({VN})),
        lambda: world.changes.revoke_key(key),
        lambda: world.changes.set_authority(world.tenant, Spans(home_s=60, foreign_s=6)),
        lambda: world.changes.set_transfer(world.tenant, Transfer.NEVER),
        lambda: world.changes.set_state(world.tenant, TenantState.SUSPENDED),
    ]
    for call in calls:
        outcomes = [await call() for _ in range(2)]  # pyright: ignore[reportGeneralTypeIssues]
        for one in outcomes:
            assert isinstance(one, Outcome)
            assert one.shrink is not None
            assert set(one.members) == {"u1", "u2"}
            assert one.number > 0
        assert not outcomes[1].changed
        assert outcomes[1].revision == outcomes[1].tenant.policy.revision
        assert outcomes[1].shrink.span_s >= outcomes[0].shrink.span_s or outcomes[1].shrink.lowered


async def test_authority_is_lowered_raised_and_settled() -> None:
    world = await World().begin(VN, SG)
    changes, tenant = world.changes, world.tenant
    raised = await changes.set_authority(tenant, Spans(home_s=900, foreign_s=60))
    assert (raised.shrink, raised.tenant.policy.authority_before) == (None, {})
    lowered = await changes.set_authority(tenant, Spans(home_s=20, foreign_s=6))
    assert lowered.shrink == Shrink(removed=frozenset(), lowered=frozenset({VN, SG}), span_s=900)
    assert lowered.tenant.policy.authority_before == {VN: 900, SG: 60}
    pinned = await changes.set_allowed(tenant, frozenset({VN}))
    assert pinned.shrink is not None
    assert pinned.shrink.span_s == 60, "the older time is still in use where the change has not been heard of"
    late = await changes.settle_authority(tenant, lowered.revision)
    assert not late.changed, "it has changed since, and nobody knows what for"
    still = await changes.set_authority(tenant, Spans(home_s=20, foreign_s=6))
    assert still.shrink is not None
    assert (still.changed, still.shrink.span_s) == (False, 900)
    settled = await changes.settle_authority(tenant, still.revision)
    assert (settled.changed, settled.tenant.policy.authority_before, settled.shrink) == (True, {}, None)
    for spans in (Spans(home_s=2.9), Spans(foreign_s=2.9), Spans(home_s=86_401), Spans(foreign_s=float("nan"))):
        error = await refused(changes.set_authority(tenant, spans))
        assert (error.code, error.param) == (Code.INVALID_PARAMETER, "authority")
    for drain_s in (-1.0, 86_401.0, float("nan")):
        error = await refused(changes.set_allowed(tenant, frozenset({VN, SG}), drain_s=drain_s))
        assert (error.code, error.param) == (Code.INVALID_PARAMETER, "drain")


async def test_whoever_settles_has_waited_for_every_older_time() -> None:
    """A change that only lowers another place's time, or lowers none, must not settle what nobody has waited for."""
    world = await World().begin(VN, SG)
    changes, tenant = world.changes, world.tenant
    await changes.set_authority(tenant, Spans(home_s=60, foreign_s=6))  # and its caller is gone
    other = await changes.set_authority(tenant, Spans(home_s=60, foreign_s=5))
    assert other.shrink == Shrink(removed=frozenset(), lowered=frozenset({VN, SG}), span_s=900)
    raised = await changes.set_authority(tenant, Spans(home_s=60, foreign_s=10))
    assert raised.shrink == Shrink(removed=frozenset(), lowered=frozenset({VN}), span_s=900)
    await changes.settle_authority(tenant, raised.revision)
    free = await changes.set_authority(tenant, Spans(home_s=70, foreign_s=10))
    assert free.shrink is None


async def test_a_suspension_waits_as_long_as_anything_older_may_be_acted_on() -> None:
    world = await World().begin(VN, SG)
    await world.changes.set_authority(world.tenant, Spans(home_s=5, foreign_s=60))
    await world.changes.settle_authority(world.tenant, Revision(2))
    pinned = await world.changes.set_allowed(world.tenant, frozenset({VN}))
    assert pinned.shrink is not None
    suspended = await world.changes.set_state(world.tenant, TenantState.SUSPENDED)
    assert suspended.shrink is not None
    assert suspended.shrink.span_s == 60, "home's is 5, but not everyone may have heard that Singapore is out"
    resumed = await world.changes.set_state(world.tenant, TenantState.ACTIVE)
    assert resumed.shrink is None


@given(
    st.builds(
        Shrink,
        removed=st.frozensets(st.builds(Right, st.sampled_from([VN, SG, JP]), st.booleans())),
        lowered=st.frozensets(st.sampled_from([VN, SG, JP])),
        span_s=st.integers(0, 10**6).map(lambda ms: ms / 1000),
    ),
    st.none() | st.just(KeyId("K" * 12)),
)
def test_op_marks_are_read_as_they_were_written(shrink: Shrink, key_id: KeyId | None) -> None:
    mark = OpMark(revision=Revision(3), asked=b"a" * 32, shrink=shrink, key_id=key_id, drain_s=1.5)
    assert decode_op(encode_op(mark)) == mark
    plain = OpMark(revision=Revision(1), asked=b"")
    assert decode_op(encode_op(plain)) == plain


POLICY = TenantPolicy(
    tenant=TenantId("t_aaaaaaaaaaaaaaaa"),
    home=HOME,
    home_jurisdiction=VN,
    revision=Revision(1),
    state=TenantState.ACTIVE,
    allowed=frozenset({VN}),
    transfer=Transfer.NEVER,
)
spans = st.builds(Spans, home_s=st.sampled_from([5.0, 60.0]), foreign_s=st.sampled_from([6.0, 30.0]))
steps = st.lists(
    st.one_of(
        st.frozensets(st.sampled_from([VN, SG, JP]), min_size=1), st.sampled_from(TenantState), spans,
        st.sampled_from(Transfer),
    ),
    max_size=8,
)  # fmt: skip


@given(steps)
def test_no_wait_is_shorter_than_anything_still_in_use(changes: list[object]) -> None:
    """Nobody has heard of any change yet: what each takes away must be waited for as long as every older policy says."""
    history = [POLICY]
    for change in changes:
        before = history[-1]
        match change:
            case frozenset():
                after = edits.with_allowed(before, change, 0)
                taken = edits.taken_by_pin(before, after)
            case TenantState():
                after = edits.with_state(before, change)
                taken = edits.taken_by_state(before, after)
            case Transfer():
                after = edits.with_transfer(before, change)
                taken = edits.taken_by_transfer(before, after)
            case _:
                assert isinstance(change, Spans)
                after = edits.with_authority(before, change)
                taken = edits.taken_by_authority(after)
        assert after.revision == before.revision + (after != before)
        gone = rights_of(before) - rights_of(after)
        assert taken is not None or not gone
        if taken is not None:
            places = {right.place for right in taken.removed} | taken.lowered
            in_use = [old.span_s(right.place) for old in history for right in rights_of(old) if right.place in places]
            assert taken.span_s >= max(in_use, default=0.0)
        history.append(after)
        out = set(after.out_since)
        assert not out & after.allowed
        assert out | after.allowed == frozenset().union(*(old.allowed for old in history))


async def test_on_etcd_a_change_tells_its_number_and_all_members(tmp_path: Path) -> None:
    async with running_etcd(tmp_path, ("vn-1", "sg-1")) as lab:
        admin = await lab.store("vn-1", Role.ADMIN)
        changes = changes_in(admin, HOME, lab.clock)
        tenant = (await changes.create_tenant(bytes(16), frozenset({VN, SG}), Transfer.NEVER)).tenant.policy.tenant
        put: dict[str, TxnResult] = {}
        for region in ("vn-1", "sg-1"):
            gateway = await lab.store(region, Role.GATEWAY)
            key = layout.grant_key(RegionId(region), MemberId(f"u-{region}"))
            value = pb.GrantRecord(gateway="g1", attempt=bytes(16)).SerializeToString()
            put[f"u-{region}"] = await gateway.txn((), [Put(key, value)], timeout_s=30)
        op = op_id()
        made = await changes.set_allowed(tenant, frozenset({VN}), op_id=op)
        assert made.number == 2
        assert {name: one.mod_revision for name, one in made.members.items()} == {
            name: answer.revision for name, answer in put.items()
        }
        again = await changes.set_allowed(tenant, frozenset({VN}), op_id=op)
        assert (again.resumed, again.number, again.members) == (True, 2, made.members)
        assert again == replace(made, resumed=True, committed=again.committed)
