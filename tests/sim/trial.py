"""An episode of the ground itself: the real feed and the real changes on the simulated store, calls over connections.

Nothing is promised here; it is what `test_ground.py` replays. `python -m sim.trial SEED ...` prints a digest for each.
"""

from __future__ import annotations

import asyncio
import sys

from sim.breaker import Breaker
from sim.faults import Palette, draw
from sim.hosts import Host
from sim.loop import OrderedTasks
from sim.tcp import Channel
from sim.world import Result, World

from mesh.control import layout
from mesh.control.changes import Changes
from mesh.control.feed import PolicyFeed
from mesh.control.store import Put, Range, StoreError
from mesh.errors import MeshError
from mesh.policy.bundle import PolicyBook
from mesh.policy.shards import shard_of
from mesh.types import Jurisdiction, MemberId, RegionId, Role, TenantId, Transfer

VN, SG, JP = "vn-1", "ap-southeast-1", "ap-northeast-1"
LENGTH_S = 60.0
PORT = 80
PINS = (frozenset({Jurisdiction("VN")}), frozenset({Jurisdiction("VN"), Jurisdiction("SG")}))
_AUTHORITY_S = 6.0
_BROKEN = (OSError, EOFError, TimeoutError)


class Trial:
    """One seed's world."""

    def __init__(self, seed: int, aim: str | None = None) -> None:
        self.world = World(seed)
        self.cluster = self.world.add_store([VN, SG, JP])
        for name, site in (("admin", VN), ("gw-vn", VN), ("gw-sg", SG), ("replica", SG), ("client", SG)):
            self.world.add_host(name, site)
        wires = (("gw-sg", f"etcd-{SG}"), ("gw-sg", "replica"), ("gw-vn", f"etcd-{VN}"), ("admin", f"etcd-{VN}"))
        roles = {"out": "gw-sg", "home": "gw-vn", "replica": "replica", "admin": "admin", "store": f"etcd-{SG}"}
        palette = Palette(
            wires=wires,
            machines=("gw-sg", "gw-sg", "replica", "gw-vn", "admin"),
            members=tuple(member.host.name for member in self.cluster.members),
            roles=roles,
            pin_s=25.0,
            length_s=LENGTH_S,
        )
        self.plan = draw(seed, palette, aim)

    def run(self) -> Result:
        """Plays it."""
        return self.world.play(self._play())

    async def _play(self) -> None:
        hosts = self.world.net.hosts
        hosts["replica"].start(self._replica)
        hosts["gw-sg"].start(lambda host: self._gateway(host, SG))
        hosts["gw-vn"].start(lambda host: self._gateway(host, VN))
        hosts["admin"].start(self._admin)
        hosts["client"].start(self._client)
        Breaker(self.world, {"start": lambda name: None, "twin": lambda name: None}).arm(self.plan)
        await asyncio.sleep(LENGTH_S)
        await self.world.stop()

    async def _admin(self, host: Host) -> None:
        store = self.world.store_for(host, Role.ADMIN, RegionId(VN))
        changes = Changes(store, RegionId(VN), host.clock, host.entropy)
        tenant: TenantId | None = None
        for count in range(1000):
            try:
                if tenant is None:
                    made = await changes.create_tenant(host.entropy.token(16), PINS[0], Transfer.NEVER)
                    tenant = made.tenant.policy.tenant
                else:
                    made = await changes.set_allowed(tenant, PINS[count % 2])
                policy = made.tenant.policy
                self.world.history.note(host.name, "changed", tenant=tenant, revision=policy.revision)
            except MeshError as error:
                self.world.history.note(host.name, "not changed", code=error.code)
            await host.clock.sleep(0.5 + 4 * host.entropy.coin())

    async def _gateway(self, host: Host, region: str) -> None:
        store = self.world.store_for(host, Role.GATEWAY, RegionId(region))
        book = PolicyBook()
        feed = PolicyFeed(store, book, host.clock)
        async with OrderedTasks() as tasks:
            tasks.spawn(feed.run(), "feed")
            tasks.spawn(self._renew(host, region), "renew")
            tasks.spawn(self._serve(host, book), "serve")

    async def _renew(self, host: Host, region: str) -> None:
        store = self.world.store_for(host, Role.GATEWAY, RegionId(region))
        mine = layout.grant_key(RegionId(region), MemberId(host.entropy.token(16).hex()))
        while True:
            asked = host.clock.instant()
            try:
                answer = await store.txn((), [Put(mine, b""), Range(*layout.HEADS)], timeout_s=4.0)
                left_s = _AUTHORITY_S - host.clock.instant().most_since(asked)
                self.world.history.note(
                    host.name, "granted", heads=len(answer.ranges[0].items), left=round(left_s, 6)
                )  # fmt: skip
                await host.clock.sleep(2.0)
            except StoreError as error:
                self.world.history.note(host.name, "not granted", why=type(error).__name__)
                await host.clock.sleep(0.5)

    async def _serve(self, host: Host, book: PolicyBook) -> None:
        listener = self.world.net.listen(host, PORT)
        async with OrderedTasks() as tasks:
            while True:
                tasks.spawn(self._door(host, book, await listener.accept()), "door")

    async def _door(self, host: Host, book: PolicyBook, channel: Channel) -> None:
        try:
            while True:
                call = await channel.receive()
                hop = None
                try:
                    async with host.clock.timeout(3.0):
                        hop = await self.world.net.connect(host, "replica", PORT)
                        self.world.moments.fire("hop_sent", host.name)
                        hop.send(call, 500)
                        channel.send((await hop.receive(), len(book.tenants())))
                except _BROKEN:
                    channel.send((call, "failed"))
                finally:
                    if hop is not None:
                        hop.abort()
        except _BROKEN:
            pass
        finally:
            channel.abort()

    async def _replica(self, host: Host) -> None:
        listener = self.world.net.listen(host, PORT)

        async def work(channel: Channel) -> None:
            try:
                call = await channel.receive()
                self.world.moments.fire("hop_arrived", host.name)
                for _ in range(3):
                    self.world.moments.fire("step_began", host.name)
                    await host.clock.sleep(0.05)
                channel.send(call)
                channel.close()
            except _BROKEN:
                pass
            finally:
                channel.abort()

        async with OrderedTasks() as tasks:
            while True:
                tasks.spawn(work(await listener.accept()), "work")

    async def _client(self, host: Host) -> None:
        async def drive(name: str, every_s: float) -> None:
            count = 0
            while True:
                door = None
                try:
                    async with host.clock.timeout(2.0):
                        door = await self.world.net.connect(host, name, PORT)
                    while True:
                        await host.clock.sleep(every_s * (0.5 + host.entropy.coin()))
                        count += 1
                        door.send(f"{name}-{count}")
                        async with host.clock.timeout(5.0):
                            answer = await door.receive()
                        self.world.history.note(host.name, "answered", answer=answer)
                except _BROKEN:
                    await host.clock.sleep(0.2)
                finally:
                    if door is not None:
                        door.abort()

        async with OrderedTasks() as tasks:
            tasks.spawn(drive("gw-sg", 0.4), "to sg")
            tasks.spawn(drive("gw-vn", 0.9), "to vn")


def shard_head(tenant: TenantId) -> str:
    """Where a tenant's changes are counted."""
    return layout.head_key(shard_of(RegionId(VN), tenant))


if __name__ == "__main__":
    for given in sys.argv[1:]:
        result = Trial(int(given)).run()
        print(given, result.history.digest(), result.steps, *result.errors)
