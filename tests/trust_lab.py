"""Homes that a test trusts, their keys, and a journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mesh.control.changes import Changes
from mesh.control.records import HomeTrust, Trust
from mesh.control.signing import Signer
from mesh.control.store import Store
from mesh.errors import Code, MeshError
from mesh.ledger import SignedRecord
from mesh.ports import Clock, Entropy
from mesh.runtime import SystemEntropy
from mesh.settings import PolicyKey
from mesh.types import Jurisdiction, RegionId, Revision

HOMES = {
    RegionId("vn-1"): Jurisdiction("VN"),
    RegionId("vn-10"): Jurisdiction("VN"),
    RegionId("sg-1"): Jurisdiction("SG"),
    RegionId("ap-southeast-1"): Jurisdiction("SG"),
}


def signer_of(home: RegionId, key_id: str = "k1") -> Signer:
    """A home's private key: always the same one."""
    return Signer(_private(home, key_id), key_id)


def policy_key_of(
    home: RegionId, key_id: str = "k1", valid_from: date | None = None, valid_until: date | None = None
) -> PolicyKey:
    """What a region file says of that key."""
    public = _private(home, key_id).public_key().public_bytes_raw()
    return PolicyKey(id=key_id, public=public, valid_from=valid_from, valid_until=valid_until)


def trust_in(epoch: int = 1, cap_s: float = 86_400, now_s: float = 1_790_000_000) -> Trust:
    """Trust in these homes."""
    return Trust(
        homes={home: HomeTrust(jurisdiction=place, keys=(policy_key_of(home),)) for home, place in HOMES.items()},
        epoch=epoch,
        cap_s=cap_s,
        now=lambda: now_s,
    )


@dataclass
class Notebook:
    """A journal in memory."""

    rows: dict[int, tuple[str, bytes, int, Revision]] = field(default_factory=dict)
    made_rows: set[int] = field(default_factory=set)
    moves: dict[int, bool] = field(default_factory=dict)
    """Of rows of moves, whether each is a last word."""
    count: int = 0

    async def signed(self, key: str, value: bytes, epoch: int, revision: Revision) -> int:
        if self._left(key) is not None:
            raise MeshError(Code.MOVE_UNFINISHED)
        return self._add(key, value, epoch, revision)

    async def signed_move(self, key: str, value: bytes, epoch: int, revision: Revision, *, last: bool) -> int:
        before = self._left(key)
        if last and before is not None and self.rows[before][2] >= epoch and self.rows[before][1] != value:
            raise MeshError(Code.MOVE_UNFINISHED)
        number = self._add(key, value, epoch, revision)
        self.moves[number] = last
        return number

    async def last_words(self, key: str) -> Sequence[tuple[int, bytes]]:
        firsts = [number for number, last in self.moves.items() if not last and self.rows[number][0] == key]
        return [
            (number, self.rows[number][1])
            for number, last in self.moves.items()
            if last and self.rows[number][0] == key and number not in self.made_rows and number > max(firsts, default=0)
        ]

    def _add(self, key: str, value: bytes, epoch: int, revision: Revision) -> int:
        self.count += 1
        self.rows[self.count] = (key, value, epoch, revision)
        return self.count

    def _left(self, key: str) -> int | None:
        """The last word that nothing has followed, and that nothing was made in the place of."""
        at = key.partition("/key/")[0]
        made = [
            row[2:] for number, row in self.rows.items() if row[0] == at and number in self.made_rows - set(self.moves)
        ]
        own = [
            number
            for number, last in self.moves.items()
            if self.rows[number][0] == at
            and not (last and number not in self.made_rows and any(one >= self.rows[number][2:] for one in made))
        ]
        return max(own) if own and self.moves[max(own)] else None

    async def made(self, numbers: Sequence[int]) -> None:
        self.made_rows.update(numbers)

    async def unmade(self, number: int) -> None:
        self.rows.pop(number, None)
        self.moves.pop(number, None)

    async def signed_since_made(self) -> Sequence[SignedRecord]:
        """All of it: what is older than was made makes no difference."""
        return [
            SignedRecord(at=row[0], value=row[1], epoch=row[2], revision=row[3], made=number in self.made_rows)
            for number, row in sorted(self.rows.items(), key=lambda item: (*item[1][:1], *item[1][2:], item[0]))
        ]


def changes_in(
    store: Store,
    home: RegionId,
    clock: Clock,
    entropy: Entropy | None = None,
    journal: Notebook | None = None,
    *,
    store_answers: bool = False,
) -> Changes:
    """A home's admin."""
    return Changes(
        store,
        home,
        clock,
        entropy or SystemEntropy(),
        signer=signer_of(home),
        trust=trust_in(),
        journal=journal if journal is not None else Notebook(),
        store_answers=lambda: store_answers,
    )


def _private(home: RegionId, key_id: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(f"{home} {key_id}".encode().ljust(32, b"."))
