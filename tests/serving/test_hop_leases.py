"""A hop and its lease: refused before its body, cut wherever it is, slots freed, fences carried out."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from serving.fake_request import as_request
from serving.test_replica_hop import STREAM, World, chat, refusal, world

from mesh.content.frames import FrameKind
from mesh.serving.leases import Fence, Hold
from mesh.types import KeyId, PolicyNumber, TenantId

T = TenantId("t_aaaaaaaaaaaaaaaa")
STALE = {"code": "policy_stale"}


def end(made: World, message: int = 2) -> None:
    """The gateway says that nothing is left for the tenant."""
    made.gateway.said(message, [Hold(T, made.gateway.ping(), 0.0, PolicyNumber(9, 9))], [])


def fence(made: World, below: int, key: str | None = None, message: int = 2) -> None:
    made.gateway.said(message, [], [Fence(T, PolicyNumber(0, below), None if key is None else KeyId(key))])


async def until(true: Any) -> None:
    while not true():
        await asyncio.sleep(0)


@pytest.mark.parametrize("lease", ["", "nonsense", "fedcba9876543210.1.1.60000.0.1", "0123456789abcdef.99.1.60000.0.1"])
async def test_without_a_lease_the_body_is_not_asked_for(lease: str) -> None:
    made = await world()
    request = made.request("chat", chat(), {"mesh-lease": lease})

    async def never(limit_bytes: int) -> bytearray:
        raise AssertionError(limit_bytes)

    request.body = never
    await made.hop.handle(as_request(request))
    assert refusal(request) == STALE
    assert made.chat.submitted == []


async def test_a_lease_that_ends_while_the_body_comes() -> None:
    made = await world()
    coming = asyncio.Event()

    async def slow(limit_bytes: int) -> bytearray:
        del limit_bytes
        coming.set()
        await asyncio.Event().wait()
        raise AssertionError

    request = made.request("chat", chat())
    request.body = slow
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(made.hop.handle(as_request(request)))
        await coming.wait()
        end(made)
    assert refusal(request) == STALE
    assert made.gateway.heard == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stream_is_cut_at_its_deadline_and_the_slots_are_free(stream: bool) -> None:
    """By the timer, as the replica runs it: nothing is heard of the gateway."""
    made = await world(gated=True)
    assert made.chat.gate is not None
    async with made.calling("chat", chat(n=2, stream=stream), (STREAM if stream else {}) | made.lease(6)) as (
        request,
        task,
    ):
        made.chat.gate.release()
        await request.writes.get()
        assert len(made.chat.running) == 2
        made.lease_clock.go(5)
        made.leases.tick()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not task.done()
        made.lease_clock.go(1)
        made.leases.tick()
        await task
    assert request.last.kind is FrameKind.ERROR
    assert json.loads(request.last.payload)["code"] == "policy_stale"
    assert request.last.usage.completion_tokens == 1
    assert not made.chat.running


async def test_words_let_it_go_on() -> None:
    made = await world(gated=True)
    assert made.chat.gate is not None
    async with made.calling("chat", chat(stream=True), STREAM | made.lease(6)) as (request, task):
        made.chat.gate.release()
        await request.writes.get()
        made.gateway.said(2, [Hold(T, made.gateway.ping(), 900.0, PolicyNumber(0, 1))], [])
        made.lease_clock.go(6)
        made.leases.tick()
        made.chat.gate.release()
        made.chat.gate.release()
        await task
    assert request.last.kind is FrameKind.END


async def test_an_embedding_is_cut_as_well() -> None:
    made = await world()
    made.embedding.gate = asyncio.Semaphore(0)
    async with made.calling("embeddings", {"model": "e", "input": ["a"]}, {"mesh-model": "e"}) as (request, task):
        await until(lambda: made.embedding.running)
        end(made)
        await task
    assert refusal(request) == STALE
    assert not made.embedding.running


async def test_no_run_of_an_embedding_begins_after_the_end() -> None:
    """A list that goes in runs: the end comes while the first one is told of."""
    made = await world()
    request = made.request("embeddings", {"model": "e", "input": ["a"] * 9}, {"mesh-model": "e"})
    begun = request.begin

    async def begin(status: int, headers: Any) -> None:
        fence(made, 5)
        await begun(status, headers)

    request.begin = begin
    await made.hop.handle(as_request(request))
    assert len(made.embedding.embedded) == 1
    assert json.loads(request.last.payload)["code"] == "policy_stale"


async def test_a_fence_ends_running_work_and_refuses_late_hops() -> None:
    made = await world(gated=True)
    assert made.chat.gate is not None
    late = made.request("chat", chat())  # it has been sent, and lies somewhere
    async with made.calling("chat", chat(stream=True), STREAM | made.lease(900, number=4)) as (request, task):
        made.chat.gate.release()
        await request.writes.get()
        fence(made, 5)
        await task
    assert json.loads(request.last.payload)["code"] == "policy_stale"
    assert made.gateway.heard == 2
    await made.hop.handle(as_request(late))
    assert refusal(late) == STALE
    for _ in range(3):
        made.chat.gate.release()
    request = await made.call("chat", chat(), made.lease(900, number=5))
    assert request.last.kind is FrameKind.END


async def test_a_revoked_keys_work_ends_and_the_others_goes_on() -> None:
    made = await world(gated=True)
    assert made.chat.gate is not None
    async with (
        made.calling("chat", chat(stream=True), STREAM) as (theirs, cut),
        made.calling("chat", chat(stream=True), STREAM | {"mesh-key": "k_2"}) as (others, whole),
    ):
        await until(lambda: len(made.chat.running) == 2)
        fence(made, 5, "k_1")
        await cut
        for _ in range(3):
            made.chat.gate.release()
        await whole
    assert refusal(theirs) == STALE
    assert others.last.kind is FrameKind.END


async def test_a_fence_is_confirmed_when_the_engine_has_let_go() -> None:
    """The hop has been cut and answered; a step may still compute with it."""
    made = await world(gated=True)
    made.chat.lingering = []
    async with made.calling("chat", chat(n=2)) as (request, task):
        await until(lambda: len(made.chat.running) == 2)
        fence(made, 5)
        await task
        assert refusal(request) == STALE
        assert made.gateway.heard == 0
        made.chat.step()
        assert made.gateway.heard == 2


async def test_hanging_up_gives_back_what_the_lease_counted() -> None:
    made = await world(gated=True)
    async with made.calling("chat", chat(n=2)):
        await until(lambda: len(made.chat.running) == 2)
    fence(made, 5)
    assert made.gateway.heard == 2


async def test_a_parser_on_a_thread_is_waited_for() -> None:
    """What has ended does not go on on a thread that nobody can stop."""
    made = await world()
    async with made.calling("chat", chat(stop=[], user="x" * 90_000)) as (request, task):
        await asyncio.sleep(0)  # it runs up to its first wait
        fence(made, 5)
        assert made.gateway.heard == 0
        await task
        assert made.gateway.heard == 2
    assert refusal(request) == STALE
    assert made.chat.submitted == []
