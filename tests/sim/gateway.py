"""A gateway: the product's story, running calls, grants, feed and hub, behind doors of the simulated net."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sim.hosts import Host
from sim.loop import OrderedTasks
from sim.replica import SimContext
from sim.tcp import Channel
from sim.watch import There
from sim.wire import BROKEN, DOOR, FLEET, PEER, ClientExchange, PeerExchange, Sent, SimHops, answer_error

from mesh.control.feed import PolicyFeed
from mesh.control.grants import ClonedError, Membership, bury
from mesh.errors import Code, MeshError
from mesh.gateway.freshness import Freshness
from mesh.policy.shards import Shard
from mesh.routing.fleet import Fleet, ModelLoad, RegionLoad
from mesh.settings import Address
from mesh.telemetry.tracing import NO_SPAN
from mesh.types import GatewayId, Here, ModelId, RegionId, Role

if TYPE_CHECKING:
    from sim.parts import Parts, Scene

_HEAD_S = 5.0
_CUT = frozenset({Code.RESIDENCY_REFUSED, Code.POLICY_STALE, Code.TENANT_SUSPENDED, Code.INVALID_API_KEY})
DRAIN_S = 10.0


@dataclass(frozen=True, slots=True)
class _Told:
    """Passes on what the feed tells."""

    membership: Membership
    freshness: Freshness

    def applied(self, shard: Shard, number: int) -> None:
        self.membership.applied(shard, number)
        self.freshness.applied()

    def went_back(self) -> None:
        self.membership.went_back()


class SimGateway:
    """One life of a gateway process, wired as `mesh.gateway.program` does."""

    def __init__(self, scene: Scene, parts: Parts, host: Host, region: RegionId) -> None:
        self.scene, self.host, self.region = scene, host, region
        self.place = scene.place_of(region)
        self.stop = asyncio.Event()
        here, clock, entropy = Here(region=region, jurisdiction=self.place), host.clock, host.entropy
        self.book = book = parts.book()
        self.authority = authority = parts.authority(here, clock)
        self.gateway = GatewayId(
            f"g{scene.gateways[region].index(host.name) + 1}" if host.name in scene.gateways[region] else "g9"
        )
        self.alone = scene.is_alone(host)
        self._heard = asyncio.Event()
        process = int.from_bytes(entropy.token(8), "big")
        self.hub = parts.hub(here=region, clock=clock, process=process, alone=self.alone)
        self.running = running = parts.running(
            here=here, book=book, authority=authority, replicas=self.hub, clock=clock
        )
        book.watcher = running
        self.hub.holds = running.holds
        self.hub.on_confirm = self._confirmed
        self.store = store = scene.world.store_for(host, Role.GATEWAY, region)
        self.membership = membership = parts.membership(
            store=store, region=region, gateway=self.gateway, authority=authority,
            draining=parts.draining(running), clock=clock, tasks=OrderedTasks, entropy=entropy, log=None,
        )  # fmt: skip
        running.changed = membership.changed
        freshness = Freshness(book=book, authority=authority, renew=membership.renew, clock=clock)
        self.feed: PolicyFeed = parts.feed(
            store, book, clock, parts.trust(scene.trust), None, _Told(membership, freshness)
        )
        self.overdue = parts.overdue(self.feed, clock)
        membership.answered = self.overdue.answered
        self.story = parts.story(
            here=here,
            atlas=scene.atlas_of(region),
            book=book,
            authority=authority,
            running=running,
            freshness=freshness,
            keyring=parts.keyring(book=book, clock=clock, entropy=entropy),
            fleet=self._fleet,
            hops=SimHops(scene.world.net, host, region, scene.place_of, scene.watch, scene.world.moments),
            peers={
                other: [Address(name, PEER) for name in names]
                for other, names in scene.gateways.items()
                if other != region
            },
            settle=lambda _: None,
            start_span=lambda name, *, parent, server: NO_SPAN,
            clock=clock,
            coin=entropy.coin,
            max_body_bytes=1 << 20,
        )
        self.serving: dict[str, tuple[ClientExchange | PeerExchange, Channel]] = {}
        self._count = 0

    async def run(self) -> None:
        """Until it is stopped, told to go, or found to be a copy."""
        try:
            async with OrderedTasks() as tasks:
                tasks.spawn(self.running.run(), "running")
                tasks.spawn(self.membership.run(), "membership")
                tasks.spawn(self.feed.run(), "feed")
                tasks.spawn(self.overdue.run(), "overdue")
                if self.alone:
                    tasks.spawn(self._succeed(), "succession")
                doors: list[tuple[int, Callable[[Channel], Coroutine[Any, Any, None]]]] = [
                    (DOOR, self._door), (PEER, self._peer), (FLEET, self._join),
                ]  # fmt: skip
                for port, handle in doors:
                    tasks.spawn(self._listen(tasks, port, handle), "listen")
                await self.stop.wait()
                await self._leave()
                raise _GoneError
        except* _GoneError:
            pass
        except* ClonedError:
            self.scene.world.history.note(self.host.name, "cloned")

    def there(self) -> Iterator[There]:
        """What runs here in this jurisdiction now."""
        for exchange, _ in self.serving.values():
            asked = exchange.asked
            yield There(self.host, "stream", asked.tenant, self.place, asked.key_id)

    async def _leave(self) -> None:
        """As the program does when it is told to go."""
        for port in (DOOR, PEER):
            self.host.listeners.pop(port, None)
        try:
            async with self.host.clock.timeout(DRAIN_S):
                while self.serving:
                    await self.host.clock.sleep(0.05)
        except TimeoutError:
            for _, channel in list(self.serving.values()):
                channel.fail(ConnectionResetError("told to go"))
            await self.host.clock.sleep(0.05)
        await self.running.leave()
        if self.running.idle:
            await self.membership.leave()

    def _fleet(self) -> Fleet:
        loads = {
            region: RegionLoad(region=region, rtt_s=0.05, models=models, seen_s=self.host.clock.now_s())
            for region, models in self.scene.loads.items()
            if region != self.region
        }
        return Fleet(replicas=self.hub.replicas(), regions=loads)

    def _confirmed(self) -> None:
        self.scene.world.moments.fire("fence_confirmed", self.host.name)
        self.running.confirmed()
        self._heard.set()

    async def _succeed(self) -> None:
        """As the program does: attests the death of its earlier processes, once no replica works for them any more."""
        while not self.hub.all_heard(1 if self.scene.loads[self.region] else 0):
            self._heard.clear()
            await self._heard.wait()
        await bury(self.store, self.region, self.gateway, self.membership, self.host.clock)

    async def _listen(
        self, tasks: OrderedTasks, port: int, handle: Callable[[Channel], Coroutine[Any, Any, None]]
    ) -> None:
        listener = self.scene.world.net.listen(self.host, port)
        while True:
            tasks.spawn(handle(await listener.accept()), "call")

    async def _join(self, channel: Channel) -> None:
        fire = self.scene.world.moments.fire
        context: Any = SimContext(channel, self.region, lambda moment: fire(moment, self.host.name))
        try:
            await self.hub._join(context)
        except MeshError:
            pass
        finally:
            channel.abort()

    async def _door(self, channel: Channel) -> None:
        def exchange(asked: Any) -> ClientExchange:
            return ClientExchange(channel, self.host, self.place, asked, self.scene.watch, self.scene.world.loop.time())

        await self._serve(channel, exchange, self.story.serve)

    async def _peer(self, channel: Channel) -> None:
        def exchange(sent: Sent) -> PeerExchange:
            self.scene.world.moments.fire("peer_arrived", self.host.name)
            return PeerExchange(channel, self.host, self.place, sent, self.scene.watch)

        await self._serve(channel, exchange, self.story.serve_forwarded)

    async def _serve(self, channel: Channel, begin: Callable[[Any], Any], serve: Callable[[Any], Any]) -> None:
        task, exchange = asyncio.current_task(), None
        assert task is not None
        channel.on_fail = task.cancel
        self._count += 1
        hold = f"c{self.host.lives}.{self._count}"
        try:
            async with self.host.clock.timeout(_HEAD_S):
                exchange = begin(await channel.receive())
            exchange.begins = lambda: self._begins(hold, exchange, channel)
            await serve(exchange)
            channel.close()
        except MeshError as error:
            assert exchange is not None
            if not exchange.taken:
                self._refused(exchange, error)
            if isinstance(exchange, PeerExchange) and exchange.taken and error.code in _CUT:
                channel.abort()
            else:
                answer_error(channel, error)
        except BROKEN:
            pass
        finally:
            channel.on_fail = None
            if self.serving.pop(hold, None) is not None:
                self.scene.watch.freed(self.host, hold)
            if not channel.gone:
                channel.abort()

    def _begins(self, hold: str, exchange: ClientExchange | PeerExchange, channel: Channel) -> None:
        self.serving[hold] = exchange, channel
        self.scene.watch.held(self.host, hold, "stream", self.place, exchange.asked)
        self.scene.world.moments.fire("admitted", self.host.name)

    def _refused(self, exchange: ClientExchange | PeerExchange, error: MeshError) -> None:
        watch = self.scene.watch
        if isinstance(exchange, PeerExchange):
            watch.received(self.host, self.place, exchange.asked, accepted=False)
        watch.refused(self.host, self.place, exchange.asked, error.code)


def load_of(*models: str) -> dict[ModelId, ModelLoad]:
    """A region with room."""
    one = ModelLoad(ready=1, slots=6, running=0, queued=0, queue_limit=8)
    return {ModelId(model): one for model in models}


class _GoneError(Exception):
    """Told to go, and nothing runs any more."""
