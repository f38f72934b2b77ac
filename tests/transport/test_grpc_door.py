"""The gRPC door with a real client over TLS: what is moved, what is refused before it is read, and what ends a call."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from grpc_lab import (
    HEAD,
    HERE,
    KEY,
    LIMIT_BYTES,
    SINGAPORE,
    VN,
    FakeHop,
    connected,
    counting_proxy,
    data,
    end,
    fault,
    info_of,
    opened,
    rest_of,
    unchecked,
)

from mesh.content.frames import Frame, FrameKind
from mesh.errors import Code, MeshError
from mesh.transport import grpc_exchange
from mesh.transport.grpc_exchange import GrpcExchange
from mesh.types import Facts, Operation, Usage
from mesh.v1 import inference_pb2, router_pb2
from mesh.v1.inference_pb2_grpc import InferenceStub
from mesh.v1.router_pb2_grpc import RouterStub

REQUEST = inference_pb2.ChatRequest(
    model="smol", temperature=0.0, messages=[inference_pb2.Message(role="user", content="xin chào")]
)
ANSWER = inference_pb2.ChatResponse(id="chatcmpl-req-1", model="smol")


async def answered(exchange: GrpcExchange, *batches) -> None:
    """A story that answers by one hop."""
    await exchange.receive(LIMIT_BYTES, unchecked)
    await exchange.admitted(HEAD)
    relayed = await exchange.relay(FakeHop(*batches), HEAD)
    if relayed.fault is not None:
        raise relayed.fault


def chunk(text: str) -> inference_pb2.ChatChunk:
    return inference_pb2.ChatChunk(choices=[inference_pb2.ChatDelta(content=text)])


# --- what is moved


@pytest.mark.parametrize(
    ("method", "operation", "stream"),
    [
        ("Chat", Operation.CHAT, False),
        ("ChatStream", Operation.CHAT, True),
        ("Complete", Operation.COMPLETIONS, False),
        ("CompleteStream", Operation.COMPLETIONS, True),
        ("Embed", Operation.EMBEDDINGS, False),
    ],
)
async def test_a_call_reaches_the_story_as_the_client_sent_it(
    pki: Path, method: str, operation: Operation, stream: bool
) -> None:
    body = REQUEST.SerializeToString()
    seen: list[object] = []

    async def serve(exchange: GrpcExchange) -> None:
        facts = await exchange.receive(LIMIT_BYTES, unchecked)
        parcel = exchange.parcel
        seen.extend([facts, exchange.operation, exchange.door, exchange.credential])
        seen.extend([bytes(parcel.open()), parcel.content_type, parcel.size_bytes])
        await exchange.relay(FakeHop([data(b"\x0a\x01x"), end()]), HEAD)

    async with opened(pki, serve) as door:
        # On the wire, all are one message to a stream of messages.
        call = door.channel.unary_stream(f"/mesh.v1.Inference/{method}")(body, metadata=KEY)
        assert [message async for message in call] == [b"\x0a\x01x"]
        head = dict(await call.initial_metadata())
        assert {key: head[key] for key in ("x-request-id", "mesh-region", "mesh-jurisdiction")} == {
            "x-request-id": HEAD.request_id,
            "mesh-region": HEAD.region,
            "mesh-jurisdiction": HEAD.jurisdiction,
        }
        assert head["mesh-policy-revision"] == "7"
        assert "mesh-region" not in dict(await call.trailing_metadata())
    assert seen == [
        Facts(model="smol", stream=stream),
        operation,
        "grpc",
        "good",
        body,
        "application/x-protobuf",
        len(body),
    ]


async def test_the_parcel_is_let_go_when_the_call_ends(pki: Path) -> None:
    kept: list[GrpcExchange] = []

    async def serve(exchange: GrpcExchange) -> None:
        kept.append(exchange)
        await answered(exchange, [data(ANSWER.SerializeToString()), end()])

    async with opened(pki, serve) as door:
        assert await InferenceStub(door.channel).Chat(REQUEST, metadata=KEY) == ANSWER
    with pytest.raises(RuntimeError):
        kept[0].parcel.open()


async def test_a_stream_is_moved_message_by_message_as_it_comes(pki: Path) -> None:
    more = asyncio.Event()
    usages: list[Usage] = []

    async def serve(exchange: GrpcExchange) -> None:
        await exchange.receive(LIMIT_BYTES, unchecked)
        progress = Frame(FrameKind.PROGRESS, Usage(3, 0), b"")
        one, two, three = (data(chunk(text).SerializeToString(), n) for n, text in enumerate("abc", 1))
        hop = FakeHop([progress], [one], more, [two, three], [end(3)])
        relayed = await exchange.relay(hop, HEAD)
        usages.append(hop.usage)
        assert relayed.began
        assert relayed.fault is None

    async with opened(pki, serve) as door:
        call = InferenceStub(door.channel).ChatStream(REQUEST, metadata=KEY)
        assert (await call.read()).choices[0].content == "a"
        more.set()
        assert [each.choices[0].content for each in await rest_of(call)] == ["b", "c"]
        assert await call.code() is grpc.StatusCode.OK
        assert door.failures == []
    assert usages == [Usage(3, 3)]


async def test_a_stream_without_messages_still_says_where_it_was_served(pki: Path) -> None:
    async with opened(pki, lambda exchange: answered(exchange, [end(0)])) as door:
        call = InferenceStub(door.channel).ChatStream(REQUEST, metadata=KEY)
        assert [each async for each in call] == []
        assert dict(await call.initial_metadata())["mesh-region"] == HEAD.region


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("batches", "code"),
    [
        ([], Code.REPLICA_FAILED),
        ([[fault(b'{"code": "context_length_exceeded", "param": "messages"}')]], Code.CONTEXT_LENGTH_EXCEEDED),
        ([[fault(b"what is this")]], Code.REPLICA_FAILED),
        ([MeshError(Code.REPLICA_FAILED)], Code.REPLICA_FAILED),
    ],
)
async def test_what_fails_before_the_first_message_is_the_storys_to_try_again(
    pki: Path, batches: list, code: Code, stream: bool
) -> None:
    faults: list[tuple[Code, bool]] = []

    async def serve(exchange: GrpcExchange) -> None:
        await exchange.receive(LIMIT_BYTES, unchecked)
        first = await exchange.relay(FakeHop(*batches), HEAD)
        assert first.fault is not None
        faults.append((first.fault.code, first.began))
        second = await exchange.relay(FakeHop([data(b""), end()]), HEAD)
        assert second.fault is None

    async with opened(pki, serve) as door:
        path = "/mesh.v1.Inference/ChatStream" if stream else "/mesh.v1.Inference/Chat"
        call = door.channel.unary_stream(path)(REQUEST.SerializeToString(), metadata=KEY)
        assert [message async for message in call] == [b""]
    assert faults == [(code, False)]


async def test_a_stream_that_is_cut_ends_with_an_error_after_what_came(pki: Path) -> None:
    batch = [data(chunk("a").SerializeToString())]
    async with opened(pki, lambda exchange: answered(exchange, batch)) as door:
        call = InferenceStub(door.channel).ChatStream(REQUEST, metadata=KEY)
        assert (await call.read()).choices[0].content == "a"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        info, _ = info_of(caught.value)
        assert (caught.value.code(), info.reason) == (grpc.StatusCode.UNAVAILABLE, "REPLICA_FAILED")
        # The answer's own metadata has said it already.
        assert "x-request-id" not in dict(caught.value.trailing_metadata())


# --- what is refused


@pytest.mark.parametrize(("method", "kind"), [("Chat", "unary_unary"), ("ChatStream", "unary_stream")])
async def test_a_refused_call_leaves_its_message_with_the_client(pki: Path, method: str, kind: str) -> None:
    async def refuse(exchange: GrpcExchange) -> None:
        raise MeshError(Code.RESIDENCY_REFUSED, allowed=[SINGAPORE])

    message = inference_pb2.ChatRequest(
        model="smol", messages=[inference_pb2.Message(role="user", content="x" * 4_000_000)]
    )
    async with (
        opened(pki, refuse) as door,
        counting_proxy(door.server.port) as proxy,
        connected(pki, proxy.port) as channel,
    ):
        call = getattr(InferenceStub(channel), method)(message, metadata=KEY)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await (call if kind == "unary_unary" else call.read())
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert proxy.sent_bytes <= 80 * 1024


async def test_refused_calls_of_one_connection_take_a_window_each_and_leave_it_usable(pki: Path) -> None:
    limit_bytes = 8 * 1024 * 1024
    sizes: list[int] = []

    async def serve(exchange: GrpcExchange) -> None:
        if exchange.operation is Operation.EMBEDDINGS:
            raise MeshError(Code.RESIDENCY_REFUSED, allowed=[SINGAPORE])
        await exchange.receive(limit_bytes, unchecked)
        sizes.append(exchange.parcel.size_bytes)
        await exchange.relay(FakeHop([data(b""), end()]), HEAD)

    message = inference_pb2.ChatRequest(model="smol", stop=["x" * (limit_bytes - 100)])
    async with (
        opened(pki, serve, limit_bytes=limit_bytes) as door,
        counting_proxy(door.server.port) as proxy,
        connected(pki, proxy.port) as channel,
    ):
        embed = channel.unary_unary("/mesh.v1.Inference/Embed")
        body = message.SerializeToString()
        for number in range(1, 9):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await embed(body, metadata=KEY)
            assert info_of(caught.value)[0].reason == "RESIDENCY"
            assert proxy.sent_bytes <= number * 80 * 1024
        before = proxy.sent_bytes
        await InferenceStub(channel).Chat(message, metadata=KEY)
        assert proxy.sent_bytes - before > len(body)
    assert sizes == [len(body)]


async def test_the_same_message_is_taken_when_it_is_not_refused(pki: Path) -> None:
    sizes: list[int] = []

    async def serve(exchange: GrpcExchange) -> None:
        await exchange.receive(LIMIT_BYTES, unchecked)
        sizes.append(exchange.parcel.size_bytes)
        await exchange.relay(FakeHop([data(b""), end()]), HEAD)

    message = inference_pb2.ChatRequest(
        model="smol", messages=[inference_pb2.Message(role="user", content="x" * 4_000_000)]
    )
    async with (
        opened(pki, serve) as door,
        counting_proxy(door.server.port) as proxy,
        connected(pki, proxy.port) as channel,
    ):
        await InferenceStub(channel).Chat(message, metadata=KEY)
        assert proxy.sent_bytes > 4_000_000
    assert sizes == [message.ByteSize()]


def oversized(extra: int) -> bytes:
    """A message of the limit and `extra` bytes."""
    message = inference_pb2.ChatRequest(model="smol", stop=["x" * (LIMIT_BYTES - 100)])
    message.user = "y" * (LIMIT_BYTES + extra - message.ByteSize() - 4)
    body = message.SerializeToString()
    return body + b"\x08\x00" * ((LIMIT_BYTES + extra - len(body)) // 2)


async def test_the_limit_is_told_by_name_and_beyond_the_transports_by_grpc(pki: Path) -> None:
    async def serve(exchange: GrpcExchange) -> None:
        await answered(exchange, [data(b""), end()])

    async with opened(pki, serve) as door:
        chat = door.channel.unary_unary("/mesh.v1.Inference/Chat")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await chat(oversized(1000), metadata=KEY)
        info, _ = info_of(caught.value)
        assert (caught.value.code(), info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_TOO_LARGE")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await chat(oversized(1024 * 1024 + 1000), metadata=KEY)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "grpc-status-details-bin" not in dict(caught.value.trailing_metadata())


@pytest.mark.parametrize(
    ("message", "reason", "param"),
    [
        (b"\xff\xff\xff not protobuf", "MALFORMED_BODY", None),
        (b"\x0a\x02\xff\xfe", "MALFORMED_BODY", None),
        (b"", "INVALID_PARAMETER", "model"),
        (b"\x82\x01\x00", "INVALID_PARAMETER", "model"),
    ],
)
async def test_a_message_without_a_readable_model_is_refused(
    pki: Path, message: bytes, reason: str, param: str | None
) -> None:
    async with opened(pki, answered) as door:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.channel.unary_unary("/mesh.v1.Inference/Chat")(message, metadata=KEY)
        info, _ = info_of(caught.value)
        assert (info.reason, info.metadata.get("param")) == (reason, param)


async def test_a_call_without_a_message_is_malformed(pki: Path) -> None:
    async with opened(pki, answered) as door:
        call = door.channel.stream_unary("/mesh.v1.Inference/Chat")(metadata=KEY)
        await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert info_of(caught.value)[0].reason == "MALFORMED_BODY"


async def test_compressed_messages_are_not_taken(pki: Path) -> None:
    async with opened(pki, lambda exchange: answered(exchange, [data(b""), end()])) as door:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await InferenceStub(door.channel).Chat(REQUEST, metadata=KEY, compression=grpc.Compression.Gzip)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("metadata", "credential"),
    [
        ((), None),
        ((("authorization", "Bearer k"),), "k"),
        ((("authorization", "bearer  k "),), "k"),
        ((("authorization", "Basic k"),), None),
        ((("authorization", "k"),), None),
        ((("authorization", "Bearer k"), ("authorization", "Bearer l")), None),
    ],
)
async def test_the_credential_is_what_follows_the_one_bearer(
    pki: Path, metadata: tuple, credential: str | None
) -> None:
    seen: list[str | None] = []

    async def serve(exchange: GrpcExchange) -> None:
        seen.append(exchange.credential)
        await answered(exchange, [data(b""), end()])

    async with opened(pki, serve) as door:
        await InferenceStub(door.channel).Chat(REQUEST, metadata=metadata)
    assert seen == [credential]


# --- what ends a call


@pytest.mark.parametrize("phase", ["decide", "receive", "relay", "after the first message"])
@pytest.mark.parametrize("method", ["Chat", "ChatStream"])
async def test_a_client_that_hangs_up_cancels_its_story(
    pki: Path, method: str, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine gRPC may take longer than that to tell.
    monkeypatch.setattr(grpc_exchange, "_HANG_UP_S", 250.0)
    reached, cancelled, never = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def serve(exchange: GrpcExchange) -> None:
        try:
            if phase == "decide":
                reached.set()
                await never.wait()
            if phase == "receive":
                reached.set()
            await exchange.receive(LIMIT_BYTES, unchecked)
            first = [[data(chunk("a").SerializeToString())]] if phase == "after the first message" else []
            reached.set()
            if first and method == "Chat":
                await exchange.relay(FakeHop(first[0]), HEAD)
                await never.wait()
            await exchange.relay(FakeHop(*first, never), HEAD)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with opened(pki, serve) as door:
        if phase == "receive":
            call = door.channel.stream_stream(f"/mesh.v1.Inference/{method}")(metadata=KEY)
        else:
            call = getattr(InferenceStub(door.channel), method)(REQUEST, metadata=KEY)
        if phase == "after the first message" and method == "ChatStream":
            await call.read()
        await reached.wait()
        call.cancel()
        await cancelled.wait()
        assert door.failures == []


async def test_a_client_that_vanishes_cancels_its_story(pki: Path) -> None:
    reached, cancelled = asyncio.Event(), asyncio.Event()

    async def serve(exchange: GrpcExchange) -> None:
        await exchange.receive(LIMIT_BYTES, unchecked)
        try:
            reached.set()
            await exchange.relay(FakeHop(asyncio.Event()), HEAD)
        finally:
            cancelled.set()

    async with opened(pki, serve) as door:
        channel = connected(pki, door.server.port)
        call = InferenceStub(channel).ChatStream(REQUEST, metadata=KEY)
        await reached.wait()
        await channel.close()
        await cancelled.wait()
        assert call.cancelled()


@pytest.mark.parametrize(("asked_s", "least_s", "most_s"), [(None, 300, 300), (1000, 300, 300), (250, 100, 250)])
async def test_the_deadline_is_the_clients_and_at_most_300_s(
    pki: Path, asked_s: float | None, least_s: float, most_s: float
) -> None:
    seen: list[float] = []

    async def serve(exchange: GrpcExchange) -> None:
        seen.append(exchange.timeout_s)
        await answered(exchange, [data(b""), end()])

    async with opened(pki, serve) as door:
        await InferenceStub(door.channel).Chat(REQUEST, metadata=KEY, timeout=asked_s)
    assert least_s <= seen[0] <= most_s


@pytest.mark.parametrize("hold", ["before the message", "while it is read", "while it answers"])
async def test_a_deadline_that_passes_is_told(pki: Path, hold: str) -> None:
    """The story's own timer, as `Story.serve` has it; the client's is far away so that ours is what it hears."""
    waits, timer = asyncio.Event(), asyncio.timeout(None)

    class Silent(FakeHop):
        async def read(self) -> list[Frame]:
            waits.set()
            return await super().read()

    async def serve(exchange: GrpcExchange) -> None:
        try:
            async with timer:
                if hold == "before the message":
                    waits.set()
                    await asyncio.Event().wait()
                if hold == "while it is read":
                    waits.set()
                await exchange.receive(LIMIT_BYTES, unchecked)
                await exchange.relay(Silent(asyncio.Event()), HEAD)
        except TimeoutError:
            raise MeshError(Code.DEADLINE_EXCEEDED) from None

    async with opened(pki, serve) as door:
        call = door.channel.stream_stream("/mesh.v1.Inference/ChatStream")(metadata=KEY, timeout=250)
        if hold != "while it is read":
            await call.write(REQUEST.SerializeToString())
        await waits.wait()
        timer.reschedule(0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert info_of(caught.value)[0].reason == "DEADLINE_EXCEEDED"


async def test_a_reader_that_stalls_holds_the_hop_back(pki: Path) -> None:
    """A client that does not read: the relay waits instead of filling memory, and its deadline still ends it."""
    moved, done, timer = [], asyncio.Event(), asyncio.timeout(None)

    class Endless(FakeHop):
        async def read(self) -> list[Frame]:
            moved.append(1)
            return [data(b"x" * 65_536)]

    async def serve(exchange: GrpcExchange) -> None:
        await exchange.receive(LIMIT_BYTES, unchecked)
        try:
            async with timer:
                await exchange.relay(Endless(), HEAD)
        except TimeoutError:
            raise MeshError(Code.DEADLINE_EXCEEDED) from None
        finally:
            done.set()

    async with opened(pki, serve) as door:
        call = door.channel.unary_stream("/mesh.v1.Inference/ChatStream")(REQUEST.SerializeToString(), metadata=KEY)
        assert len(await call.read()) == 65_536
        before = 0
        while len(moved) != before:  # until it waits
            before = len(moved)
            assert before < 1000
            await asyncio.sleep(0.5)
        timer.reschedule(0)
        await done.wait()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rest_of(call)
        assert info_of(caught.value)[0].reason == "DEADLINE_EXCEEDED"
        assert door.failures == []


# --- questions


async def test_questions_are_answered_for_a_key(pki: Path) -> None:
    async with opened(pki, answered) as door:
        models = InferenceStub(door.channel).ListModels(inference_pb2.ListModelsRequest(), metadata=KEY)
        [model] = (await models).models
        assert (model.id, model.kind, model.context, list(model.regions)) == (
            "m",
            inference_pb2.MODEL_KIND_EMBEDDING,
            256,
            [VN, HEAD.region],
        )
        assert dict(await models.initial_metadata())["mesh-policy-revision"] == "7"
        resolved = await RouterStub(door.channel).Resolve(router_pb2.ResolveRequest(), metadata=KEY)
        assert (resolved.here, resolved.served_here, [each.grpc for each in resolved.allowed]) == (
            HERE.region,
            False,
            [SINGAPORE.grpc],
        )
        explained = await RouterStub(door.channel).Explain(router_pb2.ExplainRequest(model="m"), metadata=KEY)
        assert (explained.model, explained.outcome, explained.region, explained.code) == (
            "m",
            router_pb2.OUTCOME_FORWARD,
            HEAD.region,
            "",
        )
        assert [(each.verdict, each.code) for each in explained.reasons] == [(router_pb2.VERDICT_TAKEN, "least_wait")]


@pytest.mark.parametrize("path", ["mesh.v1.Inference/ListModels", "mesh.v1.Router/Resolve", "mesh.v1.Router/Explain"])
async def test_questions_need_a_key_before_they_are_read(pki: Path, path: str) -> None:
    async with opened(pki, answered) as door:
        call = door.channel.stream_stream(f"/{path}")()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert info_of(caught.value)[0].reason == "INVALID_API_KEY"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.channel.unary_unary(f"/{path}")(b"x" * 100_000, metadata=KEY)
        assert info_of(caught.value)[0].reason == "REQUEST_TOO_LARGE"


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ([], [None]),
        (["7"], [7]),
        (["x"], "INVALID_PARAMETER"),
        (["0"], "INVALID_PARAMETER"),
        (["7", "7"], "INVALID_PARAMETER"),
    ],
)
async def test_the_oldest_policy_to_be_decided_by(pki: Path, given: list[str], seen: list[int | None] | str) -> None:
    came: list[int | None] = []

    async def serve(exchange: GrpcExchange) -> None:
        came.append(exchange.at_least())
        await answered(exchange, [data(b""), end()])

    metadata = (*KEY, *(("mesh-policy-at-least", value) for value in given))
    async with opened(pki, serve) as door:
        chat = InferenceStub(door.channel).Chat(REQUEST, metadata=metadata)
        models = InferenceStub(door.channel).ListModels(inference_pb2.ListModelsRequest(), metadata=metadata)
        if isinstance(seen, list):
            await chat
            await models
            assert came == seen
            return
        for call in (chat, models):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert info_of(caught.value)[0].reason == seen


async def test_a_question_may_name_a_policy_that_nobody_knows(pki: Path) -> None:
    async with opened(pki, answered) as door:
        metadata = (*KEY, ("mesh-policy-at-least", "8"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await RouterStub(door.channel).Resolve(router_pb2.ResolveRequest(), metadata=metadata)
        assert info_of(caught.value)[0].reason == "POLICY_STALE"
