"""One simulated world: hosts, wires, a control store, moments, a history; and how an episode is played in it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from sim.client import SimStore, User
from sim.history import History
from sim.hosts import Host, Program
from sim.loop import SimLoop, StuckError
from sim.moments import At, Moments, When
from sim.net import Net
from sim.outside import kept_out
from sim.store import Cluster, Commit

from mesh.types import RegionId, Role

SAME_SITE_S = 0.0003
ONE_WAY_S = {("ap-southeast-1", "vn-1"): 0.020, ("ap-northeast-1", "ap-southeast-1"): 0.035}
ELSEWHERE_S = 0.045


@dataclass(frozen=True)
class Result:
    """What an episode left.

    Attributes:
        errors: What should never be, whatever the faults: leaks, unhandled errors, no end.
        steps: Callbacks that ran.
    """

    seed: object
    history: History
    errors: tuple[str, ...]
    steps: int


class World:
    """Make one for each episode, add hosts, then `play`.

    Attributes:
        loop: Whose `time()` is the true time.
    """

    def __init__(self, seed: object, delay_s: Callable[[str, str], float] | None = None) -> None:
        """A world.

        Args:
            seed: Decides everything that is drawn.
            delay_s: One way between two sites; as between regions of the example mesh if not given.
        """
        self.seed = seed
        self.loop = SimLoop(seed)
        self.history = History(self.loop.time)
        self.net = Net(self.loop, seed, delay_s or one_way_s)
        self.moments = Moments(self.net.later)
        self.cluster: Cluster | None = None

    def add_host(self, name: str, site: str) -> Host:
        """A machine, with power and without a program."""
        host = self.net.hosts[name] = Host(self.loop, name, site, self.seed, self.history.note)
        return host

    def add_store(self, sites: list[str]) -> Cluster:
        """The control store, a member at each site: hosts `etcd-<site>`."""
        members = [self.add_host(f"etcd-{site}", site) for site in sites]
        self.cluster = Cluster(self.net, members, self.seed)
        self.cluster.on_commit.append(self._committed)
        return self.cluster

    def store_for(self, host: Host, role: Role, region: RegionId) -> SimStore:
        """The store as the present life of a host's program sees it, by a certificate that need not be its own."""
        assert self.cluster is not None
        return SimStore(self.cluster, host, User(role, region), self.moments)

    def clone(self, host: Host, name: str, program: Program) -> Host:
        """A second machine in the same state, as a live copy of a virtual one: clocks, and randomness to come.

        What a program remembers cannot be copied from here: `program` begins with a copy that its caller makes.
        """
        twin = self.add_host(name, host.site)
        twin.clock = host.clock.copy()
        twin.start(program, entropy=host.entropy.copy())
        return twin

    def when(self, when: When, action: Callable[[], None]) -> None:
        """Does something in the world, at a time or a moment."""
        if isinstance(when, At):
            self.net.later(max(0.0, when.seconds - self.loop.time()), action)
        else:
            self.moments.when(when, action)

    def play(self, main: Coroutine[Any, Any, None]) -> Result:
        """Runs the world's own coroutine to its end. Stop the hosts in it: what they leave behind is a leak."""
        errors: list[str] = []
        gc.collect()
        gc.disable()  # a collection would run finalizers at a moment of its own
        task = self.loop.create_task(main, context=self.loop.world.context.copy())
        try:
            with kept_out():
                try:
                    self.loop.run_until_complete(task)
                except StuckError as error:
                    errors.append(str(error))
            errors += self.loop.leaks()
            errors += [f"connection of {host.name}" for host in self.net.hosts.values() for _ in host.channels]
            errors += self.loop.errors
            self.history.seal()
        finally:
            self.history.seal()
            self.loop.bury()
            gc.enable()
        return Result(self.seed, self.history, tuple(errors), self.loop.steps)

    async def stop(self) -> None:
        """Ends every program, in the order in which the hosts were added."""
        for host in list(self.net.hosts.values()):
            await host.stop()

    def _committed(self, commit: Commit) -> None:
        """A transaction that compared in vain has committed nothing."""
        if (commit.events and commit.kind != "other") or commit.kind == "judge":
            self.moments.fire(f"{commit.kind}_committed", commit.host)


def one_way_s(one: str, other: str) -> float:
    """Between sites that are named as regions."""
    if one == other:
        return SAME_SITE_S
    return ONE_WAY_S.get((min(one, other), max(one, other)), ELSEWHERE_S)
