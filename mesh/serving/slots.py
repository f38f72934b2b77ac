"""Generates with any decoder-only transformer of full attention: continuous batching over a cache of slots.

A thread of its own steps the model. A step is one chunk of one waiting prompt, then one token for every running
sequence: a long prompt holds the others up by one chunk, never by its whole length, and prompts join in the order in
which they came. Running sequences fill the cache's first rows without a gap, so a step reads one view of it; the last
row is where a prompt is read in. A row is wiped when its sequence leaves, however it leaves.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from mesh.errors import Code, MeshError
from mesh.serving.engine import (
    Alternative,
    FinishReason,
    Generation,
    Sampling,
    Stats,
    Stay,
    Stream,
    TokenLogprob,
)
from mesh.serving.pace import Longest, Pace, timed
from mesh.serving.sampling import Draw, check, choose, draw_of, log_probabilities
from mesh.serving.slot_cache import SlotCache
from mesh.serving.stopping import TextGate
from mesh.serving.streams import EngineStream, Mailboxes
from mesh.serving.tokenizers import Detokenizer, TextTokenizer
from mesh.types import ModelKind

CHUNK = 256
"""Prompt tokens read in one step, at most: what a new prompt holds the running sequences up by."""
SMALLEST_CHUNK = 32
MOVED = 256
"""Positions whose move is timed: few, for the memory that it takes, and enough to be measured."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to run. `keep` is whatever must live as long as it, such as shared weights."""

    model: PreTrainedModel
    tokenizer: TextTokenizer
    ends: frozenset[int]
    keep: object = None


@dataclass(eq=False, slots=True, repr=False)
class _Running:
    """One sequence inside the engine. `cached` positions of its row are written."""

    prompt: list[int]
    draw: Draw
    max_tokens: int
    top_logprobs: int | None
    text: Detokenizer
    gate: TextGate
    stream: EngineStream
    stay: Stay
    row: int = -1
    cached: int = 0
    produced: int = 0
    last: int = -1
    cancelled: bool = False
    # (where in the text the token begins, its log probabilities), until that text is let through
    held: list[tuple[int, TokenLogprob]] = field(default_factory=list)


class SlotEngine:
    """One chat model (`engine.Engine`). Waits, runs, and never lets one request harm another."""

    def __init__(
        self,
        load: Callable[[], Loaded],
        *,
        context: int,
        slots: int,
        queue_limit: int,
        threads: int,
        chunk: int = CHUNK,
    ) -> None:
        """Starts nothing yet.

        Args:
            load: Brings the model; called by `start`, in its thread.
            context: Tokens of prompt and answer together.
            slots: Sequences that run at once.
            queue_limit: Sequences that may wait.
            threads: CPU threads that torch may use in this process.
            chunk: Prompt tokens read in one step, at most.
        """
        self._load = load
        self._context, self._slots, self._queue_limit = context, slots, queue_limit
        self._threads, self._chunk = threads, chunk
        # `_change` guards the three places where a sequence can be, and what is asked of the thread.
        self._change = threading.Condition()
        self._waiting: deque[_Running] = deque()
        self._reading: _Running | None = None
        self._running: list[_Running] = []
        self._stopping = False
        self._dead: str | None = None
        self._mailboxes = Mailboxes()
        self._started = threading.Event()
        self._thread: threading.Thread | None = None
        self._loaded: Loaded | None = None
        self._cache: SlotCache | None = None
        self._pieces: list[bytes] = []
        self._longest = Longest()

    @property
    def kind(self) -> ModelKind:
        """It chats."""
        return ModelKind.CHAT

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        return self._context

    @property
    def tokenizer(self) -> TextTokenizer:
        """The model's; there is none before `start`."""
        return self._model().tokenizer

    def start(self) -> None:
        """Loads, computes one token, and measures its longest step.

        Raises:
            MeshError: START_FAILED when that fails.
        """
        self._loaded = self._load()
        self._pieces = self._loaded.tokenizer.pieces()
        self._cache = SlotCache(self._loaded.model, self._slots, self._context)
        self._thread = threading.Thread(target=self._run, name="slot-engine", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._dead is not None:
            raise MeshError(Code.START_FAILED, hint=f"The model does not run: {self._dead}.")

    @property
    def longest_step_s(self) -> float:
        """What a step may take: as measured at start with room to spare, and longer while steps really do."""
        return self._longest.longest_s

    def submit(self, generations: Sequence[Generation], stay: Stay) -> list[Stream]:
        """Queues all of them or none; see `engine.Engine`. On a running event loop.

        Raises:
            MeshError: INVALID_PARAMETER and CONTEXT_LENGTH_EXCEEDED for what cannot be run, NO_CAPACITY,
                REPLICA_FAILED.
        """
        specials, vocabulary_size = self.tokenizer.specials, self.tokenizer.vocabulary_size
        for generation in generations:
            check(generation, context=self._context, vocabulary_size=vocabulary_size)
        mailbox = self._mailboxes.of_running_loop()
        new: list[_Running] = []
        for generation in generations:
            sampling = generation.sampling
            sequence = _Running(
                prompt=list(generation.prompt),
                draw=draw_of(sampling),
                max_tokens=sampling.max_tokens,
                top_logprobs=sampling.top_logprobs,
                text=Detokenizer(self._pieces, specials),
                gate=TextGate(sampling.stop),
                stream=EngineStream(mailbox),
                stay=stay,
            )
            sequence.stream.on_cancel(lambda sequence=sequence: self._cancel(sequence))
            new.append(sequence)
        with self._change:
            if self._dead is not None or self._stopping:
                raise MeshError(Code.REPLICA_FAILED)
            room = self._slots + self._queue_limit
            if len(new) > room:
                raise MeshError(Code.NO_CAPACITY, hint=f"A replica holds {room} sequences: ask for fewer at once.")
            if len(self._waiting) + self._taken() + len(new) > room:
                raise MeshError(Code.NO_CAPACITY)
            for _ in new:
                stay.entered()
            self._waiting.extend(new)
            self._change.notify()
        return [sequence.stream for sequence in new]

    async def embed(self, inputs: Sequence[Sequence[int]], stay: Stay) -> list[list[float]]:
        """This model does not embed.

        Raises:
            MeshError: UNSUPPORTED_OPERATION.
        """
        raise MeshError(Code.UNSUPPORTED_OPERATION, param="model")

    def stats(self) -> Stats:
        """Now; any thread."""
        with self._change:
            places = [*self._running, *([self._reading] if self._reading else [])]
            used = sum(sequence.cached for sequence in places)
            waiting = len(self._waiting)
        return Stats(len(places), waiting, self._slots, self._queue_limit, used / (self._slots * self._context))

    def dead(self) -> str | None:
        """None while it works, else the class of the fault; `Stopped` after `stop`."""
        return self._dead

    def stop(self) -> None:
        """Ends every sequence and frees the memory; blocks for a step at most."""
        with self._change:
            self._stopping = True
            self._change.notify()
        if self._thread is not None:
            self._thread.join()
        self._end("Stopped")

    # Any thread.

    def _model(self) -> Loaded:
        if self._loaded is None:
            raise MeshError(Code.REPLICA_FAILED, hint="The engine is not running.")
        return self._loaded

    def _taken(self) -> int:
        return len(self._running) + (self._reading is not None)

    def _cancel(self, sequence: _Running) -> None:
        with self._change:
            sequence.cancelled = True
            waited = sequence in self._waiting
            if waited:
                self._waiting.remove(sequence)
            self._change.notify()
        if waited:
            sequence.stay.left()

    # The engine's thread.

    def _run(self) -> None:
        fault = "Stopped"
        try:
            torch.set_num_threads(self._threads)
            with torch.inference_mode():
                self._probe()
                self._measure()
                self._started.set()
                while self._has_work():
                    self._step()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the replica must say so; its text may hold content
            fault = type(error).__name__
        self._end(fault)
        self._started.set()

    def _has_work(self) -> bool:
        """Waits for some; False when it is time to stop."""
        with self._change:
            while not (self._stopping or self._waiting or self._reading or self._running):
                self._change.wait()
            return not self._stopping

    def _end(self, fault: str) -> None:
        """Fails every sequence and lets go of model, cache and prompts."""
        with self._change:
            self._dead = self._dead or fault
            cache, running, reading = self._cache, self._running, self._reading
            left = [*running, *([reading] if reading else []), *self._waiting]
            self._running, self._reading = [], None
            self._waiting.clear()
            self._cache = self._loaded = None
        if cache is not None:
            with contextlib.suppress(RuntimeError):  # a device that has failed cannot be wiped
                for sequence in running:
                    cache.wipe(sequence.row, sequence.cached)
                if reading is not None:
                    cache.wipe(self._slots, reading.cached)
        for sequence in left:
            sequence.prompt.clear()
            sequence.stay.left()
            sequence.stream.fail(Code.REPLICA_FAILED)
        self._mailboxes.post()

    def _probe(self) -> None:
        """One token in the reading row: raises when the model does not work at all, whatever the request."""
        if self._reading is not None:  # it begins again
            self._slot_cache().wipe(self._slots, self._reading.cached)
            self._reading.cached = 0
        logits = self._forward([[0]], self._slots, [0])
        self._slot_cache().wipe(self._slots, 1)
        if not bool(torch.isfinite(logits).all()):
            raise ArithmeticError

    def _measure(self) -> None:
        """Finds the largest chunk that keeps a step short, and what a step may take, at the far end of the context.

        The rows' other positions are not written: their memory is not taken before somebody needs it.
        """
        chunk = min(SMALLEST_CHUNK, self._chunk, self._context)
        pace = self._time_chunk(chunk)
        while chunk * 2 <= min(self._chunk, self._context) and pace.may_double():
            chunk *= 2
            pace = self._time_chunk(chunk)
        self._chunk = chunk
        again, decoding = self._time_chunk(chunk), self._time_decode()
        self._longest.measured_s = max(min(pace.longest_s, again.longest_s), decoding.longest_s)

    def _time_chunk(self, chunk: int) -> Pace:
        """Reading a last chunk, and moving the whole row to where it goes on."""
        cache = self._slot_cache()
        reading = self._timed(lambda: self._forward([[0] * chunk], self._slots, [self._context - chunk]))
        cache.wipe(self._slots, self._context, self._context - chunk)
        moving = self._timed(lambda: cache.move(self._slots, 0, chunk))
        cache.wipe(0, chunk)
        return reading.plus(moving.times(self._context / chunk))

    def _time_decode(self) -> Pace:
        """One token for a sequence in every slot, chosen in the dearest way."""
        cache = self._slot_cache()
        draws = [draw_of(Sampling(max_tokens=1, top_p=0.9, seed=0)) for _ in range(self._slots)]
        starts = [self._context - 1] * self._slots
        pace = self._timed(lambda: choose(self._forward([[0]] * self._slots, 0, starts), draws))
        for row in range(self._slots):
            cache.wipe(row, self._context, self._context - 1)
        return pace

    def _timed(self, step: Callable[[], object]) -> Pace:
        device = self._model().model.device

        def to_its_end() -> None:
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return timed(to_its_end, on_cpu=device.type == "cpu")

    def _step(self) -> None:
        reading = self._next_to_read()
        if reading is not None:
            with self._longest.step():
                self._read_on(reading)
        self._let_go()
        if self._running:
            with self._longest.step():
                self._decode()
        self._mailboxes.post()

    def _let_go(self) -> None:
        """Frees the slots of those that were cancelled or may not go on, before a step begins for them."""
        for sequence in list(self._running):
            if sequence.cancelled:
                self._leave(sequence)
            elif not sequence.stay.may_go_on():
                self._leave(sequence)
                sequence.stream.fail(Code.POLICY_STALE)

    def _next_to_read(self) -> _Running | None:
        reading = self._reading
        if reading is not None and (reading.cancelled or not reading.stay.may_go_on()):
            self._stop_reading(reading, None if reading.cancelled else Code.POLICY_STALE)
        while True:
            with self._change:
                if self._reading is None and self._waiting and len(self._running) < self._slots:
                    self._reading = self._waiting.popleft()
                reading = self._reading
            if reading is None or reading.stay.may_go_on():
                return reading
            self._stop_reading(reading, Code.POLICY_STALE)

    def _stop_reading(self, sequence: _Running, code: Code | None) -> None:
        """Wipes what was read of a prompt, and gives its place to the next."""
        self._slot_cache().wipe(self._slots, sequence.cached)
        with self._change:
            self._reading = None
        sequence.prompt.clear()
        sequence.stay.left()
        if code is not None:
            sequence.stream.fail(code)

    def _read_on(self, sequence: _Running) -> None:
        """One chunk of its prompt; at the end of it the sequence joins the others with its first token."""
        cache = self._slot_cache()
        start = sequence.cached
        chunk = sequence.prompt[start : start + self._chunk]
        sequence.cached += len(chunk)
        try:
            logits = self._forward([chunk], self._slots, [start])
        except Exception:  # noqa: BLE001 - this prompt's fault, or the model's: the probe tells which
            self._stop_reading(sequence, Code.REPLICA_FAILED)
            self._probe()
            return
        if sequence.cached < len(sequence.prompt):
            return
        sequence.row = len(self._running)
        cache.move(self._slots, sequence.row, sequence.cached)  # not under the lock: it can take a while
        with self._change:
            self._running.append(sequence)
            self._reading = None
        sequence.prompt.clear()
        self._take_tokens([sequence], logits)

    def _decode(self) -> None:
        """One token for every running sequence."""
        running = list(self._running)
        starts = [sequence.cached for sequence in running]
        for sequence in running:
            sequence.cached += 1
        try:
            logits = self._forward([[sequence.last] for sequence in running], 0, starts)
        except Exception:  # noqa: BLE001 - one of them, or the model: see `_read_on`
            self._probe()
            self._decode_singly(running, starts)
            return
        self._take_tokens(running, logits)

    def _decode_singly(self, running: list[_Running], starts: list[int]) -> None:
        """The step that failed for all, one by one, so that only those fail that cannot be helped."""
        survivors: list[_Running] = []
        rows: list[torch.Tensor] = []
        for sequence, start in zip(running, starts, strict=True):
            if not sequence.stay.may_go_on():
                sequence.stream.fail(Code.POLICY_STALE)
                sequence.cancelled = True
                continue
            try:
                rows.append(self._forward([[sequence.last]], sequence.row, [start]))
                survivors.append(sequence)
            except Exception:  # noqa: BLE001 - its own fault: the model has just been tried
                sequence.stream.fail(Code.REPLICA_FAILED)
                sequence.cancelled = True
        if survivors:
            self._take_tokens(survivors, torch.cat(rows))

    def _forward(self, tokens: list[list[int]], first: int, starts: list[int]) -> torch.Tensor:
        """Runs rows from `first` on, each with its tokens from its start; returns the last logits, fp32."""
        model, cache = self._model().model, self._slot_cache()
        count = len(tokens[0])
        positions = torch.tensor(starts, device=model.device).unsqueeze(1) + torch.arange(count, device=model.device)
        length = max(starts) + count
        cache.aim(first, positions, length)
        # A 4-dimensional mask is used as it is: each token sees its own row, up to itself.
        mask = torch.arange(length, device=model.device)[None, None, None] <= positions[:, None, :, None]
        output = model(
            input_ids=torch.tensor(tokens, device=model.device),
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    def _take_tokens(self, sequences: list[_Running], logits: torch.Tensor) -> None:
        chosen = choose(logits, [sequence.draw for sequence in sequences])
        for number, (sequence, token) in enumerate(zip(sequences, chosen, strict=True)):
            if token is None:  # NaN: no way to go on, and it is this row's alone
                self._leave(sequence)
                sequence.stream.fail(Code.REPLICA_FAILED)
                self._probe()
            else:
                self._take(sequence, token, logits[number])

    def _take(self, sequence: _Running, token: int, logits: torch.Tensor) -> None:
        """Adds a token to its sequence and hands on what may be shown."""
        sequence.last = token
        sequence.produced += 1
        gate = sequence.gate
        finish: FinishReason | None = None
        if token in self._model().ends:
            text = gate.push(sequence.text.flush()) + gate.flush()
            finish = FinishReason.STOP
        else:
            if sequence.top_logprobs is not None:
                sequence.held.append((gate.seen, self._logprob(logits, token, sequence.top_logprobs)))
            text = gate.push(sequence.text.step(token))
            if not gate.stopped and sequence.produced >= sequence.max_tokens:
                text += gate.push(sequence.text.flush()) + gate.flush()
                finish = FinishReason.LENGTH
            if gate.stopped:
                finish = FinishReason.STOP
        whole = finish is not None and not gate.stopped
        shown = [logprob for start, logprob in sequence.held if whole or start < gate.released]
        del sequence.held[: len(shown)]
        if finish is not None:
            self._leave(sequence)  # first: whoever reads the last delta finds the slot free
        sequence.stream.put(text, sequence.produced, shown, finish)

    def _logprob(self, logits: torch.Tensor, token: int, alternatives: int) -> TokenLogprob:
        own, top = log_probabilities(logits, token, alternatives)
        return TokenLogprob(self._alternative(token, own), tuple(self._alternative(*one) for one in top))

    def _alternative(self, token: int, logprob: float) -> Alternative:
        piece = self._pieces[token]
        return Alternative(piece.decode("utf-8", errors="replace"), piece, logprob)

    def _leave(self, sequence: _Running) -> None:
        """Wipes its row; the last row takes its place, so that there is no gap."""
        cache = self._slot_cache()
        cache.wipe(sequence.row, sequence.cached)
        last = self._running[-1]
        if last is not sequence:
            cache.move(last.row, sequence.row, last.cached)
        with self._change:
            self._running.pop()
            if last is not sequence:
                last.row = sequence.row
                self._running[last.row] = last
        sequence.stay.left()

    def _slot_cache(self) -> SlotCache:
        if self._cache is None:
            raise MeshError(Code.REPLICA_FAILED)
        return self._cache
