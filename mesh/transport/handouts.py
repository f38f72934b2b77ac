"""What this gateway has told each replica process of how long it may work, and what it knows to have been heard.

A replica may work until the last deadline that was handed to it. So it is done with a tenant once it has said that it
carried out a fence, or once that deadline has surely passed: never because it is silent. Knows nothing of gRPC.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mesh.errors import Code, MeshError
from mesh.ports import RHO, Clock, Instant
from mesh.routing.lease import Lease
from mesh.types import KeyId, PolicyNumber, ReplicaId, TenantId

LeftAt = Callable[[Instant], float]
"""How much authority was left at an earlier moment, as is known now, in seconds."""
_EVERY = PolicyNumber(2**32 - 1, 2**63 - 1)
"""Not below any state of policy."""
_LOOK_EVERY = 64


@dataclass(frozen=True, slots=True)
class HoldFor:
    """How long a tenant's work may go on, as of the state of policy `number`.

    Of several holds of one tenant, work is decided by the one with the lowest number that is not below its own: what
    drains under an older state keeps an end of its own.
    """

    tenant: TenantId
    left_at: LeftAt
    number: PolicyNumber


@dataclass(frozen=True, slots=True)
class SaidHold:
    """A hold as it goes out: `left_ms` after the ping that the message names."""

    tenant: TenantId
    left_ms: int
    number: PolicyNumber


@dataclass(frozen=True, slots=True)
class SaidFence:
    """What the replica must refuse and end: work sent under a state of policy below this; with `key_id`, that key's."""

    tenant: TenantId
    below: PolicyNumber
    key_id: KeyId | None


@dataclass(frozen=True, slots=True)
class Said:
    """One message to a replica process."""

    seen: int
    message: int
    holds: Sequence[SaidHold]
    fences: Sequence[SaidFence]


@dataclass(frozen=True, slots=True)
class _Bound:
    """A deadline that was handed out: `left_s` from `since` on, on another host's clock."""

    since: Instant
    left_s: float

    def open_s(self, now: Instant) -> float:
        """For how long it may still be running there; not above 0 once it has surely passed."""
        return self.left_s * (1 + RHO) / (1 - RHO) - now.least_since(self.since)


@dataclass(slots=True, eq=False)
class _Told:
    """One replica process. `asks` are those that it has not carried out, with the first message that said so."""

    joined: bool = True
    message: int = 0
    heard: int = 0
    ping: int = 0
    arrived: Instant | None = None
    bounds: dict[TenantId, _Bound] = field(default_factory=dict)
    asks: dict[Fenced, int | None] = field(default_factory=dict)

    def hand(self, tenant: TenantId, since: Instant, left_s: float, now: Instant) -> None:
        new, old = _Bound(since, left_s), self.bounds.get(tenant)
        if old is None or new.open_s(now) > old.open_s(now):
            self.bounds[tenant] = new

    def forget_passed(self, now: Instant) -> None:
        for tenant in [tenant for tenant, bound in self.bounds.items() if bound.open_s(now) <= 0]:
            del self.bounds[tenant]


class Fenced:
    """Something that every replica process has to carry out."""

    def __init__(self, owner: HandOuts, tenant: TenantId, below: PolicyNumber | None, key_id: KeyId | None) -> None:
        """Args: see `HandOuts.fence`; without `below` it is a lowered deadline."""
        self.tenant, self.below, self.key_id = tenant, below, key_id
        self._owner = owner
        # With the last deadline of the tenant that was handed to it before this was asked.
        self._waiting: dict[ReplicaId, _Bound | None] = {}

    @property
    def confirmed(self) -> bool:
        """Whether each replica has done it, or has surely passed the last deadline that it was given before."""
        for replica in [replica for replica, bound in self._waiting.items() if self._owner.is_over(replica, bound)]:
            del self._waiting[replica]
        return not self._waiting

    @property
    def waiting(self) -> int:
        """How many replica processes have not, yet."""
        return 0 if self.confirmed else len(self._waiting)

    def wait_for(self, replica: ReplicaId, bound: _Bound | None) -> None:
        """One more that has to do it."""
        self._waiting[replica] = bound

    def done(self, replica: ReplicaId) -> None:
        """It has done it."""
        self._waiting.pop(replica, None)


class HandOuts:
    """The leases, holds and fences of one gateway process.

    Attributes:
        holds: Every tenant with work at a replica. Set by who knows what runs.
        on_confirm: Called when something that was asked for was carried out somewhere.
        on_ask: Called when every joined replica has to be told something at once.
    """

    def __init__(self, clock: Clock) -> None:
        self.holds: Callable[[ReplicaId], Sequence[HoldFor]] = _none
        self.on_confirm: Callable[[], None] = _nothing
        self.on_ask: Callable[[], None] = _nothing
        self._clock = clock
        self._told: dict[ReplicaId, _Told] = {}

    def pinged(self, replica: ReplicaId, ping: int, heard: int) -> None:
        """A report arrived just now.

        Args:
            replica: The process.
            ping: The report's number.
            heard: The highest message that it has carried out, with all before it.

        Raises:
            MeshError: INVALID_PARAMETER where it cannot have heard that.
        """
        now = self._clock.instant()
        told = self._told.get(replica)
        if heard > (0 if told is None else told.message):
            raise MeshError(Code.INVALID_PARAMETER, param="heard")
        if told is None:
            self._forget_gone(now)
            told = self._told[replica] = _Told()
        told.joined, told.ping, told.arrived = True, ping, now
        first = told.heard == 0 < heard
        told.heard = heard
        done = [ask for ask, message in told.asks.items() if message is not None and message <= heard]
        for ask in done:
            del told.asks[ask]
            ask.done(replica)
        if done or first:
            self.on_confirm()

    def all_heard(self, processes: int) -> bool:
        """Whether so many replica processes are joined, and each has carried out what it was told when it joined."""
        joined = [told for told in self._told.values() if told.joined]
        return len(joined) >= processes and all(told.heard for told in joined)

    def gone(self, replica: ReplicaId) -> None:
        """Its stream has ended. That says nothing of what runs there."""
        told = self._told.get(replica)
        if told is not None:
            told.joined, told.arrived = False, None
            self.on_confirm()

    def lease(self, replica: ReplicaId, tenant: TenantId, left_at: LeftAt, number: PolicyNumber) -> Lease | None:
        """The right to send one hop, and for the replica to work on it.

        Args:
            replica: Where it goes.
            tenant: Whose it is.
            left_at: Authority left when the replica's last ping arrived.
            number: Under which the hop was decided.

        Returns:
            None while the replica is not joined, and where nothing is left.
        """
        told = self._told.get(replica)
        if told is None or told.arrived is None:
            return None
        left_ms = _left_ms(left_at, told.arrived)
        if left_ms <= 0:
            return None
        told.message += 1
        told.hand(tenant, told.arrived, left_ms / 1000, self._clock.instant())
        return Lease(replica=replica, ping=told.ping, message=told.message, left_ms=left_ms, number=number)

    def fence(self, tenant: TenantId, below: PolicyNumber, key_id: KeyId | None = None) -> Fenced:
        """Has every replica refuse and end a tenant's work that was sent under an older state of policy.

        It is told also where nothing is believed to run: a hop may lie in a socket's buffer.

        Args:
            tenant: Whose work.
            below: The first state under which work may run.
            key_id: That key's work only.
        """
        return self._ask(Fenced(self, tenant, below, key_id))

    def lowered(self, tenant: TenantId) -> Fenced:
        """Has every replica hear a message later than all that was handed out before now.

        With it goes what the tenant has left there now: nothing, where `holds` does not name it.
        """
        return self._ask(Fenced(self, tenant, None, None))

    def message(self, replica: ReplicaId) -> Said:
        """The next message to a joined replica: what it may go on with, and what it has not carried out yet."""
        told, now = self._told[replica], self._clock.instant()
        arrived = told.arrived
        if arrived is None:
            raise MeshError(Code.INTERNAL_ERROR)  # nothing is said to who is gone
        told.message += 1
        if told.message % _LOOK_EVERY == 0:
            told.forget_passed(now)
        holds: list[SaidHold] = []
        for hold in self.holds(replica):
            left_ms = _left_ms(hold.left_at, arrived)
            told.hand(hold.tenant, arrived, left_ms / 1000, now)
            holds.append(SaidHold(hold.tenant, left_ms, hold.number))
        lowered: dict[TenantId, None] = {}
        fences: dict[tuple[TenantId, KeyId | None], PolicyNumber] = {}
        for ask, said in told.asks.items():
            if said is None:
                told.asks[ask] = told.message
            if ask.below is not None:
                at = ask.tenant, ask.key_id
                fences[at] = max(ask.below, fences.get(at, ask.below))
            else:
                lowered[ask.tenant] = None
        # Of what was sent later than all that runs, nothing runs; such a hop may still lie in the replica's socket.
        holds += (SaidHold(tenant, 0, _EVERY) for tenant in lowered)
        said_fences = [SaidFence(tenant, below, key_id) for (tenant, key_id), below in fences.items()]
        return Said(told.ping, told.message, holds, said_fences)

    def is_over(self, replica: ReplicaId, bound: _Bound | None) -> bool:
        """Whether a replica can have nothing that was handed to it up to `bound`, without having said so."""
        if bound is None:
            told = self._told.get(replica)
            return told is None or not told.joined
        return bound.open_s(self._clock.instant()) <= 0

    def _ask(self, ask: Fenced) -> Fenced:
        for replica, told in self._told.items():
            ask.wait_for(replica, told.bounds.get(ask.tenant))
            told.asks[ask] = None
        self.on_ask()
        return ask

    def _forget_gone(self, now: Instant) -> None:
        for replica, told in list(self._told.items()):
            if not told.joined:
                told.forget_passed(now)
                if not told.bounds:
                    del self._told[replica]


def _left_ms(left_at: LeftAt, arrived: Instant) -> int:
    """Rounded down: never more than there is."""
    return max(0, int(left_at(arrived) * 1000))


def _none(_: ReplicaId) -> Sequence[HoldFor]:
    return ()


def _nothing() -> None:
    pass
