"""A home's admin: the product's changes, members, return rule and sweeper; and operators that will not give up."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sim.hosts import Host
from sim.loop import OrderedTasks
from sim.moments import When
from sim.moving import DESKS, PLACES, VN
from sim.store import Commit
from sim.tcp import Channel
from sim.wire import BROKEN, DESK
from trust_lab import signer_of

from mesh.admin.shrinks import Patience, Shrinks
from mesh.control.changes import Outcome
from mesh.control.history import StoreHistory
from mesh.control.ops import new_op_id
from mesh.control.records import TenantRecord
from mesh.control.recovery import Recovery
from mesh.control.store import Op, Store, StoreError, TxnResult
from mesh.errors import Code, MeshError
from mesh.policy.bundle import Spans
from mesh.types import Jurisdiction, KeyId, RegionId, Role, TenantState

if TYPE_CHECKING:
    from sim.episode import Episode

SWEEP_S = 5.0
_ANSWER_S = 30.0
_ATTEMPTS = 8
_STEPS = 14
_BOTH = frozenset({Jurisdiction("VN"), Jurisdiction("SG")})
_STEPS_OF_A_MOVE = ("prepare", "leave", "finish")
_AWAY = (Code.TENANT_NOT_FOUND.value, Code.KEY_NOT_FOUND.value, Code.MOVE_UNFINISHED.value)
"""What a home says of a tenant that has left it, or is about to."""


@dataclass(frozen=True, slots=True)
class Order:
    """What an operator wants.

    Attributes:
        do: `pin` (to where its home is), `again` (everywhere), `recover`, `suspend`, `resume`, `revoke`, `authority`, `churn` (a new key
            of the other tenant), `move`, `late` (what was asked at the beginning of an earlier move arrives again).
        when: None is once the order before has come back.
        after_s: So much later.
        spans: For `authority`, home and foreign.
        to: For `move`, one home after the other. For `late`, who is asked to make ready, and the home that the tenant had
            then. At an admin's: the other home of the move.
    """

    do: str
    when: When | None = None
    after_s: float = 0.0
    drain_s: float = 0.0
    spans: tuple[float, float] = (20.0, 6.0)
    count: int = 0
    to: tuple[RegionId, ...] = ()


class SimAdmin:
    """One life of the admin process of a home."""

    def __init__(self, episode: Episode, host: Host, home: RegionId) -> None:
        parts = episode.parts
        self.episode, self.host, self.parts, self.trust = episode, host, parts, episode.trust
        self.home, self.pinned = home, frozenset({PLACES[home]})
        self.notebook = episode.homes.notebooks[home]
        self.store = episode.world.store_for(host, Role.ADMIN, home)
        self.history = StoreHistory()
        self.start = parts.start(episode.trust)
        self.members = parts.members(self.store, host.clock, OrderedTasks)
        self.changes = parts.changes(
            self.store, home, host.clock, host.entropy, signer=signer_of(home), trust=episode.trust,
            journal=parts.journal(self.notebook),
            history=self.history,
            store_answers=self.members.store_answers,
        )  # fmt: skip
        self.sweepers = [parts.sweeper(self.store, home, episode.trust.cap_s, host.clock)]

    async def run(self) -> None:
        """Until it is stopped."""
        listener = self.episode.world.net.listen(self.host, DESK)
        async with OrderedTasks() as tasks:
            tasks.spawn(self.members.run(), "members")
            tasks.spawn(sweep(self.sweepers[0], self.host), "sweep")
            while True:
                tasks.spawn(self._desk(await listener.accept()), "desk")

    async def _desk(self, channel: Channel) -> None:
        try:
            async with self.host.clock.timeout(_ANSWER_S):
                order, op_id, attempt = await channel.receive()
            channel.send(await self._carry_out(order, op_id, attempt))
            channel.close()
        except BROKEN:
            pass
        finally:
            if not channel.gone:
                channel.abort()

    async def _carry_out(self, order: Order, op_id: str, attempt: int) -> str:
        """What the operator is told: `done`, `superseded` or a code."""
        if order.do == "recover":
            return await self._recover()
        if order.do in ("prepare", "leave"):
            return await self._move(order, op_id)
        episode = self.episode
        judge = _Judge(self.store)
        episode.judges[judge] = None
        barrier = self.parts.barrier(
            store=judge,
            region=self.home,
            members=self.members,
            trust=self.trust,
            clock=self.host.clock,
            history=self.history,
            start=self.start,
        )
        shrinks = Shrinks(barrier=barrier, signer=None, epoch=self.trust.epoch, clock=self.host.clock)
        outcome: Outcome | None = None
        moved: TenantRecord | None = None

        used = self.parts.op_id(op_id, attempt)
        episode.asked[used] = op_id

        async def made() -> Outcome:
            nonlocal outcome, moved
            if order.do == "finish":
                episode.world.moments.fire("finish_sent", self.host.name)
                told, moved = await self.changes.moves.finish(episode.tenant)
                outcome = self.parts.outcome(told)
                return outcome
            outcome = self.parts.outcome(await self._make(order, used))
            return outcome

        try:
            async with aclosing(shrinks.follow(made(), Patience())) as said:
                async for one in said:
                    if one.done and moved is not None:
                        episode.move_over(self.host.name, moved.policy.moves)
                        await self.changes.settle_authority(episode.tenant, moved.policy.revision)
                    elif one.done:
                        await self._settle(order, one.outcome)
                        self._returned(order, one.outcome, "done", judge.at)
            return "done"
        except MeshError as error:
            if error.code is Code.SUPERSEDED and outcome is not None:
                self._returned(order, outcome, "superseded", judge.at)
            return error.code.value
        finally:
            episode.judges.pop(judge, None)

    async def _recover(self) -> str:
        """As `mesh control recover` has every admin do."""
        recovery = Recovery(
            store=self.store, home=self.home, signer=signer_of(self.home), trust=self.trust,
            memory=self.notebook, history=self.history, start=self.start, clock=self.host.clock,
            entropy=self.host.entropy,
        )  # fmt: skip
        try:
            async with aclosing(recovery.recover()) as said:
                async for _ in said:
                    pass
        except MeshError as error:
            return error.code.value
        return "done"

    async def _move(self, order: Order, op_id: str) -> str:
        moves, tenant, (other,) = self.changes.moves, self.episode.tenant, order.to
        try:
            if order.do == "prepare":
                await moves.prepare(tenant, other)
            else:
                self.episode.world.moments.fire("leave_sent", self.host.name)
                await moves.leave(tenant, other, op_id)
        except MeshError as error:
            return error.code.value
        return "done"

    def _returned(self, order: Order, outcome: Outcome, said: str, judged: float) -> None:
        shrink, policy = outcome.shrink, outcome.tenant.policy
        if shrink is None:
            return
        removed: frozenset[str] = frozenset()
        if order.do == "pin":
            removed = frozenset(right.place for right in shrink.removed) - self.pinned
        elif order.do == "suspend":
            removed = frozenset("*")
        self.episode.watch.returned(
            self.host.name, policy.tenant, outcome.revision, removed, outcome.key_id, judged, said, self.trust.epoch
        )
        self.episode.world.moments.fire("returned", self.host.name)
        self.episode.phase_ends()

    async def _settle(self, order: Order, outcome: Outcome) -> None:
        if order.do == "authority":
            await self.changes.settle_authority(outcome.tenant.policy.tenant, outcome.revision)

    def _make(self, order: Order, op_id: str) -> Awaitable[Outcome]:
        changes, tenant, other = self.changes, self.episode.tenant, self.episode.other
        match order.do:
            case "pin":
                return changes.set_allowed(tenant, self.pinned, order.drain_s, op_id)
            case "again":
                return changes.set_allowed(tenant, _BOTH, 0.0, op_id)
            case "suspend":
                return changes.set_state(tenant, TenantState.SUSPENDED, op_id)
            case "resume":
                return changes.set_state(tenant, TenantState.ACTIVE, op_id)
            case "revoke":
                return changes.revoke_key(self.episode.keys[1].key_id, op_id)
            case "authority":
                return changes.set_authority(tenant, Spans(home_s=order.spans[0], foreign_s=order.spans[1]), op_id)
            case "churn":
                key = KeyId(f"churn{order.count:07d}")
                return changes.create_key(other, key, "sha256$00", op_id)
            case _:
                raise ValueError(order.do)


async def sweep(sweeper: Any, host: Host) -> None:
    """Looks for dead members more often than the product does, in an episode that is short."""
    while True:
        with suppress(StoreError):
            await sweeper.sweep()
        await host.clock.sleep(SWEEP_S)


class _Judge:
    """The store, for one wait. `at`: when the last read on which it may be judged ran."""

    def __init__(self, store: Store) -> None:
        self.at = 0.0
        self._store = store
        self._ops: tuple[Op, ...] = ()
        self.range = store.range
        self.watch = store.watch

    async def txn(self, compares: Any, then: Sequence[Op], otherwise: Any = (), *, timeout_s: float) -> TxnResult:
        self._ops = tuple(then)
        return await self._store.txn(compares, self._ops, otherwise, timeout_s=timeout_s)

    def ran(self, commit: Commit, now: float) -> None:
        """A transaction has run."""
        if commit.then is self._ops:
            self.at = now


class Operators:
    """The people who give the orders of an episode, each order by somebody of its own."""

    def __init__(self, episode: Episode, host: Host) -> None:
        self._episode = episode
        self._host = host

    async def run(self) -> None:
        """Gives all orders, each until it has come back."""
        before: Any = None
        async with OrderedTasks() as tasks:
            for order in self._episode.orders:
                ended = self._episode.world.loop.create_future()
                tasks.spawn(self._give(order, before, ended), "order")
                before = ended

    async def _give(self, order: Order, before: Any, ended: Any) -> None:
        episode, clock = self._episode, self._host.clock
        if order.when is not None:
            now = episode.world.loop.create_future()
            episode.world.when(order.when, lambda: now.done() or now.set_result(None))
            await now
        elif before is not None:
            await before
        await clock.sleep(order.after_s)
        if order.do == "recover":
            for home in DESKS if self._episode.moves else (VN,):
                await self._repeat(order, home)
        elif order.do == "move":
            for home in order.to:
                await self._move(home)
                await clock.sleep(order.after_s or 0.2)
        elif order.do == "late":
            asked, old = order.to
            await self._ask(Order("prepare", to=(old,)), "", 0, asked)
        else:
            await self._repeat(order)
        if not ended.done():
            ended.set_result(None)

    async def _repeat(self, order: Order, home: RegionId | None = None) -> None:
        """One order, as often as it takes, at the home that got it first unless the tenant has left that."""
        clock, homes, tenant = self._host.clock, self._episode.homes, self._episode.tenant
        op_id = new_op_id(clock, self._host.entropy)
        home = home or (VN if order.do == "churn" else homes.of(tenant))
        for attempt in range(_ATTEMPTS):
            answer = await self._ask(order, op_id, attempt, home)
            if answer in _AWAY and self._episode.moves and order.do != "churn":
                home = homes.of(tenant)
            elif answer not in (None, Code.POLICY_STORE_UNAVAILABLE.value):
                break
            await clock.sleep(0.3)

    async def _move(self, home: RegionId) -> None:
        """As `mesh tenant move` does: each step until it is done, again from the first where something came between."""
        clock, episode, tenant = self._host.clock, self._episode, self._episode.tenant
        old, op_id, step = episode.homes.of(tenant), new_op_id(clock, self._host.entropy), 0
        if old == home:
            return
        episode.homes.stage = "asked"
        for attempt in range(_STEPS):
            do = _STEPS_OF_A_MOVE[step]
            at, other = (old, home) if do == "leave" else (home, old)
            answer = await self._ask(Order(do, to=(other,)), op_id, attempt, at)
            if answer == "done":
                step += 1
                if step == len(_STEPS_OF_A_MOVE):
                    break
                continue
            if answer == Code.MOVE_UNFINISHED.value:
                step = 0
            elif answer == Code.HOME_OUTSIDE_PIN.value:
                break
            await clock.sleep(0.3)
        episode.homes.stage = ""

    async def _ask(self, order: Order, op_id: str, attempt: int, home: RegionId) -> str | None:
        clock, channel = self._host.clock, None
        try:
            async with clock.timeout(2.0):
                channel = await self._episode.world.net.connect(self._host, DESKS[home], DESK)
            channel.send((order, op_id, attempt))
            async with clock.timeout(_ANSWER_S):
                return await channel.receive()
        except BROKEN:
            return None
        finally:
            if channel is not None:
                channel.abort()
