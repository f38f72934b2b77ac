"""May this tenant be served in this jurisdiction, and is what says so still good? Pure; the only maker of permits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mesh.errors import Code
from mesh.policy.bundle import TenantPolicy
from mesh.types import Here, Jurisdiction, RegionId, Revision, TenantId, TenantState, Transfer

_SEAL = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """Proof that a tenant may be served here, under one revision of its policy. Only `decide` makes one.

    It is true at the moment it was made. Authority runs out: whoever acts later asks again.

    Attributes:
        elsewhere: The jurisdictions into which its content may be forwarded from here, under live authority to send
            there; empty without transfer.
    """

    tenant: TenantId
    home: RegionId
    revision: Revision
    allowed: frozenset[Jurisdiction]
    elsewhere: frozenset[Jurisdiction]
    seal: object = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.seal is not _SEAL:
            raise TypeError("a permit is made by decide()")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deny:
    """Why not: `tenant_suspended`, `residency_refused`, or `policy_stale` where nothing is left of authority."""

    code: Code


Decision = Permit | Deny
LeftS = Callable[[TenantPolicy, Jurisdiction], float]
"""For how many seconds a policy may still be acted on in a jurisdiction, or content be sent there."""


def state_of(policy: TenantPolicy) -> Deny | None:
    """Whether the tenant is served anywhere at all: what a caller may know before a path or a place is looked at."""
    match policy.state:
        case TenantState.ACTIVE:
            return None
        case TenantState.SUSPENDED:
            return Deny(code=Code.TENANT_SUSPENDED)


def decide(policy: TenantPolicy, here: Here, left_s: LeftS) -> Decision:
    """Decides for a call that a client sent here.

    Args:
        policy: The newest known policy of the call's tenant.
        here: Where the deciding gateway is.
        left_s: What is left of authority, now.
    """
    denied = state_of(policy)
    if denied is not None:
        return denied
    if here.jurisdiction not in policy.allowed:
        return Deny(code=Code.RESIDENCY_REFUSED)
    if left_s(policy, here.jurisdiction) <= 0:
        return Deny(code=Code.POLICY_STALE)
    elsewhere = policy.allowed if policy.transfer is Transfer.WITHIN_ALLOWED else frozenset[Jurisdiction]()
    return Permit(
        tenant=policy.tenant,
        home=policy.home,
        revision=policy.revision,
        allowed=policy.allowed,
        elsewhere=frozenset(place for place in elsewhere if left_s(policy, place) > 0),
        seal=_SEAL,
    )


def decide_forwarded(policy: TenantPolicy, here: Here, entry: Jurisdiction, left_s: LeftS) -> Decision:
    """Decides for a call that another region's gateway sent on: here it is served, or refused, never sent further.

    The receiver trusts the sender's identity, never its decision, and acts on its own authority: the answer goes back
    through `entry`, the sender's jurisdiction, which must be in the pin as seen here.
    """
    decision = decide(policy, here, left_s)
    if isinstance(decision, Permit) and (policy.transfer is not Transfer.WITHIN_ALLOWED or entry not in policy.allowed):
        return Deny(code=Code.RESIDENCY_REFUSED)
    return decision
