"""What a gateway says about itself: models, endpoints, and why a call would go where it would go."""

from __future__ import annotations

import pytest
from gateway.world import KEY, SG, TENANT, VN, World, load

from mesh.errors import Code, MeshError
from mesh.policy.bundle import TenantKey
from mesh.routing.explain import Outcome
from mesh.types import ModelId, RequestId, TenantId, Transfer

REQUEST = RequestId("req_1")


async def test_models_are_those_that_may_be_served_from_here() -> None:
    _, models = await World().answers.models(KEY.text, None, REQUEST)
    assert [(model.id, model.regions) for model in models] == [("chat", (VN,)), ("embed", (VN,))]
    world = World(allowed=("VN", "SG"), transfer=Transfer.WITHIN_ALLOWED)
    head, models = await world.answers.models(KEY.text, None, REQUEST)
    assert [(model.id, model.regions) for model in models] == [("chat", (SG, VN)), ("chat-sg", (SG,)), ("embed", (VN,))]
    assert (head.region, head.revision) == (VN, 1)


async def test_outside_the_pin_there_are_no_models_but_a_way() -> None:
    world = World(at=SG)
    with pytest.raises(MeshError) as caught:
        await world.answers.models(KEY.text, None, REQUEST)
    assert caught.value.code is Code.RESIDENCY_REFUSED
    _, resolution = await world.answers.resolve(KEY.text, None, REQUEST)
    assert (resolution.here, resolution.served_here, [e.region for e in resolution.allowed]) == (SG, False, [VN])


async def test_an_explanation_for_a_tenant() -> None:
    world = World(allowed=("VN", "SG"), transfer=Transfer.WITHIN_ALLOWED, loads=(load(SG, "chat-sg"),))
    _, told = await world.answers.explain(KEY.text, None, REQUEST, "chat-sg")
    assert (told.outcome, told.region) == (Outcome.FORWARD, SG)
    with pytest.raises(MeshError) as caught:
        await world.answers.explain(KEY.text, None, REQUEST, "what I typed")
    assert caught.value.code is Code.MODEL_NOT_FOUND


def test_an_explanation_for_the_operator() -> None:
    world = World(at=SG)
    told = world.answers.explain_for(TENANT, ModelId("chat"))
    assert (told.outcome, told.code) == (Outcome.REFUSE, Code.RESIDENCY_REFUSED)
    with pytest.raises(MeshError) as caught:
        world.answers.explain_for(TenantId("t_zzzzzzzzzzzzzzzz"), ModelId("chat"))
    assert caught.value.code is Code.TENANT_NOT_FOUND


async def test_a_revoked_key_is_refused_though_its_hash_is_remembered() -> None:
    world = World()
    await world.answers.authenticate(KEY.text, None)
    known = world.book.key(KEY.key_id)
    assert known is not None
    world.book.put_key(TenantKey(key_id=known.key_id, tenant=TENANT, hash=known.hash, revoked=True))
    with pytest.raises(MeshError) as caught:
        await world.answers.authenticate(KEY.text, None)
    assert caught.value.code is Code.INVALID_API_KEY


async def test_the_right_tag_with_the_wrong_secret_is_refused_each_time() -> None:
    world = World()
    world.book.put_key(TenantKey(key_id=KEY.key_id, tenant=TENANT, hash="of another", revoked=False))
    for _ in range(2):
        with pytest.raises(MeshError) as caught:
            await world.answers.authenticate(KEY.text, None)
        assert caught.value.code is Code.INVALID_API_KEY
    assert world.hasher.asked == 2
