"""Grants and acknowledgements."""

from __future__ import annotations

from mesh.control import layout
from mesh.control.grants import Membership
from mesh.control.memberships import Ack, decode_grant
from mesh.control.store import Range, TxnResult


class GrantedBeforePut(Membership):
    """Reads first, and puts its grant with the next renewal."""

    _has_read = False

    async def _renew_once(self) -> None:
        if self._has_read:
            await super()._renew_once()
            return
        t0 = self._clock.instant()
        heads = await self._store.range(Range(*layout.HEADS), timeout_s=1.5)
        parsed = [(layout.parse(item.key), item.version) for item in heads.items]
        self._authority.granted({at.shard: number for at, number in parsed if isinstance(at, layout.HeadKey)}, t0)
        self._has_read = True


class AcksWhatIsKnown(Membership):
    """Acknowledges the numbers of its last grant, whether it has applied them or not."""

    def _state(self) -> Ack:
        known = {shard: head.version for shard, head in (self._seen.heads or {}).items()}
        return Ack(self._applied | known, dict(self._draining()))

    async def _renew_once(self) -> None:
        await super()._renew_once()
        self._acks.changed()


class NoTwin(Membership):
    """Takes whatever stands at its grant for its own."""

    def _is_granted(self, answer: TxnResult, attempt: bytes) -> bool:
        if not answer.succeeded and answer.ranges[0].items:
            self._mod_revision = answer.ranges[0].items[0].mod_revision
            return False
        self._last = _attempt_of(answer, self._last)
        return super()._is_granted(answer, attempt)


class NeverBack(Membership):
    def went_back(self) -> None:
        self._seen.heads, self._seen.revision, self._seen.cluster = None, 0, 0
        self._applied.clear()


def _attempt_of(answer: TxnResult, last: bytes) -> bytes:
    here = answer.ranges[0].items
    grant = decode_grant(here[0].value) if here else None
    return last if grant is None else grant.attempt
