"""The control store goes back while a tenant moves, or after: homes publish again from their ledgers what they signed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from memory_store import MemoryStore
from move_lab import BOTH, CLOCK, K1, K2, SG, VN, A, B
from trust_lab import Notebook, signer_of, trust_in

from mesh.control import layout
from mesh.control.changes import Changes, Outcome
from mesh.control.epoch import EpochStart
from mesh.control.feed import PolicyFeed
from mesh.control.history import StoreHistory
from mesh.control.later import LaterChanges
from mesh.control.ops import new_op_id
from mesh.control.records import Fault, TenantRecord, decode_tenant
from mesh.control.recovery import Recovered, Recovery
from mesh.control.restored import Signed, restored_tenant
from mesh.control.store import KeyValue
from mesh.errors import Code, MeshError
from mesh.policy.bundle import PolicyBook, Spans, TenantPolicy
from mesh.policy.shards import shard_of
from mesh.runtime import SystemEntropy
from mesh.types import KeyId, RegionId, Revision, TenantId, TenantState, Transfer

HOMES = (A, B)


class Epoch:
    """Both homes' admins in one control epoch, with ledgers that outlive it."""

    def __init__(self, store: MemoryStore, ledgers: dict[RegionId, Notebook], epoch: int = 1) -> None:
        self.store, self.ledgers, self.epoch, self.trust = store, ledgers, epoch, trust_in(epoch=epoch)
        self.admins: dict[RegionId, Changes] = {}
        self.recoveries: dict[RegionId, Recovery] = {}
        for home in HOMES:
            history = StoreHistory()
            self.admins[home] = Changes(
                store, home, CLOCK, SystemEntropy(), signer_of(home), self.trust, ledgers[home], history
            )
            self.recoveries[home] = Recovery(
                store=store,
                home=home,
                signer=signer_of(home),
                trust=self.trust,
                memory=ledgers[home],
                history=history,
                start=EpochStart(self.trust),
                clock=CLOCK,
                entropy=SystemEntropy(),
            )

    async def recover(self, home: RegionId) -> Recovered:
        return [state async for state in self.recoveries[home].recover()][-1]

    async def read(self, tenant: TenantId) -> tuple[TenantPolicy | None, PolicyBook, dict[Fault, int]]:
        book = PolicyBook()
        feed = PolicyFeed(self.store, book, CLOCK, self.trust)
        await feed._load()
        return book.tenant(tenant), book, dict(feed.invalid)


async def begun(ledger: Notebook | None = None) -> tuple[Epoch, TenantId]:
    world = Epoch(MemoryStore(), {A: ledger or Notebook(), B: Notebook()})
    made = await world.admins[A].create_tenant(bytes(16), BOTH, Transfer.NEVER)
    tenant = made.tenant.policy.tenant
    await world.admins[A].create_key(tenant, K1, "sha256$1")
    return world, tenant


async def moved(world: Epoch, tenant: TenantId, *, finished: bool = True, old: RegionId = A, new: RegionId = B) -> None:
    await world.admins[new].moves.prepare(tenant, old)
    await world.admins[old].moves.leave(tenant, new)
    if finished:
        await world.admins[new].moves.finish(tenant)


@pytest.mark.parametrize("order", [(A, B), (B, A)])
@pytest.mark.parametrize("finished", [True, False])
async def test_a_move_that_a_restore_lost_is_published_again(order: tuple[RegionId, RegionId], finished: bool) -> None:
    world, tenant = await begun()
    backup = world.store.revision
    await moved(world, tenant, finished=finished)
    if finished:
        await world.admins[B].set_allowed(tenant, frozenset({SG}))
        await world.admins[B].revoke_key(K1)
        await world.admins[B].create_key(tenant, K2, "sha256$2")
    before, _, _ = await world.read(tenant)
    world.store.restore(backup)
    for home in HOMES:
        seen = Epoch(world.store, world.ledgers)
        await seen.recoveries[home].compare()
        refused = pytest.raises(MeshError)
        with refused as caught:
            await seen.admins[home].set_state(tenant, TenantState.SUSPENDED)
        assert caught.value.code is Code.POLICY_STORE_UNAVAILABLE, "each home sees by its ledger what is gone"
    new = Epoch(world.store, world.ledgers, epoch=2)
    policy, _, _ = await new.read(tenant)
    assert policy is None
    for home in order:
        done = await new.recover(home)
        assert (done.tenants, done.narrowed, done.unknown) == (1, (), ())
        policy, _, _ = await new.read(tenant)
        assert policy is None or policy.home == B, "never by what was before the move"
    policy, book, faults = await new.read(tenant)
    assert policy == before
    assert {key.key_id: key.revoked for key in book.all_keys()} == ({K1: True, K2: False} if finished else {K1: False})
    assert faults == {}, "what the old home had is no alarm"
    for home in order:
        assert (await new.recover(home)).published == 0, "nothing is left to do"
    with pytest.raises(MeshError) as caught:
        await new.admins[A].set_state(tenant, TenantState.SUSPENDED)
    assert caught.value.code is Code.TENANT_NOT_FOUND
    with pytest.raises(MeshError) as caught:
        await world.ledgers[A].signed(layout.policy_key(A, tenant), b"", 2, policy.revision)
    assert caught.value.code is Code.MOVE_UNFINISHED, "it signs nothing in this epoch either"
    await moved(new, tenant, old=B, new=A) if VN in policy.allowed else await new.admins[B].set_allowed(tenant, BOTH)
    policy, _, _ = await new.read(tenant)
    assert policy is not None
    assert policy.moves == (1 if finished else 2)


async def test_a_last_word_of_which_nobody_knows_whether_it_was_made_is_published() -> None:
    """Somebody may go by it already: the old home must not contradict itself."""
    world, tenant = await begun()
    await world.admins[B].moves.prepare(tenant, A)

    def cut() -> None:
        world.store.down = True

    world.store.before_txn = cut
    with pytest.raises(MeshError):
        await world.admins[A].moves.leave(tenant, B)
    world.store.down, world.store.before_txn = False, lambda: None
    new = Epoch(world.store, world.ledgers, epoch=2)
    for home in HOMES:
        done = await new.recover(home)
        assert done.unknown == ()
    policy, book, _ = await new.read(tenant)
    assert policy is not None
    assert (policy.home, policy.moves) == (B, 1)
    assert [key.key_id for key in book.all_keys()] == [K1]


async def test_where_the_tenant_may_have_been_narrowed_instead_nothing_is_published() -> None:
    """Two answers were lost, of a removal and of a move that was made ready without it: one of them was made."""
    world, tenant = await begun()
    await world.admins[B].moves.prepare(tenant, A)

    def cut() -> None:
        world.store.down = True

    world.store.before_txn = cut
    with pytest.raises(MeshError):
        await world.admins[A].set_state(tenant, TenantState.SUSPENDED)
    world.store.down, world.store.before_txn = False, lambda: None
    world.store.before_txn = cut
    with pytest.raises(MeshError):
        await world.admins[A].moves.leave(tenant, B)
    world.store.down, world.store.before_txn = False, lambda: None
    new = Epoch(world.store, world.ledgers, epoch=2)
    assert (await new.recover(A)).unknown == (tenant,)
    await new.recover(B)
    assert (await new.read(tenant))[0] is None


async def test_a_tenant_that_came_back_is_published_by_the_home_that_it_came_back_to() -> None:
    world, tenant = await begun()
    await moved(world, tenant)
    backup = world.store.revision
    await moved(world, tenant, old=B, new=A)
    await world.admins[A].revoke_key(K1)
    before, _, _ = await world.read(tenant)
    world.store.restore(backup)
    new = Epoch(world.store, world.ledgers, epoch=2)
    for home in (B, A):
        await new.recover(home)
    policy, book, faults = await new.read(tenant)
    assert (policy, faults) == (before, {})
    assert [key.revoked for key in book.all_keys()] == [True]


async def test_what_the_new_home_had_ready_and_lost_is_made_again_from_the_last_word() -> None:
    world, tenant = await begun()
    await moved(world, tenant, finished=False)
    before, _, _ = await world.read(tenant)
    new = Epoch(world.store, {A: world.ledgers[A], B: Notebook()}, epoch=2)
    await new.recover(A)
    await new.recover(B)
    assert (await new.read(tenant))[0] is None
    # Its ledger is gone, and so is what lies in the store of another epoch; people have to take that away.
    del world.store._states[-1][layout.policy_key(B, tenant)]
    await new.admins[B].moves.prepare(tenant, A)
    policy, _, _ = await new.read(tenant)
    assert policy == before
    assert replace(policy, home=A) != policy


class _Slow(Notebook):
    """A ledger that lets a removal and a last word be signed side by side, and the removal come first."""

    def __init__(self, *, notes: bool) -> None:
        super().__init__()
        self.slow = False
        self.notes = notes
        self.removal, self.word, self.removed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def signed(self, key: str, value: bytes, epoch: int, revision: Revision) -> int:
        number = await super().signed(key, value, epoch, revision)
        if self.slow:
            self.removal.set()
            await self.word.wait()
        return number

    async def signed_move(self, key: str, value: bytes, epoch: int, revision: Revision, *, last: bool) -> int:
        number = await super().signed_move(key, value, epoch, revision, last=last)
        if self.slow and last:
            self.word.set()
            await self.removed.wait()
        return number

    async def made(self, numbers: Sequence[int]) -> None:
        if self.notes or not self.slow:
            await super().made(numbers)


@pytest.mark.parametrize("notes", [True, False])
async def test_a_last_word_that_a_removal_was_faster_than_is_never_published(notes: bool) -> None:
    """The removal has returned; the answer that says that the tenant never left was lost.

    And perhaps the note that the removal was made: it is what stands.
    """
    ledger = _Slow(notes=notes)
    world, tenant = await begun(ledger)
    await world.admins[B].moves.prepare(tenant, A)
    ledger.slow = True

    async def leave() -> None:
        await ledger.removal.wait()
        with pytest.raises(MeshError):
            await world.admins[A].moves.leave(tenant, B)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(leave())
        await world.admins[A].set_state(tenant, TenantState.SUSPENDED)
        world.store.down = True
        ledger.removed.set()
    world.store.down, ledger.slow = False, False
    before, _, _ = await world.read(tenant)
    assert before is not None
    assert before.state is TenantState.SUSPENDED
    new = Epoch(world.store, world.ledgers, epoch=2)
    for home in HOMES:
        assert (await new.recover(home)).unknown == ()
    policy, _, _ = await new.read(tenant)
    assert policy is not None
    assert (policy.home, policy.state) == (A, TenantState.SUSPENDED)


async def test_a_key_that_did_not_come_back_with_its_tenant_is_not_published() -> None:
    """It has no record that counts in the home between, so it is refused, and could not even be revoked there."""
    world, tenant = await begun()
    await moved(world, tenant)
    del world.store._states[-1][layout.key_key(B, tenant, K1)]
    await moved(world, tenant, old=B, new=A)
    _, book, _ = await world.read(tenant)
    assert list(book.all_keys()) == []
    new = Epoch(world.store, world.ledgers, epoch=2)
    for home in (B, A):
        await new.recover(home)
    policy, book, _ = await new.read(tenant)
    assert policy is not None
    assert policy.home == A
    assert list(book.all_keys()) == []


async def test_homes_that_start_again_after_a_move_find_their_ledgers_in_the_store() -> None:
    """The store never went back, and a key that has moved is older than the record that it moved with."""
    world, tenant = await begun()
    await moved(world, tenant)
    for finished in (True, False):
        again = Epoch(world.store, world.ledgers)
        for home in HOMES:
            await again.recoveries[home].compare()
        if finished:
            await again.admins[B].set_state(tenant, TenantState.SUSPENDED)
            await moved(again, tenant, finished=False, old=B, new=A)
        else:
            await again.admins[A].set_state(tenant, TenantState.ACTIVE)


async def test_of_two_last_words_the_one_that_was_made_is_published_and_of_two_unknown_none() -> None:
    """They say that the tenant went to two homes; no second one is made, and nobody may be told both."""
    world, tenant = await begun()
    await moved(world, tenant)
    at = layout.PolicyKey(shard_of(A, tenant), tenant)
    kept = [one for one in await world.ledgers[A].signed_since_made() if one.at == layout.policy_key(A, tenant)]
    word = decode_tenant(at, kept[-1].value, world.trust)
    other = replace(word, chain=(replace(word.chain[-1], new_home=RegionId("vn-10")),))

    def signed(record: TenantRecord, made: bool) -> Signed[TenantRecord]:
        return Signed(record, 1, record.policy.revision, made)

    floor = word.policy.revision
    for made in (True, False):
        for pair in ([(word, made), (other, False)], [(other, False), (word, made)]):
            found = restored_tenant([signed(*one) for one in pair], floor)
            assert found == (word if made else None)
    assert restored_tenant([signed(word, made=False), signed(word, made=False)], floor) == word


async def test_a_key_that_a_recovery_left_out_does_not_come_back_by_a_move() -> None:
    """The new home was ready before, and has a copy of a key of which the old one does not know that it was made."""
    world, tenant = await begun()
    number = world.ledgers[A].count
    await world.admins[A].create_key(tenant, K2, "sha256$2")
    await world.admins[B].moves.prepare(tenant, A)
    world.ledgers[A].made_rows -= {number + 1, number + 2}
    new = Epoch(MemoryStore(), world.ledgers, epoch=2)
    left_out = [key_id for home in HOMES for key_id in (await new.recover(home)).keys_left_out]
    assert left_out == [K2]
    with pytest.raises(MeshError) as caught:
        await new.admins[A].moves.leave(tenant, B)
    assert caught.value.code is Code.MOVE_UNFINISHED
    await moved(new, tenant)
    policy, book, faults = await new.read(tenant)
    assert policy is not None
    assert (policy.home, faults) == (B, {})
    assert {key.key_id: key.revoked for key in book.all_keys()} == {K1: False, K2: True}


@pytest.mark.parametrize("what", ["suspend", "transfer", "authority", "pin"])
@pytest.mark.parametrize(
    ("before", "after", "superseded"),
    [(None, None, False), (None, "key", False), ("key", None, True), ("key", "key", True), ("move", None, True)],
)
async def test_after_a_recovery_only_the_record_itself_tells_what_became_of_a_removal(
    what: str, before: str | None, after: str | None, superseded: bool
) -> None:
    """What it was before the recovery does not count, so what was changed between may have given back what was taken."""
    world, tenant = await begun()
    op_id = new_op_id(CLOCK, SystemEntropy())

    async def remove(admin: Changes) -> Outcome:
        match what:
            case "suspend":
                return await admin.set_state(tenant, TenantState.SUSPENDED, op_id)
            case "transfer":
                return await admin.set_transfer(tenant, Transfer.NEVER, op_id)
            case "authority":
                return await admin.set_authority(tenant, Spans(home_s=60, foreign_s=6), op_id)
            case _:
                return await admin.set_allowed(tenant, frozenset({SG}), op_id=op_id)

    await world.admins[A].set_transfer(tenant, Transfer.WITHIN_ALLOWED)
    made = await remove(world.admins[A])
    if before == "key":
        await world.admins[A].create_key(tenant, K2, "sha256$2")
    elif before == "move":
        await moved(world, tenant)
    new = Epoch(world.store, world.ledgers, epoch=2)
    await new.recover(A)
    if after == "key":
        await new.admins[A].create_key(tenant, KeyId("M" * 12), "sha256$3")
    again = await remove(new.admins[A])
    assert (again.resumed, again.revision, again.shrink) == (True, made.revision, made.shrink)
    item = world.store.value(layout.policy_key(A, tenant))
    assert item is not None
    # A pin's own record says since when a place is out; of a home that is not recovered yet there is none.
    expected = superseded and (what != "pin" or before == "move")
    assert await LaterChanges(world.store, new.trust, again).gave_back(item) is expected


class _NoNotes(Notebook):
    """A ledger whose notes of what was made come late."""

    notes = True

    async def made(self, numbers: Sequence[int]) -> None:
        if self.notes:
            await super().made(numbers)


async def test_a_recovery_forgets_no_last_word_that_another_admin_of_the_home_signs_meanwhile() -> None:
    """Two admins of one home, one of which recovers a tenant that the other has recovered and sends away by then."""
    ledger = _NoNotes()
    world, _ = await begun(ledger)
    new, other = (Epoch(world.store, world.ledgers, epoch=2) for _ in range(2))
    read = new.recoveries[A]._tenant

    async def slowly(tenant: TenantId) -> dict[str, KeyValue]:
        found = await read(tenant)
        new.recoveries[A]._tenant = read
        await other.recover(A)
        ledger.notes = False
        await moved(other, tenant)
        return found

    new.recoveries[A]._tenant = slowly
    with pytest.raises(MeshError) as caught:
        await new.recover(A)
    assert caught.value.code is Code.MOVE_UNFINISHED
    assert (await new.recover(A)).done
    assert list(ledger.moves.values()) == [True], "it stands in the store, and the home must not contradict itself"
