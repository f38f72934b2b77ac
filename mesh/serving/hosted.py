"""The models of one replica process: each with its engine, from starting to dead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mesh.errors import Code, MeshError
from mesh.ports import Clock
from mesh.serving.engine import UNBOUNDED, Engine, Generation, Sampling, Stats
from mesh.settings import Model
from mesh.telemetry import Log
from mesh.types import ModelId, ModelKind, ReplicaState

EngineFactory = Callable[[Model], Engine]
"""Makes an engine; loads nothing yet. Called off the event loop: it may import what runs models."""

PROBE_TIMEOUT_S = 60.0
"""A model that takes longer for its first token is not fit to serve."""


@dataclass(slots=True)
class _Hosted:
    model: Model
    engine: Engine | None = None
    ready: bool = False
    failed: bool = False


class ModelHost:
    """Starts engines and knows what state each is in. Belongs to one event loop."""

    def __init__(self, models: Sequence[Model], make: EngineFactory, clock: Clock, log: Log) -> None:
        self._rows = {model.id: _Hosted(model) for model in models}
        self._make = make
        self._clock = clock
        self._log = log
        self.draining = False
        """Whether gateways are told to send nothing more."""
        self.closed = False
        """Whether calls are refused. A while after `draining`: gateways need a moment to know."""
        self.touched = asyncio.Event()
        """Set when a call takes an engine."""

    @property
    def models(self) -> Iterable[ModelId]:
        """What is hosted, in order."""
        return self._rows

    async def start(self, changed: Callable[[], None]) -> None:
        """Starts every engine and has it produce a real token or vector. Calls `changed` at each change of state.

        One after the other: they share the imports and the mapped weights, which the first has to bring in anyway.

        Raises:
            MeshError: START_FAILED for the first one that does not come up.
        """
        for row in self._rows.values():
            began_s = self._clock.now_s()
            try:
                row.engine = await asyncio.to_thread(self._load, row.model)
                async with self._clock.timeout(PROBE_TIMEOUT_S):
                    await _probe(row.engine)
                fault = None
            except Exception as error:  # noqa: BLE001 - any fault of any library; its text may be about anything
                fault = type(error).__name__
            if fault is not None:
                row.failed = True
                changed()
                self._log.error("replica.model_failed", model=row.model.id, error=fault)
                raise MeshError(Code.START_FAILED, hint=f"The model {row.model.id} did not start.")
            row.ready = True
            changed()
            took_s = round(self._clock.now_s() - began_s, 3)
            self._log.info("replica.model_ready", model=row.model.id, duration_s=took_s)

    def longest_step_s(self) -> float:
        """The longest step of all engines that have started."""
        return max((row.engine.longest_step_s for row in self._rows.values() if row.engine is not None), default=0.0)

    def take(self, model: str) -> Engine:
        """The engine that serves a model.

        Raises:
            MeshError: NO_CAPACITY while it starts, while the process drains, or where it is not hosted here (the
                caller then knows an older replica at this address); REPLICA_FAILED when its engine has died.
        """
        row = self._rows.get(ModelId(model))
        if row is None or self.closed:
            raise MeshError(Code.NO_CAPACITY)
        if self._is_dead(row):
            raise MeshError(Code.REPLICA_FAILED)
        if row.engine is None or not row.ready:
            raise MeshError(Code.NO_CAPACITY)
        self.touched.set()
        return row.engine

    def states(self) -> Mapping[ModelId, tuple[ReplicaState, Stats]]:
        """Each model, now."""
        return {id_: (self._state(row), _stats(row)) for id_, row in self._rows.items()}

    def dead(self) -> ModelId | None:
        """A model that will never serve again in this process, if there is one."""
        return next((id_ for id_, row in self._rows.items() if self._is_dead(row)), None)

    def stop(self) -> None:
        """Ends all engines; blocks."""
        for row in self._rows.values():
            if row.engine is not None:
                row.engine.stop()

    def _load(self, model: Model) -> Engine:
        engine = self._make(model)
        engine.start()
        return engine

    def _state(self, row: _Hosted) -> ReplicaState:
        if self._is_dead(row):
            return ReplicaState.DEAD
        if self.draining:
            return ReplicaState.DRAINING
        return ReplicaState.READY if row.ready else ReplicaState.STARTING

    @staticmethod
    def _is_dead(row: _Hosted) -> bool:
        return row.failed or (row.engine is not None and row.engine.dead() is not None)


def _stats(row: _Hosted) -> Stats:
    if row.engine is None or not row.ready:
        return Stats(running=0, queued=0, slots=row.model.slots, queue_limit=row.model.queue, kv_used=0.0)
    return row.engine.stats()


async def _probe(engine: Engine) -> None:
    if engine.kind is ModelKind.EMBEDDING:
        await engine.embed([engine.tokenizer.encode("ready")], UNBOUNDED)
        return
    ids = engine.tokenizer.encode("ready")
    (stream,) = engine.submit([Generation(ids, Sampling(max_tokens=1, temperature=0.0))], UNBOUNDED)
    try:
        async for _ in stream:
            pass
    finally:
        stream.cancel()
