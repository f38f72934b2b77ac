"""etcd goes back in time: a backup is restored, seen, declared with a new control epoch, and filled from the ledger.

Modelled (pins.md sections 2 and 6): the tenant's record with its epoch, the shard's number and the grant keys in etcd; a
backup taken at any time and restored once; a removal of J before, between or after, with its ledger entry, its
acknowledgement and its timer; admins that die between two steps, and calls that take over; the operator's `recover`,
that each program learns at a time of its own; the homes' publishing from the ledger; a gateway with an authority that
it had before, or started anew.

Assumed: the restored cluster has another cluster id (etcd derives it from the members' addresses and the
`--initial-cluster-token`: whoever restores must change the token). The gateway had one answer of the old cluster, and is
not started anew between the restore and the publishing: otherwise nothing is promised. Abstracted: clocks are exact, W = S = the cap; work is cut with its authority.

Promised: once the removal has returned the gateway serves J no more (I1, I2), whatever was restored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pinmodel.explore import Check


class Store(NamedTuple):
    """What etcd holds: the shard's number, the record (is J allowed, which epoch), whether the gateway has a key."""

    cluster: int
    number: int
    allowed: bool
    epoch: int
    member: bool


class Asked(NamedTuple):
    """A grant under way: time since t0, and the answer's cluster and number once there is one."""

    age: int
    cluster: int | None
    number: int


class Gateway(NamedTuple):
    """A gateway: its region file's epoch, the cluster it knows, what it applied, its grant, whether it saw etcd go back."""

    epoch: int
    cluster: int | None
    number: int
    allowed: bool
    age: int
    asked: Asked | None
    alarmed: bool


class State(NamedTuple):
    """`pin` is none, ledger (written there only), waits, lost, returned; `pinned` is (cluster, number) of its commit."""

    store: Store
    backup: Store | None
    declared: bool
    published: bool
    since_recovery: int
    ledger: bool
    pin: str
    pinned: tuple[int, int]
    waited: int
    must_wait: bool
    acked: tuple[int, int]
    gateway: Gateway


@dataclass(frozen=True)
class Epochs:
    """The machine.

    Attributes:
        span: S, in ticks.
        starts: Whether the gateway may be killed and started anew.
        without: The rule that is left out.
    """

    span: int = 2
    starts: bool = True
    without: str = ""

    @property
    def start(self) -> State:
        store = Store(0, 1, allowed=True, epoch=0, member=False)
        gateway = Gateway(0, 0, 1, allowed=True, age=self.span, asked=None, alarmed=False)
        return State(store, None, False, False, self.span, False, "none", (0, 0), 0, False, (0, 0), gateway)

    def broken(self, state: State) -> str:
        if state.pin == "returned" and self._permits(state.gateway):
            return "I1, I2: the gateway serves in J after the return"
        return ""

    def _permits(self, gateway: Gateway) -> bool:
        return gateway.allowed and gateway.age < self.span and not gateway.alarmed

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        yield "tick", self._tick(state)
        yield from self._operator(state)
        yield from self._admin(state)
        yield from self._grant(state)
        yield from self._gateway(state)

    def _tick(self, state: State) -> State:
        gateway = state.gateway
        asked = gateway.asked and gateway.asked._replace(age=min(self.span, gateway.asked.age + 1))
        return state._replace(
            gateway=gateway._replace(age=min(self.span, gateway.age + 1), asked=asked),
            waited=min(self.span, state.waited + 1) if state.pin == "waits" else 0,
            since_recovery=min(self.span, state.since_recovery + 1),
        )

    def _operator(self, state: State) -> Iterator[tuple[str, State]]:
        restored = state.store.cluster == 1 or state.backup is None
        if state.backup is None and state.store.cluster == 0:
            yield "backup", state._replace(backup=state.store)
        if not restored and state.backup and state.gateway.cluster is not None:
            yield "RESTORE", state._replace(store=state.backup._replace(cluster=1), backup=None)
        if state.store.cluster == 1 and not state.declared:
            yield "recover: a new epoch", state._replace(declared=True, since_recovery=0)

    def _admin(self, state: State) -> Iterator[tuple[str, State]]:
        store = state.store
        if state.declared and not state.published:
            # The last signed record of the ledger, also one whose commit is unknown.
            record = store._replace(number=store.number + 1, allowed=not state.ledger, epoch=1)
            lost = "lost" if state.pin == "waits" else state.pin
            yield "the home publishes its ledger", state._replace(store=record, published=True, pin=lost)
        # What an admin saw of another cluster ends its work until the new epoch.
        able = store.cluster == 0 or state.published
        if state.pin == "none" and not state.ledger and self.without != "ledgerlate":
            yield "removal of J written to the ledger", state._replace(ledger=True)
        signed = state.ledger or self.without == "ledgerlate"
        if state.pin in {"none", "lost"} and signed and able:
            yield "COMMIT: J removed", self._committed(state)
        if self.without == "ledgerlate" and state.pin == "waits":
            yield "removal of J written to the ledger", state._replace(ledger=True)
        if state.pin == "waits":
            yield from self._returns(state)

    def _committed(self, state: State) -> State:
        store = state.store._replace(number=state.store.number + 1, allowed=False)
        recovering = store.epoch == 1 and state.since_recovery < self.span and self.without != "lostmember"
        return state._replace(
            store=store,
            pin="waits",
            pinned=(store.cluster, store.number),
            waited=0,
            must_wait=recovering,
        )

    def _returns(self, state: State) -> Iterator[tuple[str, State]]:
        if state.store.cluster != state.pinned[0]:
            return  # the read before the return shows another cluster
        if state.waited >= self.span:
            yield "RETURN by timer", state._replace(pin="returned")
        elif not state.must_wait and (not state.store.member or state.acked >= state.pinned):
            yield "RETURN by acknowledgement", state._replace(pin="returned")

    def _grant(self, state: State) -> Iterator[tuple[str, State]]:
        gateway, asked = state.gateway, state.gateway.asked
        if asked is None:
            if not gateway.alarmed:
                yield "grant sent", state._replace(gateway=gateway._replace(asked=Asked(0, None, 0)))
            return
        yield "grant lost", state._replace(gateway=gateway._replace(asked=None))
        if asked.cluster is None:
            answer = asked._replace(cluster=state.store.cluster, number=state.store.number)
            held = state.store._replace(member=True)
            yield "grant commits", state._replace(store=held, gateway=gateway._replace(asked=answer))
            return
        after = gateway._replace(asked=None)
        back = gateway.cluster not in {None, asked.cluster}
        if self.without == "token":
            back = asked.number < gateway.number  # the same cluster by its id: only what was seen tells
        if back and self.without != "restore":
            after = after._replace(alarmed=True, age=self.span)  # it went back: all authority is dropped
        elif asked.number <= gateway.number:
            after = after._replace(age=min(gateway.age, asked.age), cluster=asked.cluster)
        yield "grant answered", state._replace(gateway=after)

    def _gateway(self, state: State) -> Iterator[tuple[str, State]]:
        gateway, store = state.gateway, state.store
        current = gateway.cluster in {None, store.cluster}
        if current and gateway.number < store.number:
            allowed = store.allowed and (store.epoch == gateway.epoch or self.without == "epoch")
            applied = gateway._replace(cluster=store.cluster, number=store.number, allowed=allowed)
            yield "gateway applies", state._replace(gateway=applied)
        if gateway.cluster is not None and state.acked != (gateway.cluster, gateway.number):
            yield "ack", state._replace(acked=(gateway.cluster, gateway.number))
        fresh = Gateway(int(state.declared), None, 0, allowed=False, age=self.span, asked=None, alarmed=False)
        if state.declared and not gateway.epoch:
            yield "gateway learns the new epoch", state._replace(gateway=fresh)
        promised = store.cluster == 0 or state.published
        if self.starts and promised and gateway != fresh:
            # A process that is started anew has a key of its own; the old one's is left out, it has no authority.
            born = fresh._replace(epoch=gateway.epoch)
            held = store._replace(member=False)
            yield "gateway killed and started", state._replace(store=held, gateway=born, acked=(0, 0))


def _check(configuration: str, machine: Epochs, at_least: int = 0) -> Check:
    return Check("epochs", configuration, machine, at_least, machine.without)


HOLD = (_check("S 2", Epochs(), 10_000),)
LARGE = (_check("S 4", Epochs(4), 50_000),)
FOUND = tuple(_check("S 2", Epochs(without=rule)) for rule in ("restore", "lostmember", "ledgerlate", "epoch", "token"))
