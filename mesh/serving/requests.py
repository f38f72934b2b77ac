"""A call as the replica understands it, whichever door it came through. Everything here may hold content.

The classes have no `repr` of their own fields, so that a call in a traceback or a log shows nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh.errors import field_path

Prompt = str | tuple[int, ...]
"""Text, or token ids."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Options:
    """How to generate; chat and completions have it in common.

    Attributes:
        max_tokens: None means up to the context.
        temperature: 0 to 2.
        top_p: Above 0, up to 1.
        n: Answers a prompt, 1 to 8.
        seed: -2^63 to 2^64-1.
        stop: Up to 4 strings, none of them empty.
        top_logprobs: None for no log probabilities, else alternatives a token, 0 to 20.
        stream: Whether the answer comes in pieces.
        include_usage: Whether the last piece tells the usage.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    n: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    stream: bool = False
    include_usage: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ChatCall:
    """A conversation to be answered: (role, text), with the roles system, user and assistant."""

    messages: tuple[tuple[str, str], ...]
    options: Options


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class CompletionCall:
    """Texts to be continued. `listed` tells whether they came as a list: it only changes how a fault names them."""

    prompts: tuple[Prompt, ...]
    listed: bool
    options: Options

    def path(self, index: int, *steps: int) -> str:
        """How a fault names a prompt, or a token of it."""
        return _path("prompt", self.listed, index, *steps)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class EmbeddingCall:
    """Texts to become vectors; `listed` as in `CompletionCall`."""

    inputs: tuple[Prompt, ...]
    listed: bool
    base64: bool = False

    def path(self, index: int, *steps: int) -> str:
        """How a fault names an input, or a token of it."""
        return _path("input", self.listed, index, *steps)


Call = ChatCall | CompletionCall | EmbeddingCall


def _path(name: str, listed: bool, index: int, *steps: int) -> str:
    return field_path(name, *((index,) if listed else ()), *steps)
