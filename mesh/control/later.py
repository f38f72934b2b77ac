"""Whether what a change took away was given back since: of that a wait for it does not return as done.

The record says by itself since when a jurisdiction is out of the pin; of all else only its history tells, which the
store keeps for a while. Where the tenant has left the home meanwhile, its next homes' records tell. What does not count
there, such as records from before a recovery of the store, tells nothing: then what was taken may have been given back.
"""

from __future__ import annotations

from mesh.control import layout
from mesh.control.drafts import tenant_record
from mesh.control.homes import chained
from mesh.control.records import TenantRecord, Trust
from mesh.control.standing import Committed, is_superseded, tells_by_itself
from mesh.control.statements import Statement
from mesh.control.store import CompactedError, KeyValue, Range, Store
from mesh.errors import Code, MeshError
from mesh.policy.bundle import TenantPolicy
from mesh.types import Revision

_READ_S = 1.0


class LaterChanges:
    """What became of a tenant's record since one change, as far as was asked.

    Attributes:
        left: Whether the tenant has left the home of the change.
    """

    def __init__(self, store: Store, trust: Trust, change: Committed) -> None:
        policy = change.tenant.policy
        self.left = False
        self._store = store
        self._trust = trust
        self._change = change
        self._checked = change.revision
        self._made = policy if policy.revision == change.revision else None

    async def gave_back(self, item: KeyValue) -> bool:
        """Whether a later revision gave back what the change took.

        Args:
            item: The record as it stands at the home of the change.

        Raises:
            StoreError: It cannot be told now.
            MeshError: `internal_error`: the store is not the one that the change was made in.
        """
        change, shrink, record = self._change, self._change.shrink, self._record(item)
        if record.policy.revision < change.revision:
            raise other_store()
        if shrink is None or not (shrink.removed or shrink.lowered):
            return False  # a key stays revoked, and a home left
        stays, left = [(item, record, Revision(0))], await self._departure(record)
        self.left, moves = left is not None, 0
        while left is not None and left.moves > moves:
            found, since = await self._range(layout.policy_key(left.new_home, left.tenant)), Revision(left.revision + 1)
            there = None if found is None else tenant_record(found, self._trust)
            if found is None or there is None:
                return True  # the home has not published its policy again yet: nobody can tell
            if there.policy.revision < since:
                raise other_store()
            record = there
            stays.append((found, record, since))
            moves, left = left.moves, await self._departure(record)
        newest = record.policy
        if newest.revision <= self._checked:
            return False
        if is_superseded(change, [newest], self._made):
            return True
        # Since when a jurisdiction is out of the pin the record says itself; of the rest only its history tells.
        if not tells_by_itself(change, newest):
            for item, record, since in reversed(stays):
                later = await self._later(item, record, max(since, self._checked))
                if later is None:
                    return True  # nobody can tell any more that it was not
                if later[-1].revision == change.revision:
                    self._made = self._made or later[-1]
                if is_superseded(change, [one for one in later if one.revision > change.revision], self._made):
                    return True
        self._checked = newest.revision
        return False

    async def _later(self, item: KeyValue, record: TenantRecord, since: Revision) -> list[TenantPolicy] | None:
        """What a home put of the tenant, back to a revision, and what the home did that it came from before.

        None where that is not known.
        """
        while record.is_first and not record.left and await self._departure(record):
            earlier = await self._before(item)  # what its home put when it had the tenant is below
            if earlier is None:
                return None
            item, record = earlier
        later = [record.policy]
        while record.policy.revision > since:
            earlier = await self._before(item)
            if record.is_first and (earlier is None or not _follows(record, earlier[1])):
                earlier = await self._last_word(record)
            if earlier is None or not _follows(record, earlier[1]):
                return None
            item, record = earlier
            later.append(record.policy)
        return later

    async def _last_word(self, first: TenantRecord) -> tuple[KeyValue, TenantRecord] | None:
        """What the old home said by which a new home's first record counts; None if that does not stand any more."""
        assert first.came_from is not None  # noqa: S101 - a first record is of a move
        found = await self._range(layout.policy_key(first.came_from, first.policy.tenant))
        word = None if found is None else tenant_record(found, self._trust)
        if found is None or word is None or not word.left or chained(first, word.chain) is None:
            return None
        return found, word

    async def _departure(self, record: TenantRecord) -> Statement | None:
        """How a home said last that the tenant has left it; None where it is the tenant's home.

        Over its last word it may have put what is to be its first one if the tenant comes back: that does not count
        before the home that has the tenant says so.
        """
        if record.left:
            return record.chain[-1]
        came_from = record.came_from if record.is_first else None
        if came_from is None:
            return None
        found = await self._range(layout.policy_key(came_from, record.policy.tenant))
        said = None if found is None else tenant_record(found, self._trust)
        if found is None or (said is not None and chained(record, said.chain) is not None):
            return None
        return next((one for one in reversed(record.chain) if one.home == record.policy.home), None)

    async def _before(self, item: KeyValue) -> tuple[KeyValue, TenantRecord] | None:
        """The record that one replaced; None if the store no longer has it, or it does not count."""
        try:
            earlier = await self._range(item.key, item.mod_revision - 1)
        except CompactedError:
            return None
        record = None if earlier is None else tenant_record(earlier, self._trust)
        return None if earlier is None or record is None else (earlier, record)

    async def _range(self, key: str, revision: int = 0) -> KeyValue | None:
        answer = await self._store.range(Range(key, revision=revision), timeout_s=_READ_S)
        return answer.items[0] if answer.items else None

    def _record(self, item: KeyValue) -> TenantRecord:
        record = tenant_record(item, self._trust)
        if record is None:
            raise MeshError(Code.INTERNAL_ERROR, hint="The tenant's record in the control store is not valid.")
        return record


def _follows(record: TenantRecord, earlier: TenantRecord) -> bool:
    """Whether no revision of the tenant is between two records."""
    return record.policy.revision <= earlier.policy.revision + 1


def other_store() -> MeshError:
    """The store is not the one that a change was made in."""
    return MeshError(Code.INTERNAL_ERROR, hint="The control store went back in time since the change was made.")
