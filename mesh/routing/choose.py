"""Which replica or region serves a call. Pure: filter, then the local region first, then the least expected wait.

A region outside the permit is never a candidate: nothing that is measured (load, health, price) can bring it back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from mesh.errors import Code
from mesh.policy.bundle import TenantPolicy
from mesh.policy.decide import Permit
from mesh.routing.explain import Explanation, Outcome, Reason, Verdict, Why
from mesh.routing.fleet import LOAD_LIFETIME_S, Atlas, Fleet, ModelLoad, RegionLoad, Replica, Site
from mesh.types import ModelId, RegionId, ReplicaState

SERVICE_S = 2.0
"""How long a slot is taken by a call, for weighing a queue against a round trip. Only its order of size matters."""


@dataclass(frozen=True, slots=True)
class Local:
    """Served by a replica of this region."""

    replica: Replica


@dataclass(frozen=True, slots=True)
class Remote:
    """Forwarded to another region of the pin."""

    region: RegionId


@dataclass(frozen=True, slots=True)
class NoRoute:
    """Nobody may or can: `model_not_found` or `no_capacity`."""

    code: Code


Route = Local | Remote | NoRoute
_TEXT: dict[Why, str] = {
    Why.LOCAL: "Served where the call came in.",
    Why.LEAST_WAIT: "The least expected wait among the regions that may serve it.",
    Why.NOT_NEEDED: "May serve it, but a nearer region does.",
    Why.JURISDICTION_NOT_ALLOWED: "The pin does not allow this jurisdiction.",
    Why.TRANSFER_NOT_ALLOWED: "The tenant does not allow its content to be forwarded.",
    Why.MODEL_NOT_HOSTED: "The region does not host this model.",
    Why.NO_READY_REPLICA: "No replica of this model is ready there.",
    Why.NO_FREE_CAPACITY: "All slots and the queue are full.",
    Why.SLOWER: "May serve it, but another region's expected wait is less.",
    Why.TENANT_NOT_SERVED: "The tenant is not served anywhere now.",
    Why.ENTRY_REFUSED: "A call that comes in outside the pin is refused before its body is read.",
}


def choose(
    permit: Permit,
    model: ModelId,
    *,
    fleet: Fleet,
    atlas: Atlas,
    now_s: float,
    coin: Callable[[], float],
    failed: Collection[str] = (),
) -> Route:
    """Chooses for one attempt of a call.

    Args:
        permit: Proof that the tenant may be served here; bounds where the call may go.
        model: What the call asks for; any string.
        fleet: The replicas and loads as seen now.
        atlas: The configured mesh.
        now_s: This host's clock, the one of `fleet`.
        coin: Uniform in [0, 1).
        failed: Ids of replicas and regions at which this call was tried already.
    """
    known = atlas.models.get(model)
    if known is None or not any(_may(permit, site, atlas) is None for site in _hosts(atlas, known.regions)):
        return NoRoute(Code.MODEL_NOT_FOUND)
    local = _local(model, fleet, atlas, failed)
    if not isinstance(local, Why):
        return Local(_pick(local, coin))
    best = _nearest(permit, model, fleet, atlas, now_s, failed)
    return NoRoute(Code.NO_CAPACITY) if best is None else Remote(best)


def explain(permit: Permit, model: ModelId, *, fleet: Fleet, atlas: Atlas, now_s: float) -> Explanation:
    """Tells what `choose` would do, and why, region by region; by the same steps."""
    route = choose(permit, model, fleet=fleet, atlas=atlas, now_s=now_s, coin=lambda: 0.0)
    taken, outcome, code = None, Outcome.REFUSE, None
    match route:
        case Local():
            taken, outcome = atlas.here, Outcome.SERVE
        case Remote(region):
            taken, outcome = region, Outcome.FORWARD
        case NoRoute(code):
            pass
    reasons: list[Reason] = []
    for site in atlas.sites.values():
        if site.region == taken:
            why = Why.LOCAL if taken == atlas.here else Why.LEAST_WAIT
        else:
            why = _why_not(permit, model, site, fleet, atlas, now_s)
            if why is None:
                why = Why.NOT_NEEDED if taken == atlas.here else Why.SLOWER
        verdict = Verdict.TAKEN if site.region == taken else Verdict.REJECTED
        reasons.append(Reason(region=site.region, verdict=verdict, code=why, text=_TEXT[why]))
    return Explanation(
        tenant=permit.tenant,
        model=model,
        at=atlas.here,
        outcome=outcome,
        region=taken,
        code=code,
        reasons=tuple(reasons),
    )


def explain_denied(code: Code, model: ModelId, policy: TenantPolicy, *, atlas: Atlas) -> Explanation:
    """Tells why a call that `decide` denied goes nowhere."""
    reasons: list[Reason] = []
    for site in atlas.sites.values():
        if code is not Code.RESIDENCY_REFUSED:
            why = Why.TENANT_NOT_SERVED
        else:
            why = Why.ENTRY_REFUSED if site.jurisdiction in policy.allowed else Why.JURISDICTION_NOT_ALLOWED
        reasons.append(Reason(region=site.region, verdict=Verdict.REJECTED, code=why, text=_TEXT[why]))
    return Explanation(
        tenant=policy.tenant,
        model=model,
        at=atlas.here,
        outcome=Outcome.REFUSE,
        region=None,
        code=code,
        reasons=tuple(reasons),
    )


def regions_for(permit: Permit, model: ModelId, atlas: Atlas) -> tuple[RegionId, ...]:
    """The regions that host a model and may serve this tenant from here, loaded or not; sorted."""
    known = atlas.models.get(model)
    if known is None:
        return ()
    return tuple(sorted(s.region for s in _hosts(atlas, known.regions) if _may(permit, s, atlas) is None))


def _hosts(atlas: Atlas, regions: Collection[RegionId]) -> list[Site]:
    return [atlas.sites[region] for region in regions if region in atlas.sites]


def _may(permit: Permit, site: Site, atlas: Atlas) -> Why | None:
    """Residency: the filter before all others."""
    if site.jurisdiction not in permit.allowed:
        return Why.JURISDICTION_NOT_ALLOWED
    if site.region != atlas.here and site.jurisdiction not in permit.elsewhere:
        return Why.TRANSFER_NOT_ALLOWED
    return None


def _why_not(permit: Permit, model: ModelId, site: Site, fleet: Fleet, atlas: Atlas, now_s: float) -> Why | None:
    forbidden = _may(permit, site, atlas)
    if forbidden is not None:
        return forbidden
    if site.region == atlas.here:
        local = _local(model, fleet, atlas, ())
        return local if isinstance(local, Why) else None
    remote = _remote(model, site, fleet, atlas, now_s)
    return remote if isinstance(remote, Why) else None


def _local(model: ModelId, fleet: Fleet, atlas: Atlas, failed: Collection[str]) -> list[Replica] | Why:
    known = atlas.models.get(model)
    if known is None or atlas.here not in known.regions:
        return Why.MODEL_NOT_HOSTED
    ready = [r for r in fleet.replicas if r.model == model and r.state is ReplicaState.READY and r.id not in failed]
    if not ready:
        return Why.NO_READY_REPLICA
    return [r for r in ready if r.room > 0] or Why.NO_FREE_CAPACITY


def _remote(model: ModelId, site: Site, fleet: Fleet, atlas: Atlas, now_s: float) -> tuple[RegionLoad, ModelLoad] | Why:
    known = atlas.models.get(model)
    if known is None or site.region not in known.regions:
        return Why.MODEL_NOT_HOSTED
    load = fleet.regions.get(site.region)
    one = load.models.get(model) if load is not None and now_s - load.seen_s <= LOAD_LIFETIME_S else None
    if load is None or one is None or one.ready == 0:
        return Why.NO_READY_REPLICA
    return (load, one) if one.room > 0 else Why.NO_FREE_CAPACITY


def _nearest(
    permit: Permit, model: ModelId, fleet: Fleet, atlas: Atlas, now_s: float, failed: Collection[str]
) -> RegionId | None:
    costs: list[tuple[float, RegionId]] = []
    for site in atlas.sites.values():
        if site.region == atlas.here or site.region in failed or _may(permit, site, atlas) is not None:
            continue
        found = _remote(model, site, fleet, atlas, now_s)
        if not isinstance(found, Why):
            costs.append((_expected_wait_s(*found), site.region))
    return min(costs)[1] if costs else None


def _expected_wait_s(load: RegionLoad, model: ModelLoad) -> float:
    """Round trip and queue wait. Prefill is the same everywhere and so left out. After GORGO, arXiv 2602.11688."""
    waiting = max(0, model.running + model.queued + 1 - model.slots)
    return load.rtt_s + SERVICE_S * waiting / max(1, model.slots)


def _pick(candidates: list[Replica], coin: Callable[[], float]) -> Replica:
    """The emptier of two drawn at random: several gateways with old news then do not all run to the same one.

    Source: Mitzenmacher, The Power of Two Choices in Randomized Load Balancing (2001).
    """
    if len(candidates) == 1:
        return candidates[0]
    first = int(coin() * len(candidates))
    second = (first + 1 + int(coin() * (len(candidates) - 1))) % len(candidates)
    a, b = candidates[first], candidates[second]
    return a if (a.running + a.queued) / a.slots <= (b.running + b.queued) / b.slots else b
