"""Carries out a fault plan in a world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sim.faults import Fault
from sim.net import Trouble
from sim.world import World


@dataclass
class Breaker:
    """Makes faults happen in a world.

    Attributes:
        extra: What the world cannot do alone, by kind: `twin` and `start` take a host's name.
        over: Nothing more breaks; what is broken is still mended in its time.
    """

    world: World
    extra: dict[str, Callable[[str], None]] = field(default_factory=dict)
    over: bool = False

    def arm(self, plan: tuple[Fault, ...]) -> None:
        """Each fault begins at its time or moment, if that comes, and is mended after it has lasted."""
        for fault in plan:
            self.world.when(fault.when, lambda fault=fault: self.begin(fault))

    def begin(self, fault: Fault) -> None:
        """Breaks something now."""
        world = self.world
        if self.over:
            return
        if fault.kind != "rate":
            world.history.note(
                "world", "fault", kind=fault.kind, on=fault.on, lasts=round(fault.lasts_s, 3), size=round(fault.size, 6)
            )
        if fault.kind in self.extra:
            self.extra[fault.kind](fault.on[0])
            return
        mend = getattr(self, f"_{fault.kind}")(fault)
        if mend is not None:
            world.net.later(fault.lasts_s, mend)

    # --- wires

    def _trouble(self, pairs: list[tuple[str, str]], trouble: Trouble) -> Callable[[], None]:
        links = [self.world.net.link(*pair) for pair in pairs]
        for link in links:
            link.worsen(trouble)

        def mend() -> None:
            for link in links:
                link.heal(trouble)

        return mend

    def _both(self, fault: Fault, trouble: Trouble) -> Callable[[], None]:
        one, other = fault.on
        return self._trouble([(one, other), (other, one)], trouble)

    def _cut(self, fault: Fault) -> Callable[[], None]:
        return self._both(fault, Trouble(cut=True))

    def _one_way(self, fault: Fault) -> Callable[[], None]:
        return self._trouble([(fault.on[0], fault.on[1])], Trouble(cut=True))

    def _slow(self, fault: Fault) -> Callable[[], None]:
        return self._both(fault, Trouble(slow_s=fault.size))

    def _loss(self, fault: Fault) -> Callable[[], None]:
        return self._both(fault, Trouble(loss=fault.size))

    def _reorder(self, fault: Fault) -> Callable[[], None]:
        return self._both(fault, Trouble(rough_s=fault.size))

    def _flap(self, fault: Fault) -> None:
        """Up and down, seven times in its time."""
        for at in range(7):
            self.world.net.later(at * fault.lasts_s / 7, self._flap_once, fault)

    def _flap_once(self, fault: Fault) -> None:
        self.world.net.later(fault.lasts_s / 14, self._cut(fault))

    def _partition(self, fault: Fault) -> Callable[[], None]:
        """One host from all other sites."""
        hosts, name = self.world.net.hosts, fault.on[0]
        far = [other for other in hosts if hosts[other].site != hosts[name].site]
        return self._trouble([pair for other in far for pair in ((name, other), (other, name))], Trouble(cut=True))

    # --- machines

    def _pause(self, fault: Fault) -> Callable[[], None]:
        host = self.world.net.hosts[fault.on[0]]
        host.pause()
        return host.resume

    def _suspend(self, fault: Fault) -> Callable[[], None]:
        host = self.world.net.hosts[fault.on[0]]
        host.pause(suspend=True)
        return host.resume

    def _freeze(self, fault: Fault) -> Callable[[], None]:
        """A virtual machine that is stopped: none of its clocks but the wall's will show it."""
        host = self.world.net.hosts[fault.on[0]]
        process = host.process
        host.pause(suspend=True)

        def mend() -> None:
            if process is not None and process is host.process and process.paused:
                host.clock.change(lost_s=fault.lasts_s)
            host.resume()

        return mend

    def _kill(self, fault: Fault) -> Callable[[], None]:
        host = self.world.net.hosts[fault.on[0]]
        host.kill()
        return host.restart

    def _power(self, fault: Fault) -> Callable[[], None]:
        host = self.world.net.hosts[fault.on[0]]
        host.kill(power=True)
        return host.restart

    def _rate(self, fault: Fault) -> None:
        self.world.net.hosts[fault.on[0]].clock.change(rate=fault.size)

    def _slew(self, fault: Fault) -> Callable[[], None]:
        clock = self.world.net.hosts[fault.on[0]].clock
        clock.change(slew=fault.size)
        return lambda: clock.change(slew=1.0)

    def _step(self, fault: Fault) -> None:
        self.world.net.hosts[fault.on[0]].clock.change(step_s=fault.size)

    # --- the store

    def _lag(self, fault: Fault) -> Callable[[], None]:
        assert self.world.cluster is not None
        member = next(one for one in self.world.cluster.members if one.host.name == fault.on[0])
        member.lag_s += fault.size

        def mend() -> None:
            member.lag_s -= fault.size

        return mend

    def _member_off(self, fault: Fault) -> Callable[[], None]:
        host = self.world.net.hosts[fault.on[0]]
        host.on = False

        def mend() -> None:
            host.on = True

        return mend

    def _watch_cut(self, _: Fault) -> None:
        assert self.world.cluster is not None
        self.world.cluster.cut_watches()

    def _lost_event(self, fault: Fault) -> None:
        """A member's watches are never told of the last revision, as by a fault of the store."""
        assert self.world.cluster is not None
        for member in self.world.cluster.members:
            if member.host.name == fault.on[0]:
                for stream in member.streams:
                    stream.start = max(stream.start, self.world.cluster.data.revision + 1)

    def _compact(self, _: Fault) -> None:
        assert self.world.cluster is not None
        self.world.cluster.compact(self.world.cluster.data.revision)

    def _election(self, _: Fault) -> None:
        assert self.world.cluster is not None
        self.world.cluster.elect()

    def _lost_answer(self, _: Fault) -> None:
        assert self.world.cluster is not None
        self.world.cluster.lose_answers += 1

    def _restore(self, fault: Fault) -> None:
        assert self.world.cluster is not None
        self.world.cluster.restore(max(1, self.world.cluster.data.revision - int(fault.size)))
