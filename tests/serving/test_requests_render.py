"""Answers as the official client reads them, and as the protos say."""

from __future__ import annotations

import base64
import json
import math
import struct
from typing import Any

import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from mesh.serving import render_json, render_protobuf
from mesh.serving.answers import AnswerLine, Choice
from mesh.serving.engine import Alternative, Delta, FinishReason, TokenLogprob
from mesh.types import Usage
from mesh.v1 import inference_pb2 as pb

LINE = AnswerLine(id="chatcmpl-1", created_s=1_700_000_000, model="m")
USED = Usage(3, 2)
TOKENS = (
    TokenLogprob(
        Alternative("Xin", b"Xin", -0.5), (Alternative("Xin", b"Xin", -0.5), Alternative("\ufffd", b"\xe1", -1.5))
    ),
    TokenLogprob(Alternative("\ufffd", b"\xe1\xbb", -math.inf), (Alternative(" a", b" a", -0.25),)),
)
CHOICES = [
    Choice(text="Xin\ufffd", logprobs=TOKENS, finish=FinishReason.STOP),
    Choice(text="", logprobs=(), finish=FinishReason.LENGTH),
]


def events(payloads: list[bytes]) -> list[Any]:
    found: list[Any] = []
    for event in b"".join(payloads).decode().split("\n\n"):
        if event:
            data = event.removeprefix("data: ")
            found.append(data if data == "[DONE]" else json.loads(data))
    return found


def test_chat_whole() -> None:
    body = render_json.JsonChat(LINE, logprobs=True, include_usage=False).whole(CHOICES, USED)
    answer = ChatCompletion.model_validate_json(body)
    assert (answer.id, answer.object, answer.created, answer.model) == (
        "chatcmpl-1",
        "chat.completion",
        1_700_000_000,
        "m",
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "length"]
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == "Xin\ufffd"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 2, 5)
    assert answer.choices[0].logprobs is not None
    first, second = answer.choices[0].logprobs.content or []
    assert (first.token, first.bytes, first.logprob) == ("Xin", list(b"Xin"), -0.5)
    assert [top.bytes for top in first.top_logprobs] == [list(b"Xin"), [0xE1]]
    assert second.logprob == -9999.0
    assert answer.choices[1].logprobs is not None
    assert answer.choices[1].logprobs.content == []


def test_chat_whole_without_logprobs() -> None:
    body = render_json.JsonChat(LINE, logprobs=False, include_usage=False).whole(CHOICES[1:], USED)
    assert json.loads(body)["choices"][0]["logprobs"] is None


def test_chat_stream() -> None:
    renderer = render_json.JsonChat(LINE, logprobs=True, include_usage=True)
    payloads = renderer.delta(1, Delta("Xin", 1, TOKENS[:1]))
    payloads += renderer.delta(0, Delta("", 1))
    payloads += renderer.delta(0, Delta("", 2))  # nothing to show
    payloads += renderer.delta(1, Delta(" chào", 2, (), FinishReason.STOP))
    payloads += renderer.close(USED)
    *chunks, done = events(payloads)
    assert done == "[DONE]"
    parsed = [ChatCompletionChunk.model_validate(chunk) for chunk in chunks]
    assert all(chunk.object == "chat.completion.chunk" and chunk.id == "chatcmpl-1" for chunk in parsed)
    seen = [
        (c.choices[0].index, c.choices[0].delta.role, c.choices[0].delta.content, c.choices[0].finish_reason)
        for c in parsed[:-1]
    ]
    assert seen == [
        (1, "assistant", "", None),
        (1, None, "Xin", None),
        (0, "assistant", "", None),
        (1, None, " chào", None),
        (1, None, None, "stop"),
    ]
    assert parsed[1].choices[0].logprobs is not None
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert parsed[-1].choices == []
    assert parsed[-1].usage is not None
    assert parsed[-1].usage.total_tokens == 5


def test_chat_stream_without_usage_has_no_such_field() -> None:
    renderer = render_json.JsonChat(LINE, logprobs=False, include_usage=False)
    *chunks, done = events(renderer.delta(0, Delta("a", 1, (), FinishReason.STOP)) + renderer.close(USED))
    assert done == "[DONE]"
    assert all("usage" not in chunk for chunk in chunks)


def test_completion_whole() -> None:
    body = render_json.JsonCompletion(LINE, logprobs=True, include_usage=False).whole(CHOICES, USED)
    answer = Completion.model_validate_json(body)
    assert answer.object == "text_completion"
    assert [choice.text for choice in answer.choices] == ["Xin\ufffd", ""]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["Xin", "bytes:\\xe1\\xbb"]
    assert logprobs.token_logprobs == [-0.5, -9999.0]
    assert logprobs.text_offset == [0, 3]
    # The chosen token is always among them; parts of characters keep names of their own.
    assert logprobs.top_logprobs == [{"Xin": -0.5, "bytes:\\xe1": -1.5}, {" a": -0.25, "bytes:\\xe1\\xbb": -9999.0}]


def test_completion_stream() -> None:
    renderer = render_json.JsonCompletion(LINE, logprobs=True, include_usage=True)
    payloads = renderer.delta(0, Delta("", 1))
    assert payloads == []
    payloads += renderer.delta(0, Delta("Xin", 1, TOKENS[:1]))
    payloads += renderer.delta(3, Delta("other", 1, TOKENS[:1]))
    payloads += renderer.delta(0, Delta("\ufffd", 2, TOKENS[1:], FinishReason.LENGTH))
    *chunks, last, done = events(payloads + renderer.close(USED))
    assert done == "[DONE]"
    assert [(c["choices"][0]["index"], c["choices"][0]["text"], c["choices"][0]["finish_reason"]) for c in chunks] == [
        (0, "Xin", None),
        (3, "other", None),
        (0, "\ufffd", "length"),
    ]
    assert [c["choices"][0]["logprobs"]["text_offset"] for c in chunks] == [[0], [0], [3]]
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 5)


def test_text_offsets_are_places_in_the_text() -> None:
    """A character of several tokens is one character of the text, however its tokens come."""
    pieces = "a 😀b".encode()
    tokens = tuple(
        TokenLogprob(Alternative(piece.decode(errors="replace"), piece, -1.0), ())
        for piece in (b"a ", pieces[2:4], pieces[4:5], pieces[5:6], b"b")
    )
    expected = [0, 2, 2, 2, 3]
    whole = Choice(text=pieces.decode(), logprobs=tokens, finish=FinishReason.STOP)
    body = render_json.JsonCompletion(LINE, logprobs=True, include_usage=False).whole([whole], USED)
    assert json.loads(body)["choices"][0]["logprobs"]["text_offset"] == expected
    renderer = render_json.JsonCompletion(LINE, logprobs=True, include_usage=False)
    payloads = renderer.delta(0, Delta("a ", 1, tokens[:2])) + renderer.delta(0, Delta("😀b", 5, tokens[2:]))
    found = [at for chunk in events(payloads) for at in chunk["choices"][0]["logprobs"]["text_offset"]]
    assert found == expected


@pytest.mark.parametrize("as_base64", [False, True])
def test_embeddings(as_base64: bool) -> None:
    vectors = [[0.5, -0.25], [1.0, 0.0]]
    body = render_json.render_embeddings("m", vectors, Usage(7, 0), as_base64=as_base64)
    answer = json.loads(body)
    if as_base64:
        for row in answer["data"]:
            row["embedding"] = list(struct.unpack("<2f", base64.b64decode(row["embedding"])))
    parsed = CreateEmbeddingResponse.model_validate(answer)
    assert (parsed.object, parsed.model) == ("list", "m")
    assert [(row.object, row.index, row.embedding) for row in parsed.data] == [
        ("embedding", 0, [0.5, -0.25]),
        ("embedding", 1, [1.0, 0.0]),
    ]
    assert (parsed.usage.prompt_tokens, parsed.usage.total_tokens) == (7, 7)


def test_protobuf_chat() -> None:
    renderer = render_protobuf.ProtobufChat(LINE, include_usage=True)
    answer = pb.ChatResponse.FromString(renderer.whole(CHOICES, USED))
    assert [(choice.index, choice.message.content, choice.finish_reason) for choice in answer.choices] == [
        (0, "Xin\ufffd", "stop"),
        (1, "", "length"),
    ]
    assert answer.choices[0].logprobs[0].top_logprobs[1].bytes == b"\xe1"
    assert answer.choices[0].logprobs[1].logprob == -9999.0
    assert answer.usage.total_tokens == 5
    payloads = renderer.delta(1, Delta("", 1)) + renderer.delta(1, Delta("", 2))
    payloads += renderer.delta(1, Delta("a", 3, (), FinishReason.STOP)) + renderer.close(USED)
    chunks = [pb.ChatChunk.FromString(payload) for payload in payloads]
    assert [(d.index, d.role, d.content, d.finish_reason) for c in chunks for d in c.choices] == [
        (1, "assistant", "", ""),
        (1, "", "a", "stop"),
    ]
    assert [c.HasField("usage") for c in chunks] == [False, False, True]
    assert render_protobuf.ProtobufChat(LINE, include_usage=False).close(USED) == []


def test_protobuf_completion_and_embeddings() -> None:
    renderer = render_protobuf.ProtobufCompletion(LINE, include_usage=False)
    answer = pb.CompletionResponse.FromString(renderer.whole(CHOICES, USED))
    assert [(c.index, c.text, c.finish_reason) for c in answer.choices] == [(0, "Xin\ufffd", "stop"), (1, "", "length")]
    assert renderer.delta(0, Delta("", 1)) == []
    (chunk,) = [pb.CompletionChunk.FromString(p) for p in renderer.delta(2, Delta("a", 1))]
    assert (chunk.choices[0].index, chunk.choices[0].text, chunk.choices[0].HasField("finish_reason")) == (
        2,
        "a",
        False,
    )
    vectors = pb.EmbeddingResponse.FromString(render_protobuf.render_embeddings("m", [[0.5, 1.0]], Usage(2, 0)))
    assert list(vectors.data[0].embedding) == [0.5, 1.0]
    assert vectors.usage.prompt_tokens == 2
