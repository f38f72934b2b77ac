"""A home's statement that a tenant has left it, and the chain of such statements that leads to the home of now.

A statement is never taken back: it holds in every later control epoch, and with a key that has ended since. What the
new home signs carries the chain, so that nobody needs the old home's record to know that it no longer counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from mesh.control.signing import Signer, fields
from mesh.types import RegionId, Revision, TenantId
from mesh.v1 import control_pb2 as pb

DIGEST_BYTES = 32
_DOMAIN = b"mesh.move.v1"
_LATEST_S = 253_402_300_799  # the year 9999


class Verifier(Protocol):
    """What is trusted of one home."""

    def verifies(self, signed_by: str, signature: bytes, payload: bytes, at_s: float) -> bool:
        """Whether one of the home's keys, valid at a time (seconds since 1970), signed this."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A home says that a tenant has left it.

    Attributes:
        moves: How often the home has changed, this move included.
        home: That it left, and that says so.
        revision: The last one that this home made.
        first: The digest of the new home's first record; see `records.digest_of`.
        epoch: The control epoch in which it was made.
        made_s: Seconds since 1970, UTC.
    """

    tenant: TenantId
    moves: int
    home: RegionId
    new_home: RegionId
    revision: Revision
    first: bytes
    epoch: int
    made_s: int
    signed_by: str
    signature: bytes

    @property
    def says(self) -> tuple[TenantId, int, RegionId, RegionId, Revision, bytes]:
        """What it says, whenever and with whatever key: two that differ in it contradict each other."""
        return self.tenant, self.moves, self.home, self.new_home, self.revision, self.first


Chain = tuple[Statement, ...]


class ChainError(Exception):
    """Statements that do not lead anywhere. `unsigned`: one of them is not its home's."""

    def __init__(self, *, unsigned: bool = False) -> None:
        super().__init__("unsigned" if unsigned else "no chain")
        self.unsigned = unsigned


def make_statement(
    *,
    tenant: TenantId,
    moves: int,
    home: RegionId,
    new_home: RegionId,
    revision: Revision,
    first: bytes,
    epoch: int,
    made_s: int,
    signer: Signer,
) -> Statement:
    """The statement, signed by the home that the tenant leaves."""
    wire = pb.MoveStatement(
        tenant=tenant,
        moves=moves,
        home=home,
        new_home=new_home,
        revision=revision,
        first=first,
        epoch=epoch,
        made_s=made_s,
        signed_by=signer.key_id,
    )
    wire.signature = signer.sign(_signed(wire))
    return _statement_of(wire)


def wire_of(statement: Statement) -> pb.MoveStatement:
    """The statement as it is sent."""
    return pb.MoveStatement(
        tenant=statement.tenant,
        moves=statement.moves,
        home=statement.home,
        new_home=statement.new_home,
        revision=statement.revision,
        first=statement.first,
        epoch=statement.epoch,
        made_s=statement.made_s,
        signed_by=statement.signed_by,
        signature=statement.signature,
    )


def signed_part(wires: Iterable[pb.MoveStatement]) -> bytes:
    """What a record that carries statements signs of them: all."""
    return fields(b"", *(fields(_signed(wire), wire.signature) for wire in wires))


def said_part(wires: Iterable[pb.MoveStatement]) -> bytes:
    """What statements say, whenever and with whatever key."""
    return fields(
        b"",
        *(fields(b"", wire.tenant, wire.moves, wire.home, wire.new_home, wire.revision, wire.first) for wire in wires),
    )


def read_chain(
    wires: Iterable[pb.MoveStatement],
    tenant: TenantId,
    genesis: RegionId,
    homes: Mapping[RegionId, Verifier],
    epoch: int,
) -> tuple[Chain, RegionId]:
    """The statements and the home that they lead to from where the tenant began.

    Args:
        wires: The first one first.
        tenant: Whose.
        genesis: The region where the tenant began.
        homes: What is trusted of each.
        epoch: Of now: one made in a later epoch does not count.

    Raises:
        ChainError: One is not about this tenant, not the next one, or not signed by the home that it leaves.
    """
    end, chain = genesis, list[Statement]()
    for number, wire in enumerate(wires, 1):
        home = homes.get(RegionId(wire.home))
        fits = (wire.tenant, wire.moves, wire.home) == (tenant, number, end) and wire.new_home != end
        in_time = 1 <= wire.epoch <= epoch and 0 <= wire.made_s <= _LATEST_S
        if not fits or not in_time or len(wire.first) != DIGEST_BYTES or wire.revision < 1:
            raise ChainError
        if home is None or not home.verifies(wire.signed_by, wire.signature, _signed(wire), wire.made_s):
            raise ChainError(unsigned=True)
        end = RegionId(wire.new_home)
        chain.append(_statement_of(wire))
    return tuple(chain), end


def longest(statements: Mapping[int, Statement], genesis: RegionId) -> tuple[int, RegionId]:
    """How often a tenant has moved by the statements that are known, and where to."""
    moves, home = 0, genesis
    while (following := statements.get(moves + 1)) is not None and following.home == home:
        moves, home = following.moves, following.new_home
    return moves, home


def _statement_of(wire: pb.MoveStatement) -> Statement:
    return Statement(
        tenant=TenantId(wire.tenant),
        moves=wire.moves,
        home=RegionId(wire.home),
        new_home=RegionId(wire.new_home),
        revision=Revision(wire.revision),
        first=wire.first,
        epoch=wire.epoch,
        made_s=wire.made_s,
        signed_by=wire.signed_by,
        signature=wire.signature,
    )


def _signed(wire: pb.MoveStatement) -> bytes:
    return fields(
        _DOMAIN,
        wire.tenant,
        wire.moves,
        wire.home,
        wire.new_home,
        wire.revision,
        wire.first,
        wire.epoch,
        wire.made_s,
        wire.signed_by,
    )
