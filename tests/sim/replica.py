"""A replica: the product's leases and its side of `Fleet`, over an engine that only takes time.

What stands between `Announcer` and `FleetHub` in the product is gRPC; here it is a connection of the simulated net.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from sim.hosts import Host
from sim.loop import OrderedTasks
from sim.tcp import Channel
from sim.watch import There
from sim.wire import BROKEN, CONNECT_S, FLEET, HOPS, Asked, Frame, Sent, answer_error

from mesh.errors import Code, MeshError
from mesh.ports import Clock
from mesh.serving.announce import FIRST_BACKOFF_S, LAST_BACKOFF_S, Announcer, Membership
from mesh.serving.leases import Stay
from mesh.settings import Address
from mesh.telemetry import Log
from mesh.types import Jurisdiction, RegionId
from mesh.v1 import fleet_pb2 as pb

if TYPE_CHECKING:
    from sim.parts import Parts, Scene

SLOTS, QUEUE = 6, 8
STEP_S = 0.4
"""The longest step of its engine, as it has measured."""
_TICK_S = 0.05
_LOST_S = 13.0


class _Quiet(Log):
    """Says nothing."""

    def __init__(self) -> None:
        pass

    def info(self, event: str, **fields: object) -> None:
        pass

    warning = error = info


@dataclass(eq=False)
class Sequence:
    """One call in the engine."""

    stay: Stay
    asked: Asked
    hold: str
    emit: Callable[[Frame], None]
    cancelled: bool = False


class Engine:
    """So many slots and a queue. A step that has begun ends, whatever becomes of its call."""

    def __init__(self, scene: Scene, host: Host, place: Jurisdiction, tasks: OrderedTasks) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: dict[Sequence, None] = {}
        self._scene = scene
        self._host = host
        self._place = place
        self._tasks = tasks
        self._count = 0
        self._closed = False

    def submit(self, stay: Stay, asked: Asked, emit: Callable[[Frame], None]) -> Sequence:
        """Takes a call in. Raises MeshError."""
        if len(self.waiting) >= QUEUE:
            raise MeshError(Code.NO_CAPACITY)
        stay.check()
        self._count += 1
        sequence = Sequence(stay, asked, f"{self._host.lives}.{self._count}", emit)
        stay.entered()
        self._scene.watch.held(self._host, f"q{sequence.hold}", "queue", self._place, asked)
        self.waiting.append(sequence)
        self._pump()
        return sequence

    def drop(self, sequence: Sequence) -> None:
        """Nobody wants it any more."""
        sequence.cancelled = True
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            self._scene.watch.freed(self._host, f"q{sequence.hold}")
            sequence.stay.left()

    def _pump(self) -> None:
        while self.waiting and len(self.running) < SLOTS and not self._closed:
            sequence = self.waiting.popleft()
            self._scene.watch.freed(self._host, f"q{sequence.hold}")
            if sequence.cancelled or not sequence.stay.may_go_on():
                sequence.stay.left()
                continue
            self.running[sequence] = None
            self._scene.watch.held(self._host, f"s{sequence.hold}", "slot", self._place, sequence.asked)
            self._tasks.spawn(self._run(sequence), "sequence")

    async def _run(self, sequence: Sequence) -> None:
        scene, host = self._scene, self._host
        try:
            for _ in range(sequence.asked.steps):
                if sequence.cancelled or not sequence.stay.may_go_on():
                    return
                takes_s = scene.step_s(host)
                scene.watch.stepped(host, self._place, sequence.asked, takes_s)
                scene.world.moments.fire("step_began", host.name)
                await asyncio.sleep(takes_s)  # by true time: what computes knows no clock
                if not sequence.cancelled:
                    sequence.emit(Frame("data"))
            sequence.emit(Frame("end"))
        except asyncio.CancelledError:
            self._closed = True  # the whole replica is stopped
            raise
        finally:
            del self.running[sequence]
            scene.watch.freed(host, f"s{sequence.hold}")
            sequence.stay.left()
            self._pump()


class SimReplica:
    """One life of a replica process."""

    def __init__(
        self, scene: Scene, parts: Parts, host: Host, region: RegionId, place: Jurisdiction, models: tuple[str, ...],
        gateways: list[str],
    ) -> None:  # fmt: skip
        self.scene, self.host, self.region, self.place = scene, host, region, place
        self.tasks = OrderedTasks()
        self.engine = Engine(scene, host, place, self.tasks)
        self.id = parts.replica_id(host)
        self.leases = parts.leases(self.id, host.clock)
        self.leases.step_s = parts.measured_step_s(STEP_S)
        self.answering: dict[str, Asked] = {}
        self._models = models
        self._count = 0
        self._busy = asyncio.Event()
        membership = Membership(pki=Path(), region=region, gateways=[Address(gateway, FLEET) for gateway in gateways])
        self._announcer = _SimAnnouncer(self, membership, self._report, self.leases, host.clock, _Quiet())

    async def run(self) -> None:
        """Until it is stopped."""
        listener = self.scene.world.net.listen(self.host, HOPS)
        async with self.tasks as tasks:
            tasks.spawn(self._announcer.run(), "announce")
            tasks.spawn(self._tick(), "tick")
            while True:
                tasks.spawn(self._hop(await listener.accept()), "hop")

    def there(self) -> Iterator[There]:
        """What takes room here now."""
        for what, sequences in (("queue", list(self.engine.waiting)), ("slot", list(self.engine.running))):
            for sequence in sequences:
                asked = sequence.asked
                yield There(self.host, what, asked.tenant, self.place, asked.key_id)
        for asked in self.answering.values():
            yield There(self.host, "stream", asked.tenant, self.place, asked.key_id)

    async def _tick(self) -> None:
        """As the product does, and not while there is nothing to look after."""
        while True:
            if not self.answering and not self.engine.running:
                self._busy.clear()
                await self._busy.wait()
            self.leases.tick()
            await self.host.clock.sleep(_TICK_S)

    def _report(self, number: int) -> pb.ReplicaReport:
        models = [
            pb.ModelReport(
                model=model, state=pb.REPLICA_STATE_READY, running=len(self.engine.running),
                queued=len(self.engine.waiting), slots=SLOTS, queue_limit=QUEUE,
            )
            for model in self._models
        ]  # fmt: skip
        return pb.ReplicaReport(
            number=number, replica=self.id, address=f"{self.host.name}:{HOPS}", models=models, pid=self.host.lives
        )

    async def _hop(self, channel: Channel) -> None:
        task, clock = asyncio.current_task(), self.host.clock
        assert task is not None
        channel.on_fail = task.cancel
        try:
            async with clock.timeout(CONNECT_S):
                sent: Sent = await channel.receive()
            self.scene.world.moments.fire("hop_arrived", self.host.name)
            await self._admit(channel, sent)
        except BROKEN:
            pass
        finally:
            channel.on_fail = None
            if not channel.gone:
                channel.abort()

    async def _admit(self, channel: Channel, sent: Sent) -> None:
        head, asked, watch = sent.head, sent.asked, self.scene.watch
        lease = None if head.lease is None else head.lease.encode()
        try:
            stay = self.leases.admit(lease, head.tenant, head.key_id)
        except MeshError as error:
            watch.received(self.host, self.place, asked, accepted=False)
            answer_error(channel, error)
            return
        watch.received(self.host, self.place, asked, accepted=True)
        self._count += 1
        hold = f"h{self.host.lives}.{self._count}"
        self.answering[hold] = asked
        self._busy.set()
        watch.held(self.host, hold, "stream", self.place, asked)
        scope = asyncio.timeout(None)
        stay.on_end = lambda: scope.reschedule(0)
        try:
            async with scope:
                await self._serve(channel, stay, asked)
        except TimeoutError:
            answer_error(channel, MeshError(Code.POLICY_STALE))
        except MeshError as error:
            answer_error(channel, error)
        finally:
            stay.close()
            del self.answering[hold]
            watch.freed(self.host, hold)

    async def _serve(self, channel: Channel, stay: Stay, asked: Asked) -> None:
        for _ in range(asked.pieces):
            await channel.receive()
        stay.check()
        frames: deque[Frame] = deque()
        some = asyncio.Event()

        def emit(frame: Frame) -> None:
            frames.append(frame)
            some.set()

        sequence = self.engine.submit(stay, asked, emit)
        try:
            while True:
                await some.wait()
                some.clear()
                while frames:
                    frame = frames.popleft()
                    channel.send(frame, 400)
                    await channel.drain()
                    if frame.kind == "end":
                        channel.close()
                        return
        finally:
            self.engine.drop(sequence)


class _SimAnnouncer(Announcer):
    """The product's, over a connection that is not gRPC's."""

    def __init__(self, replica: SimReplica, membership: Membership, *rest: Any) -> None:
        super().__init__(membership, *rest)
        self._replica = replica

    async def run(self) -> None:
        async with OrderedTasks() as tasks:
            for line in self._lines:
                tasks.spawn(self._keep_line(line), "line")

    async def _keep_line(self, line: Any) -> None:
        net, host = self._replica.scene.world.net, self._replica.host
        clock: Clock = host.clock
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                async with clock.timeout(CONNECT_S):
                    channel = await net.connect(host, line.address.host, line.address.port)
            except BROKEN:
                pass
            else:
                channel.user_timeout_s = _LOST_S
                stub: Any = _Stub(self._replica, channel)
                _, seen = await self._join(line, stub)
                if seen:
                    backoff_s = FIRST_BACKOFF_S
            await clock.sleep(backoff_s * (0.5 + host.entropy.coin() / 2))
            backoff_s = min(backoff_s * 2, LAST_BACKOFF_S)


class _Stub:
    """What `FleetStub` is; its one call is on one connection."""

    def __init__(self, replica: SimReplica, channel: Channel) -> None:
        self._replica = replica
        self._channel = channel

    def Join(self) -> _Stub:  # noqa: N802 - gRPC's name
        return self

    async def write(self, report: pb.ReplicaReport) -> None:
        try:
            self._channel.send(report)
        except OSError:
            raise asyncio.InvalidStateError from None
        self._replica.scene.world.moments.fire("ping_sent", self._replica.host.name)

    async def read(self) -> object:
        try:
            seen = await self._channel.receive()
        except (OSError, EOFError):
            return grpc.aio.EOF
        self._replica.scene.world.moments.fire("replica_message", self._replica.host.name)
        return seen

    async def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def cancel(self) -> None:
        self._channel.abort()


class SimContext:
    """What gRPC gives to `FleetHub` of a replica's stream."""

    def __init__(self, channel: Channel, region: RegionId, fire: Callable[[str], None]) -> None:
        self._channel = channel
        self._region = region
        self._fire = fire

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"peer_uri": [f"mesh://{self._region}/replica/r1".encode()]}

    async def read(self) -> object:
        try:
            return await self._channel.receive()
        except (OSError, EOFError):
            return grpc.aio.EOF

    async def write(self, seen: pb.ReplicaSeen) -> None:
        try:
            self._channel.send(seen, 200)
            await self._channel.drain()
        except OSError:
            await asyncio.get_running_loop().create_future()  # the reader finds out
        self._fire("fleet_message")
        if seen.fences:
            self._fire("fence_sent")
