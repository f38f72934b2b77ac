"""What a home publishes of a tenant after the control store was lost, from all that it had signed. Pure.

The base is the newest record that surely came into the store. A later one may have come there or not: a caller may have
been told that what it took away is gone, but nobody must rely on what it gave. So each of them narrows the base, and
none widens it.

What a tenant's moves did is told by the last of them alone. A home that signed its last word publishes that, also where
it is not known whether it was made: whoever may go by it must not be contradicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Generic, TypeVar

from mesh.control.records import KeyRecord, TenantRecord
from mesh.policy.bundle import Spans, TenantPolicy
from mesh.types import Jurisdiction, Revision, TenantState, Transfer

Record = TypeVar("Record", TenantRecord, KeyRecord)


@dataclass(frozen=True, slots=True)
class Signed(Generic[Record]):
    """A record that the home had signed for an epoch.

    Attributes:
        revision: The policy revision of its tenant that the change made.
        made: Whether it surely came into the store.
    """

    record: Record
    epoch: int
    revision: Revision
    made: bool


def restored_tenant(signed: Sequence[Signed[TenantRecord]], floor: Revision) -> TenantRecord | None:
    """The tenant's record, never wider than what any wait has returned on.

    Args:
        signed: One record or more, in the order of signing. Where none surely came into the store, the first is the
            base: there was nothing before it that anyone could have been promised.
        floor: The highest revision of the tenant that was ever signed.

    Returns:
        The base as it was, or, if anything later may have been made, what all of them allow, at a revision above all.
        None where that cannot be said: it may be that the tenant left, and it may be that it was narrowed instead.
    """
    signed = since_last_move(signed)
    lasts = [one for one in signed if one.record.left and not _is_void(one, signed)]
    if lasts:
        made = [one for one in lasts if one.made]
        word = (made or lasts)[-1]
        if not made:
            rivals = [one for one in signed if not one.record.left and not one.made and one.revision >= word.revision]
            if rivals or any(one.record.chain[-1].says != word.record.chain[-1].says for one in lasts):
                return None
        return word.record
    signed = [one for one in signed if not one.record.left]
    if all(one.record.is_first for one in signed):
        # It counts only as the old home has named it; and can be made again from what that has said.
        return max(signed, key=_place).record
    base, later = _base(signed)
    if not later and floor <= base.record.policy.revision:
        return base.record
    policies = [one.record.policy for one in later]
    chain = max((one.record.chain for one in (base, *later)), key=len)
    return replace(base.record, policy=_narrowed(base.record.policy, policies, Revision(floor + 1)), chain=chain)


def since_last_move(signed: Sequence[Signed[TenantRecord]]) -> Sequence[Signed[TenantRecord]]:
    """What the home signed of the tenant since it came here last: from then on nothing older can have been made.

    A last word is of the time before it, since what was signed beside it may have been made instead.
    """

    def came(one: Signed[TenantRecord]) -> int:
        return one.record.policy.moves - one.record.left

    newest = max(came(one) for one in signed)
    return [one for one in signed if came(one) == newest]


def restored_key(signed: Sequence[Signed[KeyRecord]]) -> KeyRecord | None:
    """The key's record; None where it is not known that the key was ever made."""
    if not any(one.made for one in signed):
        return None
    base, later = _base(signed)
    revoked = [one.record for one in (base, *later) if one.record.key.revoked]
    return revoked[0] if revoked else base.record


def allows_less(restored: TenantPolicy, known: TenantPolicy) -> bool:
    """Whether a restored policy takes away anything of the one that surely was made."""
    return (restored.allowed, restored.state, restored.transfer, restored.authority) != (
        known.allowed,
        known.state,
        known.transfer,
        known.authority,
    )


def surely_made(signed: Sequence[Signed[TenantRecord]]) -> TenantPolicy:
    """The newest policy that surely came into the store; the first one where none did."""
    return _base(since_last_move(signed))[0].record.policy


def _is_void(word: Signed[TenantRecord], signed: Sequence[Signed[TenantRecord]]) -> bool:
    """Whether a last word surely never was made: something else surely was made in its place, or after that.

    From a last word on nothing else is made, so what was made was begun before; and of two that replace the same record
    one is made.
    """
    return not word.made and any(one.made and not one.record.left and _place(one) >= _place(word) for one in signed)


def _base(signed: Sequence[Signed[Record]]) -> tuple[Signed[Record], list[Signed[Record]]]:
    """The base, and what may have been made after it, or instead of what was signed after it."""
    made = [one for one in signed if one.made]
    base = max(made, key=_place) if made else min(signed, key=_place)
    return base, [one for one in signed if one is not base and _place(one) >= _place(base)]


def _place(one: Signed[Record]) -> tuple[int, int]:
    return one.epoch, one.revision


def _narrowed(base: TenantPolicy, later: Sequence[TenantPolicy], revision: Revision) -> TenantPolicy:
    every = (base, *later)
    allowed = reduce(frozenset[Jurisdiction].intersection, (policy.allowed for policy in every))
    suspended = any(policy.state is TenantState.SUSPENDED for policy in every) or not allowed
    never = any(policy.transfer is Transfer.NEVER for policy in every)
    allowed = allowed or base.allowed  # a record names some place; suspended, it allows none
    acted_on = frozenset[Jurisdiction]().union(*(policy.allowed | policy.out_since.keys() for policy in every))
    disputed = frozenset[Jurisdiction]().union(*(policy.allowed for policy in every))
    return replace(
        base,
        revision=revision,
        state=TenantState.SUSPENDED if suspended else TenantState.ACTIVE,
        allowed=allowed,
        transfer=Transfer.NEVER if never else Transfer.WITHIN_ALLOWED,
        out_since={
            place: revision if place in disputed else base.out_since.get(place, revision)
            for place in acted_on - allowed
        },
        drain_s=0.0,
        **_spans(base, every, acted_on),
    )


def _spans(base: TenantPolicy, every: Sequence[TenantPolicy], places: frozenset[Jurisdiction]) -> dict[str, object]:
    """The shortest times of authority, and the longest that anyone may act by."""
    shortest = Spans(
        home_s=min(policy.authority.home_s for policy in every),
        foreign_s=min(policy.authority.foreign_s for policy in every),
    )
    after = replace(base, authority=shortest)
    known = places.union(*(policy.authority_before.keys() for policy in every))
    longest = {
        place: max(max(policy.span_s(place), policy.authority_before.get(place, 0.0)) for policy in every)
        for place in known
    }
    before = {place: span_s for place, span_s in longest.items() if span_s > after.span_s(place)}
    return {"authority": shortest, "authority_before": before}
