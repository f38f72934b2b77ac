"""Connections: what a kernel still delivers, and when each end learns of what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from sim.hosts import Host
from sim.net import Trouble
from sim.tcp import Channel
from sim.world import World

CUT = Trouble(cut=True)


class Pair:
    """A client at `a` and a server at `b`, 30 ms apart."""

    def __init__(self, client: Callable[[Pair, Channel], Coroutine[Any, Any, None]], *, reads: bool = True) -> None:
        self.world = World("tcp", lambda one, other: 0.03)
        self.got: list[object] = []
        self.ended: list[str] = []
        self._client, self._reads = client, reads
        self.a, self.b = self.world.add_host("a", "a"), self.world.add_host("b", "b")
        self.there, self.back = self.world.net.link("a", "b"), self.world.net.link("b", "a")

    def play(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        result = self.world.play(self._main(main))
        assert result.errors == ()

    async def _main(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.b.start(self._serve)
        self.a.start(self._call)
        await asyncio.sleep(1)
        await main()
        await self.world.stop()

    async def _serve(self, host: Host) -> None:
        listener = self.world.net.listen(host, 1)
        while True:
            channel = await listener.accept()
            try:
                while self._reads:
                    self.got.append(await channel.receive())
                await asyncio.sleep(1e6)
            except (EOFError, OSError) as error:
                self.ended.append(type(error).__name__)
            finally:
                channel.abort()

    async def _call(self, host: Host) -> None:
        channel = await self.world.net.connect(host, "b", 1)
        try:
            await self._client(self, channel)
        finally:
            channel.abort()


@pytest.mark.parametrize(
    ("how", "arrive", "ended"),
    [
        ("close", 8, ["EOFError"]),
        ("kill", 8, ["EOFError"]),
        ("abort", 0, []),
        ("power", 0, []),
        ("user timeout", 0, []),
    ],
)
def test_what_is_still_delivered_after_a_cut(how: str, arrive: int, ended: list[str]) -> None:
    """The wire is cut, 8 messages are written, the connection ends, the wire comes back: what arrives?"""

    async def client(pair: Pair, channel: Channel) -> None:
        await asyncio.sleep(2)
        if how == "user timeout":
            channel.user_timeout_s = 6.0
        for at in range(8):
            channel.send(at, 4000)
        await asyncio.sleep(2)
        if how == "user timeout":
            with pytest.raises(TimeoutError):
                await channel.receive()
            return
        if how in ("close", "abort"):
            getattr(channel, how)()
        await asyncio.sleep(1e6)

    pair = Pair(client)

    async def main() -> None:
        for link in (pair.there, pair.back):
            link.worsen(CUT)
        await asyncio.sleep(4)
        if how in ("kill", "power"):
            pair.a.kill(power=how == "power")
        await asyncio.sleep(10)
        for link in (pair.there, pair.back):
            link.heal(CUT)
        await asyncio.sleep(20)
        assert pair.got == list(range(arrive))
        assert pair.ended == ended

    pair.play(main)


def test_order_survives_loss_and_jitter() -> None:
    async def client(pair: Pair, channel: Channel) -> None:
        for at in range(300):
            channel.send(at, 1000)
            await channel.drain()
        await asyncio.sleep(1e6)

    pair = Pair(client)
    for link in (pair.there, pair.back):
        link.worsen(Trouble(loss=0.2, rough_s=0.2))

    async def main() -> None:
        await asyncio.sleep(600)
        assert pair.got == list(range(300))

    pair.play(main)


def test_a_sender_waits_for_a_reader_and_a_full_window() -> None:
    sent: list[int] = []

    async def client(pair: Pair, channel: Channel) -> None:
        for at in range(100):
            channel.send(at, 10_000)
            await channel.drain()
            sent.append(at)

    pair = Pair(client, reads=False)

    async def main() -> None:
        await asyncio.sleep(60)
        assert 10 <= len(sent) <= 14, "a window there and a send buffer here"

    pair.play(main)


def test_one_end_without_power_is_learnt_of_by_the_timeout_alone() -> None:
    learnt: list[tuple[str, float]] = []

    async def client(pair: Pair, channel: Channel) -> None:
        channel.user_timeout_s = 6.0
        await asyncio.sleep(2)
        channel.send("anyone?")
        try:
            await channel.receive()
        except OSError as error:
            learnt.append((type(error).__name__, round(pair.world.loop.time() - 2.06, 0)))

    pair = Pair(client)

    async def main() -> None:
        pair.b.kill(power=True)
        await asyncio.sleep(30)
        assert learnt == [("TimeoutError", 6.0)]
        assert pair.got == []

    pair.play(main)


def test_a_restarted_host_resets_what_it_does_not_know() -> None:
    learnt: list[str] = []

    async def client(pair: Pair, channel: Channel) -> None:
        await asyncio.sleep(5)
        channel.send("still there?")
        try:
            await channel.receive()
        except OSError as error:
            learnt.append(type(error).__name__)

    pair = Pair(client)

    async def main() -> None:
        pair.b.kill(power=True)
        await asyncio.sleep(1)
        pair.b.restart()
        await asyncio.sleep(10)
        assert learnt == ["ConnectionResetError"]

    pair.play(main)


def test_a_paused_host_still_acknowledges_and_finds_it_all_later() -> None:
    async def client(pair: Pair, channel: Channel) -> None:
        await asyncio.sleep(2)
        channel.send("one")
        channel.send("two")
        await asyncio.sleep(1)
        assert channel.outgoing.queued_bytes == 0
        await asyncio.sleep(1e6)

    pair = Pair(client)

    async def main() -> None:
        pair.b.pause()
        await asyncio.sleep(20)
        assert pair.got == []
        pair.b.resume()
        await asyncio.sleep(1)
        assert pair.got == ["one", "two"]

    pair.play(main)


def test_connecting() -> None:
    world = World("tcp", lambda one, other: 0.03)
    here, there = world.add_host("a", "a"), world.add_host("b", "b")

    async def main() -> None:
        with pytest.raises(ConnectionRefusedError):
            await world.net.connect(here, "b", 1)
        there.on = False
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await world.net.connect(here, "b", 1)
        there.on = True
        listener = world.net.listen(there, 1)
        world.net.link("a", "b").worsen(CUT)
        world.net.later(5, world.net.link("a", "b").heal, CUT)
        near = await world.net.connect(here, "b", 1)
        far = await listener.accept()
        near.send("x")
        assert await far.receive() == "x"
        far.close()
        with pytest.raises(EOFError):
            await near.receive()
        near.abort()

    assert world.play(main()).errors == ()
