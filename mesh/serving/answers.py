"""What a renderer makes of an answer, and what it is told of it. One renderer serves one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mesh.serving.engine import Alternative, Delta, FinishReason, TokenLogprob
from mesh.types import Usage

LOWEST_LOGPROB = -9999.0
"""What OpenAI writes for a token that cannot be; JSON has no infinity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLine:
    """What every piece of an answer says of itself. `created_s` is seconds since 1970."""

    id: str
    created_s: int
    model: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Choice:
    """One sequence, whole."""

    text: str
    logprobs: tuple[TokenLogprob, ...]
    finish: FinishReason


class Renderer(Protocol):
    """Writes the answers of a generating call. What it returns are payloads of DATA frames."""

    def delta(self, index: int, delta: Delta) -> list[bytes]:
        """The next piece of sequence `index`; nothing where there is nothing to show yet."""
        ...

    def close(self, usage: Usage) -> list[bytes]:
        """What ends a stream."""
        ...

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """The answer of a call that does not stream."""
        ...


def finite(logprob: float) -> float:
    """A log probability as a number that every format has."""
    return max(logprob, LOWEST_LOGPROB)


def with_chosen(token: TokenLogprob) -> tuple[Alternative, ...]:
    """The alternatives, and the chosen token where it is none of them."""
    return (
        token.top
        if any(one.token_bytes == token.chosen.token_bytes for one in token.top)
        else (*token.top, token.chosen)
    )
