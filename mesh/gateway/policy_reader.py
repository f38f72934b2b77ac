"""What a gateway process knows of policy, how it comes to know it, and what it may do by it.

Puts the parts together: the feed fills the book; the membership is granted authority and acknowledges; what runs is
told of a change before it is made, and says what has not ended yet.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from mesh.control.feed import PolicyFeed
from mesh.control.grants import Membership, bury
from mesh.control.overdue import Overdue
from mesh.control.records import trust_of
from mesh.control.store import Store
from mesh.gateway.freshness import Freshness
from mesh.gateway.running import Running
from mesh.policy.authority import Authority
from mesh.policy.bundle import PolicyBook
from mesh.policy.shards import Shard
from mesh.ports import Clock, Entropy, TaskFactory, Tasks
from mesh.settings import Settings
from mesh.telemetry import Log
from mesh.transport.fleet_hub import FleetHub
from mesh.transport.inspection import PolicySeen
from mesh.types import GatewayId, Here


@dataclass(frozen=True, slots=True)
class _Told:
    """Passes on what the feed tells. Fulfils `FeedListener`."""

    membership: Membership
    freshness: Freshness

    def applied(self, shard: Shard, number: int) -> None:
        self.membership.applied(shard, number)
        self.freshness.applied()

    def went_back(self) -> None:
        self.membership.went_back()


class PolicyReader:
    """One process' view of policy. `start` has it read; until then nothing is known, and nothing may be done."""

    def __init__(
        self,
        *,
        settings: Settings,
        here: Here,
        gateway: GatewayId,
        store: Store,
        hub: FleetHub,
        clock: Clock,
        tasks: TaskFactory,
        entropy: Entropy,
        log: Log,
    ) -> None:
        """Wires the parts, the hub's among them."""
        self.book = PolicyBook()
        self.authority = Authority()
        self.running = Running(here=here, book=self.book, authority=self.authority, replicas=hub, clock=clock)
        self.membership = Membership(
            store=store,
            region=here.region,
            gateway=gateway,
            authority=self.authority,
            draining=self.running.draining,
            clock=clock,
            tasks=tasks,
            entropy=entropy,
            log=log,
        )
        self.freshness = Freshness(book=self.book, authority=self.authority, renew=self.membership.renew, clock=clock)
        told = _Told(self.membership, self.freshness)
        self.feed = PolicyFeed(store, self.book, clock, trust_of(settings, clock), log, told)
        self._overdue = Overdue(self.feed, clock, log)
        self._here, self._gateway, self._store, self._hub = here, gateway, store, hub
        self._clock, self._log = clock, log
        self._heard = asyncio.Event()
        self.book.watcher = self.running
        hub.holds = self.running.holds
        hub.on_confirm = self._confirmed
        self.running.changed = self.membership.changed
        self.membership.answered = self._overdue.answered

    def start(self, tasks: Tasks) -> None:
        """Spawns what reads, renews and cuts, each for ever."""
        tasks.spawn(self.running.run(), "running")
        tasks.spawn(self.membership.run(), "membership")
        tasks.spawn(self.feed.run(), "policy-feed")
        tasks.spawn(self._overdue.run(), "policy-overdue")

    async def succeed(self, replicas: int) -> None:
        """Attests the death of this gateway's earlier processes, once none of so many replicas works for them."""
        while not self._hub.all_heard(replicas):
            self._heard.clear()
            await self._heard.wait()
        await bury(self._store, self._here.region, self._gateway, self.membership, self._clock, self._log)

    @property
    def is_current(self) -> bool:
        """Whether calls can be decided: policy was read, and a grant heard of since."""
        return self.book.loaded and bool(self.membership.renewals) and not self.membership.went_back_once

    def seen(self) -> PolicySeen:
        """What the operator is told of it."""
        return PolicySeen(
            loaded=self.book.loaded,
            live=self.feed.live,
            applied=self.feed.applied,
            store_went_back=self.membership.went_back_once,
        )

    def _confirmed(self) -> None:
        """A replica has confirmed something."""
        self.running.confirmed()
        self._heard.set()
