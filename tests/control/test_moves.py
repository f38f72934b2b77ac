"""A tenant's move from home to home: in its steps, against the faults between them, and as gateways see it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from etcd_lab import running_etcd
from memory_store import MemoryStore
from move_lab import BOTH, CLOCK, K1, K2, SG, VN, A, B, C, Homes, in_memory
from trust_lab import changes_in, trust_in

from mesh.control import layout
from mesh.control.changes import Outcome
from mesh.control.ops import new_op_id
from mesh.control.records import TenantRecord, decode_tenant
from mesh.control.store import Compare, Op, Put, StoreUnavailableError, TxnResult
from mesh.errors import Code, MeshError
from mesh.policy.bundle import Spans
from mesh.runtime import SystemClock, SystemEntropy
from mesh.types import Jurisdiction, KeyId, RegionId, Role, TenantId, TenantState, Transfer
from mesh.v1 import control_pb2 as pb


async def refused(work: object) -> MeshError:
    with pytest.raises(MeshError) as caught:
        await work  # pyright: ignore[reportGeneralTypeIssues]
    return caught.value


async def the_story_of_a_move(homes: Homes) -> None:
    tenant, (a, b) = homes.tenant, (homes.admins[A], homes.admins[B])
    await a.set_authority(tenant, Spans(home_s=300, foreign_s=5))
    before = await a.tenant(tenant)
    first = await b.moves.prepare(tenant, A)
    assert await homes.home() == A, "prepared, and nothing moved"
    assert (await refused(b.tenant(tenant))).code is Code.TENANT_NOT_FOUND
    assert await b.tenants() == ()
    left = await a.moves.leave(tenant, B)
    assert (left.changed, left.revision) == (True, before.policy.revision + 1)
    assert left.shrink is not None
    assert (left.shrink.removed, left.shrink.span_s) == (frozenset(), 900), "what was before 300 s counts as well"
    policy = (await homes.book()).tenant(tenant)
    assert policy is not None
    assert policy == first.policy
    assert (policy.home, policy.home_jurisdiction, policy.moves) == (B, SG, 1)
    assert (policy.allowed, policy.transfer, policy.state) == (BOTH, Transfer.NEVER, TenantState.ACTIVE)
    assert policy.authority == Spans(home_s=300, foreign_s=5)
    assert policy.authority_before == {VN: 900}, "Hanoi's time, and what it was before"
    book = await homes.book()
    assert [(key.key_id, key.revoked) for key in book.all_keys()] == [(K1, False)]
    assert await a.tenants() == ()
    for work in (a.tenant(tenant), a.set_allowed(tenant, frozenset({VN})), a.create_key(tenant, K2, "sha256$1")):
        assert (await refused(work)).code is Code.TENANT_NOT_FOUND
    assert (await refused(a.revoke_key(K1))).code is Code.KEY_NOT_FOUND
    assert (await refused(a.key(K1))).code is Code.KEY_NOT_FOUND
    # Not finished, and yet the new home's.
    assert (await b.tenant(tenant)).policy == first.policy
    assert [record.policy for record in await b.tenants()] == [first.policy]
    assert (await b.key(K1)).key.key_id == K1
    waited, stands = await b.moves.finish(tenant)
    assert len(stands.chain) == 1
    assert (waited.tenant.policy.home, waited.revision, waited.shrink) == (A, left.revision, left.shrink)
    assert waited.number >= left.number
    settled = await b.settle_authority(tenant, stands.policy.revision)
    assert settled.tenant.policy.authority_before == {}
    # The old jurisdiction can leave the pin now, and the change carries the move.
    pinned = await b.set_allowed(tenant, frozenset({SG}), op_id=new_op_id(CLOCK, SystemEntropy()))
    assert len(pinned.tenant.chain) == 1
    await b.revoke_key(K1)
    book = await homes.book()
    policy = book.tenant(tenant)
    assert policy == (await b.tenant(tenant)).policy
    assert policy is not None
    assert policy.allowed == {SG}
    key = book.key(K1)
    assert key is not None
    assert key.revoked


async def test_the_story_of_a_move() -> None:
    await the_story_of_a_move(await in_memory()[0].begin())


async def test_the_story_of_a_move_on_etcd_with_each_admins_own_rights(tmp_path: Path) -> None:
    async with running_etcd(tmp_path, (A, B)) as lab:
        homes = Homes({home: await lab.store(home, Role.ADMIN) for home in (A, B)})
        await the_story_of_a_move(await homes.begin())


async def test_a_tenant_moves_back_and_on_and_takes_its_keys_along() -> None:
    homes, _ = in_memory()
    await homes.begin(keys=2)
    path = [(A, B), (B, A), (A, C), (C, A), (A, B)]
    for number, (old, new) in enumerate(path, 1):
        await homes.move(old, new)
        book = await homes.book()
        policy = book.tenant(homes.tenant)
        assert policy is not None
        assert (policy.home, policy.moves) == (new, number)
        assert {key.key_id: key.revoked for key in book.all_keys()} == {K1: False, K2: number > 2}
        for home, admin in homes.admins.items():
            assert [record.policy.tenant for record in await admin.tenants()] == [homes.tenant] * (home == new)
        if number == 2:
            await homes.admins[A].revoke_key(K2)
    record = await homes.admins[B].tenant(homes.tenant)
    assert [(one.home, one.new_home) for one in record.chain] == path
    assert [key.key.revoked for key in await homes.admins[B].keys(homes.tenant)] == [False, True]


async def test_a_suspended_tenant_moves_and_stays_suspended() -> None:
    homes, _ = in_memory()
    await homes.begin()
    await homes.admins[A].set_state(homes.tenant, TenantState.SUSPENDED)
    await homes.move(A, B)
    assert (await homes.admins[B].tenant(homes.tenant)).policy.state is TenantState.SUSPENDED
    resumed = await homes.admins[B].set_state(homes.tenant, TenantState.ACTIVE)
    assert (await homes.book()).tenant(homes.tenant) == resumed.tenant.policy


async def test_what_changes_after_the_new_home_is_ready_keeps_the_old_one_from_leaving() -> None:
    homes, _ = in_memory()
    await homes.begin()
    a, b, tenant = homes.admins[A], homes.admins[B], homes.tenant
    for change in (
        lambda: a.revoke_key(K1),
        lambda: a.create_key(tenant, K2, "sha256$1"),
        lambda: a.set_transfer(tenant, Transfer.WITHIN_ALLOWED),
    ):
        await b.moves.prepare(tenant, A)
        await change()
        assert (await refused(a.moves.leave(tenant, B))).code is Code.MOVE_UNFINISHED
        assert await homes.home() == A
    await b.moves.prepare(tenant, A)
    await a.moves.leave(tenant, B)
    keys = {key.key.key_id: key.key.revoked for key in await b.keys(tenant)}
    assert keys == {K1: True, K2: False}, "a key that was revoked meanwhile does not come back"


async def test_leaving_needs_what_the_new_home_has_put_to_stand_still() -> None:
    """Between the old home's look and its transaction the new home puts another record: nothing is said."""
    homes, store = in_memory()
    await homes.begin()
    a, b, tenant = homes.admins[A], homes.admins[B], homes.tenant
    await b.moves.prepare(tenant, A)
    at = layout.policy_key(B, tenant)
    looked: list[int] = []

    def once() -> None:
        if not looked:
            looked.append(store.revision)
            item = store.value(at)
            assert item is not None
            store.revision += 1
            store._states.append(dict(store._states[-1]))
            store._write(Put(at, item.value))  # the same again, and yet not what was looked at

    store.before_txn, signed = once, homes.ledgers[A].count
    left = await a.moves.leave(tenant, B)
    assert left.changed
    assert homes.ledgers[A].count - signed == 2, "signed twice"
    assert len(homes.ledgers[A].moves) == 1, "what surely was not said is not kept"


@pytest.mark.parametrize("lost", [1, 2, 3])
async def test_a_lost_answer_makes_no_second_statement(lost: int) -> None:
    homes, store = in_memory()
    await homes.begin()
    await homes.admins[B].moves.prepare(homes.tenant, A)
    store.lose_answers = lost
    left = await homes.admins[A].moves.leave(homes.tenant, B)
    assert left.changed
    record = (await homes.admins[B].moves.finish(homes.tenant))[1]
    assert len(record.chain) == 1
    assert await homes.home() == B


async def test_once_a_last_word_was_signed_nothing_else_is_that_takes_nothing_away() -> None:
    """Its transaction never arrives, as far as anybody knows; the admin dies. Only the same may be said again."""
    homes, store = in_memory()
    await homes.begin()
    tenant, ledger = homes.tenant, homes.ledgers[A]
    await homes.admins[B].moves.prepare(tenant, A)
    stood = store.revision

    def cut() -> None:
        store.down = True

    store.before_txn = cut
    assert (await refused(homes.admins[A].moves.leave(tenant, B))).code is Code.POLICY_STORE_UNAVAILABLE
    store.down, store.before_txn = False, lambda: None
    assert store.revision == stood, "it never did arrive"
    words = [ledger.rows[number][1] for number, last in ledger.moves.items() if last]
    assert words
    assert set(words) == {words[0]}, "tried again, with the very same words"
    a = homes.restart(A)
    for work in (
        a.set_allowed(tenant, BOTH | {Jurisdiction("JP")}),
        a.create_key(tenant, K2, "sha256$1"),
        a.set_transfer(tenant, Transfer.WITHIN_ALLOWED),
    ):
        assert (await refused(work)).code is Code.MOVE_UNFINISHED
    await homes.admins[C].moves.prepare(tenant, A)
    assert (await refused(a.moves.leave(tenant, C))).code is Code.MOVE_UNFINISHED, "it may be on its way to B"
    assert await homes.home() == A
    await a.moves.leave(tenant, B)
    record = (await homes.admins[B].moves.finish(tenant))[1]
    assert decode(A, words[0]).chain == record.chain, "what was signed first"


class Quick(SystemClock):
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


class LateStore:
    """A store to which changes come only when the test lets them."""

    def __init__(self, store: MemoryStore) -> None:
        self.late: list[Callable[[], Awaitable[TxnResult]]] = []
        self.range, self.watch, self._store = store.range, store.watch, store

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = (), *, timeout_s: float
    ) -> TxnResult:
        if any(isinstance(op, Put) for op in then):
            self.late.append(lambda: self._store.txn(compares, then, otherwise, timeout_s=timeout_s))
            raise StoreUnavailableError("DEADLINE_EXCEEDED")
        return await self._store.txn(compares, then, otherwise, timeout_s=timeout_s)


@pytest.mark.parametrize("what", ["pin", "suspend", "transfer", "key", "authority"])
@pytest.mark.parametrize("arrives", ["never", "first", "between", "last"])
@pytest.mark.parametrize("store_answers", [False, True])
async def test_a_removal_at_home_does_not_wait_for_a_move_that_stopped_half_way(
    what: str, arrives: str, store_answers: bool
) -> None:
    """The last word was signed and sent, and the admin died. It may still be on its way; the new home's admin is gone."""
    homes, store = in_memory()
    await homes.begin()
    tenant, ledger, late = homes.tenant, homes.ledgers[A], LateStore(store)
    await homes.admins[A].set_transfer(tenant, Transfer.WITHIN_ALLOWED)
    await homes.admins[B].moves.prepare(tenant, A)
    dying = changes_in(late, A, Quick(), journal=ledger)
    assert (await refused(dying.moves.leave(tenant, B))).code is Code.POLICY_STORE_UNAVAILABLE
    a = changes_in(store, A, CLOCK, journal=ledger, store_answers=store_answers)

    async def remove() -> Outcome:
        match what:
            case "pin":
                return await a.set_allowed(tenant, frozenset({VN}))
            case "suspend":
                return await a.set_state(tenant, TenantState.SUSPENDED)
            case "transfer":
                return await a.set_transfer(tenant, Transfer.NEVER)
            case "authority":
                return await a.set_authority(tenant, Spans(home_s=60, foreign_s=6))
            case _:
                return await a.revoke_key(K1)

    if arrives == "first":
        assert (await late.late[0]()).succeeded
    elif arrives == "between":
        look = ledger.last_words

        async def slowly(key: str) -> Sequence[tuple[int, bytes]]:
            found, ledger.last_words = await look(key), look
            assert (await late.late[0]()).succeeded
            return found

        ledger.last_words = slowly
    if arrives in ("first", "between"):
        assert (await refused(remove())).code is (Code.KEY_NOT_FOUND if what == "key" else Code.TENANT_NOT_FOUND)
        assert await homes.home() == B
        assert list(await ledger.last_words(layout.policy_key(A, tenant))), "it is not forgotten"
        return
    removed = await remove()
    assert removed.changed
    assert not await ledger.last_words(layout.policy_key(A, tenant))
    if arrives == "last":
        for word in late.late:
            assert not (await word()).succeeded
    assert await homes.home() == A
    policy = (await homes.book()).tenant(tenant)
    assert policy == removed.tenant.policy
    if what != "pin":
        await homes.move(A, B)
        assert await homes.home() == B


async def test_a_last_word_that_the_store_has_forgotten_is_not_taken_back() -> None:
    """It surely was made, and the store does not show it: that store is not the one that it was."""
    homes, store = in_memory()
    await homes.begin()
    await homes.admins[B].moves.prepare(homes.tenant, A)
    backup = store.revision
    await homes.admins[A].moves.leave(homes.tenant, B)
    store.restore(backup)
    a = homes.restart(A)
    assert (await refused(a.set_state(homes.tenant, TenantState.SUSPENDED))).code is Code.MOVE_UNFINISHED
    assert store.revision == backup, "nothing is put"


async def test_a_last_word_that_can_never_be_made_is_forgotten() -> None:
    """It was signed, and a change that was on its way overtook it: the old home goes on, and may leave again."""
    homes, store = in_memory()
    await homes.begin()
    tenant = homes.tenant
    await homes.admins[B].moves.prepare(tenant, A)

    def cut() -> None:
        store.down = True

    store.before_txn = cut
    await refused(homes.admins[A].moves.leave(tenant, B))
    store.down, store.before_txn = False, lambda: None
    late = changes_in(store, A, CLOCK)  # as if it had been sent before
    await late.set_transfer(tenant, Transfer.WITHIN_ALLOWED)
    a = homes.restart(A)
    await homes.admins[B].moves.prepare(tenant, A)
    left = await a.moves.leave(tenant, B)
    assert left.changed
    assert (await homes.admins[B].moves.finish(tenant))[1].policy.transfer is Transfer.WITHIN_ALLOWED


async def test_many_keys_are_taken_over_in_several_transactions_and_again_after_a_fault() -> None:
    homes, store = in_memory()
    await homes.begin(keys=0)
    tenant = homes.tenant
    ids = [KeyId(f"{number:0>12}") for number in range(120)]
    for key_id in ids:
        await homes.admins[A].create_key(tenant, key_id, "sha256$1")
    puts = 0

    def fail_the_second() -> None:
        nonlocal puts
        puts += 1
        store.down = puts == 2

    store.before_txn = fail_the_second
    assert (await refused(homes.admins[B].moves.prepare(tenant, A))).code is Code.POLICY_STORE_UNAVAILABLE
    store.down, store.before_txn = False, lambda: None
    assert (await refused(homes.admins[A].moves.leave(tenant, B))).code is Code.MOVE_UNFINISHED, "not all keys"
    await homes.admins[B].moves.prepare(tenant, A)
    stood = store.revision
    await homes.admins[B].moves.prepare(tenant, A)
    assert store.revision == stood, "nothing is put twice"
    await homes.admins[A].moves.leave(tenant, B)
    assert {key.key_id for key in (await homes.book()).all_keys()} == set(ids)


async def test_what_cannot_be_moved() -> None:
    homes, _ = in_memory()
    await homes.begin()
    a, b, tenant = homes.admins[A], homes.admins[B], homes.tenant
    assert (await refused(a.moves.prepare(tenant, A))).code is Code.INVALID_PARAMETER
    assert (await refused(a.moves.leave(tenant, A))).code is Code.INVALID_PARAMETER
    assert (await refused(a.moves.leave(tenant, RegionId("mars-1")))).code is Code.UNKNOWN_REGION
    assert (await refused(b.moves.prepare(TenantId("t_" + "a" * 16), A))).code is Code.TENANT_NOT_FOUND
    assert (await refused(b.moves.finish(tenant))).code is Code.TENANT_NOT_FOUND
    assert (await refused(a.moves.finish(tenant))).code is Code.INVALID_PARAMETER
    await a.set_allowed(tenant, frozenset({VN}))
    assert (await refused(b.moves.prepare(tenant, A))).code is Code.HOME_OUTSIDE_PIN
    assert (await refused(a.moves.leave(tenant, B))).code is Code.HOME_OUTSIDE_PIN
    await homes.move(A, C)
    assert (await refused(b.moves.prepare(tenant, A))).code is Code.TENANT_NOT_FOUND, "it is no longer there"
    assert (await refused(a.moves.leave(tenant, B))).code is Code.TENANT_NOT_FOUND


async def test_asked_again_a_move_that_was_made_is_waited_for_again() -> None:
    homes, _ = in_memory()
    await homes.begin()
    op_id = new_op_id(CLOCK, SystemEntropy())
    await homes.admins[B].moves.prepare(homes.tenant, A)
    left = await homes.admins[A].moves.leave(homes.tenant, B, op_id)
    again = await homes.admins[A].moves.leave(homes.tenant, B, op_id)
    assert (again.resumed, again.revision, again.shrink) == (True, left.revision, left.shrink)
    other = await homes.admins[A].moves.leave(homes.tenant, B)
    assert (other.changed, other.shrink) == (False, left.shrink)
    await homes.admins[B].moves.prepare(homes.tenant, A)  # after the fact: nothing to do
    await homes.admins[B].moves.finish(homes.tenant)
    await homes.admins[B].moves.finish(homes.tenant)
    assert len((await homes.admins[B].tenant(homes.tenant)).chain) == 1


def decode(home: RegionId, value: bytes) -> TenantRecord:
    wire = pb.PolicyRecord.FromString(value)
    at = layout.parse(layout.policy_key(home, TenantId(wire.tenant)))
    assert isinstance(at, layout.PolicyKey)
    return decode_tenant(at, value, trust_in())


@pytest.mark.parametrize("ready", [False, True])
async def test_a_home_that_is_asked_late_to_make_ready_does_not_take_its_last_word_back(ready: bool) -> None:
    """The question is of an earlier move; since then the tenant was pinned there, and has moved on."""
    homes, store = in_memory()
    await homes.begin()
    b, tenant = homes.admins[B], homes.tenant
    await homes.move(A, B)
    pinned = (await b.set_allowed(tenant, frozenset({VN}))).tenant.policy.allowed
    await homes.admins[C].moves.prepare(tenant, B)
    await b.moves.leave(tenant, C)
    if ready:  # to come back
        await homes.admins[C].set_allowed(tenant, BOTH)
        await b.moves.prepare(tenant, C)
        pinned = BOTH
    stood = store.revision
    assert (await refused(b.moves.prepare(tenant, A))).code is Code.TENANT_NOT_FOUND
    assert store.revision == stood, "nothing is put"
    policy = (await homes.book()).tenant(tenant)
    assert policy is not None
    assert (policy.home, policy.moves, policy.allowed) == (C, 2, pinned)
    assert await b.tenants() == ()


@pytest.mark.parametrize("replayed", [False, True])
async def test_a_home_that_is_asked_again_to_make_ready_keeps_what_it_has_changed_since(replayed: bool) -> None:
    """Also where somebody has put the old home's record, as it was before the move, over its last word."""
    homes, store = in_memory()
    await homes.begin()
    b, tenant, at = homes.admins[B], homes.tenant, layout.policy_key(A, homes.tenant)
    old = store.value(at)
    assert old is not None
    await homes.move(A, B)
    await b.set_allowed(tenant, frozenset({SG}))
    await b.revoke_key(K1)
    if replayed:
        await store.txn((), [Put(at, old.value)], timeout_s=1)
    stood, record = store.revision, await b.tenant(tenant)
    if replayed:
        assert (await refused(b.moves.prepare(tenant, A))).code is Code.INTERNAL_ERROR
    else:
        assert await b.moves.prepare(tenant, A) == record
    assert store.revision == stood, "nothing is put"
    assert await b.tenant(tenant) == record
