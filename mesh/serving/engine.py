"""What runs a model: the protocol that every engine fulfils. `tests/serving/engine_contract.py` holds engines to it.

An engine counts in *sequences*: each of a call's `n` answers is one, and so is each text to embed. It has `slots`
sequences running at once and at most `queue_limit` waiting; beyond that it refuses with `no_capacity`, at once.

What may hold content has no `repr` of its fields, so that it shows nothing in a traceback or a log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from mesh.types import ModelKind


class FinishReason(StrEnum):
    """Why a sequence ended: an end token or a stop string, or `max_tokens`."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Sampling:
    """How the next token is chosen, for one sequence.

    Attributes:
        max_tokens: At least 1; prompt and `max_tokens` together fit the context.
        temperature: 0 to 2; 0 takes the likeliest token.
        top_p: Above 0, up to 1.
        seed: Any 64-bit integer; the same seed, prompt and parameters give the same text, alone or in a batch.
        stop: Up to 4 strings; the text ends before the first of them.
        top_logprobs: None for no log probabilities, else how many alternatives a token, 0 to 20.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Alternative:
    """A token that could have been, and its natural log probability."""

    token: str
    token_bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True, repr=False)
class TokenLogprob:
    """The token that was chosen, and its likeliest alternatives, likeliest first."""

    chosen: Alternative
    top: tuple[Alternative, ...]


@dataclass(frozen=True, slots=True, repr=False)
class Delta:
    """What a sequence produced since its last delta; several tokens are merged when the reader is slow.

    Attributes:
        text: May be empty: part of a character, or text held back because a stop string may begin in it.
        tokens: Completion tokens of this sequence so far.
        logprobs: Of the tokens in `text`, where they were asked for.
        finish: Set in the last delta only.
    """

    text: str
    tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Generation:
    """One sequence to generate. `prompt` is token ids, at least one."""

    prompt: Sequence[int]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Stats:
    """An engine, now. `running` and `queued` are sequences; `kv_used` is a share, 0 to 1."""

    running: int
    queued: int
    slots: int
    queue_limit: int
    kv_used: float


class Stay(Protocol):
    """The right of a call's sequences to be in an engine, which may end at any moment. Any thread may ask."""

    def may_go_on(self) -> bool:
        """Whether a step that begins now, and takes no longer than `Engine.longest_step_s`, ends in time."""
        ...

    def entered(self) -> None:
        """A sequence has got a place, in the queue or in a slot."""
        ...

    def left(self) -> None:
        """It has given it back: no step computes with it any more. Exactly once for each `entered`."""
        ...


class _Unbounded:
    def may_go_on(self) -> bool:
        return True

    def entered(self) -> None:
        pass

    def left(self) -> None:
        pass


UNBOUNDED: Stay = _Unbounded()
"""For what no tenant sent."""


class Stream(Protocol):
    """One running sequence. Ends after the delta with `finish`.

    Iterating raises `MeshError`: REPLICA_FAILED when the engine has died, POLICY_STALE when it may not go on.
    """

    def __aiter__(self) -> AsyncIterator[Delta]: ...

    def cancel(self) -> None:
        """Frees the slot before the engine's next step, or leaves the queue. Idempotent; may be called at any time."""
        ...


class Tokenizer(Protocol):
    """Text to token ids. Keeps no text after it returns."""

    def encode(self, text: str) -> list[int]:
        """Plain text, without special tokens added (embedding models add their own)."""
        ...

    def render_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """A conversation of (role, text) as the model was taught to read it, ready for the assistant's answer."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """Token ids are 0 to this minus 1."""
        ...


class Engine(Protocol):
    """Runs one model."""

    @property
    def kind(self) -> ModelKind:
        """What it can do."""
        ...

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """Its own."""
        ...

    def start(self) -> None:
        """Loads and warms up; blocks, off the event loop. Ready when it returns."""
        ...

    @property
    def longest_step_s(self) -> float:
        """What a step may take at most, measured at start with room to spare: no cancelling ends a step."""
        ...

    def submit(self, generations: Sequence[Generation], stay: Stay) -> list[Stream]:
        """Queues all of them or none. Must be called on a running event loop; the streams belong to it.

        No step begins for a sequence whose `stay` may not go on: it leaves its slot instead.

        Raises:
            MeshError: NO_CAPACITY when they do not all fit in slots and queue; REPLICA_FAILED when the engine has
                died; UNSUPPORTED_OPERATION when it does not generate.
        """
        ...

    async def embed(self, inputs: Sequence[Sequence[int]], stay: Stay) -> list[list[float]]:
        """A vector of length 1 for each input of token ids. Cancelling the caller frees the place.

        No batch begins with an input whose `stay` may not go on.

        Raises:
            MeshError: As `submit`; POLICY_STALE when it may not go on.
        """
        ...

    def stats(self) -> Stats:
        """Now; cheap, any thread."""
        ...

    def dead(self) -> str | None:
        """None while it works, else the class of the fault, never its text."""
        ...

    def stop(self) -> None:
        """Ends every sequence and frees the memory; blocks."""
        ...
