"""What a gateway tells a replica with each hop: for how long, and under which state of policy, it may work on it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mesh.types import PolicyNumber, ReplicaId

_TEXT = re.compile(
    rb"([0-9a-f]{16})\.([0-9]{1,19})\.([0-9]{1,19})\.([0-9]{1,12})\.([0-9]{1,9})\.([0-9]{1,18})", re.ASCII
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right of one replica process to work on one hop. It ends `left_ms` after the replica sent the ping.

    Attributes:
        replica: The process whose ping it was: nobody else knows when that was sent.
        ping: The replica's own number of the report that its gateway heard last.
        message: This gateway process's count of what it told this replica process. The highest decides.
        left_ms: How much authority the gateway had left when the ping arrived, in ms.
        number: The state of policy under which the hop was decided.
    """

    replica: ReplicaId
    ping: int
    message: int
    left_ms: int
    number: PolicyNumber

    def encode(self) -> bytes:
        """The value of the header `mesh-lease`."""
        return b"%s.%d.%d.%d.%d.%d" % (self.replica.encode(), self.ping, self.message, self.left_ms, *self.number)


def parse_lease(text: bytes) -> Lease | None:
    """Reads the header's value; None where it is none."""
    found = _TEXT.fullmatch(text)
    if found is None:
        return None
    ping, message, left_ms, moves, number = (int(part) for part in found.groups()[1:])
    return Lease(
        replica=ReplicaId(found[1].decode()),
        ping=ping,
        message=message,
        left_ms=left_ms,
        number=PolicyNumber(moves, number),
    )
