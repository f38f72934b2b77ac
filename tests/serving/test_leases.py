"""Leases at the replica, one rule at a time on clocks moved by hand: each test fails where its rule is left out."""

from __future__ import annotations

import pytest
from serving.lease_lab import OTHER, REPLICA, Bench, T

from mesh.errors import Code, MeshError
from mesh.routing.lease import Lease, parse_lease
from mesh.serving.leases import MARGIN_S, PING_LIFETIME_S, PINGS, Fence, Hold, Leases
from mesh.types import KeyId, PolicyNumber, ReplicaId, TenantId


@pytest.fixture
def bench() -> Bench:
    return Bench()


def hold(ping: int, left_s: float, number: int = 9, tenant: TenantId = T) -> Hold:
    return Hold(tenant, ping, left_s, PolicyNumber(0, number))


def fence(below: int, key: str | None = None, tenant: TenantId = T) -> Fence:
    return Fence(tenant, PolicyNumber(0, below), None if key is None else KeyId(key))


def refused(admit) -> None:
    with pytest.raises(MeshError) as caught:
        admit()
    assert caught.value.code is Code.POLICY_STALE


# --- the lease itself


def test_a_lease_is_what_it_was() -> None:
    lease = Lease(replica=REPLICA, ping=7, message=9, left_ms=5900, number=PolicyNumber(2, 31))
    assert lease.encode() == b"0123456789abcdef.7.9.5900.2.31"
    assert parse_lease(lease.encode()) == lease


@pytest.mark.parametrize(
    "text",
    [b"", b"1.2.3", b"0123456789ABCDEF.1.1.1.1.1", b"0123456789abcdef.1.1.-1.1.1", b"0123456789abcdef.1.1.1.1.1 ",
     b"0123456789abcdef.1.1.1.1.", b"0123456789abcdef.1.1.1.1.1.1", b"0123456789abcdef.1.1." + b"9" * 13 + b".1.1"],
)  # fmt: skip
def test_what_is_no_lease_admits_nothing(bench: Bench, text: bytes) -> None:
    bench.gateway.ping()
    assert parse_lease(text) is None
    refused(lambda: bench.leases.admit(text, T, None))


def test_without_a_lease_nothing_is_admitted(bench: Bench) -> None:
    refused(lambda: bench.leases.admit(None, T, KeyId("k_1")))


def test_a_ping_of_another_process_is_unknown(bench: Bench) -> None:
    ping = bench.gateway.ping()
    refused(lambda: bench.admit(ping, 60, replica="fedcba9876543210"))
    bench.admit(ping, 60)


def test_a_ping_that_was_never_sent_is_unknown(bench: Bench) -> None:
    ping = bench.gateway.ping()
    for wrong in (0, ping + 1):
        refused(lambda wrong=wrong: bench.admit(wrong, 60))


def test_numbers_of_pings_rise_over_all_gateways_and_streams(bench: Bench) -> None:
    other = bench.another()
    numbers = [bench.gateway.ping(), other.ping(), bench.gateway.ping()]
    bench.gateway.begin()
    numbers.append(bench.gateway.ping())
    assert numbers == sorted(set(numbers))


# --- deadlines


def test_a_deadline_counts_from_the_sending_of_the_ping(bench: Bench) -> None:
    """Whatever passes in between, in the network or in a pause of either side, is gone."""
    ping = bench.gateway.ping()
    bench.clock.go(4)
    stay = bench.admit(ping, 6)
    bench.clock.go(6 - 4 - MARGIN_S - 0.01)
    assert stay.may_go_on()
    bench.clock.go(0.02)
    assert not stay.may_go_on()


def test_what_arrives_past_its_deadline_is_refused(bench: Bench) -> None:
    ping = bench.gateway.ping()
    bench.clock.go(6 - MARGIN_S + 0.001)
    refused(lambda: bench.admit(ping, 6))


def test_what_arrives_past_its_own_deadline_is_refused_though_the_tenant_goes_on(bench: Bench) -> None:
    old = bench.gateway.ping()
    bench.clock.go(6)
    bench.gateway.said(5, [hold(bench.gateway.ping(), 6)], [])
    refused(lambda: bench.admit(old, 6))


def test_the_longest_step_comes_off_every_deadline(bench: Bench) -> None:
    bench.leases.step_s = 2.0
    stay = bench.admit(bench.gateway.ping(), 6)
    bench.clock.go(3.85)
    assert stay.may_go_on()
    bench.clock.go(0.1)
    assert not stay.may_go_on()
    refused(lambda: bench.admit(bench.gateway.ping(), 2.05))


@pytest.mark.parametrize(("boot", "raw"), [(1.0, 0.0), (0.92, 1.0)])
def test_deadlines_age_by_the_clock_that_went_further(bench: Bench, boot: float, raw: float) -> None:
    """A suspended machine's raw clock stands still; chrony may slow the other one."""
    stay = bench.admit(bench.gateway.ping(), 6)
    bench.clock.go(6, boot=boot, raw=raw)
    bench.leases.tick()
    assert stay.ended


def test_nothing_is_left_when_the_clocks_came_apart(bench: Bench) -> None:
    stay = bench.admit(bench.gateway.ping(), 900)
    bench.clock.wall_s_ += 30  # it was moved: no clock that runs shows for how long
    bench.leases.tick()
    assert stay.ended
    bench.admit(bench.gateway.ping(), 900)  # by a ping from after that


def test_a_timer_ends_what_is_over_and_tells_who_works_on_it(bench: Bench) -> None:
    long, short = bench.admit(bench.gateway.ping(), 60), bench.admit(bench.gateway.ping(), 6)
    told: list[str] = []
    short.on_end, long.on_end = (lambda: told.append("short")), (lambda: told.append("long"))
    bench.clock.go(5)
    bench.leases.tick()
    assert told == []
    bench.clock.go(1)
    bench.leases.tick()
    bench.leases.tick()
    assert told == ["short"]
    with pytest.raises(MeshError):
        short.check()
    long.check()


def test_hearing_a_gateway_lengthens_nothing(bench: Bench) -> None:
    """Mutant `live`: a message without a word for the tenant, or with one about an old ping, is no life."""
    ping = bench.gateway.ping()
    stay = bench.admit(ping, 6)
    for message in range(2, 8):
        bench.clock.go(0.99)
        bench.gateway.ping()
        bench.gateway.said(
            message, [hold(ping, 6)] if message % 2 else [hold(bench.gateway.ping(), 6, tenant=OTHER)], []
        )
    assert not stay.may_go_on()


def test_a_word_about_a_newer_ping_lengthens(bench: Bench) -> None:
    stay = bench.admit(bench.gateway.ping(), 6)
    bench.clock.go(5)
    bench.gateway.said(2, [hold(bench.gateway.ping(), 6)], [])
    bench.clock.go(5)
    stay.check()


def test_a_word_about_an_unknown_ping_or_another_gateways_is_the_end(bench: Bench) -> None:
    other = bench.another()
    first, second = bench.admit(bench.gateway.ping(), 6), bench.admit(bench.gateway.ping(), 6, tenant=OTHER)
    bench.gateway.said(2, [hold(999, 60), hold(other.ping(), 60, tenant=OTHER)], [])
    assert first.ended
    assert second.ended


def test_what_has_ended_stays_ended(bench: Bench) -> None:
    stay = bench.admit(bench.gateway.ping(), 6)
    bench.clock.go(6)
    bench.leases.tick()
    bench.gateway.said(2, [hold(bench.gateway.ping(), 6)], [])
    assert not stay.may_go_on()


def test_pings_are_forgotten_with_time_and_by_number(bench: Bench) -> None:
    old = bench.gateway.ping()
    bench.clock.go(PING_LIFETIME_S + 0.1)
    refused(lambda: bench.admit(old, 900))
    first = bench.gateway.ping()
    for _ in range(PINGS - 1):
        bench.gateway.ping()
    bench.admit(first, 900)
    bench.gateway.ping()
    refused(lambda: bench.admit(first, 900))


# --- the highest message decides


def test_a_later_word_shortens_what_runs(bench: Bench) -> None:
    stay = bench.admit(bench.gateway.ping(), 900)
    bench.gateway.said(2, [hold(bench.gateway.ping(), 6)], [])
    assert stay.may_go_on()
    bench.clock.go(6)
    assert not stay.may_go_on()


def test_a_hop_that_was_sent_before_a_word_keeps_to_the_word(bench: Bench) -> None:
    """Mutant `lowerack`: the replica has confirmed that nothing goes on for longer, and then the hop comes."""
    ping = bench.gateway.ping()
    bench.gateway.said(2, [hold(ping, 6)], [])
    assert bench.gateway.heard == 2
    stay = bench.admit(ping, 900, message=1)
    bench.clock.go(6)
    assert not stay.may_go_on()


def test_nothing_left_ends_what_was_sent_before_and_not_what_is_sent_after(bench: Bench) -> None:
    ping = bench.gateway.ping()
    before = bench.admit(ping, 900, message=1)
    bench.gateway.said(3, [hold(ping, 0)], [])
    assert before.ended
    refused(lambda: bench.admit(ping, 900, message=2))
    bench.admit(ping, 900, message=4)


def test_a_hop_that_was_sent_after_a_word_keeps_to_its_own(bench: Bench) -> None:
    ping = bench.gateway.ping()
    stay = bench.admit(ping, 900, message=5)
    bench.gateway.said(4, [hold(ping, 6)], [])
    bench.clock.go(10)
    stay.check()


def test_an_older_message_changes_nothing(bench: Bench) -> None:
    ping = bench.gateway.ping()
    stay = bench.admit(ping, 60)
    bench.gateway.said(9, [hold(ping, 60)], [])
    bench.gateway.said(8, [hold(ping, 0)], [fence(5)])
    bench.gateway.said(9, [hold(ping, 0)], [fence(5)])
    stay.check()


def test_a_newer_stream_comes_after_an_older_one(bench: Bench) -> None:
    """A gateway that was started again counts from 1 again; what its address said before decides nothing any more."""
    ping = bench.gateway.ping()
    stay = bench.admit(ping, 60, message=500)
    bench.gateway.begin()
    bench.gateway.said(1, [hold(bench.gateway.ping(), 6)], [])
    late = bench.admit(ping, 60, message=501)
    bench.clock.go(6)
    assert not stay.may_go_on()
    assert not late.may_go_on()


def test_what_drains_keeps_its_own_end(bench: Bench) -> None:
    """Two words for a tenant: what runs under the older state, and what was admitted since."""
    ping = bench.gateway.ping()
    draining, after = bench.admit(ping, 60, number=4), bench.admit(ping, 60, number=6)
    bench.gateway.said(2, [hold(ping, 60, number=7), hold(ping, 6, number=5)], [])
    bench.clock.go(6)
    assert not draining.may_go_on()
    after.check()


def test_gateways_speak_for_their_own_work_only(bench: Bench) -> None:
    other = bench.another()
    ours, theirs = bench.admit(bench.gateway.ping(), 60), bench.admit(other.ping(), 60)
    bench.gateway.said(2, [hold(bench.gateway.ping(), 0)], [fence(5)])
    assert ours.ended
    theirs.check()
    bench.admit(other.ping(), 60)


# --- fences


def test_a_fence_ends_what_is_below_and_refuses_it_from_then_on(bench: Bench) -> None:
    ping = bench.gateway.ping()
    below, above = bench.admit(ping, 900, number=4), bench.admit(ping, 900, number=5)
    other = bench.admit(ping, 900, number=4, tenant=OTHER)
    bench.gateway.said(2, [hold(ping, 900)], [fence(5)])
    assert (below.ended, above.ended, other.ended) == (True, False, False)
    refused(lambda: bench.admit(ping, 900, message=1, number=4))  # it lay in a socket's buffer
    refused(lambda: bench.admit(ping, 900, message=3, number=4))
    bench.admit(ping, 900, message=3, number=5)
    bench.admit(ping, 900, message=3, number=1, moves=1)  # after a move of the tenant's home


def test_a_fence_never_falls(bench: Bench) -> None:
    ping = bench.gateway.ping()
    bench.gateway.said(2, [], [fence(5)])
    bench.gateway.said(3, [], [fence(4)])
    refused(lambda: bench.admit(ping, 900, number=4))


def test_a_keys_fence_is_about_that_key(bench: Bench) -> None:
    ping = bench.gateway.ping()
    theirs, others = bench.admit(ping, 900, key="k_1"), bench.admit(ping, 900, key="k_2")
    bench.gateway.said(2, [], [fence(5, "k_1")])
    assert (theirs.ended, others.ended) == (True, False)
    refused(lambda: bench.admit(ping, 900, key="k_1"))
    refused(lambda: bench.admit(ping, 900, key=None))  # it may be that one's
    bench.admit(ping, 900, key="k_2")
    bench.gateway.said(3, [], [fence(4)])
    refused(lambda: bench.admit(ping, 900, key="k_2"))


def test_a_fence_is_kept_as_long_as_a_hop_from_before_could_be_admitted(bench: Bench) -> None:
    bench.gateway.ping()
    bench.clock.go(PING_LIFETIME_S / 2)
    ping = bench.gateway.ping()
    bench.gateway.said(2, [], [fence(5)])
    for _ in range(int(PING_LIFETIME_S)):
        bench.clock.go(0.99)
        bench.gateway.ping()
        bench.leases.tick()
        refused(lambda: bench.admit(ping, 900, number=4))
    bench.clock.go(2)
    bench.leases.tick()
    refused(lambda: bench.admit(ping, 900, number=4))  # by its ping alone
    assert not bench.gateway._fences
    assert bench.admit(bench.gateway.ping(), 900, number=5)


def test_a_word_is_kept_as_long_as_a_hop_from_before_could_be_admitted(bench: Bench) -> None:
    bench.gateway.ping()
    bench.clock.go(PING_LIFETIME_S / 2)
    ping = bench.gateway.ping()
    bench.gateway.said(2, [hold(ping, 6)], [])
    bench.clock.go(PING_LIFETIME_S - 1)
    bench.gateway.ping()
    bench.leases.tick()
    refused(lambda: bench.admit(ping, 900))
    bench.clock.go(2)
    bench.gateway.ping()
    bench.leases.tick()
    assert not bench.gateway._words


def test_a_fence_outlives_the_stream_it_came_by(bench: Bench) -> None:
    ping = bench.gateway.ping()
    bench.gateway.said(2, [], [fence(5)])
    bench.gateway.begin()
    refused(lambda: bench.admit(ping, 900, number=4))


# --- what is carried out


def test_a_message_is_heard_when_what_it_ends_is_gone(bench: Bench) -> None:
    """Mutant `ackclose`: that it was told to end, or that the hop was closed, is not the end of its steps."""
    heard: list[int] = []
    bench.gateway.on_heard = lambda: heard.append(bench.gateway.heard)
    ping = bench.gateway.ping()
    stay = bench.admit(ping, 900, number=4)
    stay.entered()  # two sequences in an engine
    stay.entered()
    bench.gateway.said(2, [], [])
    bench.gateway.said(3, [], [fence(5)])
    bench.gateway.said(4, [], [])
    assert (bench.gateway.heard, heard) == (2, [])  # nothing was asked: the next report tells soon enough
    stay.left()
    stay.close()
    assert (bench.gateway.heard, heard) == (2, [])
    stay.left()
    assert heard == [4]


def test_what_a_word_ends_is_waited_for_as_well(bench: Bench) -> None:
    stay = bench.admit(bench.gateway.ping(), 900)
    bench.gateway.said(2, [hold(bench.gateway.ping(), 0)], [])
    assert bench.gateway.heard == 0
    stay.close()
    assert bench.gateway.heard == 2


def test_nothing_of_one_stream_is_heard_on_the_next(bench: Bench) -> None:
    """It may be another process that listens at the same address: its messages have numbers of their own."""
    bench.gateway.said(50, [], [])
    assert bench.gateway.heard == 50
    bench.gateway.begin()
    assert bench.gateway.heard == 0
    bench.gateway.said(3, [], [])
    assert bench.gateway.heard == 3


def test_a_fence_that_is_said_again_waits_for_what_the_first_has_ended(bench: Bench) -> None:
    stay = bench.admit(bench.gateway.ping(), 900, number=4)
    bench.gateway.said(2, [], [fence(5)])
    bench.gateway.begin()
    bench.gateway.said(3, [], [fence(5)])
    assert bench.gateway.heard == 0
    stay.close()
    assert bench.gateway.heard == 3


def test_a_hop_that_closes_is_forgotten(bench: Bench) -> None:
    stay = bench.admit(bench.gateway.ping(), 900)
    stay.close()
    stay.close()
    assert not bench.gateway._stays
    bench.gateway.said(2, [], [fence(5)])
    assert bench.gateway.heard == 2


def test_a_hop_that_an_engine_still_has_is_told_to_the_loop_when_it_leaves() -> None:
    bench, gone = Bench(), []
    bench.leases.on_gone = lambda: gone.append(True)
    stay = bench.admit(bench.gateway.ping(), 900)
    stay.entered()
    bench.gateway.said(2, [], [fence(5)])
    stay.close()
    stay.left()  # on the engine's thread
    assert gone
    assert bench.gateway.heard == 0
    bench.leases.settle()
    assert bench.gateway.heard == 2


def test_a_process_that_has_no_pings_admits_nothing() -> None:
    bench = Bench()
    fresh = Leases(ReplicaId("f" * 16), bench.clock)
    refused(lambda: fresh.admit(b"f" * 16 + b".1.1.60000.0.1", T, None))


def test_a_successor_that_is_alone_ends_what_the_dead_process_sent() -> None:
    bench = Bench()
    bench.gateway.said(1, [], [], process=7)
    older = bench.gateway.ping()
    stay = bench.admit(older, 900)
    unread = bench.gateway.ping()
    bench.gateway.begin()
    bench.gateway.said(1, [], [], process=8, alone=True)
    assert stay.ended
    assert bench.gateway.heard == 0, "something of it is left"
    with pytest.raises(MeshError):
        bench.admit(unread, 900)
    stay.close()
    bench.leases.settle()
    assert bench.gateway.heard == 1
    bench.admit(bench.gateway.ping(), 900)


def test_a_process_that_is_alone_and_joins_again_ends_nothing_of_its_own() -> None:
    bench = Bench()
    bench.gateway.said(1, [], [], process=7, alone=True)
    stay = bench.admit(bench.gateway.ping(), 900)
    bench.gateway.begin()
    bench.gateway.said(1, [], [], process=7, alone=True)
    assert not stay.ended
    assert bench.gateway.heard == 1


def test_one_that_does_not_know_to_be_alone_ends_nothing() -> None:
    bench = Bench()
    bench.gateway.said(1, [], [], process=7)
    stay = bench.admit(bench.gateway.ping(), 900)
    bench.gateway.begin()
    bench.gateway.said(1, [], [], process=8)
    assert not stay.ended


def test_another_gateways_work_is_not_a_successors_to_end() -> None:
    bench = Bench()
    other = bench.another()
    other.said(1, [], [], process=3)
    stay = bench.admit(other.ping(), 900)
    bench.gateway.said(1, [], [], process=8, alone=True)
    assert not stay.ended
