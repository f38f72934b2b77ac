"""The product's own feed and changes on the simulated store: whatever breaks, a feed ends where a fresh load begins."""

from __future__ import annotations

import asyncio

import pytest
from sim.breaker import Breaker
from sim.faults import draw
from sim.hosts import Host
from sim.loop import OrderedTasks
from sim.trial import JP, LENGTH_S, PALETTE, SG, VN
from sim.world import World
from trust_lab import changes_in, trust_in

from mesh.control import layout
from mesh.control.feed import PolicyFeed
from mesh.control.store import Range
from mesh.errors import MeshError
from mesh.policy.bundle import PolicyBook, TenantKey, TenantPolicy
from mesh.policy.shards import Shard
from mesh.types import Jurisdiction, KeyId, RegionId, Role, TenantId, TenantState, Transfer

PINS = (frozenset({Jurisdiction("VN")}), frozenset({Jurisdiction("VN"), Jurisdiction("SG")}))


class Numbers:
    """What a feed says that it has applied."""

    def __init__(self) -> None:
        self.applied_of: dict[Shard, int] = {}
        self.backs = 0

    def applied(self, shard: Shard, number: int) -> None:
        assert number >= self.applied_of.get(shard, 0)
        self.applied_of[shard] = number

    def went_back(self) -> None:
        self.backs += 1


class Reader:
    """A gateway as far as its book."""

    def __init__(self, world: World, host: Host, region: str) -> None:
        self.book, self.numbers = PolicyBook(), Numbers()
        store = world.store_for(host, Role.GATEWAY, RegionId(region))
        self.feed = PolicyFeed(store, self.book, host.clock, trust_in(), None, self.numbers)

    def contents(self) -> tuple[dict[TenantId, TenantPolicy], dict[KeyId, TenantKey]]:
        tenants = {policy.tenant: policy for policy in self.book.tenants()}
        return tenants, {key.key_id: key for key in self.book.all_keys()}


class Feeds:
    """An admin that changes four tenants, two gateways that follow, and faults."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.cluster = self.world.add_store([VN, SG, JP])
        for name, site in (("admin", VN), ("gw-vn", VN), ("gw-sg", SG), ("replica", SG), ("fresh", JP)):
            self.world.add_host(name, site)
        self.seed = seed
        self.readers: dict[str, Reader] = {}
        self.changes = 0

    async def play(self) -> None:
        hosts = self.world.net.hosts
        hosts["admin"].start(self._change)
        for name, region in (("gw-vn", VN), ("gw-sg", SG)):
            hosts[name].start(lambda host, region=region: self._follow(host, region))
        breaker = Breaker(self.world)
        breaker.arm(draw(self.seed, PALETTE))
        await asyncio.sleep(LENGTH_S)
        breaker.over = True
        await asyncio.sleep(30)
        await hosts["admin"].stop()
        hosts["fresh"].start(lambda host: self._follow(host, SG))
        await asyncio.sleep(20)
        await self.world.stop()

    async def _follow(self, host: Host, region: str) -> None:
        reader = self.readers[host.name] = Reader(self.world, host, region)
        async with OrderedTasks() as tasks:
            tasks.spawn(reader.feed.run(), "feed")

    async def _change(self, host: Host) -> None:
        store = self.world.store_for(host, Role.ADMIN, RegionId(VN))
        changes = changes_in(store, RegionId(VN), host.clock, host.entropy)
        tenants: list[TenantId] = []
        while True:
            at = int(host.entropy.coin() * 4)
            try:
                tenant = tenants[int(host.entropy.coin() * len(tenants))] if len(tenants) > 3 else None
                match at:
                    case _ if tenant is None:
                        made = await changes.create_tenant(host.entropy.token(16), PINS[0], Transfer.NEVER)
                        tenants.append(made.tenant.policy.tenant)
                    case 0:
                        await changes.set_allowed(tenant, PINS[int(host.entropy.coin() * 2)])
                    case 1:
                        await changes.set_state(tenant, TenantState.SUSPENDED)
                    case 2:
                        await changes.set_state(tenant, TenantState.ACTIVE)
                    case _:
                        await changes.create_key(tenant, KeyId(host.entropy.token(6).hex()), "sha256$00")
                self.changes += 1
            except MeshError:
                pass
            await host.clock.sleep(0.1 + host.entropy.coin())


@pytest.mark.parametrize("seed", range(60, 68))
def test_a_feed_ends_where_a_fresh_load_begins(seed: int) -> None:
    feeds = Feeds(seed)
    assert feeds.world.play(feeds.play()).errors == ()
    fresh = feeds.readers.pop("fresh")
    assert len(fresh.contents()[0]) >= 4
    assert feeds.changes > 20
    heads = {
        at.shard: item.version
        for item in feeds.cluster.data.range(Range(*layout.HEADS)).items
        if isinstance(at := layout.parse(item.key), layout.HeadKey)
    }
    assert heads
    for reader in (*feeds.readers.values(), fresh):
        assert reader.contents() == fresh.contents()
        assert reader.numbers.applied_of == heads
        assert reader.numbers.backs == 0
