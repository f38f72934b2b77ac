"""AdmitChat: the content leaves the client only after it was admitted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_lab import HEAD, HERE, KEY, LIMIT_BYTES, FakeHop, data, end, info_of, opened, rest_of, unchecked

from mesh.errors import Code, MeshError
from mesh.transport.grpc_exchange import GrpcExchange
from mesh.types import Facts, Operation
from mesh.v1.inference_pb2 import AdmitChatRequest, ChatChunk, ChatDelta, ChatFacts, ChatRequest, Message
from mesh.v1.inference_pb2_grpc import InferenceStub

CONTENT = ChatRequest(model="smol", messages=[Message(role="user", content="hi")])
LOCAL = replace(HEAD, region=HERE.region, jurisdiction=HERE.jurisdiction)


def facts(model: str = "smol", content_bytes: int | None = None) -> AdmitChatRequest:
    return AdmitChatRequest(facts=ChatFacts(model=model, content_bytes=content_bytes))


def chunk(text: str) -> ChatChunk:
    return ChatChunk(choices=[ChatDelta(content=text)])


async def story(exchange: GrpcExchange) -> None:
    await exchange.receive(LIMIT_BYTES, unchecked)
    await exchange.admitted(HEAD)
    relayed = await exchange.relay(FakeHop([data(chunk("a").SerializeToString())], [end()]), HEAD)
    assert relayed.fault is None


async def reason_of(call) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    return info_of(caught.value)[0].reason


async def test_content_is_asked_for_after_it_was_admitted(pki: Path) -> None:
    seen: list[object] = []

    async def serve(exchange: GrpcExchange) -> None:
        seen.extend([await exchange.receive(LIMIT_BYTES, unchecked), exchange.operation])
        with pytest.raises(RuntimeError):
            _ = exchange.parcel
        await exchange.admitted(HEAD)
        seen.append(bytes(exchange.parcel.open()))
        pieces = [data(chunk(text).SerializeToString()) for text in "ab"]
        relayed = await exchange.relay(FakeHop(pieces, [end()]), HEAD)
        assert relayed.fault is None

    async with opened(pki, serve) as door:
        call = InferenceStub(door.channel).AdmitChat(metadata=KEY)
        await call.write(facts())
        admitted = (await call.read()).admitted
        assert (admitted.region, admitted.jurisdiction, admitted.policy_revision) == (HEAD.region, "SG", 7)
        assert dict(await call.initial_metadata())["mesh-region"] == HEAD.region
        await call.write(AdmitChatRequest(content=CONTENT))
        await call.done_writing()
        assert [each.chunk.choices[0].content for each in await rest_of(call)] == ["a", "b"]
        assert await call.code() is grpc.StatusCode.OK
        assert door.failures == []
    assert seen == [Facts(model="smol", stream=True), Operation.CHAT, CONTENT.SerializeToString()]


@pytest.mark.parametrize("code", [Code.INVALID_API_KEY, Code.RESIDENCY_REFUSED])
async def test_a_key_or_place_that_is_refused_is_told_before_the_facts(pki: Path, code: Code) -> None:
    async def serve(exchange: GrpcExchange) -> None:
        raise MeshError(code)

    async with opened(pki, serve) as door:
        call = InferenceStub(door.channel).AdmitChat(metadata=KEY)
        assert await reason_of(call) == MeshError(code).row.reason


async def test_a_model_that_is_refused_is_told_before_the_content(pki: Path) -> None:
    async def serve(exchange: GrpcExchange) -> None:
        await exchange.receive(LIMIT_BYTES, unchecked)
        raise MeshError(Code.MODEL_NOT_FOUND, param="model")

    async with opened(pki, serve) as door:
        call = InferenceStub(door.channel).AdmitChat(metadata=KEY)
        await call.write(facts())
        assert await reason_of(call) == "MODEL_NOT_FOUND"


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (AdmitChatRequest(content=CONTENT), "MALFORMED_BODY"),
        (AdmitChatRequest(), "MALFORMED_BODY"),
        (facts(model=""), "INVALID_PARAMETER"),
        (facts(content_bytes=LIMIT_BYTES + 1), "REQUEST_TOO_LARGE"),
    ],
)
async def test_facts_that_will_not_do_are_refused_before_the_content(
    pki: Path, first: AdmitChatRequest, reason: str
) -> None:
    async with opened(pki, story) as door:
        call = InferenceStub(door.channel).AdmitChat(metadata=KEY)
        await call.write(first)
        assert await reason_of(call) == reason


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (facts(), "MALFORMED_BODY"),
        (AdmitChatRequest(content=ChatRequest(model="other")), "INVALID_PARAMETER"),
        (AdmitChatRequest(content=ChatRequest(model="smol", user="x" * LIMIT_BYTES)), "REQUEST_TOO_LARGE"),
        (None, "MALFORMED_BODY"),
    ],
)
async def test_content_must_be_what_was_admitted(pki: Path, second: AdmitChatRequest | None, reason: str) -> None:
    async with opened(pki, story) as door:
        call = InferenceStub(door.channel).AdmitChat(metadata=KEY)
        await call.write(facts())
        assert (await call.read()).HasField("admitted")
        if second is not None:
            await call.write(second)
        await call.done_writing()
        assert await reason_of(call) == reason


async def test_a_second_attempt_asks_for_nothing_and_tells_of_another_region(pki: Path) -> None:
    async def serve(exchange: GrpcExchange) -> None:
        await exchange.receive(LIMIT_BYTES, unchecked)
        await exchange.admitted(LOCAL)
        first = await exchange.relay(FakeHop(MeshError(Code.REPLICA_FAILED)), LOCAL)
        assert not first.began
        await exchange.admitted(LOCAL)
        await exchange.relay(FakeHop(MeshError(Code.REPLICA_FAILED)), LOCAL)
        await exchange.admitted(HEAD)
        assert bytes(exchange.parcel.open()) == CONTENT.SerializeToString()
        await exchange.relay(FakeHop([data(chunk("a").SerializeToString()), end()]), HEAD)

    async with opened(pki, serve) as door:
        call = InferenceStub(door.channel).AdmitChat(metadata=KEY)
        await call.write(facts())
        assert (await call.read()).admitted.region == LOCAL.region
        await call.write(AdmitChatRequest(content=CONTENT))
        assert (await call.read()).admitted.region == HEAD.region
        assert (await call.read()).chunk.choices[0].content == "a"
        assert await call.read() is grpc.aio.EOF
        assert dict(await call.trailing_metadata())["mesh-region"] == HEAD.region
        assert door.failures == []
