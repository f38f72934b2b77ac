"""What an episode is put together from. A mutant is the same with one part replaced: see `mutants.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from mesh.ports import Clock, Entropy
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


class Parts:
    """The product's own parts, each made where a program needs it."""

    # --- a gateway's

    def book(self) -> PolicyBook:
        return PolicyBook()

    def authority(self, here: Here, clock: Clock) -> Authority:
        return Authority()

    def membership(self, **given: Any) -> Membership:
        return Membership(**given)

    def running(self, **given: Any) -> Running:
        return RestingRunning(**given)

    def draining(self, running: Running) -> Callable[[], Mapping[TenantId, Drain]]:
        return running.draining

    def feed(self, *given: Any) -> PolicyFeed:
        return PolicyFeed(*given)

    def overdue(self, feed: PolicyFeed, clock: Clock) -> Overdue:
        return Overdue(feed, clock)

    def trust(self, trust: Trust) -> Trust:
        return trust

    def hub(self, **given: Any) -> FleetHub:
        return FleetHub(**given)

    def keyring(self, *, book: PolicyBook, clock: Clock, entropy: Entropy) -> Keyring:
        return Keyring(book=book, mac_secret=SECRET, hasher=PlainHasher(), clock=clock, entropy=entropy)

    def story(self, **given: Any) -> Story[Any, Any]:
        return Story(**given)

    # --- a replica's

    def replica_id(self, host: Host) -> ReplicaId:
        return ReplicaId(host.entropy.token(8).hex())

    def leases(self, replica: ReplicaId, clock: Clock) -> Leases:
        return Leases(replica, clock)

    def measured_step_s(self, longest_s: float) -> float:
        return longest_s

    # --- an admin's

    def changes(self, *given: Any, **named: Any) -> Changes:
        return Changes(*given, **named)

    def members(self, *given: Any) -> Members:
        return Members(*given)

    def barrier(self, **given: Any) -> Barrier:
        return Barrier(**given)

    def start(self, trust: Trust) -> EpochStart:
        return EpochStart(trust)

    def sweeper(self, store: Any, region: RegionId, cap_s: float, clock: Clock) -> MemberSweeper:
        return MemberSweeper(store, region, cap_s, clock)

    def outcome(self, outcome: Outcome) -> Outcome:
        return outcome

    def op_id(self, op_id: str, attempt: int) -> str:
        return op_id

    def journal(self, notebook: Notebook) -> Journal:
        return notebook


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
