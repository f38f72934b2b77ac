"""What an episode is put together from. A mutant is the same with one part replaced: see `mutants.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from sim.hosts import Host
from sim.watch import Watch
from sim.world import World
from trust_lab import Notebook

from mesh.control.barrier import Barrier
from mesh.control.changes import Changes, Journal, Outcome
from mesh.control.epoch import EpochStart
from mesh.control.feed import PolicyFeed
from mesh.control.grants import Membership
from mesh.control.members import Members
from mesh.control.memberships import Drain
from mesh.control.overdue import Overdue
from mesh.control.records import Trust
from mesh.control.sweep import MemberSweeper
from mesh.gateway.keyring import Keyring
from mesh.gateway.running import Running
from mesh.gateway.story import Story
from mesh.policy.authority import Authority
from mesh.policy.bundle import PolicyBook
from mesh.ports import Clock
from mesh.routing.fleet import Atlas, ModelLoad
from mesh.serving.leases import Leases
from mesh.transport.fleet_hub import FleetHub
from mesh.types import Here, Jurisdiction, ModelId, RegionId, ReplicaId, TenantId

SECRET = b"m" * 32
ROGUE = RegionId("rogue")
"""Signs by a key that no region file has."""
_TICK_S = 0.045
"""Within the 50 ms that the protocol asks for, and later than the product does."""


class Scene(Protocol):
    """Where programs stand: what an episode tells them of the world."""

    world: World
    watch: Watch
    trust: Trust
    gateways: Mapping[RegionId, list[str]]
    loads: Mapping[RegionId, Mapping[ModelId, ModelLoad]]

    def place_of(self, region: RegionId) -> Jurisdiction:
        """A region's jurisdiction."""
        ...

    def atlas_of(self, region: RegionId) -> Atlas:
        """The mesh as a region sees it."""
        ...

    def is_alone(self, host: Host) -> bool:
        """Whether a gateway is told that its earlier processes are dead."""
        ...

    def step_s(self, host: Host) -> float:
        """How long an engine's next step takes."""
        ...


class PlainHasher:
    """Compares at once: what a hash costs is no part of this."""

    async def verify(self, text: str, hashed: str) -> bool:
        return hashed == hash_of(text)


def hash_of(text: str) -> str:
    """What is kept of a key."""
    return f"sha256$of {text}"


class RestingRunning(Running):
    """The product's, whose timer rests while nothing runs: it would look at nothing, 40 times a second."""

    async def run(self) -> None:
        while True:
            if not self._calls and not self._drains.of:
                await self._wake.wait()
            try:
                async with self._clock.timeout(_TICK_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            self.review()

    def add(self, call: Any) -> None:
        super().add(call)
        self._wake.set()


@dataclass(frozen=True, kw_only=True)
class Parts:
    """How each of the product's own parts is made, where a program needs it."""

    # A gateway's.
    book: Callable[[], PolicyBook] = PolicyBook
    authority: Callable[[Here, Clock], Authority] = lambda here, clock: Authority()
    membership: Callable[..., Membership] = Membership
    running: Callable[..., Running] = RestingRunning
    draining: Callable[[Running], Callable[[], Mapping[TenantId, Drain]]] = lambda running: running.draining
    feed: Callable[..., PolicyFeed] = PolicyFeed
    overdue: Callable[[PolicyFeed, Clock], Overdue] = Overdue
    trust: Callable[[Trust], Trust] = lambda trust: trust
    hub: Callable[..., FleetHub] = FleetHub
    keyring: Callable[..., Keyring] = partial(Keyring, mac_secret=SECRET, hasher=PlainHasher())
    story: Callable[..., Story[Any, Any]] = Story

    # A replica's.
    replica_id: Callable[[Host], ReplicaId] = lambda host: ReplicaId(host.entropy.token(8).hex())
    leases: Callable[[ReplicaId, Clock], Leases] = Leases
    measured_step_s: Callable[[float], float] = lambda longest_s: longest_s

    # An admin's.
    changes: Callable[..., Changes] = Changes
    members: Callable[..., Members] = Members
    barrier: Callable[..., Barrier] = Barrier
    start: Callable[[Trust], EpochStart] = EpochStart
    sweeper: Callable[[Any, RegionId, float, Clock], MemberSweeper] = MemberSweeper
    outcome: Callable[[Outcome], Outcome] = lambda outcome: outcome
    op_id: Callable[[str, int], str] = lambda op_id, attempt: op_id
    journal: Callable[[Notebook], Journal] = lambda notebook: notebook
