"""Every refusal of the HTTP door that can be caused from outside: its status, type, code, path, headers; never a value of ours."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import httpx2
import pytest
from e2e.live import CHAT, ELSEWHERE, EMBEDDING, VN, Answer, Json, Mesh, messages, shown, wait_until

from mesh.errors import TABLE, Code, Retry

pytestmark = pytest.mark.mesh
SECRET = "zqvx7hunter2kj"
"""Stands wherever a client could have put something; must come back nowhere."""


def chat(**fields: object) -> Json:
    return {"model": CHAT, "messages": messages(SECRET), "max_tokens": 4} | fields


def completion(**fields: object) -> Json:
    return {"model": CHAT, "prompt": SECRET, "max_tokens": 4} | fields


def embedding(**fields: object) -> Json:
    return {"model": EMBEDDING, "input": SECRET} | fields


def nested(depth: int) -> bytes:
    return b'{"model": "x", "messages": ' + b"[" * depth + b"]" * depth + b"}"


@dataclass(frozen=True)
class Case:
    name: str
    code: Code
    body: Json | bytes = field(default_factory=chat)
    param: str | None = None
    path: str = "/v1/chat/completions"
    headers: Mapping[str, str] = field(default_factory=dict)


_UNSUPPORTED, _INVALID = Code.UNSUPPORTED_PARAMETER, Code.INVALID_PARAMETER
_COMPLETIONS, _EMBEDDINGS = "/v1/completions", "/v1/embeddings"
CASES = [
    Case("not JSON", Code.MALFORMED_BODY, SECRET.encode()),
    Case("cut JSON", Code.MALFORMED_BODY, json.dumps(chat()).encode()[:-3]),
    Case("empty", Code.MALFORMED_BODY, b""),
    Case("a list", Code.MALFORMED_BODY, b"[1]"),
    Case("not UTF-8", Code.MALFORMED_BODY, json.dumps(chat()).encode().replace(SECRET.encode(), b"\xff\xfe")),
    Case("too deep", Code.MALFORMED_BODY, nested(100_000)),
    Case("two objects", Code.MALFORMED_BODY, json.dumps(chat()).encode() + b"{}"),
    Case("unknown field", _UNSUPPORTED, chat(shiny=SECRET), "shiny"),
    Case("a field that is a secret", _UNSUPPORTED, chat(**{f"my {SECRET}": 1}), "?"),
    Case(
        "unknown field of a message",
        _UNSUPPORTED,
        chat(messages=[*messages(SECRET), {"role": "user", "content": "x", "foo": SECRET}]),
        "messages[1].foo",
    ),
    Case(
        "unknown field of stream options",
        _UNSUPPORTED,
        chat(stream=True, stream_options={"foo": SECRET}),
        "stream_options.foo",
    ),
    Case("penalty", _UNSUPPORTED, chat(frequency_penalty=0.5), "frequency_penalty"),
    Case("store", _UNSUPPORTED, chat(store=True), "store"),
    Case("JSON mode", _UNSUPPORTED, chat(response_format={"type": "json_object"}), "response_format"),
    Case("tools", _UNSUPPORTED, chat(tools=[{"type": "function", "function": {"name": SECRET}}]), "tools"),
    Case("suffix", _UNSUPPORTED, completion(suffix=SECRET), "suffix", _COMPLETIONS),
    Case("dimensions", _UNSUPPORTED, embedding(dimensions=3), "dimensions", _EMBEDDINGS),
    Case("temperature", _INVALID, chat(temperature=2.1), "temperature"),
    Case("temperature as text", _INVALID, chat(temperature=SECRET), "temperature"),
    Case("top_p", _INVALID, chat(top_p=0), "top_p"),
    Case("n", _INVALID, chat(n=9), "n"),
    Case("n of zero", _INVALID, chat(n=0), "n"),
    Case("both limits", _INVALID, chat(max_completion_tokens=3), "max_tokens"),
    Case("max_tokens", _INVALID, chat(max_tokens=0), "max_tokens"),
    Case("five stops", _INVALID, chat(stop=[SECRET] * 5), "stop"),
    Case("stop of numbers", _INVALID, chat(stop=[1]), "stop[0]"),
    Case("seed", _INVALID, chat(seed=2**70), "seed"),
    Case("top_logprobs", _INVALID, chat(logprobs=True, top_logprobs=21), "top_logprobs"),
    Case("top_logprobs alone", _INVALID, chat(top_logprobs=2), "top_logprobs"),
    Case("stream options alone", _INVALID, chat(stream_options={"include_usage": True}), "stream_options"),
    Case("stream as text", _INVALID, chat(stream="yes"), "stream"),
    Case("no messages", _INVALID, chat(messages=[]), "messages"),
    Case("a role", _INVALID, chat(messages=[{"role": SECRET, "content": "x"}]), "messages[0].role"),
    Case(
        "a picture",
        _INVALID,
        chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
        "messages[0].content[0].type",
    ),
    Case("no model", _INVALID, {"messages": messages(SECRET)}, "model"),
    Case("model as a number", _INVALID, chat(model=3), "model"),
    Case("no prompt", _INVALID, {"model": CHAT}, "prompt", _COMPLETIONS),
    Case("an empty prompt", _INVALID, completion(prompt=""), "prompt", _COMPLETIONS),
    Case("a token id", _INVALID, completion(prompt=[1, -2]), "prompt[1]", _COMPLETIONS),
    Case("a token id out of the vocabulary", _INVALID, completion(prompt=[10**9]), "prompt[0]", _COMPLETIONS),
    Case("legacy logprobs", _INVALID, completion(logprobs=21), "logprobs", _COMPLETIONS),
    Case("encoding", _INVALID, embedding(encoding_format=SECRET), "encoding_format", _EMBEDDINGS),
    Case("a deadline", _INVALID, chat(), "mesh-timeout-ms", headers={"mesh-timeout-ms": SECRET}),
    Case("a deadline that is too long", _INVALID, chat(), "mesh-timeout-ms", headers={"mesh-timeout-ms": "300001"}),
    Case("the context", Code.CONTEXT_LENGTH_EXCEEDED, chat(messages=messages(f"{SECRET} " * 3000)), "messages"),
    Case("the context with max_tokens", Code.CONTEXT_LENGTH_EXCEEDED, chat(max_tokens=2048), "messages"),
    Case(
        "the context of embeddings",
        Code.CONTEXT_LENGTH_EXCEEDED,
        embedding(input=f"{SECRET} " * 3000),
        "input",
        _EMBEDDINGS,
    ),
    Case("embeddings of a chat model", Code.UNSUPPORTED_OPERATION, embedding(model=CHAT), "model", _EMBEDDINGS),
    Case("chat of an embedding model", Code.UNSUPPORTED_OPERATION, chat(model=EMBEDDING), "model"),
    Case(
        "completions of an embedding model",
        Code.UNSUPPORTED_OPERATION,
        completion(model=EMBEDDING),
        "model",
        _COMPLETIONS,
    ),
    Case("a model that nobody has", Code.MODEL_NOT_FOUND, chat(model=SECRET), "model"),
    Case("a model that may not serve this", Code.MODEL_NOT_FOUND, chat(model=ELSEWHERE), "model"),
    Case("a form", Code.UNSUPPORTED_MEDIA_TYPE, headers={"content-type": "application/x-www-form-urlencoded"}),
    Case("compressed", Code.UNSUPPORTED_MEDIA_TYPE, headers={"content-encoding": "gzip"}),
    Case("another expectation", Code.EXPECTATION_FAILED, headers={"expect": f"{SECRET}"}),
    Case("large headers", Code.HEADERS_TOO_LARGE, headers={"x-much": SECRET * 3000}),
    Case("a path", Code.NOT_FOUND, path=f"/v1/{SECRET}"),
    Case(
        "a deadline that passes", Code.DEADLINE_EXCEEDED, chat(n=4, max_tokens=800), headers={"mesh-timeout-ms": "500"}
    ),
]


def check(answer: Answer, code: Code, param: str | None = None) -> None:
    """An error as contract section 3 has it."""
    row = TABLE[code]
    assert answer.status == row.http, answer.raw[:2000]
    error = answer.error
    assert (error["code"], error["type"]) == (code, row.type)
    assert error["param"] == param
    assert error["message"].startswith(row.message)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert (answer.headers.get("x-should-retry") == "false") == (row.retry in {Retry.NO, Retry.ELSEWHERE})
    assert ("retry-after" in answer.headers) == (row.retry is Retry.LATER)
    assert SECRET.encode() not in answer.raw
    assert SECRET.encode().hex().encode() not in answer.raw


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refusals(mesh: Mesh, acme: str, case: Case) -> None:
    answer = mesh.post(
        VN,
        case.path,
        case.body,
        acme,
        {"x-request-id": SECRET, "traceparent": SECRET, "tracestate": SECRET} | dict(case.headers),
    )
    check(answer, case.code, case.param)


@pytest.mark.parametrize(
    "key",
    [None, SECRET, f"mk_vn_{SECRET}", "mk_vn_" + "A" * 12 + "_" + "B" * 42],
    ids=["none", "foreign", "half", "forged"],
)
def test_keys_that_open_nothing(mesh: Mesh, key: str | None) -> None:
    for path in ("/v1/chat/completions", "/v1/models", f"/{SECRET}"):
        check(mesh.post(VN, path, chat(), key), Code.INVALID_API_KEY)


def test_a_key_with_another_secret_or_tag_is_refused(mesh: Mesh, acme: str) -> None:
    for at in (-1, -20, 8):
        other = acme[:at] + ("A" if acme[at] != "A" else "B") + (acme[at + 1 :] if at != -1 else "")
        assert len(other) == len(acme)
        check(mesh.get(VN, "/v1/models", other), Code.INVALID_API_KEY)


def test_methods(mesh: Mesh, acme: str) -> None:
    for method, path, allowed in [
        ("GET", "/v1/chat/completions", {"POST"}),
        ("DELETE", "/v1/embeddings", {"POST"}),
        ("POST", "/v1/models", {"GET", "HEAD"}),
        ("DELETE", f"/v1/models/{CHAT}", {"GET", "HEAD"}),
        ("PUT", "/openapi.json", {"GET", "HEAD"}),
        ("PUT", "/v1/route", {"GET", "HEAD"}),
    ]:
        answer = mesh.get(VN, path, acme, method)
        check(answer, Code.METHOD_NOT_ALLOWED)
        assert set(answer.headers["allow"].split(", ")) == allowed


def test_unknown_query_parameters(mesh: Mesh, acme: str) -> None:
    check(mesh.get(VN, f"/v1/models?shiny={SECRET}", acme), Code.UNSUPPORTED_PARAMETER, "shiny")


def test_duplicate_keys_are_refused(mesh: Mesh, acme: str) -> None:
    body = json.dumps(chat()).encode()[:-1] + b', "max_tokens": 5}'
    answer = mesh.post(VN, "/v1/chat/completions", body, acme)
    assert answer.status == 400
    assert answer.error["code"] in {Code.MALFORMED_BODY, Code.INVALID_PARAMETER}
    body = json.dumps(chat()).encode()[:-1] + f', "model": "{ELSEWHERE}"}}'.encode()
    assert mesh.post(VN, "/v1/chat/completions", body, acme).status in {400, 404}


def _head(path: str, key: str, *lines: str) -> bytes:
    fixed = [f"POST {path} HTTP/1.1", "Host: mesh", f"Authorization: Bearer {key}", "Content-Type: application/json"]
    return "\r\n".join([*fixed, *lines, "", ""]).encode()


def test_too_large_is_known_from_the_length_before_any_body(mesh: Mesh, acme: str) -> None:
    with mesh.wire(VN) as wire:
        wire.send(_head("/v1/chat/completions", acme, f"Content-Length: {8 * 1024 * 1024 + 1}"))
        check(wire.read(), Code.REQUEST_TOO_LARGE)


def test_too_large_in_chunks(mesh: Mesh, acme: str) -> None:
    # Not a byte more than the one chunk over the limit: what is sent ahead of the answer beyond 256 KiB may meet a reset.
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with mesh.wire(VN) as wire:
        wire.send(_head("/v1/chat/completions", acme, "Transfer-Encoding: chunked"))
        for _ in range(8 * 16):
            wire.send(chunk)
        assert not wire.has_answer()
        wire.send(chunk)
        check(wire.read(), Code.REQUEST_TOO_LARGE)


@pytest.mark.parametrize(
    "request_",
    [
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: mesh\r\nBad Header: 1\r\n\r\n",
        b"POST /v1/models HTTP/1.1\r\nHost: mesh\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /v1/models HTTP/1.1\r\nHost: mesh\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /v1/models HTTP/1.1\r\nHost: mesh\r\nContent-Length: -3\r\n\r\n",
        b"GET /" + SECRET.encode() + b" HTTP/1.1\r\nHost: mesh\r\nX: \x00\r\n\r\n",
    ],
    ids=["no HTTP", "bad header", "two framings", "two lengths", "negative", "NUL"],
)
def test_malformed_requests(mesh: Mesh, request_: bytes) -> None:
    with mesh.wire(VN) as wire:
        wire.send(request_)
        check(wire.read(), Code.MALFORMED_REQUEST)


def test_a_connection_serves_several_requests_in_order(mesh: Mesh, acme: str) -> None:
    request = f"GET /v1/models HTTP/1.1\r\nHost: mesh\r\nAuthorization: Bearer {acme}\r\n\r\n".encode()
    with mesh.wire(VN) as wire:
        wire.send(request + b"GET /livez HTTP/1.1\r\nHost: mesh\r\n\r\n" + request)
        first, second, third = wire.read(), wire.read(), wire.read()
    assert (first.status, second.status, third.status) == (200, 200, 200)
    assert first.body == third.body
    assert first.headers["x-request-id"] != third.headers["x-request-id"]


def test_nothing_free_is_said_and_passes(mesh: Mesh, acme: str) -> None:
    """Four slots and a queue of 64: streams of eight answers each fill them; whoever comes later waits for nothing."""
    body = chat(messages=messages("Count from one to a thousand in words."), n=8, max_tokens=200, stream=True)
    url, headers = mesh.place(VN)["http"] + "/v1/chat/completions", {"authorization": f"Bearer {acme}"}
    refused: list[Answer] = []
    with ExitStack() as stack:

        def full() -> bool:
            http = stack.enter_context(httpx2.Client(verify=mesh.trust(), timeout=None))
            inner = ExitStack()
            holder = threading.Thread(target=hold, args=(http, inner))
            holder.start()
            stack.callback(holder.join)
            stack.callback(leave.set)
            return bool(refused)

        leave = threading.Event()

        def hold(http: httpx2.Client, inner: ExitStack) -> None:
            with inner:
                try:
                    with http.stream("POST", url, json=body, headers=headers) as answer:
                        if answer.status_code != 200:
                            answer.read()
                            refused.append(shown(answer))
                            return
                        for _ in answer.iter_raw():
                            if leave.is_set():
                                return
                except httpx2.TransportError:
                    return

        wait_until(full, "the queue is full", deadline_s=60)
        leave.set()
    check(refused[0], Code.NO_CAPACITY)
    wait_until(
        lambda: mesh.replica(VN)["running"] + mesh.replica(VN)["queued"] == 0, "all slots are free", deadline_s=30
    )
    assert mesh.post(VN, "/v1/chat/completions", chat(), acme).status == 200
