"""What a gateway hands out and what it takes for confirmed, on clocks moved by hand."""

from __future__ import annotations

import pytest
from serving.lease_lab import HandClock

from mesh.errors import Code, MeshError
from mesh.ports import RHO, Instant
from mesh.transport.handouts import HandOuts, HoldFor, SaidFence, SaidHold
from mesh.types import KeyId, PolicyNumber, ReplicaId, TenantId

A, B = ReplicaId("a" * 16), ReplicaId("b" * 16)
T, OTHER = TenantId("t_aaaaaaaaaaaaaaaa"), TenantId("t_bbbbbbbbbbbbbbbb")
N5 = PolicyNumber(0, 5)
SURELY = (1 + RHO) / (1 - RHO)


class Desk:
    """Hand-outs whose tenants all have 6 s of authority from `since` on."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.out = HandOuts(self.clock)
        self.since = self.clock.instant()
        self.told: list[str] = []
        self.out.on_confirm = lambda: self.told.append("confirm")
        self.out.on_ask = lambda: self.told.append("ask")

    def left_at(self, then: Instant) -> float:
        return 6.0 - then.most_since(self.since)

    def join(self, *replicas: ReplicaId) -> None:
        for replica in replicas:
            self.out.pinged(replica, 1, 0)

    def lease(self, replica: ReplicaId = A, tenant: TenantId = T):
        return self.out.lease(replica, tenant, self.left_at, N5)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_lease_names_the_newest_ping_and_what_was_left_when_it_arrived(desk: Desk) -> None:
    desk.clock.go(1)
    desk.out.pinged(A, 7, 0)
    desk.clock.go(0.5)
    desk.out.pinged(A, 9, 0)
    desk.clock.go(2)
    lease = desk.lease()
    assert lease is not None
    assert (lease.replica, lease.ping, lease.left_ms, lease.number) == (A, 9, 4500, N5)


def test_left_is_rounded_down(desk: Desk) -> None:
    desk.join(A)
    lease = desk.out.lease(A, T, lambda _: 1.9999, N5)
    assert lease is not None
    assert lease.left_ms == 1999


def test_nothing_left_and_nobody_there_give_no_lease(desk: Desk) -> None:
    assert desk.lease() is None
    desk.join(A)
    assert desk.out.lease(A, T, lambda _: 0.0009, N5) is None
    assert desk.out.lease(A, T, lambda _: -1.0, N5) is None
    desk.out.gone(A)
    assert desk.lease() is None


def test_hops_and_messages_of_one_replica_share_a_count(desk: Desk) -> None:
    desk.join(A, B)
    numbers = []
    for _ in range(3):
        lease = desk.lease()
        assert lease is not None
        numbers += [lease.message, desk.out.message(A).message]
    desk.out.gone(A)
    desk.out.pinged(A, 2, numbers[-1])  # joined again: the count goes on
    numbers.append(desk.out.message(A).message)
    assert numbers == sorted(set(numbers))
    assert desk.out.message(B).message == 1


def test_a_message_says_every_tenant_with_work_there(desk: Desk) -> None:
    desk.join(A, B)
    work = {A: [HoldFor(T, desk.left_at, N5), HoldFor(OTHER, lambda _: -3.0, N5)], B: []}
    desk.out.holds = lambda replica: work[replica]
    said = desk.out.message(A)
    assert (said.seen, said.fences) == (1, [])
    assert said.holds == [SaidHold(T, 6000, N5), SaidHold(OTHER, 0, N5)]
    assert desk.out.message(B).holds == []


def test_a_fence_is_said_to_every_replica_until_it_has_heard(desk: Desk) -> None:
    """Also where nothing is believed to run."""
    desk.join(A, B)
    fenced = desk.out.fence(T, N5)
    assert desk.told == ["ask"]
    for replica in (A, B):
        first, second = desk.out.message(replica), desk.out.message(replica)
        assert first.fences == second.fences == [SaidFence(T, N5, None)]
        assert not fenced.confirmed
        desk.out.pinged(replica, 2, first.message)
        assert desk.out.message(replica).fences == []
    assert fenced.confirmed
    assert desk.told == ["ask", "confirm", "confirm"]


def test_an_earlier_message_confirms_nothing(desk: Desk) -> None:
    desk.join(A)
    before = desk.out.message(A)
    fenced = desk.out.fence(T, N5)
    desk.out.pinged(A, 2, before.message)
    assert not fenced.confirmed
    assert desk.out.message(A).fences == [SaidFence(T, N5, None)]


def test_fences_of_a_tenant_become_the_highest(desk: Desk) -> None:
    desk.join(A)
    asked = [desk.out.fence(T, PolicyNumber(*at)) for at in ((0, 9), (1, 2), (1, 1))]
    key = desk.out.fence(T, N5, KeyId("k_1"))
    said = desk.out.message(A)
    assert said.fences == [SaidFence(T, PolicyNumber(1, 2), None), SaidFence(T, N5, KeyId("k_1"))]
    desk.out.pinged(A, 2, said.message)
    assert all(fenced.confirmed for fenced in (*asked, key))


def test_what_was_never_said_cannot_have_been_heard(desk: Desk) -> None:
    desk.join(A)
    fenced = desk.out.fence(T, N5)
    for replica, heard in ((A, 1), (B, 1)):
        with pytest.raises(MeshError) as caught:
            desk.out.pinged(replica, 2, heard)
        assert caught.value.code is Code.INVALID_PARAMETER
    assert not fenced.confirmed


def test_with_no_replica_there_is_nothing_to_wait_for(desk: Desk) -> None:
    assert desk.out.fence(T, N5).confirmed


def test_one_that_joins_later_has_nothing_from_before(desk: Desk) -> None:
    fenced = desk.out.fence(T, N5)
    desk.join(A)
    assert fenced.confirmed
    assert desk.out.message(A).fences == []


def test_silence_is_no_evidence(desk: Desk) -> None:
    """A replica that left counts when the last deadline that was handed to it has surely passed."""
    desk.join(A)
    assert desk.lease() is not None
    desk.out.gone(A)
    fenced = desk.out.fence(T, N5)
    assert not fenced.confirmed
    desk.clock.go(6)
    assert not fenced.confirmed
    desk.clock.go(6 * SURELY - 6 + 1e-6)
    assert fenced.confirmed


def test_one_that_leaves_while_it_is_asked_is_waited_for(desk: Desk) -> None:
    desk.join(A)
    assert desk.lease() is not None
    fenced = desk.out.fence(T, N5)
    desk.out.message(A)
    desk.out.gone(A)
    assert not fenced.confirmed
    desk.clock.go(7)
    assert fenced.confirmed


@pytest.mark.parametrize(("boot", "raw"), [(1.0, 0.5), (0.5, 1.0)])
def test_what_is_waited_for_ages_by_the_clock_that_went_less(desk: Desk, boot: float, raw: float) -> None:
    desk.join(A)
    desk.lease()
    desk.out.gone(A)
    fenced = desk.out.fence(T, N5)
    desk.clock.go(7, boot=boot, raw=raw)
    assert not fenced.confirmed
    desk.clock.go(7, boot=boot, raw=raw)
    assert fenced.confirmed


def test_the_longest_deadline_that_was_handed_out_counts(desk: Desk) -> None:
    desk.join(A)
    assert desk.out.lease(A, T, lambda _: 60.0, N5) is not None
    assert desk.lease() is not None
    desk.out.gone(A)
    fenced, other = desk.out.fence(T, N5), desk.out.fence(OTHER, N5)
    assert other.confirmed  # nothing of that tenant was ever handed there
    desk.clock.go(7)
    assert not fenced.confirmed
    desk.clock.go(60 * SURELY - 7 + 1e-6)
    assert fenced.confirmed


def test_holds_hand_out_deadlines_as_well(desk: Desk) -> None:
    desk.join(A)
    assert desk.lease() is not None
    desk.out.holds = lambda _: [HoldFor(T, lambda _: 60.0, N5)]
    desk.out.message(A)
    desk.out.gone(A)
    fenced = desk.out.fence(T, N5)
    desk.clock.go(50)
    assert not fenced.confirmed


def test_a_replica_that_comes_back_is_told_again(desk: Desk) -> None:
    desk.join(A)
    desk.lease()
    fenced = desk.out.fence(T, N5)
    lost = desk.out.message(A)
    desk.out.gone(A)
    desk.out.pinged(A, 5, 0)
    assert not fenced.confirmed
    again = desk.out.message(A)
    assert again.fences == [SaidFence(T, N5, None)]
    assert again.message > lost.message
    desk.out.pinged(A, 6, again.message)
    assert fenced.confirmed


def test_one_that_reports_and_reads_nothing_ends_with_its_last_deadline(desk: Desk) -> None:
    desk.join(A)
    desk.lease()
    fenced = desk.out.fence(T, N5)
    desk.clock.go(6)
    desk.out.pinged(A, 2, 0)
    assert not fenced.confirmed
    desk.clock.go(1)
    assert fenced.confirmed


def test_what_is_known_of_a_replica_that_is_gone_is_forgotten_when_nothing_can_run(desk: Desk) -> None:
    desk.join(A)
    desk.lease()
    desk.out.gone(A)
    desk.out.pinged(B, 1, 0)
    assert A in desk.out._told
    desk.clock.go(7)
    desk.out.pinged(ReplicaId("c" * 16), 1, 0)
    assert A not in desk.out._told


# --- lowered deadlines


def test_a_lowered_deadline_is_said_to_every_replica(desk: Desk) -> None:
    """With what `holds` says; whatever was sent before, but later than all that, has nothing left: it does not run."""
    desk.join(A, B)
    desk.out.holds = lambda replica: [HoldFor(T, lambda _: 2.0, N5)] if replica == A else []
    lowered = desk.out.lowered(T)
    assert desk.told == ["ask"]
    to_a, to_b = desk.out.message(A), desk.out.message(B)
    assert to_a.holds == [SaidHold(T, 2000, N5), *to_b.holds]
    [nothing] = to_b.holds
    assert (nothing.tenant, nothing.left_ms) == (T, 0)
    assert nothing.number > PolicyNumber(10**6, 10**12)
    assert to_a.fences == to_b.fences == []
    desk.out.pinged(A, 2, to_a.message)
    assert not lowered.confirmed
    desk.out.pinged(B, 2, to_b.message)
    assert lowered.confirmed
    assert desk.out.message(B).holds == []


def test_a_message_from_before_lowers_nothing(desk: Desk) -> None:
    desk.join(A)
    before = desk.out.message(A)
    lowered = desk.out.lowered(T)
    desk.out.pinged(A, 2, before.message)
    assert not lowered.confirmed
