"""What breaks in an episode beside what any world can break: programs, copies of them, restores, and who has a key."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sim.breaker import Breaker
from sim.faults import Fault
from sim.gateway import SimGateway
from sim.hosts import Host
from sim.parts import ROGUE
from trust_lab import signer_of, trust_in

from mesh.control import layout
from mesh.control.records import decode_tenant, encode_tenant
from mesh.control.store import Put
from mesh.policy.shards import shard_of
from mesh.types import Revision

if TYPE_CHECKING:
    from sim.episode import Episode

_GONE_S = 8.0


class EpisodeBreaker(Breaker):
    """Counts in which phase what begins."""

    def __init__(self, episode: Episode) -> None:
        lies = episode.homes
        extra = {
            "spoil": lies.spoil,
            "relapse": lies.relapse,
            "usurp": lies.usurp,
            "claim": lies.claim,
            "fork": lies.fork,
        }
        super().__init__(episode.world, extra)
        self._episode = episode

    def begin(self, fault: Fault) -> None:
        episode = self._episode
        if not self.over and fault.kind != "rate":
            episode.faults[fault.kind, episode.phase] += 1
            if episode.homes.stage:
                episode.moving[fault.kind, episode.homes.stage] += 1
        if fault.kind == "restore":
            episode.restored = True
        super().begin(fault)
        if fault.kind in ("pause", "suspend", "freeze"):
            self.world.net.later(fault.lasts_s, episode.watch.resumed, fault.on[0])

    # --- machines

    def _start(self, fault: Fault) -> None:
        host = self.world.net.hosts[fault.on[0]]
        if not host.running:
            self._episode.start(host)

    def _leave(self, fault: Fault) -> None:
        """It is told to go, and comes again."""
        (name, *_) = fault.on
        program, host = self._episode.programs.get(name), self.world.net.hosts[name]
        if isinstance(program, SimGateway) and host.running:
            program.stop.set()
            self.world.net.later(_GONE_S, host.restart)

    def _twin(self, fault: Fault) -> None:
        """A gateway's machine is copied while it runs."""
        episode, name = self._episode, fault.on[0]
        host, program = self.world.net.hosts[name], episode.programs.get(name)
        if not isinstance(program, SimGateway) or not host.running or "gw-twin" in self.world.net.hosts:
            return
        was = program.membership

        async def run(twin: Host) -> None:
            copy = episode.programs[twin.name] = SimGateway(episode, episode.parts, twin, program.region)
            member = copy.membership
            member.member, member._last, member._mod_revision = was.member, last, mod_revision
            member._unheard |= unheard
            member._acks.move(layout.ack_key(program.region, was.member))
            await copy.run()

        last, mod_revision, unheard = was._last, was._mod_revision, set(was._unheard)
        self.world.clone(host, "gw-twin", run)

    # --- the store

    def _recover(self, fault: Fault) -> None:
        """After a restore: a new control epoch is configured, and all but one, which nobody reaches, start anew."""
        episode, lost = self._episode, fault.on[0]
        episode.trust = trust_in(epoch=episode.trust.epoch + 1, cap_s=episode.trust.cap_s)
        episode.restored = False
        for name, host in self.world.net.hosts.items():
            if name.split("-")[0] in ("admin", "gw", "replica") and name != lost:
                host.restart()

    def _replay(self, _: Fault) -> None:
        """Somebody with the home admin's certificate puts a tenant's first record again.

        Whoever has seen a newer one refuses it. A process that starts later has seen none: that is no part of the
        promise, as with an undeclared restore, and so none starts.
        """
        episode = self._episode
        episode.restored = True
        at = layout.policy_key(episode.home, episode.tenant)
        value = next(row[1] for row in episode.homes.notebooks[episode.home].rows.values() if row[0] == at)
        self._put(at, value)

    def _forge(self, _: Fault) -> None:
        """The same, with a record of the attacker's own."""
        episode = self._episode
        at = layout.policy_key(episode.home, episode.tenant)
        parsed, item = layout.parse(at), episode.cluster.data.get(at)
        assert item is not None
        assert isinstance(parsed, layout.PolicyKey)
        record = decode_tenant(parsed, item.value, episode.trust)
        wide = frozenset(map(episode.place_of, episode.gateways))
        policy = replace(record.policy, allowed=wide, revision=Revision(record.policy.revision + 1), out_since={})
        self._put(at, encode_tenant(replace(record, policy=policy), signer_of(ROGUE, "k9"), episode.trust.epoch))

    def _put(self, at: str, value: bytes) -> None:
        shard = shard_of(self._episode.home, self._episode.tenant)
        self._episode.intrude((Put(at, value), Put(layout.head_key(shard), b"")))
