"""Answers as OpenAI JSON and as server-sent events."""

from __future__ import annotations

import base64
import codecs
import struct
from collections.abc import Sequence

import msgspec

from mesh.serving.answers import AnswerLine, Choice, finite, with_chosen
from mesh.serving.engine import Alternative, Delta, TokenLogprob
from mesh.types import Usage

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode
_Json = dict[str, object]


class JsonChat:
    """`chat.completion` and `chat.completion.chunk`."""

    def __init__(self, line: AnswerLine, *, logprobs: bool, include_usage: bool) -> None:
        self._line = line
        self._logprobs = logprobs
        self._include_usage = include_usage
        self._begun: set[int] = set()

    def delta(self, index: int, delta: Delta) -> list[bytes]:
        """The role first, then text, then the reason for the end, each in a chunk of its own."""
        events: list[bytes] = []
        if index not in self._begun:
            self._begun.add(index)
            events.append(self._event(index, {"role": "assistant", "content": "", "refusal": None}, ()))
        if delta.text or delta.logprobs:
            events.append(self._event(index, {"content": delta.text}, delta.logprobs))
        if delta.finish:
            events.append(self._event(index, {}, (), delta.finish))
        return [b"".join(events)] if events else []

    def close(self, usage: Usage) -> list[bytes]:
        """The usage, if it was asked for, and the mark of the end."""
        if not self._include_usage:
            return [DONE]
        return [_sse(_head(self._line, "chat.completion.chunk") | {"choices": [], "usage": _usage(usage)}) + DONE]

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """A `chat.completion`."""
        rows = [
            {
                "index": i,
                "message": {"role": "assistant", "content": choice.text, "refusal": None, "annotations": []},
                "logprobs": _chat_logprobs(choice.logprobs) if self._logprobs else None,
                "finish_reason": choice.finish.value,
            }
            for i, choice in enumerate(choices)
        ]
        return _encode(_head(self._line, "chat.completion") | {"choices": rows, "usage": _usage(usage)})

    def _event(self, index: int, delta: _Json, logprobs: Sequence[TokenLogprob], finish: str | None = None) -> bytes:
        row = {
            "index": index,
            "delta": delta,
            "logprobs": _chat_logprobs(logprobs) if logprobs else None,
            "finish_reason": finish,
        }
        chunk = _head(self._line, "chat.completion.chunk") | {"choices": [row]}
        return _sse(chunk | {"usage": None} if self._include_usage else chunk)


class JsonCompletion:
    """`text_completion`, whole and in pieces; log probabilities in the legacy shape."""

    def __init__(self, line: AnswerLine, *, logprobs: bool, include_usage: bool) -> None:
        self._line = line
        self._logprobs = logprobs
        self._include_usage = include_usage
        self._offsets: dict[int, _Offset] = {}

    def delta(self, index: int, delta: Delta) -> list[bytes]:
        """Text and the reason for the end in one chunk."""
        if not (delta.text or delta.logprobs or delta.finish):
            return []
        row: _Json = {
            "index": index,
            "text": delta.text,
            "logprobs": self._legacy(index, delta.logprobs) if delta.logprobs else None,
            "finish_reason": delta.finish,
        }
        chunk = _head(self._line, "text_completion") | {"choices": [row]}
        return [_sse(chunk | {"usage": None} if self._include_usage else chunk)]

    def close(self, usage: Usage) -> list[bytes]:
        """As `JsonChat.close`."""
        if not self._include_usage:
            return [DONE]
        return [_sse(_head(self._line, "text_completion") | {"choices": [], "usage": _usage(usage)}) + DONE]

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """A `text_completion`."""
        rows = [
            {
                "index": i,
                "text": choice.text,
                "logprobs": self._legacy(i, choice.logprobs) if self._logprobs else None,
                "finish_reason": choice.finish.value,
            }
            for i, choice in enumerate(choices)
        ]
        return _encode(_head(self._line, "text_completion") | {"choices": rows, "usage": _usage(usage)})

    def _legacy(self, index: int, tokens: Sequence[TokenLogprob]) -> _Json:
        offset = self._offsets.setdefault(index, _Offset())
        return {
            "tokens": [_legacy_token(token.chosen) for token in tokens],
            "token_logprobs": [finite(token.chosen.logprob) for token in tokens],
            "top_logprobs": [
                {_legacy_token(one): finite(one.logprob) for one in with_chosen(token)} for token in tokens
            ],
            "text_offset": [offset.before(token.chosen.token_bytes) for token in tokens],
        }


class _Offset:
    """Where tokens begin in a text. One that is part of a character begins where the character does."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._characters = 0

    def before(self, token: bytes) -> int:
        """The characters before the next token."""
        before = self._characters
        self._characters += len(self._utf8.decode(token))
        return before


def render_embeddings(model: str, vectors: Sequence[Sequence[float]], usage: Usage, *, as_base64: bool) -> bytes:
    """A list of `embedding`s, as numbers or as base64 of little-endian 32-bit floats."""
    rows = [
        {"object": "embedding", "index": i, "embedding": _base64(vector) if as_base64 else vector}
        for i, vector in enumerate(vectors)
    ]
    used = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}
    return _encode({"object": "list", "data": rows, "model": model, "usage": used})


def _head(line: AnswerLine, kind: str) -> _Json:
    return {"id": line.id, "object": kind, "created": line.created_s, "model": line.model}


def _sse(chunk: _Json) -> bytes:
    return b"data: " + _encode(chunk) + b"\n\n"


def _usage(usage: Usage) -> _Json:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _chat_logprobs(tokens: Sequence[TokenLogprob]) -> _Json:
    return {
        "content": [
            _alternative(token.chosen) | {"top_logprobs": [_alternative(one) for one in token.top]} for token in tokens
        ],
        "refusal": None,
    }


def _alternative(one: Alternative) -> _Json:
    return {"token": one.token, "logprob": finite(one.logprob), "bytes": list(one.token_bytes)}


def _legacy_token(one: Alternative) -> str:
    """A part of a character has no text of its own; the legacy shape writes its bytes, so that keys stay different."""
    try:
        return one.token_bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in one.token_bytes)


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
