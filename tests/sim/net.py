"""Wires between hosts, connections over them, and an ordered lane for what needs no model of its kernel."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sim.hosts import Host
from sim.loop import SimLoop
from sim.tcp import Channel, Listener

_LOST_S = 13.0
"""How long a lane may stand still before its connection counts as lost: gRPC's keepalive, 10 s and 3 s."""


@dataclass(frozen=True, eq=False)
class Trouble:
    """What is wrong with a wire, one way. Troubles of one wire add up.

    Attributes:
        cut: Nothing passes.
        slow_s: Longer by so much.
        loss: The share of packets that are lost.
        rough_s: Longer by up to so much, each packet for itself: packets of different connections overtake each other.
    """

    cut: bool = False
    slow_s: float = 0.0
    loss: float = 0.0
    rough_s: float = 0.0


class Link:
    """One direction of a wire."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s
        self.up = True
        self._base_s = delay_s
        self._troubles: dict[Trouble, None] = {}
        self._settle()

    def worsen(self, trouble: Trouble) -> None:
        """From now on."""
        self._troubles[trouble] = None
        self._settle()

    def heal(self, trouble: Trouble) -> None:
        """Takes one trouble away, and no other."""
        self._troubles.pop(trouble, None)
        self._settle()

    def _settle(self) -> None:
        self.up = not any(trouble.cut for trouble in self._troubles)
        self.delay_s = self._base_s + sum(trouble.slow_s for trouble in self._troubles)
        self.loss = max((trouble.loss for trouble in self._troubles), default=0.0)
        self.jitter_s = self._base_s * 0.1 + sum(trouble.rough_s for trouble in self._troubles)


class Net:
    """All hosts and the wires between them."""

    def __init__(self, loop: SimLoop, seed: object, delay_s: Callable[[str, str], float]) -> None:
        """A net.

        Args:
            loop: Whose time it is.
            seed: Decides jitter and loss.
            delay_s: One way between two sites, in seconds.
        """
        self.loop = loop
        self.hosts: dict[str, Host] = {}
        self._random = random.Random(f"{seed}/net").random
        self._delay_s = delay_s
        self._links: dict[tuple[str, str], Link] = {}

    def link(self, source: str, target: str) -> Link:
        """The direction from one host to another, by name."""
        found = self._links.get((source, target))
        if found is None:
            delay_s = self._delay_s(self.hosts[source].site, self.hosts[target].site)
            found = self._links[source, target] = Link(delay_s)
        return found

    def later(self, seconds: float, action: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        """Does something in the world's process."""
        return self.loop.call_at(self.loop.time() + seconds, action, *args, context=self.loop.world.context)

    def carry(
        self, source: Host, target: Host, not_before: float, action: Callable[..., object], *args: Any
    ) -> float | None:
        """One packet: when it will arrive, or None if it is lost. `not_before` keeps a stream in order."""
        link = self._links.get((source.name, target.name)) or self.link(source.name, target.name)
        if not link.up or not source.on or (link.loss and self._random() < link.loss):
            return None
        when = max(not_before, self.loop.time() + link.delay_s + link.jitter_s * self._random())
        self.loop.call_at(when, _deliver, target, action, args, context=self.loop.world.context)
        return when

    def listen(self, host: Host, port: int) -> Listener:
        """Opens a port of a host; it closes with its process."""
        return host.listeners.setdefault(port, Listener(self))

    async def connect(self, host: Host, name: str, port: int) -> Channel:
        """Connects from one host to another; tries until the caller gives up, so pass a deadline.

        Raises:
            ConnectionRefusedError: The host has power, and nobody listens.
        """
        target, near = self.hosts[name], Channel(self, host)
        answered: asyncio.Future[None] = self.loop.create_future()
        timers: list[asyncio.TimerHandle] = []

        def call(attempt: int) -> None:
            if not near.gone:  # else its program has given up, or was killed
                self.carry(host, target, 0.0, arrive)
                timers[:] = [self.later(min(2.0**attempt, 8.0), call, attempt + 1)]

        def arrive() -> None:
            listener = target.listeners.get(port)
            if near.incoming is None and listener is None:
                self.carry(target, host, 0.0, answer, ConnectionRefusedError("nobody listens"))
                return
            if near.incoming is None and listener is not None and not near.gone:
                far = Channel(self, target)
                near.join(far)
                listener.put(far)
            self.carry(target, host, 0.0, answer, None)

        def answer(error: OSError | None) -> None:
            if not answered.done():
                if error is None:
                    answered.set_result(None)
                else:
                    answered.set_exception(error)

        try:
            call(0)
            await answered
        except BaseException:
            near.abort()
            raise
        finally:
            for timer in timers:
                timer.cancel()
        return near


class Courier:
    """An ordered lane for typed messages, as one gRPC stream: waits out loss and cuts, and is lost after `_LOST_S`."""

    def __init__(self, net: Net, source: Host, target: Host, lost: Callable[[], None]) -> None:
        self._net = net
        self._source = source
        self._target = target
        self._lost = lost
        self._items: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._last = 0.0
        self._retry_s = 0.2
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def send(self, action: Callable[..., object], *args: Any) -> None:
        """Has something done at the other end."""
        self._items.append((action, args))
        if self._timer is None:
            self._since = self._net.loop.time()
            self._push()

    def stop(self) -> None:
        """Forgets what it has not sent."""
        self._items.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _push(self) -> None:
        self._timer = None
        while self._items:
            action, args = self._items[0]
            when = self._net.carry(self._source, self._target, self._last, action, *args)
            if when is None:
                if self._net.loop.time() - self._since > _LOST_S:
                    self.stop()
                    self._lost()
                    return
                self._timer = self._net.later(self._retry_s, self._push)
                self._retry_s = min(self._retry_s * 2, 2.0)
                return
            self._last, self._retry_s, self._since = when, 0.2, self._net.loop.time()
            self._items.popleft()


def _deliver(target: Host, action: Callable[..., object], args: tuple[Any, ...]) -> None:
    if target.on:
        action(*args)
