"""Answers as the messages of `inference.proto`."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.serving.answers import AnswerLine, Choice, finite
from mesh.serving.engine import Delta, TokenLogprob
from mesh.types import Usage
from mesh.v1 import inference_pb2 as pb


class ProtobufChat:
    """`ChatResponse` and `ChatChunk`."""

    def __init__(self, line: AnswerLine, *, include_usage: bool) -> None:
        self._line = line
        self._include_usage = include_usage
        self._begun: set[int] = set()

    def delta(self, index: int, delta: Delta) -> list[bytes]:
        """One chunk; the first of a sequence tells the role."""
        first = index not in self._begun
        if not (first or delta.text or delta.logprobs or delta.finish):
            return []
        self._begun.add(index)
        piece = pb.ChatDelta(
            index=index,
            role="assistant" if first else "",
            content=delta.text,
            logprobs=_logprobs(delta.logprobs),
            finish_reason=delta.finish,
        )
        return [self._chunk(choices=[piece])]

    def close(self, usage: Usage) -> list[bytes]:
        """The usage, if it was asked for."""
        return [self._chunk(usage=_usage(usage))] if self._include_usage else []

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """A `ChatResponse`."""
        rows = [
            pb.ChatChoice(
                index=i,
                message=pb.Message(role="assistant", content=choice.text),
                logprobs=_logprobs(choice.logprobs),
                finish_reason=choice.finish,
            )
            for i, choice in enumerate(choices)
        ]
        line = self._line
        return pb.ChatResponse(
            id=line.id, created=line.created_s, model=line.model, choices=rows, usage=_usage(usage)
        ).SerializeToString()

    def _chunk(self, *, choices: Sequence[pb.ChatDelta] = (), usage: pb.Usage | None = None) -> bytes:
        line = self._line
        return pb.ChatChunk(
            id=line.id, created=line.created_s, model=line.model, choices=choices, usage=usage
        ).SerializeToString()


class ProtobufCompletion:
    """`CompletionResponse` and `CompletionChunk`."""

    def __init__(self, line: AnswerLine, *, include_usage: bool) -> None:
        self._line = line
        self._include_usage = include_usage

    def delta(self, index: int, delta: Delta) -> list[bytes]:
        """One chunk."""
        if not (delta.text or delta.logprobs or delta.finish):
            return []
        return [self._chunk(choices=[_completion(index, delta.text, delta.logprobs, delta.finish)])]

    def close(self, usage: Usage) -> list[bytes]:
        """The usage, if it was asked for."""
        return [self._chunk(usage=_usage(usage))] if self._include_usage else []

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """A `CompletionResponse`."""
        line = self._line
        rows = [_completion(i, choice.text, choice.logprobs, choice.finish) for i, choice in enumerate(choices)]
        return pb.CompletionResponse(
            id=line.id, created=line.created_s, model=line.model, choices=rows, usage=_usage(usage)
        ).SerializeToString()

    def _chunk(self, *, choices: Sequence[pb.CompletionChoice] = (), usage: pb.Usage | None = None) -> bytes:
        line = self._line
        return pb.CompletionChunk(
            id=line.id, created=line.created_s, model=line.model, choices=choices, usage=usage
        ).SerializeToString()


def render_embeddings(model: str, vectors: Sequence[Sequence[float]], usage: Usage) -> bytes:
    """An `EmbeddingResponse`."""
    rows = [pb.Embedding(index=i, embedding=vector) for i, vector in enumerate(vectors)]
    return pb.EmbeddingResponse(model=model, data=rows, usage=_usage(usage)).SerializeToString()


def _completion(index: int, text: str, logprobs: Sequence[TokenLogprob], finish: str | None) -> pb.CompletionChoice:
    return pb.CompletionChoice(index=index, text=text, logprobs=_logprobs(logprobs), finish_reason=finish)


def _usage(usage: Usage) -> pb.Usage:
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )


def _logprobs(tokens: Sequence[TokenLogprob]) -> list[pb.TokenLogprob]:
    return [
        pb.TokenLogprob(
            token=token.chosen.token,
            logprob=finite(token.chosen.logprob),
            bytes=token.chosen.token_bytes,
            top_logprobs=[
                pb.TopLogprob(token=one.token, logprob=finite(one.logprob), bytes=one.token_bytes) for one in token.top
            ],
        )
        for token in tokens
    ]
