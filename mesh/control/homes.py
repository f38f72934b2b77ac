"""Whose record of a tenant counts, when it may have moved: of all that lies under any home, the one the chain leads to.

From the first statement that is seen on, only a record to which all statements lead counts. What a home says about a
tenant that has left it does not, nor what another region says to which nothing leads; if nothing is left, the tenant
is refused, never served by what was. Statements are never forgotten. Two that contradict each other end all trust in
the tenant's records: only people can say what is right.
"""

from __future__ import annotations

import math
from dataclasses import replace

from mesh.control.records import Fault, KeyRecord, RecordError, TenantRecord, digest_of
from mesh.control.statements import Chain, Statement, longest
from mesh.types import KeyId, RegionId


class Claims:
    """What lies under each home of one tenant, as one reader knows it, and every statement that it ever saw.

    Attributes:
        records: The valid record under each home, whether it counts or not.
        keys: Those of the tenant's keys under each home.
    """

    def __init__(self) -> None:
        self.records: dict[RegionId, TenantRecord] = {}
        self.keys: dict[RegionId, dict[KeyId, KeyRecord]] = {}
        self._statements: dict[int, Statement] = {}
        self._said_by: dict[int, int] = {}
        """The lowest revision of the store that is known to have put each statement, or to have put it again."""
        self._forked = False

    def take(self, record: TenantRecord, put: int, stood: float = math.inf) -> None:
        """Takes in a valid record.

        Args:
            record: It.
            put: The revision of the store that put it.
            stood: One at which it stood; infinite is now. What the watch tells may be older than what is known.

        Raises:
            RecordError: FORK: what it carries contradicts what was seen; all is taken in nevertheless. OLDER: it is a
                home's that had said before that the tenant left, so it is not taken in.
        """
        home, moves = record.policy.home, record.policy.moves
        forked = False
        for statement in record.chain:
            known = self._statements.setdefault(statement.moves, statement)
            self._said_by[statement.moves] = min(put, self._said_by.get(statement.moves, put))
            forked |= known.says != statement.says
        if not record.left and any(
            one.home == home and one.moves > moves and self._said_by[one.moves] <= stood
            for one in self._statements.values()
        ):
            raise RecordError(Fault.OLDER)
        self.records[home] = record
        if forked:
            self._forked = True
            raise RecordError(Fault.FORK)

    def take_key(self, record: KeyRecord) -> None:
        """Takes in a valid record of a key.

        Raises:
            RecordError: OLDER: the key was revoked there.
        """
        known = self.keys.setdefault(record.home, {})
        before = known.get(record.key.key_id)
        if before is not None and before.key.revoked and not record.key.revoked:
            raise RecordError(Fault.OLDER)
        known[record.key.key_id] = record

    def drop(self, home: RegionId) -> None:
        """No valid record lies under a home any more."""
        self.records.pop(home, None)

    def drop_key(self, home: RegionId, key_id: KeyId) -> None:
        """No valid record of a key lies under a home any more."""
        self.keys.get(home, {}).pop(key_id, None)

    @property
    def home(self) -> RegionId | None:
        """Where the statements lead to; None while nothing is known of the tenant."""
        genesis = next((record.genesis for record in self.records.values()), None)
        return None if genesis is None else longest(self._statements, genesis)[1]

    @property
    def has_moved_on(self) -> bool:
        """Whether the record that it has moved to is still to be had: a home has said that the tenant has left it."""
        home = self.lacks
        return home is not None and any(record.left for record in self.records.values())

    @property
    def lacks(self) -> RegionId | None:
        """The home that the statements lead to, where its record is not known, or is not the one that was named."""
        home = self.home
        try:
            found = self.current()
        except RecordError:
            return home
        return home if found is None and not self._forked else None

    def current(self) -> TenantRecord | None:
        """The record that counts; None where there is none.

        Raises:
            RecordError: CHAIN: the new home's first record is not the one that the old home has named.
        """
        home = self.home
        if home is None or self._forked:
            return None
        record = self.records.get(home)
        if record is None or record.left or record.policy.moves != longest(self._statements, record.genesis)[0]:
            return None
        if record.is_first and digest_of(record) != self._statements[record.policy.moves].first:
            raise RecordError(Fault.CHAIN)
        return record

    def current_keys(self, record: TenantRecord) -> dict[KeyId, KeyRecord]:
        """The keys that count with a record that counts: those that its home has taken over or made."""
        moves, home = record.policy.moves, record.policy.home
        return {key_id: key for key_id, key in self.keys.get(home, {}).items() if key.moves == moves}

    def has_left(self, home: RegionId) -> bool:
        """Whether the tenant has left a home: what lies there of its keys is nobody's business any more."""
        record = self.records.get(home)
        return record is not None and record.left

    def holds_key(self, key_id: KeyId) -> bool:
        """Whether any home has a valid record of a key."""
        return any(key_id in keys for keys in self.keys.values())


def chained(first: TenantRecord, chain: Chain) -> TenantRecord | None:
    """A new home's first record with the statement of its move, if it is among some; None if it is not."""
    moves = first.policy.moves
    if len(chain) < moves:
        return None
    statement = chain[moves - 1]
    fits = statement.new_home == first.policy.home and statement.first == digest_of(first)
    return replace(first, chain=chain[:moves]) if fits else None
