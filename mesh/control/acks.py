"""Writes a member's acknowledgement: the newest state wins, one is under way at a time, and it is put until it stands.

Knows nothing of what is acknowledged: it asks for the state whenever it writes. It is put only while the grant stands
as this process put it last: of a process and its copy only one can acknowledge, the one that can still be granted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from mesh.control.memberships import Ack, encode_ack
from mesh.control.store import Compare, Put, Range, Store, StoreError, StoreUnavailableError
from mesh.policy.shards import Shard
from mesh.ports import Clock, Instant
from mesh.telemetry.log import Log
from mesh.types import Revision, TenantId

_TIMEOUT_S = 1.5
_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 1.0
_SAME_END_S = 0.25
"""An end that moves by less is not told again."""
_CONFIRM_S = 0.05
"""So long a state waits in which nothing runs and only replicas have to confirm: that is mostly over in less, and what
was put before would cost the one that is waited for another round trip."""
_Told = tuple[dict[Shard, int], dict[TenantId, tuple[Revision, float]]]


class AckWriter:
    """Keeps one key of the store equal to a state.

    Attributes:
        written: Acknowledgements that stand.
        failures: Attempts whose answer did not come.
    """

    def __init__(
        self,
        store: Store,
        key: str,
        state: Callable[[], Ack],
        grant: Callable[[], Compare | None],
        clock: Clock,
        log: Log | None,
    ) -> None:
        """Takes what it looks at; `grant` is how the process' own grant must stand, None while it has none."""
        self.written = 0
        self.failures = 0
        self._failing = False
        self._store = store
        self._key = key
        self._state = state
        self._grant = grant
        self._clock = clock
        self._log = log
        self._changed = asyncio.Event()
        self._tried = asyncio.Event()
        self._tried.set()
        self._stopped = False
        self._mod_revision = 0
        self._told: _Told | None = None

    def changed(self) -> None:
        """The state may say something else now, or the grant stands otherwise."""
        self._tried.clear()
        self._changed.set()

    async def tried(self) -> None:
        """Returns once what was changed before has been tried to be told."""
        await self._tried.wait()

    def move(self, key: str) -> None:
        """From now on the state is told at another key."""
        self._key, self._mod_revision, self._told = key, 0, None
        self.changed()

    def stop(self) -> None:
        """Nothing is written any more."""
        self._stopped = True

    async def run(self) -> None:
        """Writes, for ever."""
        while True:
            await self._changed.wait()
            await self._confirmed()
            self._changed.clear()
            backoff_s = _FIRST_BACKOFF_S
            while not await self._is_told():
                self._tried.set()
                self.failures += 1
                await self._clock.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)
            self._tried.set()

    async def _confirmed(self) -> None:
        """Returns once more than confirmations is waited for, or nothing, or after `_CONFIRM_S`."""
        with suppress(TimeoutError):
            async with self._clock.timeout(_CONFIRM_S):
                while _only_confirms(self._state()) and not self._stopped:
                    self._changed.clear()
                    await self._changed.wait()

    async def _is_told(self) -> bool:
        """Whether the state, as it is now, stands in the store."""
        while not self._stopped:
            state, key, grant = self._state(), self._key, self._grant()
            if grant is None:
                return True  # nobody waits for it; a grant's answer calls `changed`
            told = _told(state, self._clock.instant())
            if self._told is not None and _same(self._told, told):
                return True
            self._changed.clear()
            try:
                # The compare keeps an attempt that was given up from coming late, over what was written since.
                answer = await self._store.txn(
                    [Compare(key, self._mod_revision), grant],
                    [Put(key, encode_ack(state))],
                    [Range(key), Range(grant.key)],
                    timeout_s=_TIMEOUT_S,
                )
            except StoreError as error:
                self._note(error)
                return False
            self._failing = False
            if key != self._key:
                continue
            if answer.succeeded:
                self._mod_revision, self._told = answer.revision, told
                self.written += 1
            else:
                here, held = (found.items for found in answer.ranges)
                self._mod_revision, self._told = here[0].mod_revision if here else 0, None
                if (held[0].mod_revision if held else 0) != grant.mod_revision:
                    return (
                        True  # the answer of a renewal is on its way, and calls `changed`; or it is not ours any more
                    )
        return True

    def _note(self, error: StoreError) -> None:
        if self._log is not None and not self._failing:
            reason = error.reason if isinstance(error, StoreUnavailableError) else None
            self._log.warning("ack.failed", error=type(error).__name__, grpc_status=reason)
        self._failing = True


def _only_confirms(state: Ack) -> bool:
    return bool(state.draining) and all(drain.left_s <= 0 for drain in state.draining.values())


def _told(state: Ack, now: Instant) -> _Told:
    """What an acknowledgement says, apart from when it was written."""
    ends = {tenant: (drain.revision, now.boot_s + drain.left_s) for tenant, drain in state.draining.items()}
    return dict(state.applied), ends


def _same(one: _Told, other: _Told) -> bool:
    return (
        one[0] == other[0]
        and one[1].keys() == other[1].keys()
        and all(
            revision == other[1][tenant][0] and abs(end_s - other[1][tenant][1]) < _SAME_END_S
            for tenant, (revision, end_s) in one[1].items()
        )
    )
