"""The control store goes back in time: who sees it, what is refused, what is published again, and how long is waited."""

from __future__ import annotations

import shutil
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
from etcd_lab import running_etcd
from hypothesis import given
from hypothesis import strategies as st
from manual_clock import ManualClock
from member_lab import ABROAD, BOTH, HOME, SG, VN, World
from memory_store import MemoryStore
from trust_lab import Notebook, signer_of, trust_in

from mesh.control import edits, layout
from mesh.control.barrier import Barrier
from mesh.control.changes import Changes
from mesh.control.epoch import EpochStart
from mesh.control.feed import PolicyFeed
from mesh.control.history import StoreHistory
from mesh.control.members import Members
from mesh.control.records import TenantRecord, tenant_id
from mesh.control.recovery import Recovered, Recovery
from mesh.control.restored import Signed, restored_tenant
from mesh.control.store import Range, Store
from mesh.errors import Code, MeshError
from mesh.policy.authority import wait_s
from mesh.policy.bundle import PolicyBook, Spans, TenantPolicy
from mesh.policy.shrink import rights_of
from mesh.ports import Clock
from mesh.runtime import SystemClock, SystemEntropy, TaskGroupTasks
from mesh.types import Jurisdiction, KeyId, Revision, Role, TenantState, Transfer

JP = Jurisdiction("JP")
KEY = KeyId("K" * 12)
CAP_S = 120.0
W = wait_s(6.0)


class Admin:
    """A home's admin in one control epoch, with a ledger that outlives it."""

    def __init__(self, store: Store, clock: Clock, notebook: Notebook, epoch: int = 1) -> None:
        self.store, self.clock = store, clock
        self.trust = trust_in(epoch=epoch, cap_s=CAP_S)
        self.history = StoreHistory()
        self.start = EpochStart(self.trust)
        self.changes = Changes(store, HOME, clock, SystemEntropy(), signer_of(HOME), self.trust, notebook, self.history)
        self.recovery = Recovery(
            store=store,
            home=HOME,
            signer=signer_of(HOME),
            trust=self.trust,
            memory=notebook,
            history=self.history,
            start=self.start,
            clock=clock,
            entropy=SystemEntropy(),
        )

    async def recover(self) -> Recovered:
        return [state async for state in self.recovery.recover()][-1]

    async def book(self) -> PolicyBook:
        """What a gateway of this epoch reads."""
        book = PolicyBook()
        feed = PolicyFeed(self.store, book, self.clock, self.trust)
        await feed._load()
        return book


async def refused(work: object) -> MeshError:
    with pytest.raises(MeshError) as caught:
        await work  # pyright: ignore[reportGeneralTypeIssues]
    return caught.value


def nonce(number: int) -> bytes:
    return bytes([number] * 16)


async def test_what_a_restore_lost_is_refused_until_it_is_published_again() -> None:
    store, clock, notebook = MemoryStore(), SystemClock(), Notebook()
    admin = Admin(store, clock, notebook)
    tenants = [(await admin.changes.create_tenant(nonce(n), BOTH, Transfer.NEVER)).tenant.policy.tenant for n in (1, 2)]
    await admin.changes.create_key(tenants[0], KEY, "sha256$00")
    backup = store.revision
    await admin.changes.set_allowed(tenants[0], frozenset({VN}))
    await admin.changes.revoke_key(KEY)
    late = (await admin.changes.create_tenant(nonce(3), BOTH, Transfer.NEVER)).tenant.policy
    before = {policy.tenant: policy for policy in (await admin.book()).tenants()}
    store.restore(backup)
    assert (await refused(admin.changes.set_allowed(tenants[1], frozenset({VN})))).code is Code.POLICY_STORE_UNAVAILABLE
    assert admin.history.went_back
    # One that starts after the restore sees by the ledger what the store lacks.
    later = Admin(store, clock, notebook)
    await later.recovery.compare()
    assert later.history.went_back
    assert (await refused(later.changes.create_tenant(nonce(4), BOTH, Transfer.NEVER))).code is (
        Code.POLICY_STORE_UNAVAILABLE
    )

    new = Admin(store, clock, notebook, epoch=2)
    assert not list((await new.book()).tenants())
    await new.recovery.compare()
    assert not new.history.went_back
    assert not new.start.published
    done = await new.recover()
    assert (done.tenants, done.published, done.narrowed, done.unknown, done.done) == (3, 3, (), (), True)
    assert new.start.published
    book = await new.book()
    assert {policy.tenant: policy for policy in book.tenants()} == before, "each as it was, revision and all"
    key = book.key(KEY)
    assert key is not None
    assert key.revoked
    assert late.tenant in before
    stood = store.revision
    again = await new.recover()
    assert (again.published, store.revision) == (0, stood), "nothing is left to do"
    pinned = await new.changes.set_allowed(tenants[1], frozenset({VN}))
    assert pinned.revision == before[tenants[1]].revision + 1
    # And back once more, in the new epoch.
    store.restore(stood)
    third = Admin(store, clock, notebook, epoch=2)
    assert (await refused(third.recover())).code is Code.POLICY_STORE_UNAVAILABLE
    fourth = Admin(store, clock, notebook, epoch=3)
    assert (await fourth.recover()).published == 3
    tenant = (await fourth.book()).tenant(tenants[1])
    assert tenant is not None
    assert (tenant.allowed, tenant.revision) == (frozenset({VN}), pinned.revision)


@pytest.mark.parametrize("how", ["back", "another cluster"])
async def test_an_admin_sees_it_by_itself(how: str) -> None:
    clock, store, notebook = ManualClock(), MemoryStore(), Notebook()
    async with World(clock, store).running() as world:
        admin = Admin(store, clock, notebook)
        world.spawn(admin, admin.recovery.run())
        await admin.changes.create_tenant(nonce(1), BOTH, Transfer.NEVER)
        await clock.advance(10)
        assert admin.recovery.compared
        assert not admin.history.went_back
        if how == "back":
            store.restore(store.revision - 1)
        else:
            store.cluster += 1
        await clock.advance(3)
        assert admin.history.went_back
        assert (await refused(admin.changes.tenants())).code is Code.POLICY_STORE_UNAVAILABLE


async def test_all_was_lost() -> None:
    store, clock, notebook = MemoryStore(), SystemClock(), Notebook()
    admin = Admin(store, clock, notebook)
    tenant = (await admin.changes.create_tenant(nonce(1), BOTH, Transfer.NEVER)).tenant.policy.tenant
    keys = [KeyId(f"K{n:011}") for n in range(120)]
    for key in keys:
        await admin.changes.create_key(tenant, key, "sha256$00")
    empty = MemoryStore()
    new = Admin(empty, clock, notebook, epoch=2)
    assert (await new.recover()).published == 1
    book = await new.book()
    assert {key.key_id for key in book.all_keys()} == set(keys)
    policy = book.tenant(tenant)
    assert policy is not None
    assert policy.revision == 121


async def test_what_was_broken_off_goes_on_and_others_may_write_meanwhile() -> None:
    store, clock, notebook = MemoryStore(), SystemClock(), Notebook()
    admin = Admin(store, clock, notebook)
    made = [await admin.changes.create_tenant(nonce(n), BOTH, Transfer.NEVER) for n in range(4)]
    ids = sorted(one.tenant.policy.tenant for one in made)
    new = Admin(store, clock, notebook, epoch=2)
    async with aclosing(new.recovery.recover()) as states:
        first = await anext(states)
    assert (first.looked_at, first.published, first.done) == (1, 1, False)
    changed = await new.changes.set_allowed(ids[0], frozenset({VN}))
    store.lose_answers = 1
    error = await refused(new.recover())
    assert error.code is Code.POLICY_STORE_UNAVAILABLE
    assert not new.start.published
    done = await Admin(store, clock, notebook, epoch=2).recover()
    assert done.published == 2
    book = await new.book()
    assert len(list(book.tenants())) == 4
    policy = book.tenant(ids[0])
    assert policy is not None
    assert (policy.allowed, policy.revision) == (frozenset({VN}), changed.revision)


async def test_what_only_the_store_knows_is_told_and_not_made_up() -> None:
    store, clock, notebook = MemoryStore(), SystemClock(), Notebook()
    admin = Admin(store, clock, notebook)
    known = (await admin.changes.create_tenant(nonce(1), BOTH, Transfer.NEVER)).tenant.policy.tenant
    other = Admin(store, clock, Notebook())
    stranger = (await other.changes.create_tenant(nonce(2), BOTH, Transfer.NEVER)).tenant.policy.tenant
    ahead = (await admin.changes.create_tenant(nonce(3), BOTH, Transfer.NEVER)).tenant.policy.tenant
    await other.changes.set_allowed(ahead, frozenset({VN}))  # this home's ledger was restored as well
    new = Admin(store, clock, notebook, epoch=2)
    done = await new.recover()
    assert (done.published, set(done.unknown)) == (1, {stranger, ahead})
    assert [policy.tenant for policy in (await new.book()).tenants()] == [known]


async def test_a_removal_whose_outcome_is_unknown_narrows_and_a_widening_does_not_widen() -> None:
    store, clock, notebook = MemoryStore(), SystemClock(), Notebook()
    admin = Admin(store, clock, notebook)
    ids = [(await admin.changes.create_tenant(nonce(n), frozenset({VN, SG}), Transfer.NEVER)).tenant for n in (1, 2)]
    narrowed, widened = (one.policy.tenant for one in ids)
    await admin.changes.create_key(narrowed, KEY, "sha256$00")
    backup = store.revision
    made = set(notebook.made_rows)
    await admin.changes.set_allowed(narrowed, frozenset({VN}))
    await admin.changes.set_allowed(widened, frozenset({VN, SG, JP}))
    await admin.changes.create_key(widened, KeyId("L" * 12), "sha256$00")
    notebook.made_rows = made  # the admin died before it could note how they ended
    store.restore(backup)
    new = Admin(store, clock, notebook, epoch=2)
    done = await new.recover()
    assert (done.narrowed, done.keys_left_out) == ((narrowed,), (KeyId("L" * 12),))
    book = await new.book()
    first, second = book.tenant(narrowed), book.tenant(widened)
    assert first is not None
    assert second is not None
    assert (first.allowed, first.revision, first.out_since) == (frozenset({VN}), 4, {SG: 4})
    assert (second.allowed, second.revision, second.out_since) == (frozenset({VN, SG}), 4, {JP: 4})
    assert book.key(KEY) is not None
    assert book.key(KeyId("L" * 12)) is None


PLACES = st.frozensets(st.sampled_from([SG, JP]))


@st.composite
def histories(draw: st.DrawFn) -> list[Signed[TenantRecord]]:
    """A tenant's records as its home signed them: some surely made, some not known, some competing."""
    tenant = tenant_id(HOME, nonce(1))
    policy = TenantPolicy(
        tenant=tenant, home=HOME, home_jurisdiction=VN, revision=Revision(1), state=TenantState.ACTIVE,
        allowed=frozenset({VN, SG}), transfer=Transfer.WITHIN_ALLOWED,
    )  # fmt: skip
    signed = [Signed(TenantRecord(policy=policy, genesis=HOME, nonce=nonce(1)), 1, Revision(1), made=True)]
    for _ in range(draw(st.integers(0, 5))):
        base = draw(st.sampled_from(signed[-2:]))
        before = base.record.policy
        after = draw(
            st.one_of(
                PLACES.map(lambda places, before=before: edits.with_allowed(before, places | {VN}, 0.0)),
                st.sampled_from(TenantState).map(lambda state, before=before: edits.with_state(before, state)),
                st.sampled_from(Transfer).map(lambda rule, before=before: edits.with_transfer(before, rule)),
                st.sampled_from([6.0, 20.0, 60.0]).map(
                    lambda span, before=before: edits.with_authority(before, Spans(home_s=60, foreign_s=span))
                ),
            )
        )
        record = replace(base.record, policy=after)
        taken = {one.revision for one in signed if one.made}
        made = base.made and after.revision not in taken and draw(st.booleans())
        signed.append(Signed(record, 1, after.revision, made))
    return signed


@given(histories())
def test_nothing_of_unknown_outcome_widens_and_everything_narrows(signed: list[Signed[TenantRecord]]) -> None:
    floor = Revision(max(one.revision for one in signed))
    restored = restored_tenant(signed, floor).policy
    known = max((one for one in signed if one.made), key=lambda one: one.revision)
    later = [one for one in signed if one is not known and one.revision >= known.revision]
    assert restored.revision >= floor
    for one in (known, *later):
        policy = one.record.policy
        assert rights_of(restored) <= rights_of(policy)
        assert restored.authority.home_s <= policy.authority.home_s
        assert restored.authority.foreign_s <= policy.authority.foreign_s
        for place in policy.allowed | policy.out_since.keys():
            longest = max(policy.span_s(place), policy.authority_before.get(place, 0))
            assert longest <= max(restored.span_s(place), restored.authority_before.get(place, 0))
            assert (place in restored.allowed) != (place in restored.out_since)
    if not later:
        assert restored == known.record.policy


async def test_after_a_recovery_every_wait_takes_its_full_time() -> None:
    clock, store, notebook = ManualClock(), MemoryStore(), Notebook()
    async with World(clock, store).running() as world:
        old = Admin(store, clock, notebook)
        tenant = (await old.changes.create_tenant(nonce(1), BOTH, Transfer.NEVER)).tenant.policy.tenant
        new = Admin(store, clock, notebook, epoch=2)
        await new.recover()
        restarted = EpochStart(new.trust)
        assert new.start.left_s(clock.instant()) == restarted.left_s(clock.instant()) == wait_s(CAP_S)
        members = Members(store, clock, TaskGroupTasks)
        world.barrier = Barrier(
            store=store, region=HOME, members=members, trust=new.trust, clock=clock,
            history=new.history, start=new.start,
        )  # fmt: skip
        # There is no member at all, as far as anyone knows.
        for strict in (False, True):
            told = world.wait(await new.changes.set_allowed(tenant, BOTH), strict=strict)
            await clock.advance(0)
            assert told.state.done, "it takes nothing away"
            told = world.wait(await new.changes.set_allowed(tenant, frozenset({VN})), strict=strict)
            await clock.advance(W - 0.1)
            assert not told.state.done
            assert 0 < told.state.recovery_left_s < 1.2
            await clock.advance(1.2)
            assert told.state.done
        restarted.take(store.value(layout.recovery_key(HOME)), clock.instant())
        await clock.advance(wait_s(CAP_S))
        assert new.start.left_s(clock.instant()) == 0
        assert restarted.left_s(clock.instant()) == 0
        told = world.wait(await new.changes.set_state(tenant, TenantState.SUSPENDED))
        await clock.advance(0)
        assert told.state.done
        assert told.state.recovery_left_s == 0


async def test_gateways_that_saw_it_act_on_nothing_and_those_of_the_new_epoch_do() -> None:
    clock, store, notebook = ManualClock(), MemoryStore(), Notebook()
    async with World(clock, store).running() as world:
        old = Admin(store, clock, notebook)
        tenant = (await old.changes.create_tenant(nonce(1), BOTH, Transfer.NEVER)).tenant.policy.tenant
        gateway = world.gateway(ABROAD)
        await clock.advance(3)
        assert gateway.left_s(tenant, SG) > 0
        backup = store.revision
        await old.changes.set_allowed(tenant, frozenset({VN}))
        await clock.advance(1)
        store.restore(backup)
        await clock.advance(4)
        assert gateway.membership.went_back_once
        await clock.advance(20)
        assert gateway.left_s(tenant, SG) == gateway.left_s(tenant, VN) == 0
        await Admin(store, clock, notebook, epoch=2).recover()
        await clock.advance(20)
        assert gateway.left_s(tenant, VN) == 0, "not in this process any more"


async def test_a_real_etcd_from_a_backup(tmp_path: Path) -> None:
    notebook, clock = Notebook(), SystemClock()
    async with running_etcd(tmp_path) as lab:
        store = await lab.store("vn-1", Role.ADMIN)
        admin = Admin(store, clock, notebook)
        tenant = (await admin.changes.create_tenant(nonce(1), BOTH, Transfer.NEVER)).tenant.policy.tenant
        await admin.changes.create_key(tenant, KEY, "sha256$00")
        lab.etcd.kill()
        shutil.copytree(tmp_path / "data", tmp_path / "backup")
        lab.etcd.start()
        await until_there(lab)
        pinned = await admin.changes.set_allowed(tenant, frozenset({VN}))
        lab.etcd.kill()
        shutil.rmtree(tmp_path / "data")
        (tmp_path / "backup").rename(tmp_path / "data")
        lab.etcd.start()
        await until_there(lab)
        assert (await refused(admin.changes.set_allowed(tenant, BOTH))).code is Code.POLICY_STORE_UNAVAILABLE
        assert admin.history.went_back
        new = Admin(store, clock, notebook, epoch=2)
        done = await new.recover()
        assert (done.published, done.narrowed, done.done) == (1, (), True)
        gateway = await lab.store("vn-1", Role.GATEWAY)
        book = await Admin(gateway, clock, notebook, epoch=2).book()
        policy = book.tenant(tenant)
        assert policy is not None
        assert (policy.allowed, policy.revision) == (frozenset({VN}), pinned.revision)
        assert book.key(KEY) is not None
        assert (await new.changes.set_allowed(tenant, BOTH)).revision == pinned.revision + 1


async def until_there(lab: object) -> None:
    root = await lab.root()  # pyright: ignore[reportAttributeAccessIssue]
    await root.range(Range("/ready"), timeout_s=30)
