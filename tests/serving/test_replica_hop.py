"""One hop, from parcel to frames: order of refusals, usage, deadlines, hang-ups, slow readers, dead engines."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
import threading
from collections.abc import Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, ClassVar

import pytest
from serving.fake_engine import CharacterTokenizer, FakeEngine
from serving.fake_request import FakeRequest, as_request
from serving.lease_lab import REPLICA, HandClock

from mesh.content.frames import FrameKind
from mesh.errors import Code, MeshError
from mesh.runtime import SystemClock
from mesh.serving.hop import Hop
from mesh.serving.hosted import ModelHost
from mesh.serving.leases import Leases
from mesh.settings import Model
from mesh.telemetry import Log
from mesh.types import ModelId, ModelKind, RegionId, Usage
from mesh.v1 import inference_pb2 as pb

HEADERS = {
    "content-type": "application/json",
    "mesh-request-id": "0123456789abcdef",
    "mesh-tenant": "t_aaaaaaaaaaaaaaaa",
    "mesh-key": "k_1",
    "mesh-model": "m",
    "mesh-timeout-ms": "60000",
    "mesh-stream": "0",
}
STREAM = {"mesh-stream": "1"}
PROTOBUF = {"content-type": "application/x-protobuf"}


class Deadlines(SystemClock):
    """The host's clock, but that a call's time is over when the test says so."""

    def __init__(self) -> None:
        self.asked_s: list[float] = []
        self._scopes: list[asyncio.Timeout] = []

    def timeout(self, seconds: float) -> asyncio.Timeout:
        self.asked_s.append(seconds)
        self._scopes.append(asyncio.timeout(None))
        return self._scopes[-1]

    def pass_(self) -> None:
        self._scopes[-1].reschedule(0)


class World:
    """Two models, `m` that chats and `e` that embeds, behind one hop."""

    def __init__(self, chat: FakeEngine, embedding: FakeEngine) -> None:
        self.chat, self.embedding = chat, embedding
        self.log = io.StringIO()
        log = Log("replica", "vn-1", self.log, models=("m", "e"), strict=True)
        models = [
            Model(id=ModelId(name), kind=engine.kind, package="p", context=1, slots=1, queue=1)
            for name, engine in (("m", chat), ("e", embedding))
        ]
        engines: dict[str, Any] = {"m": chat, "e": embedding}
        self.host = ModelHost(models, lambda model: engines[model.id], SystemClock(), log)
        self.lease_clock = HandClock()
        self.leases = Leases(REPLICA, self.lease_clock)
        self.gateway = self.leases.source()
        self.gateway.begin()
        self.deadlines = Deadlines()
        self.hop = Hop(RegionId("vn-1"), self.host, self.leases, 100_000, self.deadlines, log)

    async def call(self, operation: str, body: Any, headers: dict[str, str] | None = None, **more: Any) -> FakeRequest:
        request = self.request(operation, body, headers, **more)
        await self.hop.handle(as_request(request))
        return request

    def lease(self, left_s: float = 60, *, number: int = 1, message: int = 1) -> dict[str, str]:
        """The header of a hop that is sent right after a ping."""
        ping = self.gateway.ping()
        return {"mesh-lease": f"{REPLICA}.{ping}.{message}.{int(left_s * 1000)}.0.{number}"}

    def request(self, operation: str, body: Any, headers: dict[str, str] | None = None, **more: Any) -> FakeRequest:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        return FakeRequest(f"/v1/hop/{operation}", sent, HEADERS | self.lease() | (headers or {}), **more)

    @asynccontextmanager
    async def calling(self, operation: str, body: Any, headers: dict[str, str] | None = None) -> Any:
        """A call that runs beside the test; leaving hangs up."""
        request = self.request(operation, body, headers)
        task = asyncio.get_running_loop().create_task(self.hop.handle(as_request(request)))
        try:
            yield request, task
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def world(*, words: Sequence[str] = ("Xin", " chào", "!"), gated: bool = False, start: bool = True) -> World:
    made = World(FakeEngine(words=words), FakeEngine(ModelKind.EMBEDDING))
    if start:
        await made.host.start(lambda: None)
    made.chat.submitted.clear()
    made.embedding.embedded.clear()
    if gated:
        made.chat.gate = asyncio.Semaphore(0)
    return made


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "Hi"}]} | fields


PROMPT_TOKENS = len("user:Hi\n")


def refusal(request: FakeRequest) -> dict[str, str]:
    assert request.status == 200
    (frame,) = request.frames
    assert frame.kind is FrameKind.ERROR
    assert frame.usage == Usage()
    said: dict[str, str] = json.loads(frame.payload)
    return {name: said[name] for name in ("code", "param") if name in said}


async def test_json_whole() -> None:
    request = await (await world()).call("chat", chat(n=2, seed=5))
    kinds = [frame.kind for frame in request.frames]
    assert kinds[0] is FrameKind.PROGRESS
    assert kinds[-2:] == [FrameKind.DATA, FrameKind.END]
    assert kinds.count(FrameKind.DATA) == 1
    answer = json.loads(request.data)
    assert answer["id"] == "chatcmpl-0123456789abcdef"
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["Xin chào!"] * 2
    assert answer["usage"] == {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": 6,
        "total_tokens": PROMPT_TOKENS + 6,
    }
    assert request.last.usage == Usage(PROMPT_TOKENS, 6)
    assert bytes(request.sent) == bytes(len(request.sent))  # the parcel was wiped


async def test_what_the_engine_is_asked_for() -> None:
    made = await world()
    await made.call("chat", chat(n=3, seed=2**64 - 1, temperature=0.5, top_p=0.25, stop=["x"], logprobs=True))
    samplings = [generation.sampling for generation in made.chat.submitted]
    assert [sampling.seed for sampling in samplings] == [2**64 - 1, 0, 1]
    first = samplings[0]
    assert (first.temperature, first.top_p, first.stop, first.top_logprobs) == (0.5, 0.25, ("x",), 0)
    assert first.max_tokens == made.chat.context - PROMPT_TOKENS
    made.chat.submitted.clear()
    await made.call("completions", {"model": "m", "prompt": ["ab", [7, 8, 9]], "n": 2})
    assert [list(generation.prompt) for generation in made.chat.submitted] == [[97, 98]] * 2 + [[7, 8, 9]] * 2
    assert {generation.sampling.max_tokens for generation in made.chat.submitted} == {16}


async def test_json_stream() -> None:
    body = chat(stream=True, stream_options={"include_usage": True}, max_tokens=2)
    request = await (await world()).call("chat", body, STREAM)
    assert [frame.kind for frame in request.frames] == [FrameKind.DATA] * 3 + [FrameKind.END]
    assert [frame.usage.completion_tokens for frame in request.frames] == [1, 2, 2, 2]
    text = request.data.decode()
    assert text.endswith("data: [DONE]\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n")[:-2]]
    content = [c["choices"][0]["delta"].get("content") for c in chunks if c["choices"]]
    assert "".join(part or "" for part in content) == "Xin chào"
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["usage"]["completion_tokens"] == 2


async def test_completions_number_choices_prompt_by_prompt() -> None:
    request = await (await world()).call("completions", {"model": "m", "prompt": ["a", "bc"], "n": 2, "logprobs": 1})
    answer = json.loads(request.data)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["id"] == "cmpl-0123456789abcdef"
    assert answer["usage"]["prompt_tokens"] == 3  # each prompt once, whatever n is
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == 3


async def test_protobuf() -> None:
    made = await world()
    body = pb.ChatRequest(model="m", messages=[pb.Message(role="user", content="Hi")]).SerializeToString()
    answer = pb.ChatResponse.FromString((await made.call("chat", body, PROTOBUF)).data)
    assert answer.choices[0].message.content == "Xin chào!"
    request = await made.call("chat", body, PROTOBUF | STREAM)
    pieces = [pb.ChatChunk.FromString(f.payload) for f in request.frames if f.kind is FrameKind.DATA]
    assert "".join(piece.choices[0].content for piece in pieces) == "Xin chào!"
    body = pb.CompletionRequest(model="m", prompt=[pb.Input(text="a")]).SerializeToString()
    completion = pb.CompletionResponse.FromString((await made.call("completions", body, PROTOBUF)).data)
    assert completion.choices[0].text == "Xin chào!"
    body = pb.EmbeddingRequest(model="e", input=[pb.Input(text="abc")]).SerializeToString()
    request = await made.call("embeddings", body, PROTOBUF | {"mesh-model": "e"})
    assert list(pb.EmbeddingResponse.FromString(request.data).data[0].embedding) == [3.0, 0.5]


async def test_embeddings() -> None:
    made = await world()
    to_e = {"mesh-model": "e"}
    request = await made.call("embeddings", {"model": "e", "input": ["a", "abc"]}, to_e)
    assert [frame.kind for frame in request.frames] == [FrameKind.DATA, FrameKind.END]
    answer = json.loads(request.data)
    assert [row["embedding"] for row in answer["data"]] == [[1.0, 0.5], [3.0, 0.5]]
    assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert request.last.usage == Usage(4, 0)
    request = await made.call("embeddings", {"model": "e", "input": "ab", "encoding_format": "base64"}, to_e)
    assert struct.unpack("<2f", base64.b64decode(json.loads(request.data)["data"][0]["embedding"])) == (2.0, 0.5)


async def test_more_inputs_than_an_engine_holds_go_in_runs() -> None:
    made = await world()
    request = await made.call("embeddings", {"model": "e", "input": ["a"] * 9}, {"mesh-model": "e"})
    assert [len(run) for run in made.embedding.embedded] == [2, 2, 2, 2, 1]
    assert len(json.loads(request.data)["data"]) == 9
    assert [frame.usage.prompt_tokens for frame in request.frames] == [2, 4, 6, 8, 9, 9]


LONG = "x" * 200
REFUSED: list[tuple[str, Any, dict[str, str], dict[str, str]]] = [
    ("chat", b"{", {}, {"code": "malformed_body"}),
    ("chat", b"\xff", PROTOBUF, {"code": "malformed_body"}),
    ("chat", chat(), {"content-type": "text/plain"}, {"code": "unsupported_media_type"}),
    ("nothing", chat(), {}, {"code": "not_found"}),
    ("chat", {"messages": []}, {}, {"code": "invalid_parameter", "param": "model"}),
    ("chat", {"model": 5}, {}, {"code": "invalid_parameter", "param": "model"}),
    ("chat", chat(model="other"), {}, {"code": "invalid_parameter", "param": "model"}),
    ("chat", chat(model="other"), {"mesh-model": "other"}, {"code": "no_capacity"}),
    # Model and operation come before fields.
    ("chat", chat(model="e", foo=1), {"mesh-model": "e"}, {"code": "unsupported_operation", "param": "model"}),
    ("embeddings", {"model": "m", "foo": 1}, {}, {"code": "unsupported_operation", "param": "model"}),
    ("chat", chat(foo=1), {}, {"code": "unsupported_parameter", "param": "foo"}),
    ("chat", chat(stream=True), {}, {"code": "invalid_parameter", "param": "stream"}),
    ("chat", chat(), STREAM, {"code": "invalid_parameter", "param": "stream"}),
    ("chat", chat(max_tokens=93), {}, {"code": "context_length_exceeded", "param": "messages"}),
    (
        "chat",
        chat(messages=[{"role": "user", "content": LONG}]),
        {},
        {"code": "context_length_exceeded", "param": "messages"},
    ),
    (
        "completions",
        {"model": "m", "prompt": ["a", "a" * 85]},
        {},
        {"code": "context_length_exceeded", "param": "prompt[1]"},
    ),
    (
        "completions",
        {"model": "m", "prompt": "a", "max_tokens": 10**30},
        {},
        {"code": "context_length_exceeded", "param": "prompt"},
    ),
    (
        "completions",
        {"model": "m", "prompt": [[1], [1, 2, 3, 1000]]},
        {},
        {"code": "invalid_parameter", "param": "prompt[1][3]"},
    ),
    ("completions", {"model": "m", "prompt": [1, 1000]}, {}, {"code": "invalid_parameter", "param": "prompt[1]"}),
    ("completions", {"model": "m", "prompt": ["a", "b"], "n": 5}, {}, {"code": "invalid_parameter", "param": "prompt"}),
    (
        "embeddings",
        {"model": "e", "input": ["a", LONG]},
        {"mesh-model": "e"},
        {"code": "context_length_exceeded", "param": "input[1]"},
    ),
    (
        "embeddings",
        {"model": "e", "input": [5, 1000]},
        {"mesh-model": "e"},
        {"code": "invalid_parameter", "param": "input[1]"},
    ),
]


@pytest.mark.parametrize(("operation", "body", "headers", "said"), REFUSED)
async def test_refuses_before_anything_queues(
    operation: str, body: Any, headers: dict[str, str], said: dict[str, str]
) -> None:
    made = await world()
    # The engines are full: capacity comes last.
    made.chat.running.update(range(8))
    made.embedding.running.update(range(8))
    assert refusal(await made.call(operation, body, headers)) == said
    assert made.chat.submitted == []
    assert made.log.getvalue().count("replica.bug") == 0


@pytest.mark.parametrize(
    ("operation", "model", "body"),
    [("chat", "m", chat()), ("embeddings", "e", {"model": "e", "input": "a"})],
)
async def test_full(operation: str, model: str, body: Any) -> None:
    made = await world()
    made.chat.running.update(range(8))
    made.embedding.running.update(range(8))
    assert refusal(await made.call(operation, body, {"mesh-model": model})) == {"code": "no_capacity"}


async def test_not_ready_and_draining() -> None:
    made = await world(start=False)
    assert refusal(await made.call("chat", chat())) == {"code": "no_capacity"}
    await made.host.start(lambda: None)
    made.host.draining = True  # gateways are being told; what still comes is served
    assert (await made.call("chat", chat())).last.kind is FrameKind.END
    made.host.closed = True
    assert refusal(await made.call("chat", chat())) == {"code": "no_capacity"}


@pytest.mark.parametrize(
    "certificate",
    [
        None,
        {},
        {"subjectAltName": (("URI", "mesh://vn-1/replica/r1"),)},
        {"subjectAltName": (("URI", "mesh://sg-1/gateway/g1"),)},
        {"subjectAltName": (("URI", "mesh://-/operator/o"),)},
    ],
)
async def test_only_gateways_of_the_region(certificate: Any) -> None:
    made = await world()
    request = await made.call("chat", chat(), certificate=certificate)
    assert (request.status, request.answer) == (403, b"")
    assert made.chat.submitted == []


@pytest.mark.parametrize("stream", [False, True])
async def test_hanging_up_frees_the_slots(stream: bool) -> None:
    made = await world(gated=True)
    assert made.chat.gate is not None
    async with made.calling("chat", chat(n=2, stream=stream), STREAM if stream else None) as (request, _):
        made.chat.gate.release()
        await request.writes.get()  # the first sign of life
        assert len(made.chat.running) == 2
    assert not made.chat.running
    assert not request.ended
    assert request.frames[-1].usage == Usage(PROMPT_TOKENS, 1)  # what the gateway settles on


async def test_hanging_up_before_the_first_token_frees_the_slot() -> None:
    made = await world(gated=True)
    async with made.calling("chat", chat()) as _:
        while not made.chat.running:
            await asyncio.sleep(0)
    assert not made.chat.running


async def test_deadline() -> None:
    made = await world(gated=True)
    assert made.chat.gate is not None
    async with made.calling("chat", chat(), {"mesh-timeout-ms": "200"}) as (request, task):
        made.chat.gate.release()
        await request.writes.get()  # the first sign of life
        made.deadlines.pass_()
        await task
    assert made.deadlines.asked_s == [0.2]
    assert [frame.kind for frame in request.frames] == [FrameKind.PROGRESS, FrameKind.ERROR]
    assert json.loads(request.last.payload)["code"] == "deadline_exceeded"
    assert request.last.usage == Usage(PROMPT_TOKENS, 1)
    assert not made.chat.running


async def test_deadline_before_anything() -> None:
    made = await world(gated=True)
    async with made.calling("chat", chat(), {"mesh-timeout-ms": "1"}) as (request, task):
        while not made.deadlines.asked_s:
            await asyncio.sleep(0)
        made.deadlines.pass_()
        await task
    assert made.deadlines.asked_s == [0.001]
    assert refusal(request) == {"code": "deadline_exceeded"}
    assert not made.chat.running


@pytest.mark.parametrize("n", [1, 3])
async def test_engine_dies_in_the_middle(n: int) -> None:
    made = await world(gated=True)
    assert made.chat.gate is not None
    async with made.calling("chat", chat(n=n, stream=True), STREAM) as (request, task):
        made.chat.gate.release()
        await request.writes.get()
        made.chat.fault = "RuntimeError"
        for _ in range(9):
            made.chat.gate.release()
        await task
    assert request.last.kind is FrameKind.ERROR
    assert json.loads(request.last.payload) == {"code": "replica_failed"}
    assert request.last.usage == Usage(PROMPT_TOKENS, 1)
    assert not made.chat.running
    assert made.host.dead() == "m"
    assert refusal(await made.call("chat", chat())) == {"code": "replica_failed"}


@pytest.mark.parametrize("n", [1, 2])
async def test_a_bug_says_nothing_of_what_was_sent(n: int) -> None:
    made = await world()
    made.chat.bug = KeyError("canary")
    request = await made.call("chat", chat(n=n))
    assert json.loads(request.last.payload)["code"] == Code.INTERNAL_ERROR
    assert b"canary" not in request.answer
    assert "canary" not in made.log.getvalue()
    assert "KeyError" in made.log.getvalue()


async def test_a_slow_reader_is_waited_for() -> None:
    made = await world(words=[str(i) for i in range(10)])
    async with made.calling("chat", chat(n=2, stream=True), STREAM) as (request, task):
        request.slow = asyncio.Semaphore(0)
        while not made.chat.submitted:
            await asyncio.sleep(0)
        for _ in range(50):
            await asyncio.sleep(0)
        assert request.answer == b""
        assert not task.done()
        for _ in range(40):
            request.slow.release()
        await task
    assert request.last.usage == Usage(PROMPT_TOKENS, 20)


async def test_nothing_follows_a_piece_that_may_be_half_out() -> None:
    """A large piece goes out in parts: a deadline can end the wait between two of them."""
    made = await world(words=[str(i) for i in range(10)])
    request = made.request("chat", chat(stream=True), STREAM)
    request.slow = asyncio.Semaphore(1)
    task = asyncio.create_task(made.hop.handle(as_request(request)))
    await request.held.wait()
    made.deadlines.pass_()
    with pytest.raises(MeshError) as fault:  # the server cuts the connection
        await task
    assert fault.value.code is Code.DEADLINE_EXCEEDED
    assert [frame.kind for frame in request.frames] == [FrameKind.DATA]
    assert not request.ended
    assert not made.chat.running


@pytest.mark.parametrize(
    ("operation", "model", "body"),
    [
        ("chat", "m", {"messages": [{"role": "user", "content": ""}] * 2_000}),
        ("completions", "m", {"prompt": ["x" * 3_000] * 8}),
        ("embeddings", "e", {"input": ["x"] * 2_000}),
        ("embeddings", "e", {"input": ["x" * 50] * 1_000}),
    ],
)
async def test_many_small_texts_do_not_hold_the_loop_up(operation: str, model: str, body: dict[str, Any]) -> None:
    Elsewhere.on.clear()
    made = await world()
    for engine in (made.chat, made.embedding):
        engine.context, engine.slots = 100_000, 100_000
        engine.tokenizer = Elsewhere()
    asked = {"model": model} | body | ({"max_tokens": 1} if model == "m" else {})
    request = await made.call(operation, asked, {"mesh-model": model})
    assert request.last.kind is FrameKind.END
    assert Elsewhere.on == {False}


async def test_a_large_body_is_not_parsed_on_the_loop() -> None:
    made = await world()
    made.host.touched.clear()
    async with made.calling("chat", chat(stop=[], user="x" * 90_000)) as (request, task):
        await asyncio.sleep(0)  # it runs up to its first wait
        assert not made.host.touched.is_set()  # the model is not known yet
        await task
    assert request.last.kind is FrameKind.END


class Elsewhere(CharacterTokenizer):
    """Remembers whether it was asked on the loop's own thread."""

    on: ClassVar[set[bool]] = set()

    def encode(self, text: str) -> list[int]:
        self.on.add(threading.current_thread() is threading.main_thread())
        return super().encode(text)
