"""An engine without a model, for tests of what is around engines: deterministic, and steered by the test.

A chat engine answers with the words of `words`, one a delta. A sequence waits for `gate` before each word, if there is
one. Text tokenizes to one id a character, below 1,000.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence

from mesh.errors import Code, MeshError
from mesh.serving.engine import Alternative, Delta, FinishReason, Generation, Stats, Stay, TokenLogprob
from mesh.types import ModelKind


class CharacterTokenizer:
    vocabulary_size = 1000

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % 1000 for letter in text]

    def render_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        return self.encode("".join(f"{role}:{text}\n" for role, text in messages))


class FakeStream:
    def __init__(self, engine: FakeEngine, generation: Generation, stay: Stay) -> None:
        self.engine = engine
        self.generation = generation
        self.stay = stay
        self.cancelled = False
        stay.entered()

    def leave(self) -> None:
        """At once, or with the next step where the test takes the steps."""
        if self in self.engine.running:
            self.engine.running.discard(self)
            if self.engine.lingering is None:
                self.stay.left()
            else:
                self.engine.lingering.append(self.stay)

    async def __aiter__(self) -> AsyncIterator[Delta]:
        engine, sampling = self.engine, self.generation.sampling
        try:
            count = min(len(engine.words), sampling.max_tokens)
            for number, word in enumerate(engine.words[:count], 1):
                if engine.gate is not None:
                    await engine.gate.acquire()
                if not self.stay.may_go_on():
                    raise MeshError(Code.POLICY_STALE)
                if engine.fault is not None:
                    raise MeshError(Code.REPLICA_FAILED)
                if engine.bug is not None:
                    raise engine.bug
                logprobs: tuple[TokenLogprob, ...] = ()
                if sampling.top_logprobs is not None:
                    top = tuple(
                        Alternative(chr(97 + i), bytes([97 + i]), -float(i)) for i in range(sampling.top_logprobs)
                    )
                    logprobs = (TokenLogprob(Alternative(word, word.encode(), -math.inf), top),)
                last = number == count
                reason = FinishReason.LENGTH if count == sampling.max_tokens else FinishReason.STOP
                yield Delta(word, number, logprobs, reason if last else None)
        finally:
            self.leave()

    def cancel(self) -> None:
        self.cancelled = True
        self.leave()


class FakeEngine:
    def __init__(
        self,
        kind: ModelKind = ModelKind.CHAT,
        *,
        words: Sequence[str] = ("Xin", " chào", "!"),
        context: int = 100,
        slots: int = 2,
        queue_limit: int = 6,
        gated: bool = False,
    ) -> None:
        self.kind = kind
        self.words = list(words)
        self.context = context
        self.slots = slots
        self.queue_limit = queue_limit
        self.tokenizer = CharacterTokenizer()
        self.gate = asyncio.Semaphore(0) if gated else None
        self.fault: str | None = None
        self.bug: Exception | None = None
        self.running: set[object] = set()
        self.submitted: list[Generation] = []
        self.embedded: list[list[Sequence[int]]] = []
        self.started = self.stopped = False
        self.longest_step_s = 0.0
        self.lingering: list[Stay] | None = None

    def step(self) -> None:
        """What was cancelled leaves: only where `lingering` is a list."""
        assert self.lingering is not None
        while self.lingering:
            self.lingering.pop().left()

    def start(self) -> None:
        self.started = True

    def stop(self) -> None:
        self.stopped = True
        self.fault = "Stopped"

    def submit(self, generations: Sequence[Generation], stay: Stay) -> list[FakeStream]:
        if self.fault is not None:
            raise MeshError(Code.REPLICA_FAILED)
        if len(self.running) + len(generations) > self.slots + self.queue_limit:
            raise MeshError(Code.NO_CAPACITY)
        self.submitted.extend(generations)
        streams = [FakeStream(self, generation, stay) for generation in generations]
        self.running.update(streams)
        return streams

    async def embed(self, inputs: Sequence[Sequence[int]], stay: Stay) -> list[list[float]]:
        if len(self.running) + len(inputs) > self.slots + self.queue_limit:
            raise MeshError(Code.NO_CAPACITY)
        places = [object() for _ in inputs]
        self.running.update(places)
        stay.entered()
        try:
            if self.gate is not None:
                await self.gate.acquire()
            self.embedded.append(list(inputs))
            return [[float(len(ids)), 0.5] for ids in inputs]
        finally:
            self.running.difference_update(places)
            stay.left()

    def stats(self) -> Stats:
        running = min(len(self.running), self.slots)
        return Stats(running, len(self.running) - running, self.slots, self.queue_limit, 0.25)

    def dead(self) -> str | None:
        return self.fault
