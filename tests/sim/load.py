"""Clients of an episode: they call gateways, with bodies that take time, for answers that take seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.hosts import Host
from sim.loop import OrderedTasks
from sim.wire import BROKEN, DOOR, PIECE_BYTES, Asked

from mesh.types import RequestId, Revision

if TYPE_CHECKING:
    from sim.episode import Episode

_ANSWER_S = 25.0


@dataclass(frozen=True, slots=True)
class Load:
    """What clients do.

    Attributes:
        out_s: On average between two calls at each gateway of SG.
        home_s: At the home's.
        long: The share of calls that stream for seconds.
        steps: The most steps that such a call takes.
        slow: The share of calls whose body comes in pieces.
        since_s: When they begin.
        home_model: What is asked for at the home's gateway.
    """

    out_s: float = 0.5
    home_s: float = 1.2
    long: float = 0.3
    steps: int = 25
    slow: float = 0.25
    since_s: float = 6.0
    home_model: str = "chat-sg"
    also: tuple[str, ...] = ()
    """Gateways of SG that appear later."""


class Clients:
    """All clients, on one machine in SG."""

    def __init__(self, episode: Episode, host: Host) -> None:
        self._episode = episode
        self._host = host
        self._count = 0

    async def run(self) -> None:
        """Calls until it is stopped."""
        load = self._episode.load
        async with OrderedTasks() as tasks:
            for region, names in self._episode.gateways.items():
                away = region != self._episode.home
                for name in names:
                    every_s = load.out_s if away else load.home_s
                    tasks.spawn(self._drive(tasks, name, every_s, "chat" if away else load.home_model), name)
            for name in load.also:
                tasks.spawn(self._drive(tasks, name, load.out_s, "chat"), name)

    async def _drive(self, tasks: OrderedTasks, name: str, every_s: float, model: str) -> None:
        coin, clock = self._host.entropy.coin, self._host.clock
        await clock.sleep(self._episode.load.since_s)
        while True:
            await clock.sleep(every_s * (0.3 + 1.4 * coin()))
            if name in self._episode.world.net.hosts:
                tasks.spawn(self._call(name, self._draw(model)), "call")

    def _draw(self, model: str) -> Asked:
        coin, load, episode = self._host.entropy.coin, self._episode.load, self._episode
        self._count += 1
        tenant, keys = episode.tenant, episode.keys
        if coin() < 0.12:
            tenant, keys = episode.other, episode.other_keys
        key = keys[int(coin() * len(keys))]
        is_long = coin() < load.long
        pieces = 1 + int(coin() * 3) if coin() < load.slow else 1
        return Asked(
            request_id=RequestId(f"r{self._host.lives}.{self._count}"),
            tenant=tenant,
            key_id=key.key_id,
            credential=key.text,
            model=model,
            stream=is_long,
            pieces=pieces,
            gap_s=0.1 + 0.7 * coin(),
            steps=8 + int(coin() * (load.steps - 8)) if is_long else 1 + int(coin() * 3),
            timeout_s=20.0,
            at_least=Revision(1) if coin() < 0.05 else None,
        )

    async def _call(self, name: str, asked: Asked) -> None:
        clock, channel = self._host.clock, None
        try:
            async with clock.timeout(2.0):
                channel = await self._episode.world.net.connect(self._host, name, DOOR)
            channel.send(asked, 600)
            for piece in range(asked.pieces):
                if piece:
                    await clock.sleep(asked.gap_s)
                channel.send(None, PIECE_BYTES)
            async with clock.timeout(_ANSWER_S):
                while (await channel.receive()).kind == "data":
                    pass
        except BROKEN:
            pass
        finally:
            if channel is not None:
                channel.abort()
