"""The gRPC door with stubs made from the protos, the CA and a key; and without stubs, by reflection alone."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grpc
import pytest
from e2e.live import CHAT, ELSEWHERE, EMBEDDING, SG, VN, Mesh, bearer
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.json_format import MessageToDict, ParseDict
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from mesh.v1.inference_pb2 import (
    AdmitChatRequest,
    ChatFacts,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Input,
    ListModelsRequest,
    Message,
    ModelKind,
    StreamOptions,
    TokenIds,
)
from mesh.v1.inference_pb2_grpc import InferenceStub
from mesh.v1.router_pb2 import ExplainRequest, Outcome, ResolveRequest, Verdict
from mesh.v1.router_pb2_grpc import RouterStub

pytestmark = pytest.mark.mesh
SECRET = "zqvx7hunter2kj"


def chat(text: str = "Say hello.", **fields: Any) -> ChatRequest:
    fields = {"model": CHAT, "max_tokens": 6, "temperature": 0.0} | fields
    return ChatRequest(messages=[Message(role="user", content=text)], **fields)


def as_dict(metadata: Any) -> Mapping[str, Any]:
    return dict(metadata or ())


def details(error: grpc.RpcError) -> tuple[ErrorInfo, RetryInfo | None]:
    """Our `ErrorInfo`, and when to try again."""
    trailers = as_dict(error.trailing_metadata())
    status, info, retry = Status.FromString(trailers["grpc-status-details-bin"]), ErrorInfo(), RetryInfo()
    assert status.code == error.code().value[0]
    found = None
    for detail in status.details:
        detail.Unpack(info)
        if detail.Unpack(retry):
            found = retry
    assert info.domain == "mesh"
    assert trailers["x-request-id"]
    assert SECRET not in f"{error.details()}{trailers}"
    return info, found


def refused(call: Any, status: grpc.StatusCode, reason: str, param: str | None = None) -> grpc.RpcError:
    """Calls, which must fail so."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() is status, caught.value
    info, retry = details(caught.value)
    assert info.reason == reason
    assert info.metadata.get("param") == param
    assert (retry is not None) == (reason == "NO_CAPACITY")
    return caught.value


@pytest.fixture
def channel(mesh: Mesh) -> Iterator[grpc.Channel]:
    with mesh.channel(VN) as channel:
        yield channel


@pytest.fixture
def inference(channel: grpc.Channel) -> InferenceStub:
    return InferenceStub(channel)


def test_chat_at_once_and_as_it_is_made(inference: InferenceStub, acme: str) -> None:
    answer, call = inference.Chat.with_call(chat(), metadata=bearer(acme), timeout=60)
    head = as_dict(call.initial_metadata())
    assert (head["mesh-region"], head["mesh-jurisdiction"]) == (VN, "VN")
    assert int(head["mesh-policy-revision"]) >= 1
    assert answer.id == f"chatcmpl-{head['x-request-id']}"
    assert answer.model == CHAT
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in {"stop", "length"}
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens

    stream = inference.ChatStream(
        chat(stream_options=StreamOptions(include_usage=True)), metadata=bearer(acme), timeout=60
    )
    chunks = list(stream)
    assert as_dict(stream.initial_metadata())["mesh-region"] == VN
    assert "".join(c.content for chunk in chunks for c in chunk.choices) == answer.choices[0].message.content
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.HasField("finish_reason")] == [
        answer.choices[0].finish_reason
    ]
    assert [chunk.HasField("usage") for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].usage == answer.usage


def test_it_is_the_same_as_over_http(mesh: Mesh, inference: InferenceStub, acme: str) -> None:
    answer = inference.Chat(chat(seed=5, temperature=1.2), metadata=bearer(acme), timeout=60)
    with mesh.openai(VN, acme) as client:
        other = client.chat.completions.create(
            model=CHAT, messages=[{"role": "user", "content": "Say hello."}], max_tokens=6, seed=5, temperature=1.2
        )
    assert answer.choices[0].message.content == other.choices[0].message.content


def test_options_act(inference: InferenceStub, acme: str) -> None:
    answer = inference.Chat(chat(n=2, logprobs=True, top_logprobs=2, max_tokens=3), metadata=bearer(acme), timeout=60)
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert len(choice.logprobs) >= 1
        assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in choice.logprobs)
    whole = inference.Complete(
        CompletionRequest(model=CHAT, prompt=[Input(text="1, 2, 3, 4,")], max_tokens=10, temperature=0),
        metadata=bearer(acme),
        timeout=60,
    ).choices[0]
    cut = inference.Complete(
        CompletionRequest(
            model=CHAT, prompt=[Input(text="1, 2, 3, 4,")], max_tokens=10, temperature=0, stop=[whole.text[3:6]]
        ),
        metadata=bearer(acme),
        timeout=60,
    ).choices[0]
    assert cut.text == whole.text[: whole.text.index(whole.text[3:6])]


def test_completions_and_embeddings(inference: InferenceStub, acme: str) -> None:
    request = CompletionRequest(
        model=CHAT,
        prompt=[Input(text="The moon"), Input(tokens=TokenIds(ids=[504, 4320, 314]))],
        max_tokens=4,
        temperature=0,
        stream_options=None,
    )
    whole = inference.Complete(request, metadata=bearer(acme), timeout=60)
    assert [choice.index for choice in whole.choices] == [0, 1]
    texts = {0: "", 1: ""}
    for chunk in inference.CompleteStream(request, metadata=bearer(acme), timeout=60):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {choice.index: choice.text for choice in whole.choices}

    embedded = inference.Embed(
        EmbeddingRequest(model=EMBEDDING, input=[Input(text="a"), Input(text="b")]), metadata=bearer(acme), timeout=60
    )
    assert [row.index for row in embedded.data] == [0, 1]
    assert all(math.isclose(math.hypot(*row.embedding), 1, rel_tol=1e-4) for row in embedded.data)
    assert embedded.usage.prompt_tokens > 0


def test_models(inference: InferenceStub, acme: str, globex: str) -> None:
    mine = inference.ListModels(ListModelsRequest(), metadata=bearer(acme), timeout=60).models
    assert {(model.id, model.kind) for model in mine} == {
        (CHAT, ModelKind.MODEL_KIND_CHAT),
        (EMBEDDING, ModelKind.MODEL_KIND_EMBEDDING),
    }
    assert all(model.context > 0 and list(model.regions) == [VN] for model in mine)
    theirs = inference.ListModels(ListModelsRequest(), metadata=bearer(globex), timeout=60).models
    assert {model.id: list(model.regions) for model in theirs}[ELSEWHERE] == [SG]


def test_content_is_sent_only_once_it_was_admitted(inference: InferenceStub, acme: str) -> None:
    admitted = threading.Event()

    def steps() -> Iterator[AdmitChatRequest]:
        yield AdmitChatRequest(facts=ChatFacts(model=CHAT))
        assert admitted.wait(60)
        yield AdmitChatRequest(content=chat())

    answers = inference.AdmitChat(steps(), metadata=bearer(acme), timeout=60)
    first = next(answers)
    assert first.WhichOneof("step") == "admitted"
    assert (first.admitted.region, first.admitted.jurisdiction) == (VN, "VN")
    assert first.admitted.policy_revision >= 1
    admitted.set()
    rest = list(answers)
    assert {answer.WhichOneof("step") for answer in rest} == {"chunk"}
    assert "".join(c.content for answer in rest for c in answer.chunk.choices)


def test_content_of_a_refused_call_never_leaves(mesh: Mesh, acme: str) -> None:
    asked = threading.Event()

    def steps() -> Iterator[AdmitChatRequest]:
        yield AdmitChatRequest(facts=ChatFacts(model=CHAT))
        asked.wait(60)

    with mesh.channel(SG) as channel:
        error = refused(
            lambda: list(InferenceStub(channel).AdmitChat(steps(), metadata=bearer(acme), timeout=60)),
            grpc.StatusCode.FAILED_PRECONDITION,
            "RESIDENCY",
        )
        asked.set()
    assert as_dict(error.trailing_metadata())["mesh-allowed-endpoints"] == mesh.place(VN)["grpc"]


def test_admission_holds_for_what_was_admitted(inference: InferenceStub, acme: str, globex: str) -> None:
    def refuse(key: str, steps: Sequence[AdmitChatRequest], reason: str, param: str | None) -> None:
        status = grpc.StatusCode.NOT_FOUND if reason == "MODEL_NOT_FOUND" else grpc.StatusCode.INVALID_ARGUMENT
        refused(lambda: list(inference.AdmitChat(iter(steps), metadata=bearer(key), timeout=60)), status, reason, param)

    facts = AdmitChatRequest(facts=ChatFacts(model=CHAT))
    refuse(acme, [AdmitChatRequest(facts=ChatFacts(model=ELSEWHERE))], "MODEL_NOT_FOUND", "model")
    with pytest.raises(grpc.RpcError) as unasked:
        list(inference.AdmitChat(iter([AdmitChatRequest(content=chat())]), metadata=bearer(acme), timeout=60))
    assert unasked.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    steps = [facts, AdmitChatRequest(content=chat(model=ELSEWHERE))]
    with pytest.raises(grpc.RpcError) as another:
        list(inference.AdmitChat(iter(steps), metadata=bearer(globex), timeout=60))
    assert another.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_router(mesh: Mesh, acme: str, globex: str) -> None:
    with mesh.channel(SG) as channel:
        router = RouterStub(channel)
        mine = router.Resolve(ResolveRequest(), metadata=bearer(acme), timeout=60)
        assert (mine.here, mine.served_here) == (SG, False)
        assert [(end.region, end.jurisdiction, end.http, end.grpc) for end in mine.allowed] == [
            (VN, "VN", mesh.place(VN)["http"], mesh.place(VN)["grpc"])
        ]
        assert mine.policy_revision >= 1
        why = router.Explain(ExplainRequest(model=CHAT), metadata=bearer(acme), timeout=60)
        assert (why.outcome, why.code, why.at, why.region) == (Outcome.OUTCOME_REFUSE, "residency_refused", SG, "")
    with mesh.channel(VN) as channel:
        why = RouterStub(channel).Explain(ExplainRequest(model=ELSEWHERE), metadata=bearer(globex), timeout=60)
        assert (why.outcome, why.region) == (Outcome.OUTCOME_FORWARD, SG)
        verdicts = {reason.region: reason.verdict for reason in why.reasons}
        assert verdicts[SG] == Verdict.VERDICT_TAKEN
        assert all(verdict == Verdict.VERDICT_REJECTED for region, verdict in verdicts.items() if region != SG)
        assert all(reason.code and reason.text for reason in why.reasons)


@pytest.mark.parametrize(
    ("request_", "status", "reason", "param"),
    [
        (chat(temperature=3.0), "INVALID_ARGUMENT", "INVALID_PARAMETER", "temperature"),
        (chat(n=9), "INVALID_ARGUMENT", "INVALID_PARAMETER", "n"),
        (chat(max_completion_tokens=2), "INVALID_ARGUMENT", "INVALID_PARAMETER", "max_tokens"),
        (chat(model=SECRET), "NOT_FOUND", "MODEL_NOT_FOUND", "model"),
        (chat(model=EMBEDDING), "INVALID_ARGUMENT", "UNSUPPORTED_OPERATION", "model"),
        (chat(f"{SECRET} " * 3000), "INVALID_ARGUMENT", "CONTEXT_LENGTH_EXCEEDED", "messages"),
        (ChatRequest(model=CHAT), "INVALID_ARGUMENT", "INVALID_PARAMETER", "messages"),
        (
            ChatRequest(model=CHAT, messages=[Message(role=SECRET, content="x")]),
            "INVALID_ARGUMENT",
            "INVALID_PARAMETER",
            "messages[0].role",
        ),
    ],
    ids=["temperature", "n", "both limits", "model", "operation", "context", "messages", "role"],
)
def test_refusals(
    inference: InferenceStub, acme: str, request_: ChatRequest, status: str, reason: str, param: str
) -> None:
    refused(lambda: inference.Chat(request_, metadata=bearer(acme), timeout=60), grpc.StatusCode[status], reason, param)
    refused(
        lambda: list(inference.ChatStream(request_, metadata=bearer(acme), timeout=60)),
        grpc.StatusCode[status],
        reason,
        param,
    )


def test_unknown_fields_do_not_ride_along(channel: grpc.Channel, acme: str) -> None:
    ask = channel.unary_unary("/mesh.v1.Inference/Chat")
    # Field 300, which no request of ours has.
    body = chat().SerializeToString() + b"\xe2\x12\x05" + SECRET[:5].encode()
    with pytest.raises(grpc.RpcError) as caught:
        ask(body, metadata=bearer(acme), timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(caught.value)[0].reason == "UNSUPPORTED_PARAMETER"


def test_what_is_no_message_is_refused(channel: grpc.Channel, acme: str) -> None:
    ask = channel.unary_unary("/mesh.v1.Inference/Chat")
    refused(
        lambda: ask(SECRET.encode(), metadata=bearer(acme), timeout=60),
        grpc.StatusCode.INVALID_ARGUMENT,
        "MALFORMED_BODY",
    )


def test_keys(inference: InferenceStub) -> None:
    for metadata in (None, bearer(""), bearer(SECRET), [("authorization", SECRET)]):
        refused(
            lambda sent=metadata: inference.Chat(chat(), metadata=sent, timeout=60),
            grpc.StatusCode.UNAUTHENTICATED,
            "INVALID_API_KEY",
        )
        refused(
            lambda sent=metadata: list(inference.ChatStream(chat(), metadata=sent, timeout=60)),
            grpc.StatusCode.UNAUTHENTICATED,
            "INVALID_API_KEY",
        )


def test_residency(mesh: Mesh, acme: str) -> None:
    with mesh.channel(SG) as channel:
        for call in (
            lambda: InferenceStub(channel).Chat(chat(SECRET), metadata=bearer(acme), timeout=60),
            lambda: InferenceStub(channel).Embed(
                EmbeddingRequest(model=EMBEDDING, input=[Input(text=SECRET)]), metadata=bearer(acme), timeout=60
            ),
            lambda: InferenceStub(channel).ListModels(ListModelsRequest(), metadata=bearer(acme), timeout=60),
        ):
            error = refused(call, grpc.StatusCode.FAILED_PRECONDITION, "RESIDENCY")
            trailers = as_dict(error.trailing_metadata())
            assert trailers["mesh-allowed-endpoints"] == mesh.place(VN)["grpc"]
            assert int(trailers["mesh-policy-revision"]) >= 1


def test_deadlines_are_grpc_s_own(inference: InferenceStub, acme: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(inference.ChatStream(chat("Count to a thousand.", n=4, max_tokens=900), metadata=bearer(acme), timeout=1))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_messages_that_are_too_large(inference: InferenceStub, acme: str) -> None:
    refused(
        lambda: inference.Chat(chat("x" * (8 * 1024 * 1024 + 1000)), metadata=bearer(acme), timeout=60),
        grpc.StatusCode.INVALID_ARGUMENT,
        "REQUEST_TOO_LARGE",
    )
    with pytest.raises(grpc.RpcError) as caught:
        inference.Chat(chat("x" * (10 * 1024 * 1024)), metadata=bearer(acme), timeout=60)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_health_needs_no_key(channel: grpc.Channel) -> None:
    health: Any = health_pb2_grpc.HealthStub(channel)
    for service in ("", "mesh.v1.Inference"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=60)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="mesh.v1.Nothing"), timeout=60)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_internal_services_are_not_on_the_door(channel: grpc.Channel, acme: str) -> None:
    for method in (
        "mesh.v1.Admin/ListTenants",
        "mesh.v1.Inspect/Status",
        "mesh.v1.Fleet/Join",
        "mesh.v1.Border/Exchange",
    ):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/{method}")(b"", metadata=bearer(acme), timeout=60)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED, method


def _reflect(channel: grpc.Channel, version: str, key: str | None, *asks: Mapping[str, str]) -> list[Any]:
    """The answers of reflection; both versions have the same messages."""
    call = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    requests = [ParseDict(dict(ask), reflection_pb2.ServerReflectionRequest()) for ask in asks]
    return list(call(iter(requests), metadata=None if key is None else bearer(key), timeout=60))


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_needs_a_key(channel: grpc.Channel, acme: str, version: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        _reflect(channel, version, None, {"list_services": ""})
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    (listed,) = _reflect(channel, version, acme, {"list_services": ""})
    names = {service.name for service in listed.list_services_response.service}
    assert {"mesh.v1.Inference", "mesh.v1.Router", "grpc.health.v1.Health"} <= names
    assert not {"mesh.v1.Admin", "mesh.v1.Border", "mesh.v1.Fleet", "mesh.v1.Inspect"} & names


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_a_client_that_knows_nothing_can_call(channel: grpc.Channel, acme: str, version: str) -> None:
    """As a client in another language does: it asks the door what there is, and builds its messages from that."""
    pool, wanted, seen = descriptor_pool.DescriptorPool(), ["mesh.v1.Inference"], {}
    (answer,) = _reflect(channel, version, acme, {"file_containing_symbol": wanted[0]})
    pending = list(answer.file_descriptor_response.file_descriptor_proto)
    while pending:
        file = descriptor_pb2.FileDescriptorProto.FromString(pending.pop())
        if file.name in seen:
            continue
        seen[file.name] = file
        for name in file.dependency:
            (more,) = _reflect(channel, version, acme, {"file_by_filename": name})
            pending += more.file_descriptor_response.file_descriptor_proto

    def add(name: str) -> None:
        file = seen.pop(name, None)
        if file is not None:
            for dependency in file.dependency:
                add(dependency)
            pool.Add(file)

    for name in list(seen):
        add(name)
    method = pool.FindServiceByName("mesh.v1.Inference").methods_by_name["Chat"]
    ask = message_factory.GetMessageClass(method.input_type)
    told = message_factory.GetMessageClass(method.output_type)
    request = ParseDict({"model": CHAT, "maxTokens": 3, "messages": [{"role": "user", "content": "Hi"}]}, ask())
    call = channel.unary_unary(
        "/mesh.v1.Inference/Chat", request_serializer=ask.SerializeToString, response_deserializer=told.FromString
    )
    answer = MessageToDict(call(request, metadata=bearer(acme), timeout=60))
    assert answer["choices"][0]["message"]["content"]
