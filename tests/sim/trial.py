"""An episode of the ground itself: writers and followers on the simulated store, calls over connections, any fault.

Nothing is promised here but that followers end where the store is; it is what `test_ground.py` replays.
`python -m sim.trial SEED ...` prints a digest for each seed.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing

from sim.breaker import Breaker
from sim.faults import Palette, draw
from sim.hosts import Host
from sim.loop import OrderedTasks
from sim.tcp import Channel
from sim.world import Result, World

from mesh.control import layout
from mesh.control.store import CompactedError, Compare, Put, Range, StoreError, WatchBatch, WatchUp
from mesh.types import MemberId, RegionId, Role

VN, SG, JP = "vn-1", "ap-southeast-1", "ap-northeast-1"
LENGTH_S = 60.0
PORT = 80
RECORD = f"{layout.home_prefix(RegionId(VN))}0/t_trial"
HEAD = f"{layout.head_prefix(RegionId(VN))}0"
_AUTHORITY_S = 6.0
_BROKEN = (OSError, EOFError, TimeoutError)


PALETTE = Palette(
    wires=(("gw-sg", f"etcd-{SG}"), ("gw-sg", "replica"), ("gw-vn", f"etcd-{VN}"), ("admin", f"etcd-{VN}")),
    machines=("gw-sg", "gw-sg", "replica", "gw-vn", "admin"),
    members=tuple(f"etcd-{site}" for site in (VN, SG, JP)),
    roles={"out": "gw-sg", "home": "gw-vn", "replica": "replica", "admin": "admin", "store": f"etcd-{SG}"},
    pin_s=25.0,
    length_s=LENGTH_S,
)


class Trial:
    """One seed's world."""

    def __init__(self, seed: int, aim: str | None = None, settle_s: float = 0.0) -> None:
        """`settle_s`: how long to go on when the faults and the changes are over."""
        self.world = World(seed)
        self.cluster = self.world.add_store([VN, SG, JP])
        for name, site in (("admin", VN), ("gw-vn", VN), ("gw-sg", SG), ("replica", SG), ("client", SG)):
            self.world.add_host(name, site)
        self.plan = draw(seed, PALETTE, aim)
        self.settle_s = settle_s
        self.known: dict[str, dict[str, bytes]] = {}

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
        breaker = Breaker(self.world, {"start": lambda _: None, "twin": lambda _: None})
        breaker.arm(self.plan)
        await asyncio.sleep(LENGTH_S)
        breaker.over = True
        await hosts["admin"].stop()
        await asyncio.sleep(self.settle_s)
        await self.world.stop()

    async def _admin(self, host: Host) -> None:
        """Changes a record again and again, each time if nobody else has."""
        store = self.world.store_for(host, Role.ADMIN, RegionId(VN))
        while True:
            try:
                found = await store.range(Range(RECORD), timeout_s=4.0)
                at = found.items[0].mod_revision if found.items else 0
                value = host.entropy.token(8)
                made = await store.txn([Compare(RECORD, at)], [Put(RECORD, value), Put(HEAD, b"")], timeout_s=4.0)
                self.world.history.note(host.name, "changed", revision=made.revision, made=made.succeeded)
            except StoreError as error:
                self.world.history.note(host.name, "not changed", why=type(error).__name__)
            await host.clock.sleep(0.5 + 4 * host.entropy.coin())

    async def _gateway(self, host: Host, region: str) -> None:
        known = self.known[host.name] = {}
        async with OrderedTasks() as tasks:
            tasks.spawn(self._follow(host, region, known), "follow")
            tasks.spawn(self._renew(host, region), "renew")
            tasks.spawn(self._serve(host, known), "serve")

    async def _follow(self, host: Host, region: str, known: dict[str, bytes]) -> None:
        """Keeps a copy of what the store holds under `FEED`."""
        store = self.world.store_for(host, Role.GATEWAY, RegionId(region))
        while True:
            try:
                whole = await store.range(Range(*layout.FEED), timeout_s=5.0)
                known.clear()
                known.update((item.key, item.value) for item in whole.items)
                async with aclosing(store.watch(*layout.FEED, whole.revision + 1)) as watch:
                    async for news in watch:
                        match news:
                            case WatchBatch(events):
                                known.update((event.key, event.value or b"") for event in events)
                                self.world.history.note(host.name, "told", upto=events[-1].mod_revision)
                            case WatchUp():
                                now = await store.range(Range(RECORD), timeout_s=5.0)
                                if now.revision < whole.revision:
                                    break  # it went back in time
                            case _:
                                pass
            except CompactedError:
                continue
            except StoreError:
                await host.clock.sleep(0.3)

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

    async def _serve(self, host: Host, known: dict[str, bytes]) -> None:
        listener = self.world.net.listen(host, PORT)
        async with OrderedTasks() as tasks:
            while True:
                tasks.spawn(self._door(host, known, await listener.accept()), "door")

    async def _door(self, host: Host, known: dict[str, bytes], channel: Channel) -> None:
        try:
            while True:
                call = await channel.receive()
                hop = None
                try:
                    async with host.clock.timeout(3.0):
                        hop = await self.world.net.connect(host, "replica", PORT)
                        self.world.moments.fire("hop_sent", host.name)
                        hop.send(call, 500)
                        channel.send((await hop.receive(), len(known)))
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


if __name__ == "__main__":
    for given in sys.argv[1:]:
        result = Trial(int(given)).run()
        print(given, result.history.digest(), result.steps, *result.errors)
