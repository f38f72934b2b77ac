"""Which parameters there are and what they may be: a table for each operation, from JSON and from protobuf."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mesh.errors import Code, MeshError
from mesh.serving import openai_json
from mesh.serving.engine import Alternative, Delta, Generation, Sampling, TokenLogprob
from mesh.serving.parameters import read_call
from mesh.serving.protobuf import Parcel
from mesh.serving.requests import ChatCall, CompletionCall, EmbeddingCall
from mesh.types import Operation
from mesh.v1 import inference_pb2 as pb

HI = [{"role": "user", "content": "Hi"}]
BASE: dict[Operation, dict[str, Any]] = {
    Operation.CHAT: {"model": "m", "messages": HI},
    Operation.COMPLETIONS: {"model": "m", "prompt": "Once"},
    Operation.EMBEDDINGS: {"model": "m", "input": "Once"},
}


def read(operation: Operation, **fields: Any) -> Any:
    return read_call(operation, openai_json.decode(json.dumps(BASE[operation] | fields).encode()))


def refusal(operation: Operation, **fields: Any) -> tuple[Code, str | None]:
    with pytest.raises(MeshError) as caught:
        read(operation, **fields)
    assert caught.value.__context__ is None
    return caught.value.code, caught.value.param


GENERATING = (Operation.CHAT, Operation.COMPLETIONS)


@pytest.mark.parametrize("operation", GENERATING)
def test_defaults(operation: Operation) -> None:
    options = read(operation).options
    assert (options.temperature, options.top_p, options.n, options.seed, options.stop) == (1.0, 1.0, 1, None, ())
    assert options.max_tokens == (None if operation is Operation.CHAT else 16)
    assert (options.top_logprobs, options.stream, options.include_usage) == (None, False, False)


GOOD: list[tuple[dict[str, Any], str, Any]] = [
    ({"max_tokens": 1}, "max_tokens", 1),
    ({"max_completion_tokens": 7}, "max_tokens", 7),
    ({"max_tokens": None, "max_completion_tokens": 7}, "max_tokens", 7),
    ({"max_tokens": 10**40}, "max_tokens", 10**40),  # refused later, by the model's context
    ({"temperature": 0}, "temperature", 0.0),
    ({"temperature": 2}, "temperature", 2.0),
    ({"top_p": 0.001}, "top_p", 0.001),
    ({"top_p": 1}, "top_p", 1.0),
    ({"n": 8}, "n", 8),
    ({"n": None}, "n", 1),
    ({"seed": -(2**63)}, "seed", -(2**63)),
    ({"seed": 2**64 - 1}, "seed", 2**64 - 1),
    ({"seed": 0}, "seed", 0),
    ({"stop": "."}, "stop", (".",)),
    ({"stop": ["a", "b", "c", "d"]}, "stop", ("a", "b", "c", "d")),
    ({"stop": []}, "stop", ()),
    ({"stream": True}, "stream", True),
    ({"stream": True, "stream_options": {"include_usage": True}}, "include_usage", True),
    ({"stream": True, "stream_options": {"include_usage": None, "include_obfuscation": False}}, "include_usage", False),
    ({"user": "someone"}, "n", 1),
]


@pytest.mark.parametrize("operation", GENERATING)
@pytest.mark.parametrize(("fields", "name", "value"), GOOD)
def test_accepts(operation: Operation, fields: dict[str, Any], name: str, value: Any) -> None:
    assert getattr(read(operation, **fields).options, name) == value


MEANINGLESS: dict[str, Any] = {
    "frequency_penalty": 0,
    "presence_penalty": 0.0,
    "logit_bias": {},
    "metadata": {},
    "store": False,
    "response_format": {"type": "text"},
    "tools": [],
    "tool_choice": "none",
    "functions": [],
    "function_call": "auto",
    "parallel_tool_calls": True,
    "modalities": ["text"],
    "service_tier": "auto",
    "reasoning_effort": "none",
    "verbosity": "medium",
}
KNOWN = [*MEANINGLESS, "audio", "moderation", "prediction", "prompt_cache_key", "prompt_cache_retention"]
KNOWN += ["safety_identifier", "web_search_options"]


@pytest.mark.parametrize("operation", GENERATING)
def test_accepts_what_means_nothing(operation: Operation) -> None:
    plain = read(operation).options
    assert read(operation, **MEANINGLESS).options == plain
    optional = "max_tokens max_completion_tokens temperature top_p n stop seed logprobs stream stream_options user"
    assert read(operation, **dict.fromkeys([*KNOWN, *optional.split()])).options == plain


def test_accepts_what_means_nothing_in_completions_and_embeddings() -> None:
    read(Operation.COMPLETIONS, best_of=1, echo=False, suffix="")
    read(Operation.COMPLETIONS, best_of=None, echo=None, suffix=None)
    read(Operation.EMBEDDINGS, dimensions=None, encoding_format=None, user=None, stream=False)


UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"frequency_penalty": 0.1}, "frequency_penalty"),
    ({"frequency_penalty": False}, "frequency_penalty"),
    ({"presence_penalty": "0"}, "presence_penalty"),
    ({"logit_bias": {"50": 1}}, "logit_bias"),
    ({"metadata": {"a": "b"}}, "metadata"),
    ({"store": True}, "store"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"response_format": {"type": "text", "strict": True}}, "response_format.strict"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": [{}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {}}, "audio"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"prompt_cache_key": "k"}, "prompt_cache_key"),
    ({"safety_identifier": "k"}, "safety_identifier"),
    ({"stream": True, "stream_options": {"foo": 1}}, "stream_options.foo"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"foo": None}, "foo"),
    ({"top_k": 5}, "top_k"),
    ({"an unknown field with a secret": 1}, "?"),
    ({"": 1}, "?"),
]


@pytest.mark.parametrize("operation", GENERATING)
@pytest.mark.parametrize(("fields", "param"), UNSUPPORTED)
def test_refuses_what_is_not_supported_by_name(operation: Operation, fields: dict[str, Any], param: str) -> None:
    assert refusal(operation, **fields) == (Code.UNSUPPORTED_PARAMETER, param)


INVALID: list[tuple[dict[str, Any], str]] = [
    *(({"max_tokens": value}, "max_tokens") for value in (0, -1, 1.5, 16.0, "16", True, [])),
    *(({"max_completion_tokens": value}, "max_completion_tokens") for value in (0, "x")),
    ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
    *(({"temperature": value}, "temperature") for value in (-0.1, 2.1, "1", True, [])),
    *(({"top_p": value}, "top_p") for value in (0, -1, 1.01, "1", False)),
    *(({"n": value}, "n") for value in (0, 9, 1.0, "1", True)),
    *(({"seed": value}, "seed") for value in (2**64, -(2**63) - 1, 1.0, "1", True)),
    *(({"stop": value}, "stop") for value in ("", 5, {}, ["a"] * 5)),
    ({"stop": ["a", ""]}, "stop[1]"),
    ({"stop": [None]}, "stop[0]"),
    ({"stop": ["a", ["b"]]}, "stop[1]"),
    *(({"stream": value}, "stream") for value in (1, "true", [])),
    ({"stream_options": {}}, "stream_options"),
    ({"stream_options": {"include_usage": True}, "stream": False}, "stream_options"),
    ({"stream": True, "stream_options": []}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"user": 5}, "user"),
    ({"response_format": "text"}, "response_format"),
]


@pytest.mark.parametrize("operation", GENERATING)
@pytest.mark.parametrize(("fields", "param"), INVALID)
def test_refuses_wrong_types_and_ranges(operation: Operation, fields: dict[str, Any], param: str) -> None:
    assert refusal(operation, **fields) == (Code.INVALID_PARAMETER, param)


@pytest.mark.parametrize("number", [b"1e999", b"-1e999"])
def test_refuses_numbers_that_overflow(number: bytes) -> None:
    document = openai_json.decode(b'{"model":"m","prompt":"x","temperature":' + number + b"}")
    with pytest.raises(MeshError) as caught:
        read_call(Operation.COMPLETIONS, document)
    assert (caught.value.code, caught.value.param) == (Code.INVALID_PARAMETER, "temperature")


def messages(*turns: Any) -> dict[str, Any]:
    return {"messages": list(turns)}


def test_messages() -> None:
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], "name": "A"},
        {"role": "assistant", "content": "", "refusal": None, "tool_calls": None, "annotations": [], "audio": None},
        {"role": "assistant", "content": "again", "name": None},
        {"role": "system", "content": "late"},
        {"role": "user", "content": "end"},
    ]
    call = read(Operation.CHAT, messages=turns)
    assert isinstance(call, ChatCall)
    assert call.messages == (
        ("system", "Be brief."),
        ("user", "one\ntwo"),
        ("assistant", ""),
        ("assistant", "again"),
        ("system", "late"),
        ("user", "end"),
    )


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"messages": None}, Code.INVALID_PARAMETER, "messages"),
        ({"messages": []}, Code.INVALID_PARAMETER, "messages"),
        ({"messages": "Hi"}, Code.INVALID_PARAMETER, "messages"),
        (messages("Hi"), Code.INVALID_PARAMETER, "messages[0]"),
        (messages({"content": "Hi"}), Code.INVALID_PARAMETER, "messages[0].role"),
        (messages(*HI, {"role": "tool", "content": "Hi"}), Code.INVALID_PARAMETER, "messages[1].role"),
        (messages({"role": ["user"], "content": "Hi"}), Code.INVALID_PARAMETER, "messages[0].role"),
        (messages({"role": "user"}), Code.INVALID_PARAMETER, "messages[0].content"),
        (messages({"role": "user", "content": None}), Code.INVALID_PARAMETER, "messages[0].content"),
        (messages({"role": "user", "content": []}), Code.INVALID_PARAMETER, "messages[0].content"),
        (messages({"role": "user", "content": [5]}), Code.INVALID_PARAMETER, "messages[0].content[0]"),
        (
            messages({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}),
            Code.INVALID_PARAMETER,
            "messages[0].content[0].type",
        ),
        (
            messages({"role": "user", "content": [{"type": "text", "text": 5}]}),
            Code.INVALID_PARAMETER,
            "messages[0].content[0].text",
        ),
        (
            messages({"role": "user", "content": [{"type": "text", "text": "a", "foo": 1}]}),
            Code.UNSUPPORTED_PARAMETER,
            "messages[0].content[0].foo",
        ),
        (messages({"role": "user", "content": "Hi", "foo": 1}), Code.UNSUPPORTED_PARAMETER, "messages[0].foo"),
        (
            messages({"role": "assistant", "content": "Hi", "tool_calls": [{}]}),
            Code.UNSUPPORTED_PARAMETER,
            "messages[0].tool_calls",
        ),
        (messages({"role": "user", "content": "Hi", "name": 5}), Code.INVALID_PARAMETER, "messages[0].name"),
        ({"prompt": "x"}, Code.UNSUPPORTED_PARAMETER, "prompt"),
        ({"top_logprobs": 3}, Code.INVALID_PARAMETER, "top_logprobs"),
        ({"top_logprobs": 3, "logprobs": False}, Code.INVALID_PARAMETER, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, Code.INVALID_PARAMETER, "top_logprobs"),
        ({"logprobs": 1}, Code.INVALID_PARAMETER, "logprobs"),
        ({"echo": False}, Code.UNSUPPORTED_PARAMETER, "echo"),
    ],
)
def test_chat_refuses(fields: dict[str, Any], code: Code, param: str) -> None:
    assert refusal(Operation.CHAT, **fields) == (code, param)


@pytest.mark.parametrize(
    ("fields", "top"),
    [
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"logprobs": None, "top_logprobs": None}, None),
    ],
)
def test_chat_logprobs(fields: dict[str, Any], top: int | None) -> None:
    assert read(Operation.CHAT, **fields).options.top_logprobs == top


@pytest.mark.parametrize(
    ("prompt", "prompts", "paths"),
    [
        ("a", ("a",), ["prompt"]),
        (["a"], ("a",), ["prompt[0]"]),
        (["a", "b"], ("a", "b"), ["prompt[0]", "prompt[1]"]),
        ([1, 2], ((1, 2),), ["prompt"]),
        ([[1, 2], [3]], ((1, 2), (3,)), ["prompt[0]", "prompt[1]"]),
        (["a", [3]], ("a", (3,)), ["prompt[0]", "prompt[1]"]),
    ],
)
def test_prompts(prompt: Any, prompts: Any, paths: list[str]) -> None:
    call = read(Operation.COMPLETIONS, prompt=prompt)
    assert isinstance(call, CompletionCall)
    assert call.prompts == prompts
    assert [call.path(i) for i in range(len(prompts))] == paths


@pytest.mark.parametrize(("operation", "name"), [(Operation.COMPLETIONS, "prompt"), (Operation.EMBEDDINGS, "input")])
@pytest.mark.parametrize(
    ("value", "where"),
    [
        (None, ""),
        ("", ""),
        ([], ""),
        (5, ""),
        ({}, ""),
        ([""], "[0]"),
        (["a", None], "[1]"),
        (["a", 5], "[1]"),
        ([[]], "[0]"),
        ([1, "a"], "[1]"),
        ([1, -1], "[1]"),
        ([1.5], "[0]"),
        ([True], "[0]"),
        ([[1], [2, "x"]], "[1][1]"),
        ([[1], [[2]]], "[1][0]"),
        (["a"] * 2049, ""),
    ],
)
def test_refuses_prompts(operation: Operation, name: str, value: Any, where: str) -> None:
    assert refusal(operation, **{name: value}) == (Code.INVALID_PARAMETER, name + where)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"logprobs": True}, Code.INVALID_PARAMETER, "logprobs"),
        ({"logprobs": 21}, Code.INVALID_PARAMETER, "logprobs"),
        ({"top_logprobs": 1}, Code.UNSUPPORTED_PARAMETER, "top_logprobs"),
        ({"best_of": 2}, Code.UNSUPPORTED_PARAMETER, "best_of"),
        ({"echo": True}, Code.UNSUPPORTED_PARAMETER, "echo"),
        ({"suffix": "end"}, Code.UNSUPPORTED_PARAMETER, "suffix"),
        ({"messages": HI}, Code.UNSUPPORTED_PARAMETER, "messages"),
    ],
)
def test_completions_refuse(fields: dict[str, Any], code: Code, param: str) -> None:
    assert refusal(Operation.COMPLETIONS, **fields) == (code, param)


def test_completion_logprobs() -> None:
    assert read(Operation.COMPLETIONS, logprobs=0).options.top_logprobs == 0
    assert read(Operation.COMPLETIONS, logprobs=20).options.top_logprobs == 20


def test_embeddings() -> None:
    call = read(Operation.EMBEDDINGS, input=["a", [1]], encoding_format="base64", user="u")
    assert isinstance(call, EmbeddingCall)
    assert (call.inputs, call.base64) == (("a", (1,)), True)
    assert not read(Operation.EMBEDDINGS, encoding_format="float").base64
    assert refusal(Operation.EMBEDDINGS, encoding_format="hex") == (Code.INVALID_PARAMETER, "encoding_format")
    assert refusal(Operation.EMBEDDINGS, encoding_format="") == (Code.INVALID_PARAMETER, "encoding_format")
    assert refusal(Operation.EMBEDDINGS, dimensions=64) == (Code.UNSUPPORTED_PARAMETER, "dimensions")
    assert refusal(Operation.EMBEDDINGS, stream=True) == (Code.UNSUPPORTED_PARAMETER, "stream")
    assert refusal(Operation.EMBEDDINGS, temperature=1) == (Code.UNSUPPORTED_PARAMETER, "temperature")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"{}{}",
        b'{"a":1,}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b'{"a":[{"b":1,"b":2}]}',
        b'{"a":"\xff"}',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":"\\ud800"}',
        b'{"\\udc00":1}',
        b'{"a":["x","\\uDBFF!"]}',
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 100_000,
        b'{"a":' + b"9" * 5000 + b"}",
        "{}".encode("utf-16"),
        b"{'a':1}",
        b'{"a":"\t"}',
    ],
)
def test_malformed_bodies(body: bytes) -> None:
    with pytest.raises(MeshError) as caught:
        openai_json.decode(bytearray(body))
    assert caught.value.code is Code.MALFORMED_BODY
    assert caught.value.__context__ is None


def test_whole_surrogate_pairs_are_text() -> None:
    assert openai_json.decode(b'{"a":"\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_protobuf_says_the_same_as_json() -> None:
    chat = pb.ChatRequest(
        model="m",
        max_completion_tokens=5,
        temperature=0,
        top_p=0.5,
        n=2,
        seed=-1,
        logprobs=True,
        top_logprobs=3,
        stream_options=pb.StreamOptions(include_usage=True),
        messages=[pb.Message(role="user", content="Hi", name="A")],
        stop=["x"],
        user="u",
    )
    json_chat = {
        "max_completion_tokens": 5,
        "temperature": 0,
        "top_p": 0.5,
        "n": 2,
        "seed": -1,
        "logprobs": True,
        "top_logprobs": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "Hi", "name": "A"}],
        "stop": ["x"],
    }
    assert proto(Operation.CHAT, chat, stream=True) == read(Operation.CHAT, **json_chat)
    inputs = [pb.Input(text="a"), pb.Input(tokens=pb.TokenIds(ids=[1, 2]))]
    completion = pb.CompletionRequest(model="m", prompt=inputs, logprobs=0)
    assert proto(Operation.COMPLETIONS, completion) == read(Operation.COMPLETIONS, prompt=["a", [1, 2]], logprobs=0)
    embedding = pb.EmbeddingRequest(model="m", input=inputs)
    assert proto(Operation.EMBEDDINGS, embedding) == read(Operation.EMBEDDINGS, input=["a", [1, 2]])


def proto(operation: Operation, message: Any, *, stream: bool = False) -> Any:
    return read_call(operation, Parcel(operation, message.SerializeToString()).document(stream=stream))


NOT_A_NUMBER = pb.CompletionRequest(prompt=[pb.Input(text="x")], temperature=float("nan")).SerializeToString()
UNKNOWN = b"\xf8\x3f\x01"  # field 1023, a varint


@pytest.mark.parametrize(
    ("operation", "body", "code", "param"),
    [
        (Operation.CHAT, b"\xff", Code.MALFORMED_BODY, None),
        (Operation.CHAT, b"\x0a\x02\xff\xfe", Code.MALFORMED_BODY, None),
        (Operation.CHAT, UNKNOWN, Code.UNSUPPORTED_PARAMETER, None),
        (Operation.CHAT, b"\x82\x01\x03" + UNKNOWN, Code.UNSUPPORTED_PARAMETER, "messages[0]"),
        (Operation.CHAT, b"\x52\x03" + UNKNOWN, Code.UNSUPPORTED_PARAMETER, "stream_options"),
        (Operation.COMPLETIONS, b"\x82\x01\x03" + UNKNOWN, Code.UNSUPPORTED_PARAMETER, "prompt[0]"),
        (Operation.EMBEDDINGS, b"\x82\x01\x05\x12\x03" + UNKNOWN, Code.UNSUPPORTED_PARAMETER, "input[0]"),
        (Operation.EMBEDDINGS, b"\x82\x01\x00", Code.INVALID_PARAMETER, "input[0]"),
        (Operation.CHAT, b"", Code.INVALID_PARAMETER, "messages"),
        (Operation.COMPLETIONS, NOT_A_NUMBER, Code.INVALID_PARAMETER, "temperature"),
    ],
)
def test_protobuf_refuses(operation: Operation, body: bytes, code: Code, param: str | None) -> None:
    with pytest.raises(MeshError) as caught:
        read_call(operation, Parcel(operation, body).document(stream=False))
    assert caught.value.code is code
    assert caught.value.param == param
    assert caught.value.__context__ is None


def test_calls_show_nothing() -> None:
    for operation in Operation:
        call = read(operation)
        assert "Once" not in repr(call)
        assert "Hi" not in repr(call)


def test_what_engines_take_and_give_shows_nothing() -> None:
    said = Alternative("Once", b"Once", -0.5)
    logprob = TokenLogprob(said, (said,))
    sampling = Sampling(max_tokens=7, stop=("Once",))
    delta = Delta("Once", 4711, (logprob,))
    for one in (said, logprob, sampling, delta, Generation([4711], sampling)):
        assert "Once" not in repr(one)
        assert "4711" not in repr(one)
