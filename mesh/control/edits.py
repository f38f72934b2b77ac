"""What changes make of a tenant's policy, and what each takes away. Pure.

A change may also have to wait for what earlier ones took away: whoever suspends a tenant is told that nothing runs
anywhere, and whoever sets a pin again that nothing is left outside it, also where an earlier call never returned.
"""

from __future__ import annotations

from dataclasses import replace

from mesh.policy.bundle import Spans, TenantPolicy
from mesh.policy.shrink import NO_RIGHTS, Shrink, shrink_of
from mesh.types import Jurisdiction, RegionId, Revision, TenantState, Transfer


def with_allowed(policy: TenantPolicy, allowed: frozenset[Jurisdiction], drain_s: float) -> TenantPolicy:
    """The policy with another pin; the same one if it says so already.

    Args:
        policy: The one that it replaces.
        allowed: The pin.
        drain_s: How long what runs in a removed jurisdiction may go on.
    """
    if allowed == policy.allowed:
        return policy
    revision = Revision(policy.revision + 1)
    gone = policy.allowed - allowed
    still_out = {place: since for place, since in policy.out_since.items() if place not in allowed}
    return replace(
        policy,
        revision=revision,
        allowed=allowed,
        out_since=still_out | dict.fromkeys(gone, revision),
        drain_s=drain_s if gone else policy.drain_s,
    )


def with_state(policy: TenantPolicy, state: TenantState) -> TenantPolicy:
    """The policy suspended, or active again; the same one if it says so already."""
    if state is policy.state:
        return policy
    return replace(policy, state=state, revision=Revision(policy.revision + 1))


def with_label(policy: TenantPolicy, label: str) -> TenantPolicy:
    """The policy with another public label, or with none; the same one if it says so already."""
    if label == policy.label:
        return policy
    return replace(policy, label=label, revision=Revision(policy.revision + 1))


def with_transfer(policy: TenantPolicy, transfer: Transfer) -> TenantPolicy:
    """The policy with another rule for forwarding; the same one if it says so already. What was forwarded ends."""
    if transfer is policy.transfer:
        return policy
    drain_s = 0.0 if transfer is Transfer.NEVER else policy.drain_s
    return replace(policy, transfer=transfer, drain_s=drain_s, revision=Revision(policy.revision + 1))


def with_authority(policy: TenantPolicy, authority: Spans) -> TenantPolicy:
    """The policy with other times for which a grant is good; the same one if it says so already.

    Whoever has not heard of it goes by the old times, so these stay noted until `settled`.
    """
    if authority == policy.authority:
        return policy
    after = replace(policy, authority=authority, revision=Revision(policy.revision + 1))
    return replace(after, authority_before=_longer(policy, after))


def moved(policy: TenantPolicy, home: RegionId, place: Jurisdiction) -> TenantPolicy:
    """The policy with another home, which is in `place`: where a grant is good for longer is another place then.

    Whoever has not heard of it goes by the old home's times, so these stay noted until `settled`.
    """
    revision = Revision(policy.revision + 1)
    after = replace(policy, home=home, home_jurisdiction=place, moves=policy.moves + 1, revision=revision)
    return replace(after, authority_before=_longer(policy, after))


def settled(policy: TenantPolicy) -> TenantPolicy:
    """The policy without older times, once none of them is in use anywhere."""
    if not policy.authority_before:
        return policy
    return replace(policy, authority_before={}, revision=Revision(policy.revision + 1))


def taken_by_pin(before: TenantPolicy, after: TenantPolicy) -> Shrink | None:
    """What a change of the pin takes away. With `after` being `before`: what earlier ones took away.

    A suspended tenant's pin counts as an active one's: not everyone may have heard that it is suspended.
    """
    pinned = replace(after, state=TenantState.ACTIVE)
    whole = shrink_of(_widest(before), pinned)
    if after == before:
        return whole
    own = shrink_of(replace(before, state=TenantState.ACTIVE), pinned)
    return None if own is None or whole is None else replace(own, span_s=whole.span_s)


def taken_by_state(before: TenantPolicy, after: TenantPolicy) -> Shrink | None:
    """What suspending takes away, whether now or before: all that was ever allowed."""
    return shrink_of(_widest(before), after) if after.state is TenantState.SUSPENDED else None


def taken_by_transfer(before: TenantPolicy, after: TenantPolicy) -> Shrink | None:
    """What ending transfer takes away, whether now or before."""
    if after.transfer is not Transfer.NEVER:
        return None
    widest = replace(_widest(before), transfer=Transfer.WITHIN_ALLOWED)
    return shrink_of(widest, replace(widest, transfer=Transfer.NEVER))


def taken_by_authority(after: TenantPolicy) -> Shrink | None:
    """What lower times take away, those of earlier changes too: `settled` forgets them all once this was waited for."""
    if not after.authority_before:
        return None
    lowered = frozenset(after.authority_before)
    return Shrink(removed=NO_RIGHTS, lowered=lowered, span_s=max(after.authority_before.values()))


def taken_with_key(policy: TenantPolicy) -> Shrink | None:
    """What the end of one of the tenant's keys takes away: no right of the tenant, but the key's use of all of them."""
    widest = _widest(policy)
    return shrink_of(widest, widest, key_ends=True)


def taken_by_move(policy: TenantPolicy) -> Shrink | None:
    """What a move takes away of the policy that it replaces: no right, but that anybody acts on that policy."""
    return taken_with_key(policy)


def _longer(before: TenantPolicy, after: TenantPolicy) -> dict[Jurisdiction, float]:
    """The times of a policy, or of those before it, that are longer than those of the one after it."""
    places = before.allowed | before.out_since.keys() | before.authority_before.keys()
    longest = {place: max(before.span_s(place), before.authority_before.get(place, 0.0)) for place in places}
    return {place: span_s for place, span_s in longest.items() if span_s > after.span_s(place)}


def _widest(policy: TenantPolicy) -> TenantPolicy:
    """What may still be acted on somewhere: removals that have not reached everybody are not undone by time alone."""
    return replace(policy, state=TenantState.ACTIVE, allowed=policy.allowed | policy.out_since.keys())
