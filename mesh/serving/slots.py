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

import torch

from mesh.errors import Code, MeshError
from mesh.serving.engine import Generation, Stats, Stay, Stream
from mesh.serving.pace import Longest
from mesh.serving.sampling import check, choose
from mesh.serving.slot_model import Loaded, SlotModel
from mesh.serving.slot_sequence import SlotSequence
from mesh.serving.streams import EngineStream, Mailboxes
from mesh.serving.tokenizers import TextTokenizer
from mesh.types import ModelKind

CHUNK = 256
"""Prompt tokens read in one step, at most: what a new prompt holds the running sequences up by."""


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
        self._waiting: deque[SlotSequence] = deque()
        self._reading: SlotSequence | None = None
        self._running: list[SlotSequence] = []
        self._stopping = False
        self._dead: str | None = None
        self._mailboxes = Mailboxes()
        self._started = threading.Event()
        self._thread: threading.Thread | None = None
        self._model: SlotModel | None = None
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
        return self._at_work().loaded.tokenizer

    def start(self) -> None:
        """Loads, computes one token, and measures its longest step.

        Raises:
            MeshError: START_FAILED when that fails.
        """
        loaded = self._load()
        self._pieces = loaded.tokenizer.pieces()
        self._model = SlotModel(loaded, self._slots, self._context)
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
        loaded = self._at_work().loaded
        specials, vocabulary_size = loaded.tokenizer.specials, loaded.tokenizer.vocabulary_size
        for generation in generations:
            check(generation, context=self._context, vocabulary_size=vocabulary_size)
        mailbox = self._mailboxes.of_running_loop()
        new: list[SlotSequence] = []
        for generation in generations:
            sequence = SlotSequence(
                generation, stay, EngineStream(mailbox), pieces=self._pieces, specials=specials, ends=loaded.ends
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

    def _at_work(self) -> SlotModel:
        if self._model is None:
            raise MeshError(Code.REPLICA_FAILED, hint="The engine is not running.")
        return self._model

    def _taken(self) -> int:
        return len(self._running) + (self._reading is not None)

    def _cancel(self, sequence: SlotSequence) -> None:
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
                self._try_out()
                self._chunk, self._longest.measured_s = self._at_work().measure(self._chunk)
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
            model, running, reading = self._model, self._running, self._reading
            left = [*running, *([reading] if reading else []), *self._waiting]
            self._running, self._reading = [], None
            self._waiting.clear()
            self._model = None
        if model is not None:
            with contextlib.suppress(RuntimeError):  # a device that has failed cannot be wiped
                for sequence in running:
                    model.cache.wipe(sequence.row, sequence.cached)
                if reading is not None:
                    model.cache.wipe(model.reading_row, reading.cached)
        for sequence in left:
            sequence.prompt.clear()
            sequence.stay.left()
            sequence.stream.fail(Code.REPLICA_FAILED)
        self._mailboxes.post()

    def _try_out(self) -> None:
        """Raises when the model does not work at all, whatever the request."""
        model = self._at_work()
        if self._reading is not None:  # it begins again
            model.cache.wipe(model.reading_row, self._reading.cached)
            self._reading.cached = 0
        model.try_out()

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

    def _next_to_read(self) -> SlotSequence | None:
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

    def _stop_reading(self, sequence: SlotSequence, code: Code | None) -> None:
        """Wipes what was read of a prompt, and gives its place to the next."""
        model = self._at_work()
        model.cache.wipe(model.reading_row, sequence.cached)
        with self._change:
            self._reading = None
        sequence.prompt.clear()
        sequence.stay.left()
        if code is not None:
            sequence.stream.fail(code)

    def _read_on(self, sequence: SlotSequence) -> None:
        """One chunk of its prompt; at the end of it the sequence joins the others with its first token."""
        model = self._at_work()
        start = sequence.cached
        chunk = sequence.prompt[start : start + self._chunk]
        sequence.cached += len(chunk)
        try:
            logits = model.forward([chunk], model.reading_row, [start])
        except Exception:  # noqa: BLE001 - this prompt's fault, or the model's: trying it out tells which
            self._stop_reading(sequence, Code.REPLICA_FAILED)
            self._try_out()
            return
        if sequence.cached < len(sequence.prompt):
            return
        sequence.row = len(self._running)
        model.cache.move(model.reading_row, sequence.row, sequence.cached)  # not under the lock: it can take a while
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
            logits = self._at_work().forward([[sequence.last] for sequence in running], 0, starts)
        except Exception:  # noqa: BLE001 - one of them, or the model: see `_read_on`
            self._try_out()
            self._decode_singly(running, starts)
            return
        self._take_tokens(running, logits)

    def _decode_singly(self, running: list[SlotSequence], starts: list[int]) -> None:
        """The step that failed for all, one by one, so that only those fail that cannot be helped."""
        survivors: list[SlotSequence] = []
        rows: list[torch.Tensor] = []
        for sequence, start in zip(running, starts, strict=True):
            if not sequence.stay.may_go_on():
                sequence.stream.fail(Code.POLICY_STALE)
                sequence.cancelled = True
                continue
            try:
                rows.append(self._at_work().forward([[sequence.last]], sequence.row, [start]))
                survivors.append(sequence)
            except Exception:  # noqa: BLE001 - its own fault: the model has just been tried
                sequence.stream.fail(Code.REPLICA_FAILED)
                sequence.cancelled = True
        if survivors:
            self._take_tokens(survivors, torch.cat(rows))

    def _take_tokens(self, sequences: list[SlotSequence], logits: torch.Tensor) -> None:
        chosen = choose(logits, [sequence.draw for sequence in sequences])
        for number, (sequence, token) in enumerate(zip(sequences, chosen, strict=True)):
            if token is None:  # NaN: no way to go on, and it is this row's alone
                self._leave(sequence)
                sequence.stream.fail(Code.REPLICA_FAILED)
                self._try_out()
                continue
            finish = sequence.take(token, logits[number])
            if finish is not None:
                self._leave(sequence)  # first: whoever reads the last delta finds the slot free
            sequence.hand_on(finish)

    def _leave(self, sequence: SlotSequence) -> None:
        """Wipes its row; the last row takes its place, so that there is no gap."""
        cache = self._at_work().cache
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
