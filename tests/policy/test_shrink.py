"""What a change takes away, and how long somebody may still act on it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.policy.bundle import Spans, TenantPolicy
from mesh.policy.shrink import Right, rights_of, shrink_of
from mesh.types import Jurisdiction, RegionId, Revision, TenantId, TenantState, Transfer

VN, SG, JP = (Jurisdiction(code) for code in ("VN", "SG", "JP"))
BASE = TenantPolicy(
    tenant=TenantId("t_abcdefghijklmnop"),
    home=RegionId("vn-1"),
    home_jurisdiction=VN,
    revision=Revision(1),
    state=TenantState.ACTIVE,
    allowed=frozenset({VN, SG}),
    transfer=Transfer.WITHIN_ALLOWED,
)


def removed(**changes: object) -> set[tuple[str, bool]] | None:
    shrink = shrink_of(BASE, replace(BASE, **changes))  # pyright: ignore[reportArgumentType]
    return None if shrink is None else {(right.place, right.sent) for right in shrink.removed}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"allowed": frozenset({VN, SG, JP})}, None),
        ({"authority": Spans(home_s=1000, foreign_s=7)}, None),
        ({"drain_s": 5.0}, None),
        ({"allowed": frozenset({VN})}, {("SG", False), ("SG", True)}),
        ({"allowed": frozenset({VN, JP})}, {("SG", False), ("SG", True)}),
        ({"transfer": Transfer.NEVER}, {("VN", True), ("SG", True)}),
        ({"state": TenantState.SUSPENDED}, {("VN", False), ("VN", True), ("SG", False), ("SG", True)}),
    ],
)
def test_what_is_removed(changes: dict[str, object], expected: set[tuple[str, bool]] | None) -> None:
    assert removed(**changes) == expected


def test_a_suspended_tenant_has_nothing_more_to_lose() -> None:
    suspended = replace(BASE, state=TenantState.SUSPENDED)
    assert shrink_of(suspended, replace(suspended, allowed=frozenset({VN}))) is None


@pytest.mark.parametrize(
    ("changes", "before", "key_ends", "span_s"),
    [
        ({"allowed": frozenset({VN})}, {}, False, 6),
        ({"allowed": frozenset({SG})}, {}, False, 900),
        ({"state": TenantState.SUSPENDED}, {}, False, 900),
        ({}, {}, True, 900),
        ({"allowed": frozenset({VN})}, {SG: 60.0}, False, 60),
        ({"allowed": frozenset({VN})}, {VN: 3600.0}, False, 6),
        # A lowered span waits as long as the one it replaces, and as any older one that may still be in use.
        ({"authority": Spans(home_s=15, foreign_s=6)}, {}, False, 900),
        ({"authority": Spans(home_s=900, foreign_s=2)}, {}, False, 6),
        ({"authority": Spans(home_s=900, foreign_s=2)}, {SG: 30.0}, False, 30),
        # What the *new* policy says of spans is no answer to how long the old one may still be in use.
        ({"allowed": frozenset({VN}), "authority": Spans(home_s=900, foreign_s=1)}, {}, False, 6),
    ],
)
def test_how_long_it_may_still_be_acted_on(
    changes: dict[str, object], before: dict[Jurisdiction, float], key_ends: bool, span_s: float
) -> None:
    old = replace(BASE, authority_before=before)
    shrink = shrink_of(old, replace(old, **changes), key_ends=key_ends)  # pyright: ignore[reportArgumentType]
    assert shrink is not None
    assert shrink.span_s == span_s


policies = st.builds(
    TenantPolicy,
    tenant=st.just(BASE.tenant),
    home=st.just(BASE.home),
    home_jurisdiction=st.just(VN),
    revision=st.just(Revision(1)),
    state=st.sampled_from(list(TenantState)),
    allowed=st.frozensets(st.sampled_from([VN, SG, JP])),
    transfer=st.sampled_from(list(Transfer)),
)


@given(policies, policies)
def test_no_shrink_means_nothing_is_lost(before: TenantPolicy, after: TenantPolicy) -> None:
    shrink = shrink_of(before, after)
    if shrink is None:
        assert rights_of(before) <= rights_of(after)
    else:
        assert shrink.removed == rights_of(before) - rights_of(after)
        assert shrink.span_s > 0


def test_the_rights_of_a_tenant_without_a_record() -> None:
    assert rights_of(None) == frozenset()
    assert rights_of(replace(BASE, transfer=Transfer.NEVER)) == {Right(VN, sent=False), Right(SG, sent=False)}
