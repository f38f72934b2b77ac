"""What gateways of different regions tell each other: how loaded each region is, in numbers, and nothing else.

Each gateway keeps a stream to one gateway of every other region and pings it twice a second. The answer carries that
region's load; the time it took is the round trip. Models are named by 8 bytes of a hash.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress

import grpc
import grpc.aio

from mesh.errors import Code, MeshError
from mesh.ports import Clock
from mesh.routing.fleet import LOAD_LIFETIME_S, ModelLoad, RegionLoad, Replica
from mesh.settings import Address
from mesh.tls import grpc_channel_options, identity_of_grpc
from mesh.transport.grpc_server import Context, Failed, service, stream
from mesh.types import ModelId, RegionId, ReplicaState, Role
from mesh.v1 import border_pb2

BORDER = border_pb2.DESCRIPTOR.services_by_name["Border"].full_name
PING_S = 0.5
_SILENCE_S = 5.0
_ANSWER_S = 2.0
_RETRY_S = 1.0
_SMOOTHING = 0.125
"""The weight of a new round trip. Source: RFC 6298."""


def model_hash(model: ModelId) -> int:
    """A model's name on the border: the first 8 bytes of its SHA-256, big endian."""
    return int.from_bytes(hashlib.sha256(model.encode()).digest()[:8], "big")


def load_of(replicas: Iterable[Replica]) -> list[border_pb2.ModelLoad]:
    """This region's load: the ready replicas, summed up for each model."""
    loads: dict[ModelId, border_pb2.ModelLoad] = {}
    for replica in replicas:
        if replica.state is not ReplicaState.READY:
            continue
        load = loads.get(replica.model)
        if load is None:
            load = loads[replica.model] = border_pb2.ModelLoad(model=model_hash(replica.model))
        load.ready += 1
        load.slots += replica.slots
        load.running += replica.running
        load.queued += replica.queued
        load.queue_limit += replica.queue_limit
    return list(loads.values())


class Border:
    """Answers the gateways of the other regions."""

    def __init__(
        self,
        *,
        here: RegionId,
        regions: Collection[RegionId],
        replicas: Callable[[], Iterable[Replica]],
        clock: Clock,
    ) -> None:
        self._others = frozenset(regions) - {here}
        self._replicas = replicas
        self._clock = clock

    def handlers(self, failed: Failed) -> grpc.GenericRpcHandler:
        """The `Border` service, for gateways of the other configured regions."""
        return service(BORDER, {"Exchange": stream(self._exchange, border_pb2.BorderPing.FromString, failed)})

    async def _exchange(self, context: Context) -> None:
        identity = identity_of_grpc(context.auth_context())
        if identity is None or identity.role is not Role.GATEWAY or identity.region not in self._others:
            raise MeshError(Code.INVALID_API_KEY)
        while True:
            try:
                async with self._clock.timeout(_SILENCE_S):
                    ping = await context.read()
            except TimeoutError:
                raise MeshError(Code.REQUEST_TIMEOUT) from None
            if not isinstance(ping, border_pb2.BorderPing):
                return
            await context.write(border_pb2.RegionLoad(number=ping.number, models=load_of(self._replicas())))


class BorderWatch:
    """Follows the load of the other regions. `run` must be running."""

    def __init__(
        self,
        *,
        peers: Mapping[RegionId, Sequence[Address]],
        models: Collection[ModelId],
        credentials: grpc.ChannelCredentials,
        clock: Clock,
    ) -> None:
        """Takes what is configured.

        Args:
            peers: The internal addresses of each other region's gateways, in the order in which they are tried.
            models: The catalogue: a load of anything else is left out.
            credentials: This gateway's own.
            clock: Of this host.
        """
        self._peers = peers
        self._names = {model_hash(model): model for model in models}
        self._credentials = credentials
        self._clock = clock
        self._loads: dict[RegionId, RegionLoad] = {}

    def loads(self) -> Mapping[RegionId, RegionLoad]:
        """The regions whose load is known and not older than 3 s."""
        now_s = self._clock.now_s()
        return {region: load for region, load in self._loads.items() if now_s - load.seen_s <= LOAD_LIFETIME_S}

    async def run(self) -> None:
        """Follows every region until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for region, addresses in self._peers.items():
                tasks.create_task(self._follow(region, addresses), name=f"border-{region}")

    async def _follow(self, region: RegionId, addresses: Sequence[Address]) -> None:
        while True:
            for address in addresses:
                # A region that cannot be reached is an ordinary state of the mesh: its load grows old and is gone.
                with suppress(grpc.RpcError, TimeoutError, asyncio.InvalidStateError):
                    await self._talk(region, address)
            await self._clock.sleep(_RETRY_S)

    async def _talk(self, region: RegionId, address: Address) -> None:
        """Pings one gateway until it stops answering."""
        options = [
            *grpc_channel_options(Role.GATEWAY, region),
            # Else a channel that is made again waits out the back-off of the one before it.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        rtt_s: float | None = None
        number = 0
        async with grpc.aio.secure_channel(str(address), self._credentials, options=options) as channel:
            call = channel.stream_stream(
                f"/{BORDER}/Exchange",
                request_serializer=border_pb2.BorderPing.SerializeToString,
                response_deserializer=border_pb2.RegionLoad.FromString,
            )()
            while True:
                number += 1
                sent_s = self._clock.now_s()
                async with self._clock.timeout(_ANSWER_S):
                    await call.write(border_pb2.BorderPing(number=number))
                    load = await call.read()
                if not isinstance(load, border_pb2.RegionLoad) or load.number != number:
                    return
                now_s = self._clock.now_s()
                if number == 1:
                    # It holds the handshake: nothing that later calls would pay.
                    continue
                sample_s = now_s - sent_s
                rtt_s = sample_s if rtt_s is None else rtt_s + _SMOOTHING * (sample_s - rtt_s)
                self._loads[region] = RegionLoad(region=region, rtt_s=rtt_s, models=self._models_of(load), seen_s=now_s)
                await self._clock.sleep(PING_S)

    def _models_of(self, load: border_pb2.RegionLoad) -> dict[ModelId, ModelLoad]:
        return {
            self._names[each.model]: ModelLoad(
                ready=each.ready,
                slots=each.slots,
                running=each.running,
                queued=each.queued,
                queue_limit=each.queue_limit,
            )
            for each in load.models
            if each.model in self._names
        }
