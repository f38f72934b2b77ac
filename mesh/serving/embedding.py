"""Turns token ids into vectors with a BERT-like model: mean over the tokens, then length 1.

A thread of its own runs batches of up to `slots` inputs, in the order in which they came, whoever sent them; fewer at
once where a batch of that many would take too long to be stopped in time.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from mesh.errors import Code, MeshError
from mesh.serving.engine import Generation, Stats, Stay, Stream
from mesh.serving.pace import Longest, Pace, timed
from mesh.serving.sampling import check_prompt
from mesh.serving.tokenizers import TextTokenizer
from mesh.types import ModelKind


@dataclass(frozen=True, slots=True)
class LoadedEncoder:
    """A model ready to run. `keep` is whatever must live as long as it, such as shared weights."""

    model: PreTrainedModel
    tokenizer: TextTokenizer
    keep: object = None


@dataclass(eq=False, slots=True, repr=False)
class _Call:
    """One `embed`. `vectors` fill up; `done` is set on the caller's loop when all have come, or with the fault."""

    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]
    vectors: list[list[float]]
    missing: int
    stay: Stay


@dataclass(eq=False, slots=True, repr=False)
class _Input:
    call: _Call
    number: int
    tokens: list[int]


class EmbeddingEngine:
    """One embedding model (`engine.Engine`)."""

    def __init__(
        self, load: Callable[[], LoadedEncoder], *, context: int, slots: int, queue_limit: int, threads: int
    ) -> None:
        """Starts nothing yet.

        Args:
            load: Brings the model; called by `start`, in its thread.
            context: Tokens of one input, the model's own marks included.
            slots: Inputs in one batch.
            queue_limit: Inputs that may wait.
            threads: CPU threads that torch may use in this process.
        """
        self._load = load
        self._context, self._slots, self._queue_limit, self._threads = context, slots, queue_limit, threads
        self._change = threading.Condition()
        self._waiting: deque[_Input] = deque()
        self._running: list[_Input] = []
        self._stopping = False
        self._dead: str | None = None
        self._started = threading.Event()
        self._thread: threading.Thread | None = None
        self._loaded: LoadedEncoder | None = None
        self._batch = slots
        self._longest = Longest()

    @property
    def kind(self) -> ModelKind:
        """It embeds."""
        return ModelKind.EMBEDDING

    @property
    def context(self) -> int:
        """Tokens of one input, the model's own marks included."""
        return self._context

    @property
    def tokenizer(self) -> TextTokenizer:
        """The model's; there is none before `start`."""
        return self._model().tokenizer

    def start(self) -> None:
        """Loads, embeds one token, and measures its longest step.

        Raises:
            MeshError: START_FAILED when that fails.
        """
        self._loaded = self._load()
        self._thread = threading.Thread(target=self._run, name="embedding-engine", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._dead is not None:
            raise MeshError(Code.START_FAILED, hint=f"The model does not run: {self._dead}.")

    @property
    def longest_step_s(self) -> float:
        """What a batch may take at most, measured at start with room to spare."""
        return self._longest.longest_s

    def submit(self, generations: Sequence[Generation], stay: Stay) -> list[Stream]:
        """This model does not generate.

        Raises:
            MeshError: UNSUPPORTED_OPERATION.
        """
        raise MeshError(Code.UNSUPPORTED_OPERATION, param="model")

    async def embed(self, inputs: Sequence[Sequence[int]], stay: Stay) -> list[list[float]]:
        """A vector of length 1 for each input, in their order. All are taken or none.

        Raises:
            MeshError: INVALID_PARAMETER or CONTEXT_LENGTH_EXCEEDED with `input[i]`, NO_CAPACITY, REPLICA_FAILED,
                POLICY_STALE when `stay` ends first.
        """
        vocabulary_size = self.tokenizer.vocabulary_size
        for number, tokens in enumerate(inputs):
            check_prompt(
                tokens,
                room=self._context,
                context=self._context,
                vocabulary_size=vocabulary_size,
                param=f"input[{number}]",
            )
        if not inputs:
            return []
        loop = asyncio.get_running_loop()
        call = _Call(loop, loop.create_future(), [[] for _ in inputs], len(inputs), stay)
        new = [_Input(call, number, list(tokens)) for number, tokens in enumerate(inputs)]
        with self._change:
            if self._dead is not None or self._stopping:
                raise MeshError(Code.REPLICA_FAILED)
            room = self._slots + self._queue_limit
            if len(new) > room:
                raise MeshError(Code.NO_CAPACITY, hint=f"A replica holds {room} inputs: send fewer at once.")
            if len(self._waiting) + len(self._running) + len(new) > room:
                raise MeshError(Code.NO_CAPACITY)
            for _ in new:
                stay.entered()
            self._waiting.extend(new)
            self._change.notify()
        try:
            await call.done
        finally:  # a caller that has gone gives its places back; what is in the batch leaves with it
            with self._change:
                waited = [waiting for waiting in self._waiting if waiting.call is call]
                if waited:
                    self._waiting = deque(waiting for waiting in self._waiting if waiting.call is not call)
            for _ in waited:
                stay.left()
        return call.vectors

    def stats(self) -> Stats:
        """Now; any thread. There is no cache of keys and values, so `kv_used` is 0."""
        with self._change:
            return Stats(len(self._running), len(self._waiting), self._slots, self._queue_limit, 0.0)

    def dead(self) -> str | None:
        """None while it works, else the class of the fault; `Stopped` after `stop`."""
        return self._dead

    def stop(self) -> None:
        """Ends every call and frees the memory; blocks for a batch at most."""
        with self._change:
            self._stopping = True
            self._change.notify()
        if self._thread is not None:
            self._thread.join()
        self._end("Stopped")

    def _model(self) -> LoadedEncoder:
        if self._loaded is None:
            raise MeshError(Code.REPLICA_FAILED, hint="The engine is not running.")
        return self._loaded

    # The engine's thread.

    def _run(self) -> None:
        fault = "Stopped"
        try:
            torch.set_num_threads(self._threads)
            with torch.inference_mode():
                self._vectors([[0]])
                self._measure()
                self._started.set()
                while self._take_batch():
                    self._step()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the replica must say so; its text may hold content
            fault = type(error).__name__
        self._end(fault)
        self._started.set()

    def _measure(self) -> None:
        """Finds the largest batch of the longest inputs that does not take too long, and what it may take."""
        batch, pace = 1, self._time_batch(1)
        while batch < self._slots and pace.may_double():
            batch = min(batch * 2, self._slots)
            pace = self._time_batch(batch)
        self._batch = batch
        self._longest.measured_s = min(pace.longest_s, self._time_batch(batch).longest_s)

    def _time_batch(self, batch: int) -> Pace:
        inputs = [[0] * self._context for _ in range(batch)]
        return timed(lambda: self._vectors(inputs), on_cpu=self._model().model.device.type == "cpu")

    def _take_batch(self) -> bool:
        """Waits for work; False when it is time to stop."""
        with self._change:
            while not (self._stopping or self._waiting):
                self._change.wait()
            if self._stopping:
                return False
            while self._waiting and len(self._running) < self._batch:
                self._running.append(self._waiting.popleft())
            return True

    def _step(self) -> None:
        batch = [item for item in self._running if item.call.stay.may_go_on()]
        vectors: dict[_Input, list[float] | None] = {}
        try:
            if batch:
                with self._longest.step():
                    vectors = dict(zip(batch, self._vectors([item.tokens for item in batch]), strict=True))
        except Exception:  # noqa: BLE001 - one of the inputs, or the model: trying it alone tells which
            self._vectors([[0]])
            vectors = {item: self._vector_or_none(item.tokens) for item in batch if item.call.stay.may_go_on()}
        with self._change:
            taken, self._running = self._running, []
        finished: dict[_Call, Code | None] = {}
        for item in taken:
            item.tokens.clear()
            call, code = item.call, Code.REPLICA_FAILED if item in vectors else Code.POLICY_STALE
            vector = vectors.get(item)
            if vector is None:
                call.missing = -1
                finished.setdefault(call, code)
            elif call.missing > 0:
                call.vectors[item.number] = vector
                call.missing -= 1
                if call.missing == 0:
                    finished[call] = None
            call.stay.left()
        for call, code in finished.items():
            _finish(call, code)

    def _vector_or_none(self, tokens: list[int]) -> list[float] | None:
        try:
            return self._vectors([tokens])[0]
        except Exception:  # noqa: BLE001 - its own fault: the model has just been tried
            return None

    def _vectors(self, inputs: list[list[int]]) -> list[list[float]]:
        model = self._model().model
        longest = max(len(tokens) for tokens in inputs)
        ids = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in inputs], device=model.device)
        lengths = torch.tensor([len(tokens) for tokens in inputs], device=model.device)
        mask = torch.arange(longest, device=model.device) < lengths.unsqueeze(1)
        hidden: torch.Tensor = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        vectors = torch.nn.functional.normalize(mean, dim=1)
        if not bool(torch.isfinite(vectors).all()):
            raise ArithmeticError
        return vectors.tolist()

    def _end(self, fault: str) -> None:
        with self._change:
            self._dead = self._dead or fault
            left = [*self._running, *self._waiting]
            self._running = []
            self._waiting.clear()
            self._loaded = None
        for item in left:
            item.call.stay.left()
            _finish(item.call, Code.REPLICA_FAILED)


def _finish(call: _Call, code: Code | None) -> None:
    """Tells the caller, on its loop."""

    def tell() -> None:
        if not call.done.done():  # it may have been cancelled, or told before
            if code is None:
                call.done.set_result(None)
            else:
                call.done.set_exception(MeshError(code))

    # A closed loop has no caller left on it.
    if not call.loop.is_closed():
        try:
            call.loop.call_soon_threadsafe(tell)
        except RuntimeError:  # closed just now
            return
