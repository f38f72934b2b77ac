"""What a change of policy takes away. Only such a change has a barrier: its maker waits until it holds everywhere.

A policy gives *rights*: to serve a call that a client sent to a jurisdiction, and to send content into one. A call uses
some of them; when a policy without one of those is applied, the call drains and ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from mesh.policy.bundle import TenantPolicy
from mesh.types import Jurisdiction, TenantState, Transfer


class Right(NamedTuple):
    """To be served in `place`; with `sent`, what came in elsewhere."""

    place: Jurisdiction
    sent: bool


Rights = frozenset[Right]
NO_RIGHTS: Rights = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrink:
    """What is taken away, and what that asks for.

    Attributes:
        removed: Rights that are gone.
        lowered: Jurisdictions in which a grant is good for less long.
        span_s: The longest time for which anybody may still act on what is taken away; `wait_s` makes a wait of it.
    """

    removed: Rights
    lowered: frozenset[Jurisdiction]
    span_s: float


def rights_of(policy: TenantPolicy | None) -> Rights:
    """All that a policy permits; None is a tenant without a valid record."""
    if policy is None or policy.state is not TenantState.ACTIVE:
        return NO_RIGHTS
    kinds = (False, True) if policy.transfer is Transfer.WITHIN_ALLOWED else (False,)
    return frozenset(Right(place, sent) for place in policy.allowed for sent in kinds)


def shrink_of(before: TenantPolicy, after: TenantPolicy, *, key_ends: bool = False) -> Shrink | None:
    """What `after` takes away from `before`; None if nothing.

    Args:
        before: The policy that is replaced. How long it may still be acted on is told by it, never by `after`.
        after: The new one.
        key_ends: Whether one of the tenant's keys ends with it: then every place is concerned.
    """
    had = rights_of(before)
    removed = had - rights_of(after)
    places = {right.place for right in had}
    lowered = frozenset(place for place in places & after.allowed if after.span_s(place) < before.span_s(place))
    concerned = places if key_ends else {right.place for right in removed} | lowered
    if not concerned:
        return None
    span_s = max(max(before.span_s(place), before.authority_before.get(place, 0.0)) for place in concerned)
    return Shrink(removed=removed, lowered=lowered, span_s=span_s)
