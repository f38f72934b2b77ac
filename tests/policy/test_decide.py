"""Who may be served where: every refusal names its reason, and permits are made in one place only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import Code
from mesh.policy.bundle import PolicyBook, TenantKey, TenantPolicy
from mesh.policy.decide import Deny, LeftS, Permit, decide, decide_forwarded
from mesh.types import Here, Jurisdiction, KeyId, RegionId, Revision, TenantId, TenantState, Transfer

JURISDICTIONS = [Jurisdiction(code) for code in ("VN", "SG", "JP", "AU", "IN", "KR", "HK")]

policies = st.builds(
    TenantPolicy,
    tenant=st.just(TenantId("t_abcdefghijklmnop")),
    home=st.just(RegionId("vn-1")),
    home_jurisdiction=st.just(Jurisdiction("VN")),
    revision=st.integers(1, 5).map(Revision),
    state=st.sampled_from(list(TenantState)),
    allowed=st.frozensets(st.sampled_from(JURISDICTIONS)),
    transfer=st.sampled_from(list(Transfer)),
)
places = st.sampled_from(JURISDICTIONS).map(lambda j: Here(region=RegionId(f"{j.lower()}-1"), jurisdiction=j))


granted = st.frozensets(st.sampled_from(JURISDICTIONS))
"""Jurisdictions for which there is authority."""


def left_in(live: frozenset[Jurisdiction]) -> LeftS:
    return lambda policy, place: 1.0 if place in live else 0.0


@given(policies, places, granted)
def test_a_permit_means_active_allowed_and_granted_here(
    policy: TenantPolicy, here: Here, live: frozenset[Jurisdiction]
) -> None:
    match decide(policy, here, left_in(live)):
        case Permit() as permit:
            assert policy.state is TenantState.ACTIVE
            assert here.jurisdiction in policy.allowed
            assert here.jurisdiction in live
            transfers = policy.transfer is Transfer.WITHIN_ALLOWED
            assert permit.elsewhere == (policy.allowed & live if transfers else frozenset())
            assert permit.revision == policy.revision
        case Deny(code=Code.TENANT_SUSPENDED):
            assert policy.state is TenantState.SUSPENDED
        case Deny(code=Code.POLICY_STALE):
            assert policy.state is TenantState.ACTIVE
            assert here.jurisdiction in policy.allowed - live
        case Deny(code=code):
            assert code is Code.RESIDENCY_REFUSED
            assert policy.state is TenantState.ACTIVE
            assert here.jurisdiction not in policy.allowed


@given(policies, places, st.sampled_from(JURISDICTIONS), granted)
def test_a_forwarded_call_needs_transfer_and_a_sender_in_the_pin(
    policy: TenantPolicy, here: Here, entry: Jurisdiction, live: frozenset[Jurisdiction]
) -> None:
    left_s = left_in(live)
    if isinstance(decide_forwarded(policy, here, entry, left_s), Permit):
        assert isinstance(decide(policy, here, left_s), Permit)
        assert policy.transfer is Transfer.WITHIN_ALLOWED
        assert entry in policy.allowed
    elif isinstance(decide(policy, here, left_s), Permit):
        assert policy.transfer is Transfer.NEVER or entry not in policy.allowed


def test_only_decide_makes_permits() -> None:
    with pytest.raises(TypeError, match="decide"):
        Permit(
            tenant=TenantId("t"),
            home=RegionId("vn-1"),
            revision=Revision(1),
            allowed=frozenset(JURISDICTIONS),
            elsewhere=frozenset(JURISDICTIONS),
            seal=object(),
        )


@given(st.lists(policies))
def test_the_book_keeps_the_newest_whatever_the_order(changes: list[TenantPolicy]) -> None:
    book = PolicyBook()
    for policy in changes:
        book.put_tenant(policy)
    known = book.tenant(TenantId("t_abcdefghijklmnop"))
    assert (known.revision if known else None) == max((p.revision for p in changes), default=None)


def test_a_revoked_key_stays_revoked() -> None:
    book = PolicyBook()
    key = TenantKey(key_id=KeyId("k"), tenant=TenantId("t"), hash="h", revoked=True)
    book.put_key(key)
    book.put_key(TenantKey(key_id=KeyId("k"), tenant=TenantId("t"), hash="h", revoked=False))
    assert book.key(KeyId("k")) == key
