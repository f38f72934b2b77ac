"""Changes that may take something away: made once, then waited for until they hold everywhere, and certified.

A change is in force at every gateway that knows of it from the moment it is committed. The promise is more: that it
holds at those which do not. `Barrier` knows when; this tells an operator how far it has come.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from mesh.control.barrier import Barrier, BarrierState, MemberState
from mesh.control.changes import Outcome
from mesh.control.receipts import make_receipt
from mesh.control.signing import Signer
from mesh.errors import Code, MeshError
from mesh.policy.authority import wait_s
from mesh.ports import Clock
from mesh.types import Revision, TenantId


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long somebody waits, and for what.

    Attributes:
        strict: Acknowledgements and attestations only, no timer.
        timeout_s: For how long; None is for as long as it takes.
        receipt: Whether it ends with a receipt.
    """

    strict: bool = False
    timeout_s: float | None = None
    receipt: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a change has come.

    Attributes:
        outcome: What was committed.
        members: How each member stands to it.
        done: Whether the promise holds.
        recovery_left_s: For how long it is waited whatever is acknowledged.
        receipt: With `done`, if asked for.
    """

    outcome: Outcome
    members: tuple[MemberState, ...] = ()
    waited_ms: int = 0
    done: bool = False
    recovery_left_s: float = 0.0
    receipt: str = ""


@dataclass(frozen=True, slots=True)
class Open:
    """A change that is being waited for. `waited_ms` is from its commit on."""

    op_id: str
    tenant: TenantId
    revision: Revision
    waited_ms: int


class Shrinks:
    """Follows changes of this home's tenants."""

    def __init__(self, *, barrier: Barrier, signer: Signer | None, epoch: int, clock: Clock) -> None:
        self._barrier = barrier
        self._signer = signer
        self._epoch = epoch
        self._clock = clock
        self._open: dict[object, Open] = {}

    def open(self) -> tuple[Open, ...]:
        """The changes that somebody waits for here and now."""
        return tuple(self._open.values())

    async def follow(self, making: Awaitable[Outcome], patience: Patience) -> AsyncGenerator[Progress]:
        """Makes a change, tells that it is made, and then how far it has come until it holds everywhere.

        Raises:
            MeshError: What making it raises; SUPERSEDED; DEADLINE_EXCEEDED when the patience ended first: then the
                change stays made.
        """
        outcome = await making
        said = Progress(outcome=outcome)
        yield said
        if outcome.shrink is not None:
            waiting = object()
            try:
                async with aclosing(
                    self._barrier.wait(outcome, strict=patience.strict, deadline_s=patience.timeout_s)
                ) as states:
                    async for state in states:
                        said = replace(
                            said,
                            members=state.members,
                            waited_ms=state.waited_ms,
                            recovery_left_s=state.recovery_left_s,
                        )
                        self._open[waiting] = Open(
                            outcome.op_id, outcome.tenant.policy.tenant, outcome.revision, state.waited_ms
                        )
                        _check(state)
                        if not state.done:
                            yield said
            finally:
                self._open.pop(waiting, None)
        receipt = self._receipt(said, self._signer) if patience.receipt and self._signer is not None else ""
        yield replace(said, done=True, receipt=receipt)

    def _receipt(self, progress: Progress, signer: Signer) -> str:
        outcome = progress.outcome
        policy, shrink = outcome.tenant.policy, outcome.shrink
        returned_s = self._clock.wall_s()
        statement: dict[str, object] = {
            "what": "Since revision, nothing of this tenant is admitted in, or forwarded to, a removed jurisdiction, "
            "and nothing that was admitted before runs there.",
            "tenant": policy.tenant,
            "home": policy.home,
            "op_id": outcome.op_id,
            "control_epoch": self._epoch,
            "revision_before": outcome.revision - 1,
            "revision": outcome.revision,
            "allowed": sorted(policy.allowed),
            "state": policy.state.value,
            "removed": sorted({right.place for right in shrink.removed}) if shrink else [],
            "key_id": outcome.key_id or "",
            "span_ms": round(shrink.span_s * 1000) if shrink else 0,
            "w_ms": round(wait_s(shrink.span_s) * 1000) if shrink else 0,
            "waited_ms": progress.waited_ms,
            "returned_at": datetime.fromtimestamp(returned_s, UTC).isoformat(timespec="milliseconds"),
            "members": [
                {
                    "member": member.member,
                    "region": member.region,
                    "gateway": member.gateway,
                    "accounted": member.standing.value,
                }
                for member in progress.members
            ],
        }
        return make_receipt(statement, signer)


def _check(state: BarrierState) -> None:
    if state.superseded:
        raise MeshError(Code.SUPERSEDED)
    if state.out_of_patience:
        missing = sum(not member.accounted for member in state.members)
        raise MeshError(
            Code.DEADLINE_EXCEEDED,
            hint=f"The change is made and stays; gateway processes not accounted for yet: {missing}.",
        )
