"""The request's story: what is refused when, what is tried again, and the one record of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from gateway.world import JP, KEY, MODELS, SG, SITES, TENANT, VN, Call, ScriptedHop, World, load, replica

from mesh.errors import Code, MeshError
from mesh.gateway.ports import Check, HopHead
from mesh.gateway.story import endpoints_of
from mesh.policy.bundle import TenantKey
from mesh.routing.fleet import Atlas, Fleet
from mesh.types import AnswerHead, Facts, Operation, TenantId, TenantState, Transfer, Usage


async def refused(world: World, call: Call, *, forwarded: bool = False) -> MeshError:
    with pytest.raises(MeshError) as caught:
        await (world.story.serve_forwarded(call) if forwarded else world.story.serve(call))
    return caught.value


async def test_a_call_is_served_at_home_and_recorded_once() -> None:
    world, call = World(), Call()
    await world.story.serve(call)
    (head,) = call.heads
    assert (head.request_id, head.region, head.jurisdiction, head.revision) == ("req_1", VN, "VN", 1)
    (record,) = world.settled
    assert (record.code, record.model, record.usage, record.key_id) == ("ok", "chat", Usage(3, 5), KEY.key_id)
    ((_, hop_head),) = world.hops.sent
    assert hop_head.timeout_s <= 300


@pytest.mark.parametrize(
    ("credential", "code"),
    [(None, Code.INVALID_API_KEY), ("mk_vn_x", Code.INVALID_API_KEY), (KEY.text[:-1] + "!", Code.INVALID_API_KEY)],
)
async def test_a_bad_key_costs_no_hash_and_no_body(credential: str | None, code: Code) -> None:
    world, call = World(), Call(credential=credential)
    assert (await refused(world, call)).code is code
    assert (world.hasher.asked, call.received, world.settled) == (0, 0, [])


async def test_outside_the_pin_the_body_is_not_read() -> None:
    world, call = World(allowed=("VN",), at=SG), Call()
    error = await refused(world, call)
    assert (error.code, [endpoint.region for endpoint in error.allowed], error.revision) == (
        Code.RESIDENCY_REFUSED,
        [VN],
        1,
    )
    assert call.received == 0
    assert [(record.code, record.outside_pin) for record in world.settled] == [("residency_refused", True)]


async def test_a_call_is_outside_the_pin_by_the_pin_and_not_by_what_is_told_first() -> None:
    suspended, served, narrowed = World(at=SG), World(), World(allowed=("VN", "SG"), at=SG)
    suspended.set_policy(2, ("VN",), state=TenantState.SUSPENDED)
    assert (await refused(suspended, Call())).code is Code.TENANT_SUSPENDED
    await served.story.serve(Call())

    class Slow(Call):
        async def receive(self, limit_bytes: int, check: Check) -> Facts:
            narrowed.set_policy(2, ("VN",))
            return await super().receive(limit_bytes, check)

    assert (await refused(narrowed, Slow())).code is Code.RESIDENCY_REFUSED
    forwarded = World(allowed=("VN",), at=SG)
    assert (await refused(forwarded, Call(entry=VN), forwarded=True)).code is Code.RESIDENCY_REFUSED
    worlds = (suspended, served, narrowed, forwarded)
    assert [record.outside_pin for world in worlds for record in world.settled] == [True, False, True, False]


async def test_the_name_that_was_called_is_the_keys_tenants() -> None:
    call = Call(label="t-aaaaaaaaaaaaaaaa")
    world = World()
    await world.story.serve(call)
    assert call.received == 1
    for at, outside in ((VN, False), (SG, True)):
        world, call = World(at=at), Call(label="t-bbbbbbbbbbbbbbbb")
        assert (await refused(world, call)).code is Code.MISDIRECTED_REQUEST
        assert call.received == 0
        (record,) = world.settled
        assert (record.code, record.tenant, record.outside_pin) == ("misdirected_request", TENANT, outside)


async def test_a_label_that_the_tenant_has_chosen_is_its_name_too() -> None:
    for label in ("acme", "t-aaaaaaaaaaaaaaaa"):
        world, call = World(), Call(label=label)
        policy = world.book.tenant(TENANT)
        assert policy is not None
        world.book.put_tenant(replace(policy, label="acme"))
        await world.story.serve(call)
        assert call.received == 1
    world, call = World(), Call(label="acme")
    assert (await refused(world, call)).code is Code.MISDIRECTED_REQUEST, "it has chosen none"


def test_endpoints_are_the_tenants_own_names_where_it_has_any() -> None:
    sites = {**SITES, SG: replace(SITES[SG], zone="ap-southeast-1.mesh.example")}
    policy = World(allowed=("VN", "SG")).book.tenant(TENANT)
    assert policy is not None
    found = endpoints_of(policy, Atlas(here=VN, sites=sites, models=MODELS))
    own = "t-aaaaaaaaaaaaaaaa.ap-southeast-1.mesh.example"
    assert [(one.http, one.grpc) for one in found] == [
        ("https://vn-1:8443", "vn-1:8444"),
        (f"https://{own}:8443", f"{own}:8444"),
    ]
    labelled = endpoints_of(replace(policy, label="acme"), Atlas(here=VN, sites=sites, models=MODELS))
    assert labelled[1].http == "https://acme.ap-southeast-1.mesh.example:8443"


async def test_a_suspended_tenant_is_told_so_before_anything_else() -> None:
    world, call = World(at=SG), Call()
    world.set_policy(2, ("VN",), state=TenantState.SUSPENDED)
    error = await refused(world, call)
    assert (error.code, error.revision) == (Code.TENANT_SUSPENDED, 2)
    assert call.received == 0
    assert [record.code for record in world.settled] == ["tenant_suspended"]


async def test_without_any_policy_nobody_is_told_apart() -> None:
    world, call = World(), Call()
    world.book.loaded = False
    assert (await refused(world, call)).code is Code.POLICY_STALE
    assert (await refused(world, Call(credential="mk_x"))).code is Code.INVALID_API_KEY


@pytest.mark.parametrize(
    ("model", "operation", "code"),
    [
        ("unknown", Operation.CHAT, Code.MODEL_NOT_FOUND),
        ("chat-sg", Operation.CHAT, Code.MODEL_NOT_FOUND),
        ("chat-sg", Operation.EMBEDDINGS, Code.MODEL_NOT_FOUND),
        ("embed", Operation.CHAT, Code.UNSUPPORTED_OPERATION),
        ("chat", Operation.EMBEDDINGS, Code.UNSUPPORTED_OPERATION),
    ],
)
async def test_the_model_is_looked_at_before_the_operation(model: str, operation: Operation, code: Code) -> None:
    error = await refused(World(), Call(model=model, operation=operation))
    assert (error.code, error.param) == (code, "model")


async def test_what_a_client_wrote_reaches_no_record() -> None:
    world = World()
    await refused(world, Call(model="my secret prompt"))
    assert [record.model for record in world.settled] == [""]


async def test_a_replica_that_fails_before_the_first_byte_is_left_for_another() -> None:
    hops = {"a:1": [ScriptedHop(began=False, fault=Code.REPLICA_FAILED)], "b:1": [ScriptedHop()]}
    world, call = World(replicas=(replica("a"), replica("b", running=1)), hops=hops), Call()
    await world.story.serve(call)
    assert [to for to, _ in world.hops.sent] == ["a:1", "b:1"]
    assert [record.code for record in world.settled] == ["ok"]


@pytest.mark.parametrize(
    ("first", "code", "sent"),
    [
        (ScriptedHop(began=True, fault=Code.REPLICA_FAILED), Code.REPLICA_FAILED, 1),
        (ScriptedHop(began=False, fault=Code.INVALID_PARAMETER), Code.INVALID_PARAMETER, 1),
        (ScriptedHop(began=False, fault=Code.NO_CAPACITY), Code.REPLICA_FAILED, 2),
    ],
)
async def test_what_is_not_tried_again(first: ScriptedHop, code: Code, sent: int) -> None:
    world = World(replicas=(replica("a"), replica("b", running=1)), hops={"a:1": [first]})
    assert (await refused(world, Call())).code is code
    assert len(world.hops.sent) == sent
    assert first.closed == 1


async def test_at_most_two_attempts() -> None:
    world = World(replicas=[replica(name) for name in "abc"], hops={})
    assert (await refused(world, Call())).code is Code.REPLICA_FAILED
    assert len({to for to, _ in world.hops.sent}) == 2


async def test_a_connection_that_was_dead_already_says_nothing_of_its_replica() -> None:
    hops = {"a:1": [ScriptedHop(stale=True), ScriptedHop()]}
    world = World(hops=hops)
    await world.story.serve(Call())
    assert [record.code for record in world.settled] == ["ok"]
    (first, one), (second, other) = world.hops.sent
    assert first == second == "a:1"
    # It is not known that nothing arrived: each has a lease of its own, and the first counts as one that may come late.
    assert one.lease is not None
    assert other.lease is not None
    assert other.lease.message > one.lease.message
    assert world.running._drains._abandoned.keys() == {TENANT}


async def test_the_same_in_another_region() -> None:
    hops = {f"{JP}/g1:1": [ScriptedHop(stale=True), ScriptedHop()]}
    world = World(
        allowed=("VN", "JP"), transfer=Transfer.WITHIN_ALLOWED, replicas=(), loads=(load(JP, "chat"),), hops=hops
    )
    await world.story.serve(Call())
    assert [to for to, _ in world.hops.sent] == [f"{JP}/g1:1"] * 2


async def test_a_dead_connection_is_tried_again_once_and_only_while_there_is_authority() -> None:
    dead = [ScriptedHop(stale=True) for _ in range(5)]
    world = World(replicas=(replica("a"), replica("b", running=1)), hops={"a:1": dead[:3], "b:1": dead[3:]})
    assert (await refused(world, Call())).code is Code.REPLICA_FAILED
    assert [to for to, _ in world.hops.sent] == ["a:1", "a:1", "b:1"]
    world = World(hops={"a:1": [ScriptedHop(stale=True), ScriptedHop()]})
    original = world.hops._send

    def send(to: str, head: HopHead, check: Check) -> ScriptedHop:
        try:
            return original(to, head, check)
        finally:
            world.clock.at_s += 900  # pyright: ignore[reportAttributeAccessIssue]

    world.hops._send = send
    assert (await refused(world, Call(timeout_s=2000))).code is Code.POLICY_STALE
    assert len(world.hops.sent) == 1


async def test_no_ready_replica_is_no_capacity() -> None:
    error = await refused(World(replicas=()), Call())
    assert (error.code, error.retry_after_s) == (Code.NO_CAPACITY, 1)


async def test_a_model_of_another_region_is_forwarded_inside_the_pin() -> None:
    hops = {f"{SG}/g2:1": [ScriptedHop()]}
    world = World(allowed=("VN", "SG"), transfer=Transfer.WITHIN_ALLOWED, loads=(load(SG, "chat-sg"),), hops=hops)
    call = Call(model="chat-sg")
    await world.story.serve(call)
    assert [to for to, _ in world.hops.sent] == [f"{SG}/g1:1", f"{SG}/g2:1"]
    assert (call.heads[0].region, call.heads[0].jurisdiction) == (SG, "SG")
    # The record of a call stands where it was served.
    assert world.settled == []


async def test_nothing_is_forwarded_without_the_tenants_word() -> None:
    world = World(allowed=("VN", "SG"), replicas=(), loads=(load(SG, "chat"), load(JP, "chat")))
    assert (await refused(world, Call())).code is Code.NO_CAPACITY
    assert world.hops.sent == []


@pytest.mark.parametrize(
    ("allowed", "transfer", "code"),
    [
        (("VN", "SG"), Transfer.WITHIN_ALLOWED, None),
        (("VN", "SG"), Transfer.NEVER, Code.RESIDENCY_REFUSED),
        (("SG",), Transfer.WITHIN_ALLOWED, Code.RESIDENCY_REFUSED),
        # The sender's own jurisdiction was taken out of the pin: no answer goes back there.
        (("VN", "JP"), Transfer.WITHIN_ALLOWED, Code.RESIDENCY_REFUSED),
    ],
)
async def test_the_receiver_decides_again(allowed: tuple[str, ...], transfer: Transfer, code: Code | None) -> None:
    world, call = World(allowed=allowed, transfer=transfer), Call(door="peer")
    if code is None:
        await world.story.serve_forwarded(call)
    else:
        assert (await refused(world, call, forwarded=True)).code is code
        assert call.received == 0
    (record,) = world.settled
    assert (record.door, record.entry, record.code) == ("peer", SG, "ok" if code is None else code)


@pytest.mark.parametrize("code", [Code.RESIDENCY_REFUSED, Code.POLICY_STALE])
async def test_another_gateways_own_refusal_is_not_the_clients(code: Code) -> None:
    hops = {f"{SG}/g1:1": [ScriptedHop(began=False, fault=code)], f"{JP}/g1:1": [ScriptedHop()]}
    world = World(
        allowed=("VN", "SG", "JP"),
        transfer=Transfer.WITHIN_ALLOWED,
        replicas=(),
        loads=(load(JP, "chat"), load(SG, "chat", rtt_s=0.01)),
        hops=hops,
    )
    await world.story.serve(Call())
    assert [to for to, _ in world.hops.sent] == [f"{SG}/g1:1", f"{JP}/g1:1"]
    world.hops.answers = {f"{SG}/g1:1": [ScriptedHop(began=False, fault=code)]}
    world.fleet = Fleet(replicas=(), regions={SG: load(SG, "chat")})
    assert (await refused(world, Call())).code is Code.NO_CAPACITY


async def test_a_hop_that_does_not_know_us_has_failed() -> None:
    world = World(hops={"a:1": [ScriptedHop(began=False, fault=Code.INVALID_API_KEY)]})
    assert (await refused(world, Call())).code is Code.REPLICA_FAILED


async def test_a_call_that_ends_while_another_region_has_it_is_recorded_there() -> None:
    world = World(allowed=("VN", "SG"), transfer=Transfer.WITHIN_ALLOWED, replicas=(), loads=(load(SG, "chat"),))
    world.hops.held = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(world.story.serve(Call()))
        await world.hops.held.wait()
        task.cancel()
    assert world.settled == []


async def test_what_nobody_foresaw_is_not_recorded_as_a_hang_up() -> None:
    hop = ScriptedHop()
    world, call = World(hops={"a:1": [hop]}), Call()
    call.relay = None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        await world.story.serve(call)
    assert hop.closed == 1
    assert [record.code for record in world.settled] == ["internal_error"]


async def test_an_unknown_tenant_is_not_served_for_another_region() -> None:
    world = World()
    call = Call(tenant=TenantId("t_zzzzzzzzzzzzzzzz"))
    assert (await refused(world, call, forwarded=True)).code is Code.RESIDENCY_REFUSED


async def test_a_forwarded_call_is_never_sent_further() -> None:
    world = World(
        allowed=("VN", "SG", "JP"),
        transfer=Transfer.WITHIN_ALLOWED,
        replicas=(),
        loads=(load(SG, "chat"), load(JP, "chat")),
    )
    assert (await refused(world, Call(), forwarded=True)).code is Code.NO_CAPACITY
    assert (await refused(world, Call(model="chat-sg"), forwarded=True)).code is Code.MODEL_NOT_FOUND
    assert world.hops.sent == []


async def test_a_client_that_hangs_up_frees_the_hop_and_pays_for_what_it_saw() -> None:
    hop = ScriptedHop(endless=True, usage=Usage(7, 2))
    world, call = World(hops={"a:1": [hop]}), Call()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(world.story.serve(call))
        await call.relaying.wait()
        task.cancel()
    assert hop.closed == 1
    assert [(record.code, record.usage) for record in world.settled] == [("cancelled", Usage(7, 2))]


async def test_the_deadline_ends_it_by_name() -> None:
    hop = ScriptedHop(endless=True)
    world = World(hops={"a:1": [hop]})
    await world.keyring.authenticate(KEY.text)
    world.clock.expired.set()
    error = await refused(world, Call())
    assert error.code is Code.DEADLINE_EXCEEDED
    assert (hop.closed, [record.code for record in world.settled]) == (1, ["deadline_exceeded"])


async def test_a_hash_is_computed_once_a_minute() -> None:
    world = World(hops={"a:1": [ScriptedHop() for _ in range(4)]})
    await world.story.serve(Call())
    await world.story.serve(Call())
    assert world.hasher.asked == 1
    world.clock.at_s += 61
    await world.story.serve(Call())
    assert world.hasher.asked == 2


async def test_a_burst_with_a_new_key_costs_one_hash() -> None:
    world = World(hops={"a:1": [ScriptedHop() for _ in range(5)]})
    world.hasher.gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(world.story.serve(Call()))
        world.hasher.gate.set()
    assert world.hasher.asked == 1
    assert len(world.settled) == 5


async def test_a_pin_change_counts_from_the_next_call_on() -> None:
    world = World(hops={"a:1": [ScriptedHop()]})
    await world.story.serve(Call())
    world.set_policy(2, ("SG",))
    assert (await refused(world, Call())).code is Code.RESIDENCY_REFUSED


async def test_a_pin_that_changes_while_the_body_comes_counts() -> None:
    world = World(hops={"a:1": [ScriptedHop()]})

    class Slow(Call):
        async def receive(self, limit_bytes: int, check: Check) -> Facts:
            world.set_policy(2, ("SG",))
            return await super().receive(limit_bytes, check)

    error = await refused(world, Slow())
    assert (error.code, error.revision, world.hops.sent) == (Code.RESIDENCY_REFUSED, 2, [])


async def test_a_key_that_is_revoked_while_the_body_comes_counts() -> None:
    world = World(hops={"a:1": [ScriptedHop()]})

    class Slow(Call):
        async def receive(self, limit_bytes: int, check: Check) -> Facts:
            world.book.put_key(TenantKey(key_id=KEY.key_id, tenant=TENANT, hash="", revoked=True))
            return await super().receive(limit_bytes, check)

    assert (await refused(world, Slow())).code is Code.INVALID_API_KEY
    assert world.hops.sent == []


async def test_content_held_back_until_the_pin_changed_is_not_sent() -> None:
    hops = {f"{SG}/g1:1": [ScriptedHop()]}
    world = World(allowed=("VN", "SG"), transfer=Transfer.WITHIN_ALLOWED, loads=(load(SG, "chat-sg"),), hops=hops)

    class HeldBack(Call):
        async def admitted(self, head: AnswerHead) -> None:
            world.set_policy(2, ("VN",), Transfer.WITHIN_ALLOWED)

    assert (await refused(world, HeldBack(model="chat-sg"))).code is Code.NO_CAPACITY
    assert world.hops.sent == []


async def test_every_call_is_counted_and_one_region_records_it() -> None:
    world = World()
    await refused(world, Call(credential="mk_x"))
    assert [(one.code, one.tenant) for one in world.counted] == [(Code.INVALID_API_KEY, None)]
    assert world.settled == []
