"""What any engine must do. A test class inherits a contract and gives it its fixtures; see test_engines.py."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import threading
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from mesh.errors import Code, MeshError
from mesh.serving.engine import UNBOUNDED, Delta, Engine, FinishReason, Generation, Sampling, Stream, TokenLogprob
from mesh.types import ModelKind

GREEDY = Sampling(max_tokens=12, temperature=0)
QUESTIONS = (
    "What is the capital of Vietnam?",
    "Write a haiku about rivers.",
    "Count from one to ten.",
    "Explain gravity to a child in two sentences.",
    "List three fruits.",
    "Who wrote Hamlet?",
    "Give me a recipe for pancakes.",
    "What is 2+2? " * 30,
)
NAN = float("nan")
INFINITY = float("inf")


@dataclasses.dataclass
class Answer:
    """A sequence, read to its end."""

    text: str
    tokens: int
    finish: FinishReason | None
    logprobs: list[TokenLogprob]
    deltas: list[Delta]


class Held:
    """A stay in which no step begins until it is let go: an engine is as full as it was made, however fast it is."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def may_go_on(self) -> bool:
        return self.go.wait()

    def entered(self) -> None:
        pass

    def left(self) -> None:
        pass


async def read(stream: Stream) -> Answer:
    deltas = [delta async for delta in stream]
    logprobs = [logprob for delta in deltas for logprob in delta.logprobs]
    assert all(delta.finish is None for delta in deltas[:-1])
    assert [delta.tokens for delta in deltas] == sorted(delta.tokens for delta in deltas)
    return Answer("".join(d.text for d in deltas), deltas[-1].tokens, deltas[-1].finish, logprobs, deltas)


async def generate(engine: Engine, prompt: Sequence[int], sampling: Sampling) -> Answer:
    (stream,) = engine.submit([Generation(prompt, sampling)], UNBOUNDED)
    return await read(stream)


async def settled(engine: Engine) -> tuple[int, int]:
    """What runs and waits after every step that was due has been taken: a later sequence has come and gone."""
    await generate(engine, engine.tokenizer.encode("Hi"), Sampling(max_tokens=1, temperature=0))
    return engine.stats().running, engine.stats().queued


class GenerationContract:
    """For engines that generate.

    Fixtures: `engine`, started, with 3 slots, a queue of 8 and a context of 512, idle at the beginning of each test;
    `reference`, which answers greedily: (prompt, max_tokens) -> text, tokens.
    """

    @pytest.fixture(autouse=True)
    async def idle_and_alive(self, engine: Engine) -> AsyncIterator[None]:
        yield
        assert await settled(engine) == (0, 0)
        assert engine.dead() is None

    def ask(self, engine: Engine, question: str) -> list[int]:
        return engine.tokenizer.render_chat([("user", question)])

    async def test_says_what_it_is(self, engine: Engine) -> None:
        stats = engine.stats()
        assert (engine.kind, engine.context) == (ModelKind.CHAT, 512)
        assert (stats.slots, stats.queue_limit, stats.running, stats.queued, stats.kv_used) == (3, 8, 0, 0, 0)
        with pytest.raises(MeshError) as refusal:
            await engine.embed([[1]], UNBOUNDED)
        assert refusal.value.code is Code.UNSUPPORTED_OPERATION

    async def test_greedy_is_the_reference_also_when_sequences_join_and_leave(
        self, engine: Engine, reference: Callable[[list[int], int], tuple[str, int]]
    ) -> None:
        """Eight on three slots, of different lengths, each joining after some token of the one before."""
        prompts = [self.ask(engine, question) for question in QUESTIONS]
        lengths = [8, 5, 9, 3, 10, 6, 4, 6]
        expected = [reference(prompt, length) for prompt, length in zip(prompts, lengths, strict=True)]
        answers: list[Answer | None] = [None] * len(prompts)

        async def follow(number: int, stream: Stream, begun: asyncio.Event) -> None:
            deltas: list[Delta] = []
            async for delta in stream:
                deltas.append(delta)
                begun.set()
            answers[number] = Answer("".join(d.text for d in deltas), deltas[-1].tokens, deltas[-1].finish, [], deltas)

        async with asyncio.TaskGroup() as group:
            for number, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
                (stream,) = engine.submit([Generation(prompt, Sampling(max_tokens=length, temperature=0))], UNBOUNDED)
                begun = asyncio.Event()
                group.create_task(follow(number, stream, begun))
                if number % 3 == 1:
                    await begun.wait()
        assert [(answer.text, answer.tokens) for answer in answers if answer] == expected

    async def test_tokens_are_counted_exactly(
        self, engine: Engine, reference: Callable[[list[int], int], tuple[str, int]]
    ) -> None:
        prompt = self.ask(engine, QUESTIONS[0])
        for most in (1, 2, 7):
            answer = await generate(engine, prompt, Sampling(max_tokens=most, temperature=0))
            assert (answer.tokens, answer.finish) == (most, FinishReason.LENGTH)
        text, tokens = reference(prompt, 40)
        answer = await generate(engine, prompt, Sampling(max_tokens=40, temperature=0))
        assert tokens < 40, "the reference should end by itself here"
        assert (answer.text, answer.tokens, answer.finish) == (text, tokens, FinishReason.STOP)

    async def test_a_prompt_may_fill_the_context(self, engine: Engine) -> None:
        prompt = (self.ask(engine, "again and ") * 50)[: engine.context - 2]
        answer = await generate(engine, prompt, Sampling(max_tokens=2, temperature=0))
        assert answer.tokens == 2

    async def test_text_ends_before_the_first_stop_string(self, engine: Engine) -> None:
        prompt = self.ask(engine, QUESTIONS[3])
        whole = (await generate(engine, prompt, Sampling(max_tokens=16, temperature=0))).text
        assert len(whole) > 20
        for stop in ((whole[3:9],), (whole[10:11],), ("\x07never", whole[12:20], whole[6:8]), (whole[:4], whole[1:2])):
            answer = await generate(engine, prompt, Sampling(max_tokens=16, temperature=0, stop=stop))
            cut = min(at for at in (whole.find(one) for one in stop) if at >= 0)
            assert (answer.text, answer.finish) == (whole[:cut], FinishReason.STOP)
            assert answer.tokens <= 16
        # What only begins like a stop string is shown in the end.
        almost = Sampling(max_tokens=16, temperature=0, stop=(whole[-5:] + "\x07",))
        assert (await generate(engine, prompt, almost)).text == whole

    async def test_a_seed_gives_the_same_alone_and_among_others(self, engine: Engine) -> None:
        prompt = self.ask(engine, QUESTIONS[3])

        def warm(seed: int) -> Sampling:
            return Sampling(max_tokens=6, temperature=1.0, top_p=0.9, seed=seed)

        seeds = (7, -(2**63), 2**64 - 1)
        alone = [(await generate(engine, prompt, warm(seed))).text for seed in seeds]
        others = [Generation(self.ask(engine, QUESTIONS[1]), Sampling(max_tokens=8, temperature=1.5)) for _ in range(2)]
        streams = engine.submit([*others, *(Generation(prompt, warm(seed)) for seed in seeds)], UNBOUNDED)
        answers = [await read(stream) for stream in streams]
        assert [answer.text for answer in answers[2:]] == alone
        assert len(set(alone)) > 1

    async def test_log_probabilities_are_the_models_own(self, engine: Engine) -> None:
        prompt = self.ask(engine, QUESTIONS[0])
        answer = await generate(engine, prompt, dataclasses.replace(GREEDY, max_tokens=5, top_logprobs=20))
        assert len(answer.logprobs) == 5
        assert b"".join(one.chosen.token_bytes for one in answer.logprobs) == answer.text.encode()
        for one in answer.logprobs:
            logprobs = [alternative.logprob for alternative in one.top]
            assert one.top[0] == one.chosen
            assert len({alternative.token_bytes for alternative in one.top}) == 20
            assert logprobs == sorted(logprobs, reverse=True)
            assert 0 < math.fsum(math.exp(logprob) for logprob in logprobs) <= 1 + 1e-5
        # Temperature and top_p change the choice, not the probabilities.
        warm = Sampling(max_tokens=1, temperature=2.0, top_p=0.5, seed=1, top_logprobs=3)
        first = (await generate(engine, prompt, warm)).logprobs[0]
        assert [a.token for a in first.top] == [a.token for a in answer.logprobs[0].top[:3]]
        assert [a.logprob for a in first.top] == pytest.approx(
            [a.logprob for a in answer.logprobs[0].top[:3]], abs=1e-3
        )
        only = await generate(engine, prompt, dataclasses.replace(GREEDY, max_tokens=2, top_logprobs=0))
        assert [one.top for one in only.logprobs] == [(), ()]
        assert (await generate(engine, prompt, GREEDY)).logprobs == []

    async def test_log_probabilities_stop_where_the_text_stops(self, engine: Engine) -> None:
        prompt = self.ask(engine, QUESTIONS[2])
        whole = await generate(engine, prompt, Sampling(max_tokens=12, temperature=0, top_logprobs=0))
        stop = whole.text[9:13]
        cut = await generate(engine, prompt, Sampling(max_tokens=12, temperature=0, top_logprobs=0, stop=(stop,)))
        pieces = [one.chosen.token for one in cut.logprobs]
        assert pieces == [one.chosen.token for one in whole.logprobs][: len(pieces)]
        assert len("".join(pieces[:-1])) < len(cut.text) <= len("".join(pieces))

    async def test_cancelling_frees_the_slot_and_the_place_in_the_queue(self, engine: Engine) -> None:
        prompt = self.ask(engine, QUESTIONS[6])
        long = Generation(prompt, Sampling(max_tokens=400, temperature=0))
        streams = engine.submit([long] * 5, UNBOUNDED)
        readers = [aiter(stream) for stream in streams]
        for reader in readers[:3]:
            await anext(reader)
        assert (engine.stats().running, engine.stats().queued) == (3, 2)
        assert engine.stats().kv_used > 0
        streams[4].cancel()
        assert engine.stats().queued == 1
        for stream in [*streams, *streams]:
            stream.cancel()  # twice is once
        assert [delta async for delta in streams[0]] == []
        assert await settled(engine) == (0, 0)

    async def test_the_others_go_on_when_one_is_cancelled(
        self, engine: Engine, reference: Callable[[list[int], int], tuple[str, int]]
    ) -> None:
        prompts = [self.ask(engine, question) for question in QUESTIONS[:3]]
        streams = engine.submit([Generation(prompt, GREEDY) for prompt in prompts], UNBOUNDED)
        await anext(aiter(streams[0]))
        streams[0].cancel()
        answers = [await read(stream) for stream in streams[1:]]
        assert [answer.text for answer in answers] == [reference(prompt, 12)[0] for prompt in prompts[1:]]

    async def test_all_or_none_are_queued(self, engine: Engine) -> None:
        prompt = self.ask(engine, QUESTIONS[6])
        long = Generation(prompt, Sampling(max_tokens=400, temperature=0))
        streams = engine.submit([long] * 9, UNBOUNDED)
        for more in (3, 12):
            with pytest.raises(MeshError) as refusal:
                engine.submit([long] * more, UNBOUNDED)
            assert refusal.value.code is Code.NO_CAPACITY
            assert refusal.value.retry_after_s is not None
            assert engine.stats().running + engine.stats().queued == 9
        streams += engine.submit([long] * 2, UNBOUNDED)
        with pytest.raises(MeshError):
            engine.submit([long], UNBOUNDED)
        for stream in streams:
            stream.cancel()
        assert await settled(engine) == (0, 0)

    async def test_a_slow_reader_gets_everything_at_once(self, engine: Engine) -> None:
        prompt = self.ask(engine, QUESTIONS[6])
        slow, quick = engine.submit(
            [Generation(prompt, Sampling(max_tokens=length, temperature=0, top_logprobs=0)) for length in (6, 14)],
            UNBOUNDED,
        )
        whole = await read(quick)
        merged = await read(slow)
        assert len(merged.deltas) == 1
        assert (merged.tokens, merged.finish) == (6, FinishReason.LENGTH)
        assert whole.text.startswith(merged.text)
        assert [one.chosen.token for one in merged.logprobs] == [one.chosen.token for one in whole.logprobs[:6]]

    @pytest.mark.parametrize(
        ("change", "param"),
        [
            ({"temperature": NAN}, "temperature"),
            ({"temperature": INFINITY}, "temperature"),
            ({"temperature": -0.1}, "temperature"),
            ({"temperature": 2.01}, "temperature"),
            ({"temperature": None}, "temperature"),
            ({"temperature": True}, "temperature"),
            ({"top_p": NAN}, "top_p"),
            ({"top_p": 0.0}, "top_p"),
            ({"top_p": 1.01}, "top_p"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"max_tokens": -1}, "max_tokens"),
            ({"max_tokens": 1.5}, "max_tokens"),
            ({"seed": 2**64}, "seed"),
            ({"seed": -(2**63) - 1}, "seed"),
            ({"seed": 10**400}, "seed"),
            ({"seed": 1.0}, "seed"),
            ({"top_logprobs": 21}, "top_logprobs"),
            ({"top_logprobs": -1}, "top_logprobs"),
            ({"stop": ("",)}, "stop"),
            ({"stop": tuple(str(number) for number in range(10_000))}, "stop"),
            ({"stop": (7,)}, "stop"),
        ],
    )
    async def test_poisonous_sampling_is_refused(self, engine: Engine, change: dict[str, object], param: str) -> None:
        sampling = dataclasses.replace(GREEDY, **change)
        with pytest.raises(MeshError) as refusal:
            engine.submit([Generation([1, 2, 3], GREEDY), Generation([1, 2, 3], sampling)], UNBOUNDED)
        assert (refusal.value.code, refusal.value.param) == (Code.INVALID_PARAMETER, param)
        assert (engine.stats().running, engine.stats().queued) == (0, 0)

    @pytest.mark.parametrize("prompt", [[], [-1], [1, 10**9], [1, 2**70], ["1"], [1.0], [None], [True]])
    async def test_poisonous_prompts_are_refused(self, engine: Engine, prompt: list[int]) -> None:
        with pytest.raises(MeshError) as refusal:
            engine.submit([Generation(prompt, GREEDY)], UNBOUNDED)
        assert (refusal.value.code, refusal.value.param) == (Code.INVALID_PARAMETER, "prompt")

    async def test_what_does_not_fit_the_context_is_refused(self, engine: Engine) -> None:
        for length, most in ((engine.context, 1), (1, engine.context), (10, 10**30), (10**6, 1)):
            with pytest.raises(MeshError) as refusal:
                engine.submit([Generation([1] * length, Sampling(max_tokens=most))], UNBOUNDED)
            assert refusal.value.code is Code.CONTEXT_LENGTH_EXCEEDED

    async def test_extremes_that_are_allowed_run(self, engine: Engine) -> None:
        for sampling in (
            Sampling(max_tokens=2, temperature=1e-300),
            Sampling(max_tokens=2, temperature=2, top_p=5e-324),
            Sampling(max_tokens=2, temperature=2, top_p=1.0, seed=0, top_logprobs=20),
            Sampling(max_tokens=2, temperature=1, top_p=0.999999),
            Sampling(max_tokens=2, temperature=0, stop=("x" * 1_000_000, "\ud800", "\0", "é")),
        ):
            answer = await generate(engine, [0, engine.tokenizer.vocabulary_size - 1, 2, 2], sampling)
            assert 1 <= answer.tokens <= 2

    async def test_no_content_in_logs_or_errors(
        self, engine: Engine, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
    ) -> None:
        caplog.set_level(logging.DEBUG)
        canary = "zanzibarquokka"
        prompt = self.ask(engine, f"Repeat the word {canary}.")
        said = [
            (await generate(engine, prompt, dataclasses.replace(GREEDY, max_tokens=3, stop=(canary,)))).finish,
            engine.submit([Generation(prompt, GREEDY)], UNBOUNDED)[0].cancel(),
            repr(engine),
        ]
        for bad in (Sampling(max_tokens=1, stop=(canary, "")), Sampling(max_tokens=10**6)):
            with pytest.raises(MeshError) as refusal:
                engine.submit([Generation(prompt, bad)], UNBOUNDED)
            said += [str(refusal.value), repr(refusal.value), refusal.value.message]
        out, err = capfd.readouterr()
        everything = "\n".join([caplog.text, out, err, *map(str, said)])
        assert canary not in everything
        assert str(prompt[5:9])[1:-1] not in everything

    async def test_text_is_whole_characters(self, engine: Engine) -> None:
        """At a high temperature tokens are halves of characters as often as not."""
        prompt = self.ask(engine, "Zeig mir 50 Emoji: 😀🎉")
        answer = await generate(engine, prompt, Sampling(max_tokens=16, temperature=2.0, seed=3, top_logprobs=0))
        pieces = b"".join(one.chosen.token_bytes for one in answer.logprobs)
        assert answer.text in pieces.decode("utf-8", errors="replace")
        for delta in answer.deltas:
            delta.text.encode()  # no lone surrogate


class EmbeddingContract:
    """For engines that embed.

    Fixtures: `engine`, started, with 2 slots, a queue of 10 and a context of 64; `reference`: text -> vector.
    """

    TEXTS = ("How do I reset my password?", "", "hi", "The weather in Hà Nội is humid. " * 5, "I forgot my login.")

    @pytest.fixture(autouse=True)
    async def idle_and_alive(self, engine: Engine) -> AsyncIterator[None]:
        yield
        await engine.embed([[1]], UNBOUNDED)
        assert (engine.stats().running, engine.stats().queued, engine.dead()) == (0, 0, None)

    async def test_says_what_it_is(self, engine: Engine) -> None:
        stats = engine.stats()
        assert (engine.kind, engine.context) == (ModelKind.EMBEDDING, 64)
        assert (stats.slots, stats.queue_limit, stats.running, stats.queued, stats.kv_used) == (2, 10, 0, 0, 0)
        for refused in (lambda: engine.submit([], UNBOUNDED), lambda: engine.tokenizer.render_chat([("user", "hi")])):
            with pytest.raises(MeshError) as refusal:
                refused()
            assert refusal.value.code is Code.UNSUPPORTED_OPERATION

    async def test_vectors_are_the_reference_and_of_length_1(
        self, engine: Engine, reference: Callable[[str], list[float]]
    ) -> None:
        vectors = await engine.embed([engine.tokenizer.encode(text) for text in self.TEXTS], UNBOUNDED)
        assert len(vectors) == len(self.TEXTS)
        for text, vector in zip(self.TEXTS, vectors, strict=True):
            assert vector == pytest.approx(reference(text), abs=1e-5)
            assert math.fsum(number * number for number in vector) == pytest.approx(1, abs=1e-5)

    async def test_nothing_is_nothing(self, engine: Engine) -> None:
        assert await engine.embed([], UNBOUNDED) == []

    async def test_calls_together_get_their_own(self, engine: Engine) -> None:
        inputs = [engine.tokenizer.encode(text) for text in self.TEXTS]
        alone = [(await engine.embed([tokens], UNBOUNDED))[0] for tokens in inputs]
        together = await asyncio.gather(*(engine.embed([tokens, inputs[0]], UNBOUNDED) for tokens in inputs))
        for vectors, own in zip(together, alone, strict=True):
            assert vectors[0] == pytest.approx(own, abs=1e-5)
            assert vectors[1] == pytest.approx(alone[0], abs=1e-5)

    async def test_full_refuses_all_and_a_caller_who_leaves_gives_back(self, engine: Engine) -> None:
        tokens, held = [1] * 64, Held()
        first = asyncio.create_task(engine.embed([tokens] * 12, held))
        await asyncio.sleep(0)  # it runs up to its wait
        try:
            for count in (1, 13):
                with pytest.raises(MeshError) as refusal:
                    await engine.embed([tokens] * count, UNBOUNDED)
                assert refusal.value.code is Code.NO_CAPACITY, count
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            assert engine.stats().queued == 0
        finally:
            held.go.set()
        assert len(await engine.embed([tokens] * 10, UNBOUNDED)) == 10

    @pytest.mark.parametrize(
        ("tokens", "code"),
        [
            ([], Code.INVALID_PARAMETER),
            ([-1], Code.INVALID_PARAMETER),
            ([10**9], Code.INVALID_PARAMETER),
            (["x"], Code.INVALID_PARAMETER),
            ([1] * 65, Code.CONTEXT_LENGTH_EXCEEDED),
        ],
    )
    async def test_poisonous_inputs_are_refused(self, engine: Engine, tokens: list[int], code: Code) -> None:
        with pytest.raises(MeshError) as refusal:
            await engine.embed([[1], tokens], UNBOUNDED)
        assert (refusal.value.code, refusal.value.param) == (code, "input[1]")

    async def test_no_content_in_logs_or_errors(
        self, engine: Engine, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
    ) -> None:
        caplog.set_level(logging.DEBUG)
        tokens = engine.tokenizer.encode("zanzibarquokka")
        await engine.embed([tokens], UNBOUNDED)
        with pytest.raises(MeshError) as refusal:
            await engine.embed([tokens * 64], UNBOUNDED)
        out, err = capfd.readouterr()
        everything = caplog.text + out + err + str(refusal.value) + repr(engine)
        assert "zanzibar" not in everything
        assert str(tokens[1:-1])[1:-1] not in everything
