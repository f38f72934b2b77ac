"""How this admin sees the control store, and its home's recovery, in the words of the `Admin` service."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from mesh.control.epoch import EpochStart
from mesh.control.history import StoreHistory
from mesh.control.recovery import Recovery
from mesh.errors import Code, MeshError
from mesh.ports import Clock
from mesh.v1 import admin_pb2 as pb


class ControlDesk:
    """What an operator asks of an admin about the control store itself."""

    def __init__(
        self, *, epoch: int, history: StoreHistory, start: EpochStart, recovery: Recovery, clock: Clock
    ) -> None:
        self._epoch = epoch
        self._history = history
        self._start = start
        self._recovery = recovery
        self._clock = clock

    async def status(self, _: pb.ControlStatusRequest) -> pb.ControlStatusResponse:
        """How this admin sees the store."""
        return pb.ControlStatusResponse(
            epoch=self._epoch,
            compared=self._recovery.compared,
            went_back=self._history.went_back,
            published=self._start.published,
            recovery_left_ms=round(self._start.left_s(self._clock.instant()) * 1000),
        )

    async def recover(self, request: pb.RecoverRequest) -> AsyncGenerator[pb.RecoverProgress]:
        """Publishes this home's policy, tenant by tenant."""
        if request.epoch != self._epoch:
            hint = f"This region's admin runs with control epoch {self._epoch}: restart it with the new configuration."
            raise MeshError(Code.INVALID_PARAMETER, param="epoch", hint=hint)
        async with aclosing(self._recovery.recover()) as states:
            async for state in states:
                yield pb.RecoverProgress(
                    tenants=state.tenants,
                    looked_at=state.looked_at,
                    published=state.published,
                    narrowed=state.narrowed,
                    keys_left_out=state.keys_left_out,
                    unknown=state.unknown,
                    done=state.done,
                )
