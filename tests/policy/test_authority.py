"""Authority: what a grant gives, from when, for how long, and what takes it away."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.policy.authority import Authority, wait_s
from mesh.policy.bundle import Spans, TenantPolicy
from mesh.policy.shards import SHARDS, Shard, shard_of
from mesh.ports import Instant
from mesh.types import Jurisdiction, RegionId, Revision, TenantId, TenantState, Transfer

VN, SG = Jurisdiction("VN"), Jurisdiction("SG")
HOME = RegionId("vn-1")
POLICY = TenantPolicy(
    tenant=TenantId("t_abcdefghijklmnop"),
    home=HOME,
    home_jurisdiction=VN,
    revision=Revision(1),
    state=TenantState.ACTIVE,
    allowed=frozenset({VN, SG}),
    transfer=Transfer.WITHIN_ALLOWED,
)
SHARD = POLICY.shard


def at(seconds: float, *, raw_s: float | None = None, wall_s: float | None = None) -> Instant:
    """A moment; the clocks agree unless told otherwise, and begin at different times."""
    return Instant(
        boot_s=1000 + seconds,
        raw_s=500 + (seconds if raw_s is None else raw_s),
        wall_s=1.7e9 + (seconds if wall_s is None else wall_s),
    )


def granted(number: int = 3, applied: int = 3, t0: Instant | None = None) -> Authority:
    authority = Authority()
    authority.applied(SHARD, applied)
    authority.granted({SHARD: number}, t0 or at(0))
    return authority


def test_nothing_before_the_first_grant() -> None:
    authority = Authority()
    authority.applied(SHARD, 3)
    assert authority.left_s(POLICY, VN, at(0)) == 0


@pytest.mark.parametrize(("place", "span_s"), [(VN, 900.0), (SG, 6.0)])
def test_it_counts_from_before_the_asking_and_ends_by_the_span(place: Jurisdiction, span_s: float) -> None:
    authority = granted()
    assert authority.left_s(POLICY, place, at(1)) == pytest.approx(span_s - 1)
    assert authority.left_s(POLICY, place, at(span_s - 0.01)) > 0
    assert authority.left_s(POLICY, place, at(span_s)) == 0
    assert authority.left_s(POLICY, place, at(span_s + 1000)) == 0


def test_a_grant_counts_once_its_number_is_applied_and_not_before() -> None:
    authority = granted(number=5, applied=3)
    assert authority.left_s(POLICY, SG, at(1)) == 0
    authority.applied(SHARD, 4)
    assert authority.left_s(POLICY, SG, at(1)) == 0
    authority.applied(SHARD, 5)
    assert authority.left_s(POLICY, SG, at(1)) == pytest.approx(5)


def test_a_busy_shard_is_late_and_never_starved() -> None:
    authority = granted(number=0, applied=0, t0=at(-1000))
    for turn in range(200):
        # At each grant the shard is ten changes ahead of what is applied here.
        authority.applied(SHARD, turn * 10)
        authority.granted({SHARD: turn * 10 + 10}, at(turn * 2.0))
    assert authority.left_s(POLICY, SG, at(199 * 2.0)) == pytest.approx(4)


def test_a_shard_far_behind_keeps_its_oldest_answers() -> None:
    authority = granted(number=1, applied=0)
    for turn in range(1, 500):
        authority.granted({SHARD: 1 + turn}, at(turn * 0.001))
    authority.applied(SHARD, 1)
    assert authority.left_s(POLICY, SG, at(1)) == pytest.approx(5)


def test_another_shards_number_says_nothing() -> None:
    authority = Authority()
    other = Shard(HOME, (SHARD.index + 1) % SHARDS)
    authority.applied(other, 9)
    authority.granted({SHARD: 1, other: 9}, at(0))
    assert authority.left_s(POLICY, SG, at(1)) == 0


def test_a_shard_that_was_never_written_is_known_whole() -> None:
    authority = Authority()
    authority.granted({}, at(0))
    assert authority.left_s(POLICY, SG, at(1)) == pytest.approx(5)
    # Its first change is on its way: what the answer before said stays as good as it was.
    authority.granted({SHARD: 1}, at(2))
    assert authority.left_s(POLICY, SG, at(3)) == pytest.approx(3)
    authority.applied(SHARD, 1)
    assert authority.left_s(POLICY, SG, at(3)) == pytest.approx(5)


def test_the_older_of_two_answers_takes_nothing_back() -> None:
    authority = granted(t0=at(2))
    authority.granted({SHARD: 3}, at(0))
    assert authority.left_s(POLICY, SG, at(3)) == pytest.approx(5)


@pytest.mark.parametrize("now", [at(7, raw_s=2), at(2, raw_s=7, wall_s=2)], ids=["raw stands still", "boot is slewed"])
def test_the_clock_that_says_more_decides(now: Instant) -> None:
    assert granted().left_s(POLICY, SG, now) == 0


@pytest.mark.parametrize("wall_s", [1.2, 0.8, 3600.0, -3600.0])
def test_a_wall_clock_that_was_set_leaves_none_until_the_next_grant(wall_s: float) -> None:
    authority, now = granted(), at(1, wall_s=wall_s)
    assert authority.left_s(POLICY, VN, now) == 0
    authority.granted({SHARD: 3}, now)
    assert authority.left_s(POLICY, VN, now) == pytest.approx(900)


def test_clocks_that_moved_apart_and_met_again_give_nothing_back() -> None:
    authority = granted()
    authority.look(at(1, wall_s=30))
    assert authority.left_s(POLICY, VN, at(2)) == 0
    authority.granted({SHARD: 3}, at(3))
    assert authority.left_s(POLICY, VN, at(3)) > 0


def test_an_older_grant_ends_with_the_clocks_it_was_asked_by() -> None:
    authority = granted(t0=at(0))
    other = Shard(HOME, (SHARD.index + 1) % SHARDS)
    # The newer one is of a clock that was set in between, and says nothing of this shard yet.
    authority.granted({SHARD: 9, other: 0}, at(1, wall_s=30))
    assert authority.left_s(POLICY, VN, at(2)) == 0


def test_dropping_forgets_what_was_applied_too() -> None:
    authority = granted()
    authority.drop()
    authority.granted({SHARD: 3}, at(1))
    assert authority.left_s(POLICY, VN, at(1)) == 0
    authority.applied(SHARD, 3)
    assert authority.left_s(POLICY, VN, at(1)) == pytest.approx(900)


def test_suspending_waits_for_the_next_grant_only() -> None:
    authority = granted()
    authority.suspend()
    assert authority.left_s(POLICY, VN, at(1)) == 0
    authority.granted({SHARD: 3}, at(1))
    assert authority.left_s(POLICY, VN, at(1)) == pytest.approx(900)


def test_left_at_an_earlier_moment_adds_up_to_the_same_end() -> None:
    authority = granted(t0=at(10))
    now = at(12)
    assert authority.left_at_s(POLICY, SG, at(11), now) == pytest.approx(5)
    # What a deadline that began 3 s before the grant may be: it ends when the grant does.
    assert authority.left_at_s(POLICY, SG, at(7), now) == pytest.approx(9)
    # Between a moment before it and the grant, the clock that says less decides.
    assert authority.left_at_s(POLICY, SG, Instant(1000 + 7.0, 500 + 8.0, 1.7e9 + 7), now) == pytest.approx(8)
    assert authority.left_at_s(POLICY, SG, at(11), at(16)) == 0


def test_a_tenants_own_spans_decide() -> None:
    slow = replace(POLICY, authority=Spans(home_s=20, foreign_s=60))
    authority = granted()
    assert authority.left_s(slow, VN, at(19)) == pytest.approx(1)
    assert authority.left_s(slow, SG, at(59)) == pytest.approx(1)


clocks = st.floats(0.999, 1.001)


@given(st.floats(0.01, 86_400), st.floats(0, 1), clocks, clocks)
def test_whoever_waits_w_outlasts_whoever_was_granted_before(
    span_s: float, asked_before_s: float, gateway: float, admin: float
) -> None:
    """The gateway asked before the shrink was committed; both clocks run wrong by up to rho, in true seconds."""
    commit_s = asked_before_s
    ends_s = span_s / gateway
    returns_s = commit_s + wait_s(span_s) / admin
    authority = granted()
    policy = replace(POLICY, authority=Spans(home_s=span_s, foreign_s=span_s))
    assert returns_s > ends_s
    assert authority.left_s(policy, VN, at(returns_s * gateway)) == 0


def test_shards_are_a_function_of_the_tenant() -> None:
    assert {shard_of(HOME, TenantId(f"t_{n}")).index for n in range(500)} == set(range(SHARDS))
