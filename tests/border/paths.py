"""Every way that content takes through the mesh: how a prompt is sent on it, and how such a call must end.

A path is a function that sends one canary and tells how the call ended: an HTTP status, a gRPC code, or a word. Answers
that are no success must not say anything of the prompt; `sent` sees to that for each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from border.calls import Answer, Rpc, head
from border.canary import Canary, Encode
from border.countries import EMBEDDING, Countries, Tenant
from border.places import MAX_BODY_BYTES
from google.protobuf.message import Message

from mesh.v1 import inference_pb2 as pb

CHAT_PATH, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
SOME_TOKENS, MANY_TOKENS = 2, 900


@dataclass(frozen=True)
class Asker:
    """Who asks, where, and for which model. `encode`: the chat model's tokenizer."""

    countries: Countries
    tenant: Tenant
    country: str
    model: str
    encode: Encode


Send = Callable[[Asker, Canary], str]
"""Sends one canary; tells how the call ended."""


class EchoError(AssertionError):
    """An answer that is no success says something of what was sent."""


def outcome(answer: Answer | Rpc, canary: Canary) -> str:
    """How a call ended; a refusal must be silent about the content."""
    if isinstance(answer, Answer):
        ended, said, good = str(answer.status), answer.raw, answer.status == 200
    else:
        ended, said, good = answer.code, answer.text.encode(), answer.code == "OK"
    if not good and canary.shows_in(said):
        raise EchoError(f"an answer {ended} holds what was sent")
    return ended


# What is sent.


def chat_body(asker: Asker, text: str, **more: object) -> dict[str, object]:
    """A conversation of one turn."""
    return {"model": asker.model, "messages": [{"role": "user", "content": text}], "max_tokens": SOME_TOKENS} | more


def chat_request(asker: Asker, text: str, **more: object) -> pb.ChatRequest:
    """The same for gRPC."""
    options: dict[str, object] = {"max_tokens": SOME_TOKENS} | more
    return pb.ChatRequest(model=asker.model, messages=[pb.Message(role="user", content=text)], **options)  # pyright: ignore[reportArgumentType]


def _post(path: str, make: Callable[[Asker, Canary], bytes | Mapping[str, object]]) -> Send:
    def send(asker: Asker, canary: Canary) -> str:
        return outcome(asker.countries.post(asker.country, path, make(asker, canary), asker.tenant.key), canary)

    return send


def _call(method: str, *make: Callable[[Asker, Canary], Message], **more: object) -> Send:
    def send(asker: Asker, canary: Canary) -> str:
        requests = [one(asker, canary) for one in make]
        answer = asker.countries.door(asker.country, f"Inference/{method}", *requests, key=asker.tenant.key, **more)
        return outcome(answer, canary)

    return send


def _completion(asker: Asker, canary: Canary) -> pb.CompletionRequest:
    return pb.CompletionRequest(model=asker.model, max_tokens=SOME_TOKENS, prompt=[pb.Input(text=canary.text)])


def _facts(asker: Asker, _: Canary) -> pb.AdmitChatRequest:
    return pb.AdmitChatRequest(facts=pb.ChatFacts(model=asker.model))


def _content(asker: Asker, canary: Canary) -> pb.AdmitChatRequest:
    return pb.AdmitChatRequest(content=chat_request(asker, canary.text))


def _ids(asker: Asker, canary: Canary) -> dict[str, object]:
    return {"model": asker.model, "prompt": list(asker.encode(canary.text)), "max_tokens": SOME_TOKENS}


def _texts(asker: Asker, canary: Canary, **more: object) -> dict[str, object]:
    return {"model": asker.model, "prompt": canary.text, "max_tokens": SOME_TOKENS} | more


SERVED: Mapping[str, Send] = {
    "HTTP chat": _post(CHAT_PATH, lambda a, c: chat_body(a, c.text)),
    "HTTP chat, stream": _post(CHAT_PATH, lambda a, c: chat_body(a, c.text, stream=True)),
    "HTTP completions": _post(COMPLETIONS, _texts),
    "HTTP completions, stream": _post(COMPLETIONS, lambda a, c: _texts(a, c, stream=True)),
    "HTTP completions, token ids": _post(COMPLETIONS, _ids),
    "gRPC Chat": _call("Chat", lambda a, c: chat_request(a, c.text)),
    "gRPC ChatStream": _call("ChatStream", lambda a, c: chat_request(a, c.text)),
    "gRPC Complete": _call("Complete", _completion),
    "gRPC CompleteStream": _call("CompleteStream", _completion),
    "gRPC AdmitChat": _call("AdmitChat", _facts, _content, turns=True),
}
"""Answered by a model: 200 or OK."""

EMBEDDED: Mapping[str, Send] = {
    "HTTP embeddings": _post(EMBEDDINGS, lambda _, c: {"model": EMBEDDING, "input": c.text}),
    "gRPC Embed": _call("Embed", lambda _, c: pb.EmbeddingRequest(model=EMBEDDING, input=[pb.Input(text=c.text)])),
}


# Calls that end otherwise.


def wrong_key(asker: Asker, canary: Canary) -> str:
    """The content is the key."""
    key = quote(canary.text)
    answer = asker.countries.post(asker.country, CHAT_PATH, chat_body(asker, canary.text), key)
    return outcome(answer, canary)


def wrong_key_grpc(asker: Asker, canary: Canary) -> str:
    """The same on the other door."""
    request = chat_request(asker, canary.text)
    return outcome(asker.countries.door(asker.country, "Inference/Chat", request, key=quote(canary.text)), canary)


def everywhere_in_the_head(asker: Asker, canary: Canary) -> str:
    """Path, query and headers hold the content."""
    text = quote(canary.text)
    lines = [f"x-request-id: {text}", f"traceparent: {text}", f"tracestate: {text}", f"user-agent: {text}"]
    data = json.dumps(chat_body(asker, canary.text)).encode()
    with asker.countries.wire(asker.country) as wire:
        wire.send(head(f"/v1/{text}?{text}={text}", asker.tenant.key, len(data), *lines) + data)
        return outcome(wire.answer(), canary)


def too_large(asker: Asker, canary: Canary) -> str:
    """Content at both ends of more than the door takes."""
    filler = "x" * (MAX_BODY_BYTES + 4096)
    body = chat_body(asker, f"{canary.text} {filler} {canary.text}")
    return outcome(asker.countries.post(asker.country, CHAT_PATH, body, asker.tenant.key), canary)


def too_large_in_chunks(asker: Asker, canary: Canary) -> str:
    """The same without a length told beforehand."""
    data = json.dumps(chat_body(asker, f"{canary.text} {'x' * (MAX_BODY_BYTES + 4096)} {canary.text}")).encode()
    asked = head(CHAT_PATH, asker.tenant.key, 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    with asker.countries.wire(asker.country) as wire:
        wire.send(asked + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in _parts(data, 32_768)) + b"0\r\n\r\n")
        return outcome(wire.answer(), canary)


def too_large_grpc(asker: Asker, canary: Canary) -> str:
    """The same on the other door."""
    request = chat_request(asker, f"{canary.text} {'x' * (MAX_BODY_BYTES + 4096)} {canary.text}")
    answer = asker.countries.door(asker.country, "Inference/Chat", request, key=asker.tenant.key)
    return outcome(answer, canary)


def hang_up_in_the_body(asker: Asker, canary: Canary) -> str:
    """The client goes away with half of its content sent."""
    data = json.dumps(chat_body(asker, canary.text + " and so on" * 2000), ensure_ascii=False).encode()
    with asker.countries.wire(asker.country) as wire:
        wire.send(head(CHAT_PATH, asker.tenant.key, len(data)) + data[: len(data) // 2])
        wire.hang_up()
    return "hung up"


def hang_up_in_the_answer(asker: Asker, canary: Canary) -> str:
    """The client goes away while the model answers."""
    data = json.dumps(chat_body(asker, canary.text, stream=True, max_tokens=MANY_TOKENS), ensure_ascii=False).encode()
    with asker.countries.wire(asker.country) as wire:
        wire.send(head(CHAT_PATH, asker.tenant.key, len(data)) + data)
        if not wire.read_until(b"data: "):
            return "no stream"
        wire.hang_up()
    return "hung up"


def hang_up_grpc(asker: Asker, canary: Canary) -> str:
    """The same on the other door."""
    request = chat_request(asker, canary.text, max_tokens=MANY_TOKENS)
    answer = asker.countries.door(asker.country, "Inference/ChatStream", request, key=asker.tenant.key, stop_after=1)
    return "hung up" if answer.code == "CANCELLED" and answer.messages else answer.code


def _cut_short(asker: Asker, canary: Canary) -> bytes:
    return json.dumps(chat_body(asker, canary.text), ensure_ascii=False).encode()[:-20]


def _not_utf8(asker: Asker, canary: Canary) -> bytes:
    return json.dumps(chat_body(asker, canary.text), ensure_ascii=False).encode() + b"\xff"


def _in_every_field(asker: Asker, canary: Canary) -> dict[str, object]:
    return chat_body(asker, canary.text, temperature=canary.text, stop=canary.text, user=canary.text)


ERRORS: Mapping[str, tuple[Send, str]] = {
    "401, HTTP": (wrong_key, "401"),
    "401, gRPC": (wrong_key_grpc, "UNAUTHENTICATED"),
    "404, path and headers": (everywhere_in_the_head, "404"),
    "404, model": (_post(CHAT_PATH, lambda a, c: chat_body(a, c.text) | {"model": c.text}), "404"),
    "404, model, gRPC": (_call("Chat", lambda a, c: pb.ChatRequest(model=c.text)), "NOT_FOUND"),
    "413, told beforehand": (too_large, "413"),
    "413, in chunks": (too_large_in_chunks, "413"),
    "413, gRPC": (too_large_grpc, "INVALID_ARGUMENT"),
    "400, JSON cut short": (_post(CHAT_PATH, _cut_short), "400"),
    "400, not UTF-8": (_post(CHAT_PATH, _not_utf8), "400"),
    "400, unsupported parameter": (_post(CHAT_PATH, lambda a, c: chat_body(a, c.text) | {c.text: c.text}), "400"),
    "400, invalid parameter": (_post(CHAT_PATH, _in_every_field), "400"),
    "400, context too long": (_post(CHAT_PATH, lambda a, c: chat_body(a, f"{c.text} " * 100)), "400"),
    "400, context too long, gRPC": (
        _call("Chat", lambda a, c: chat_request(a, f"{c.text} " * 100)),
        "INVALID_ARGUMENT",
    ),
    "client hangs up in its request": (hang_up_in_the_body, "hung up"),
    "client hangs up in the answer": (hang_up_in_the_answer, "hung up"),
    "client hangs up in the answer, gRPC": (hang_up_grpc, "hung up"),
}
"""Refused, or ended by the client, in a country that may serve: how each call must end."""

WRONG_COUNTRY: Mapping[str, tuple[Send, str]] = {
    "451, HTTP": (SERVED["HTTP chat"], "451"),
    "451, HTTP completions": (SERVED["HTTP completions"], "451"),
    "451, HTTP embeddings": (EMBEDDED["HTTP embeddings"], "451"),
    "451, gRPC Chat": (SERVED["gRPC Chat"], "FAILED_PRECONDITION"),
    "451, gRPC AdmitChat": (SERVED["gRPC AdmitChat"], "FAILED_PRECONDITION"),
    "451, too large": (too_large, "451"),
}
"""In a country outside the tenant's pin."""

SUSPENDED: Mapping[str, tuple[Send, str]] = {
    "403, HTTP": (SERVED["HTTP chat"], "403"),
    "403, gRPC": (SERVED["gRPC Chat"], "PERMISSION_DENIED"),
}

NO_CAPACITY: Mapping[str, tuple[Send, str]] = {
    "503, HTTP": (SERVED["HTTP chat"], "503"),
    "503, gRPC": (SERVED["gRPC Chat"], "UNAVAILABLE"),
}
"""Where the only replica has just died."""


def killed_in_mid_stream(asker: Asker, canary: Canary, kill: Callable[[], None]) -> str:
    """The replica dies while it answers: the stream ends with an error, and says no more."""
    data = json.dumps(chat_body(asker, canary.text, stream=True, max_tokens=MANY_TOKENS), ensure_ascii=False).encode()
    with asker.countries.wire(asker.country) as wire:
        wire.send(head(CHAT_PATH, asker.tenant.key, len(data)) + data)
        if not wire.read_until(b'"content":"'):
            return "no stream"
        kill()
        wire.answer()
        if b"[DONE]" in wire.held:
            return "came to its end"
        return "failed in mid-stream" if b'"code":"replica_failed"' in wire.held else "cut without a word"


def _parts(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]
