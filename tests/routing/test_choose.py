"""Which replica or region serves: never one outside the pin, whatever the fleet says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import Code
from mesh.policy.bundle import TenantPolicy
from mesh.policy.decide import Permit, decide
from mesh.routing.choose import Local, NoRoute, Remote, choose, explain, explain_denied, regions_for
from mesh.routing.explain import Outcome, Verdict, Why
from mesh.routing.fleet import Atlas, CatalogueModel, Fleet, ModelLoad, RegionLoad, Replica, Site
from mesh.types import (
    Endpoint,
    Here,
    Jurisdiction,
    ModelId,
    ModelKind,
    RegionId,
    ReplicaId,
    ReplicaState,
    Revision,
    TenantId,
    TenantState,
    Transfer,
)

CODES = ["VN", "SG", "JP", "AU", "IN"]
REGIONS = {code: RegionId(f"{code.lower()}-1") for code in CODES}
MODELS = [ModelId("small"), ModelId("abroad")]
HERE = Here(region=REGIONS["VN"], jurisdiction=Jurisdiction("VN"))
SITES = {
    region: Site(
        region=region,
        jurisdiction=Jurisdiction(code),
        endpoint=Endpoint(region=region, jurisdiction=Jurisdiction(code), http=f"https://{region}", grpc=f"{region}:1"),
    )
    for code, region in REGIONS.items()
}


def atlas_of(small: set[str], abroad: set[str]) -> Atlas:
    hosted = {MODELS[0]: small, MODELS[1]: abroad}
    return Atlas(
        here=HERE.region,
        sites=SITES,
        models={
            model: CatalogueModel(
                id=model, kind=ModelKind.CHAT, context=2048, regions=frozenset(REGIONS[c] for c in codes)
            )
            for model, codes in hosted.items()
        },
    )


def policy_of(allowed: set[str], transfer: Transfer) -> TenantPolicy:
    return TenantPolicy(
        tenant=TenantId("t_abcdefghijklmnop"),
        home=HERE.region,
        home_jurisdiction=HERE.jurisdiction,
        revision=Revision(3),
        state=TenantState.ACTIVE,
        allowed=frozenset(map(Jurisdiction, allowed)),
        transfer=transfer,
    )


def permit_of(allowed: set[str], transfer: Transfer) -> Permit:
    permit = decide(policy_of(allowed, transfer), HERE, lambda policy, place: 1.0)
    assert isinstance(permit, Permit)
    return permit


def replica(name: str, model: ModelId = MODELS[0], **changes: object) -> Replica:
    fields = {"state": ReplicaState.READY, "running": 0, "queued": 0, "slots": 4, "queue_limit": 2} | changes
    return Replica(id=ReplicaId(name), address="127.0.0.1:1", model=model, **fields)  # pyright: ignore[reportArgumentType]


def load(
    code: str, model: ModelId = MODELS[0], *, rtt_s: float = 0.05, seen_s: float = 99.0, **changes: int
) -> RegionLoad:
    fields = {"ready": 1, "slots": 4, "running": 0, "queued": 0, "queue_limit": 4} | changes
    return RegionLoad(region=REGIONS[code], rtt_s=rtt_s, models={model: ModelLoad(**fields)}, seen_s=seen_s)


codes = st.sets(st.sampled_from(CODES))
transfers = st.sampled_from(list(Transfer))
replicas = st.builds(
    replica,
    st.sampled_from(["a", "b", "c", "d"]),
    st.sampled_from(MODELS),
    state=st.sampled_from(list(ReplicaState)),
    running=st.integers(0, 4),
    queued=st.integers(0, 3),
)
loads = st.builds(
    load,
    st.sampled_from(CODES),
    st.sampled_from(MODELS),
    rtt_s=st.floats(0, 1),
    seen_s=st.floats(90, 100),
    ready=st.integers(0, 2),
    running=st.integers(0, 5),
    queued=st.integers(0, 5),
)
fleets = st.builds(
    lambda rows, far: Fleet(replicas=tuple(rows), regions={one.region: one for one in far}),
    st.lists(replicas, max_size=6),
    st.lists(loads, max_size=5),
)


@given(
    allowed=codes.map(lambda c: c | {"VN"}),
    transfer=transfers,
    small=codes,
    abroad=codes,
    fleet=fleets,
    model=st.sampled_from([*MODELS, ModelId("unknown")]),
    failed=st.sets(st.sampled_from(["a", "b", *REGIONS.values()])),
    coin=st.floats(0, 1, exclude_max=True),
)
def test_never_outside_the_pin(
    allowed: set[str], transfer: Transfer, small: set[str], abroad: set[str], fleet: Fleet, model: ModelId,
    failed: set[str], coin: float,
) -> None:  # fmt: skip
    permit, atlas = permit_of(allowed, transfer), atlas_of(small, abroad)
    route = choose(permit, model, fleet=fleet, atlas=atlas, now_s=100.0, coin=lambda: coin, failed=failed)
    hosts = {code for code in CODES if model in atlas.models and REGIONS[code] in atlas.models[model].regions}
    reachable = hosts & (allowed if transfer is Transfer.WITHIN_ALLOWED else {"VN"})
    assert set(regions_for(permit, model, atlas)) == {REGIONS[code] for code in reachable}
    match route:
        case Local(chosen):
            assert chosen.model == model
            assert chosen.state is ReplicaState.READY
            assert chosen.room > 0
            assert chosen.id not in failed
        case Remote(region):
            assert transfer is Transfer.WITHIN_ALLOWED
            assert SITES[region].jurisdiction in allowed
            assert SITES[region].jurisdiction in reachable
            assert region not in failed
            assert region != HERE.region
        case NoRoute(code):
            assert code is (Code.NO_CAPACITY if reachable else Code.MODEL_NOT_FOUND)


@given(allowed=codes.map(lambda c: c | {"VN"}), transfer=transfers, small=codes, abroad=codes, fleet=fleets)
def test_an_explanation_is_what_happens(
    allowed: set[str], transfer: Transfer, small: set[str], abroad: set[str], fleet: Fleet
) -> None:
    permit, atlas = permit_of(allowed, transfer), atlas_of(small, abroad)
    for model in MODELS:
        told = explain(permit, model, fleet=fleet, atlas=atlas, now_s=100.0)
        route = choose(permit, model, fleet=fleet, atlas=atlas, now_s=100.0, coin=lambda: 0.0)
        taken = [reason.region for reason in told.reasons if reason.verdict is Verdict.TAKEN]
        assert len(told.reasons) == len(SITES)
        match route:
            case Local():
                assert (told.outcome, told.region, taken) == (Outcome.SERVE, HERE.region, [HERE.region])
            case Remote(region):
                assert (told.outcome, told.region, taken) == (Outcome.FORWARD, region, [region])
            case NoRoute(code):
                assert (told.outcome, told.region, told.code, taken) == (Outcome.REFUSE, None, code, [])
        for reason in told.reasons:
            if SITES[reason.region].jurisdiction not in allowed:
                assert reason.code is Why.JURISDICTION_NOT_ALLOWED


ALL = permit_of({"VN", "SG", "JP"}, Transfer.WITHIN_ALLOWED)
EVERYWHERE = atlas_of(set(CODES), {"SG", "JP"})
TABLE = [
    ("local first, however busy", Fleet(replicas=(replica("a", running=4),), regions={REGIONS["SG"]: load("SG")}), Local),
    ("full at home: the nearest", Fleet(replicas=(replica("a", running=4, queued=2),), regions={
        REGIONS["SG"]: load("SG", rtt_s=0.03), REGIONS["JP"]: load("JP", rtt_s=0.07)}), REGIONS["SG"]),
    ("a queue costs more than a longer way", Fleet(replicas=(), regions={
        REGIONS["SG"]: load("SG", rtt_s=0.03, running=4, queued=2), REGIONS["JP"]: load("JP", rtt_s=0.07)}), REGIONS["JP"]),
    ("old news is no news", Fleet(replicas=(), regions={
        REGIONS["SG"]: load("SG", rtt_s=0.03, seen_s=96.0), REGIONS["JP"]: load("JP", rtt_s=0.07)}), REGIONS["JP"]),
    ("draining is not ready", Fleet(replicas=(replica("a", state=ReplicaState.DRAINING),), regions={}), Code.NO_CAPACITY),
    ("nobody", Fleet(replicas=(), regions={}), Code.NO_CAPACITY),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fleet", "want"), TABLE, ids=[row[0] for row in TABLE])
def test_table(name: str, fleet: Fleet, want: object) -> None:
    route = choose(ALL, MODELS[0], fleet=fleet, atlas=EVERYWHERE, now_s=100.0, coin=lambda: 0.0)
    match route:
        case Local():
            assert want is Local
        case Remote(region):
            assert region == want
        case NoRoute(code):
            assert code == want


def test_of_two_drawn_the_emptier() -> None:
    fleet = Fleet(replicas=(replica("full", running=4), replica("free")), regions={})
    for coin in (0.0, 0.3, 0.6, 0.99):
        route = choose(ALL, MODELS[0], fleet=fleet, atlas=EVERYWHERE, now_s=100.0, coin=lambda coin=coin: coin)
        assert route == Local(fleet.replicas[1])


def test_a_denied_call_names_the_pin_and_the_entry() -> None:
    policy = policy_of({"SG"}, Transfer.NEVER)
    told = explain_denied(Code.RESIDENCY_REFUSED, MODELS[0], policy, atlas=EVERYWHERE)
    why = {reason.region: reason.code for reason in told.reasons}
    assert told.outcome is Outcome.REFUSE
    assert why[REGIONS["VN"]] is Why.JURISDICTION_NOT_ALLOWED
    assert why[REGIONS["SG"]] is Why.ENTRY_REFUSED
