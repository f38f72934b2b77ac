"""The control store on etcd v3, by calls of our own over grpc.aio.

Why not a library: none of those that install next to protobuf 7 has mTLS and a watch that loses nothing
(docs/decisions). Knows nothing of what is stored.

Each member has a channel of its own; the first is the nearest. A member that fails is left for the next one: reads are
then repeated within their deadline, a transaction never is, since it may have run. After a while calls go back to the
nearest if it is connected; each time that it fails again, that while doubles. The watch resumes behind the last whole
revision it told of: never from `created` or from a header, which show the store's revision and not what was sent.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path
from typing import Protocol, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from mesh.control.store import (
    CompactedError,
    Compare,
    Delete,
    Event,
    KeyValue,
    Op,
    Put,
    Range,
    RangeResult,
    StoreDeniedError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
    TxnResult,
    WatchBatch,
    WatchDown,
    WatchNews,
    WatchUp,
)
from mesh.errors import Code, MeshError
from mesh.etcd.v1 import etcd_pb2 as pb
from mesh.ports import Clock
from mesh.tls import ETCD_NAME, grpc_channel_credentials, grpc_named_options, grpc_root_credentials
from mesh.types import RegionId, Role

_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    # By itself the line above does nothing: a minute is what grpc gives a ping that is not answered.
    ("grpc.http2.ping_timeout_ms", 3_000),
    # An idle watch carries no data for hours; without this grpc soon stops asking whether the other side lives.
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 3_000),  # in spite of its name: how long one attempt to connect may take
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
)
_WATCH_METADATA = (("hasleader", "true"),)
"""A member without a leader ends the watch, instead of keeping silent."""
_WATCH_OPENS_S = 5.0
_FIRST_BACKOFF_S = 0.05
_MAX_BACKOFF_S = 1.0
_FIRST_AWAY_S = 10.0
_MAX_AWAY_S = 600.0
_COMPACTED = "required revision has been compacted"
_Answer = TypeVar("_Answer", bound=Message)


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """One member, as it says. `has_leader`: whether it follows, or is, a leader."""

    version: str
    has_leader: bool
    revision: int


class EtcdStore:
    """`Store` on the members of one etcd cluster. Open it with `open_store` or `EtcdStore.connect`."""

    def __init__(self, channels: Sequence[grpc.aio.Channel], clock: Clock) -> None:
        self._channels = channels
        self._clock = clock
        self._at = 0
        self._back_at_s = 0.0
        self._away_s = _FIRST_AWAY_S

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        endpoints: Sequence[str],
        credentials: grpc.ChannelCredentials,
        clock: Clock,
        *,
        server_name: str = ETCD_NAME,
    ) -> AsyncGenerator[EtcdStore]:
        """Opens channels to `https://host:port` of each member; connects when first used.

        Args:
            endpoints: The members.
            credentials: Ours; the certificate's CN is the etcd user.
            clock: For the pauses between attempts.
            server_name: The DNS name in the members' certificates.

        Raises:
            MeshError: `invalid_settings` where an endpoint is not `https://host:port`.
        """
        options = [*_OPTIONS, *grpc_named_options(server_name)]
        targets = [_target(endpoint) for endpoint in endpoints]
        channels = [grpc.aio.secure_channel(target, credentials, options=options) for target in targets]
        try:
            yield cls(channels, clock)
        finally:
            for channel in channels:
                await channel.close(grace=None)

    async def range(self, request: Range, *, timeout_s: float) -> RangeResult:
        """See `Store`. Repeated at the next member while there is time."""
        answer = await self.call(
            "KV/Range", _range_request(request), pb.RangeResponse, timeout_s=timeout_s, repeat=True
        )
        return _range_result(answer)

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = (), *, timeout_s: float
    ) -> TxnResult:
        """See `Store`. Sent once."""
        request = pb.TxnRequest(
            compare=[
                pb.Compare(
                    key=_raw(one.key), target=pb.Compare.MOD, result=pb.Compare.EQUAL, mod_revision=one.mod_revision
                )
                for one in compares
            ],
            success=[_request_op(op) for op in then],
            failure=[_request_op(op) for op in otherwise],
        )
        answer = await self.call("KV/Txn", request, pb.TxnResponse, timeout_s=timeout_s, repeat=False)
        return TxnResult(
            answer.header.revision,
            answer.succeeded,
            tuple(_range_result(one.response_range) for one in answer.responses if one.HasField("response_range")),
            answer.header.cluster_id,
        )

    async def compact(self, revision: int, *, timeout_s: float) -> None:
        """Forgets the history below `revision`. Only root may.

        Raises:
            StoreError: It was not done, or not known to be.
        """
        request = pb.CompactionRequest(revision=revision, physical=True)
        await self.call("KV/Compact", request, pb.CompactionResponse, timeout_s=timeout_s, repeat=False)

    async def status(self, *, timeout_s: float) -> tuple[MemberStatus | None, ...]:
        """Each member as it says, in the order of the endpoints; None for one that does not answer in time."""
        found: list[MemberStatus | None] = []
        for channel in self._channels:
            try:
                answer = await _unary(channel, "Maintenance/Status", pb.StatusResponse)(
                    pb.StatusRequest(), timeout=timeout_s
                )
            except grpc.aio.AioRpcError:
                found.append(None)
            else:
                found.append(MemberStatus(answer.version, answer.leader != 0, answer.header.revision))
        return tuple(found)

    async def watch(self, key: str, end: str, start: int) -> AsyncGenerator[WatchNews]:
        """See `Store`."""
        backoff_s = _FIRST_BACKOFF_S
        while True:
            at = self._at
            call = _open_watch(self._channels[at])
            try:
                async with self._clock.timeout(_WATCH_OPENS_S):
                    await call.write(_watch_request(key, end, start))
                    await _until_created(call)
                yield WatchUp()
                while True:
                    batch = await _read_batch(call)
                    backoff_s, start = _FIRST_BACKOFF_S, batch.events[-1].mod_revision + 1
                    yield batch
            except TimeoutError:
                reason = grpc.StatusCode.DEADLINE_EXCEEDED.name
            except grpc.aio.AioRpcError as error:
                failure = _translate(error)
                if not isinstance(failure, StoreUnavailableError):
                    raise failure from None
                reason = failure.reason
            except StoreUnavailableError as error:
                reason = error.reason
            finally:
                call.cancel()
            yield WatchDown(reason)
            self._leave(at)
            await self._clock.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)

    async def call(
        self, method: str, request: Message, answer: type[_Answer], *, timeout_s: float, repeat: bool
    ) -> _Answer:
        """One call of `etcdserverpb`, such as `KV/Range`.

        Args:
            method: Service and call.
            request: What is sent.
            answer: The type of what comes back.
            timeout_s: For all attempts together.
            repeat: Whether it may be sent again when its outcome is unknown.

        Raises:
            StoreError: As `Store` says.
        """
        deadline_s = self._clock.now_s() + timeout_s
        # One member that is silent must not use up the time of all.
        attempt_s = timeout_s / len(self._channels) if repeat else timeout_s
        backoff_s = _FIRST_BACKOFF_S
        while True:
            at, left_s = self._nearest(), deadline_s - self._clock.now_s()
            try:
                stub = _unary(self._channels[at], method, answer)
                answered = await stub(request, timeout=max(0.001, min(left_s, attempt_s)))
            except grpc.aio.AioRpcError as error:
                failure = _translate(error)
            else:
                if at == 0:
                    self._away_s = _FIRST_AWAY_S
                return answered
            if isinstance(failure, StoreUnavailableError):
                self._leave(at)
                if repeat and self._clock.now_s() + backoff_s < deadline_s:
                    await self._clock.sleep(backoff_s)
                    backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)
                    continue
            raise failure

    def _leave(self, at: int) -> None:
        """Goes on to the next member, unless another call already did."""
        if self._at != at:
            return
        if at == 0:
            self._back_at_s = self._clock.now_s() + self._away_s
            self._away_s = min(2 * self._away_s, _MAX_AWAY_S)
        self._at = (at + 1) % len(self._channels)

    def _nearest(self) -> int:
        """Which member to ask now: the first again, if it was left long enough ago and is connected."""
        if self._at and self._clock.now_s() >= self._back_at_s:
            state = self._channels[0].get_state(try_to_connect=True)
            if state is grpc.ChannelConnectivity.READY:
                self._at = 0
        return self._at


@asynccontextmanager
async def open_store(
    endpoints: Sequence[str], pki: Path, region: RegionId, role: Role, clock: Clock
) -> AsyncGenerator[EtcdStore]:
    """The control store as one program of a region sees it: its certificate is its etcd user."""
    async with EtcdStore.connect(endpoints, grpc_channel_credentials(pki, region, role), clock) as store:
        yield store


@asynccontextmanager
async def open_store_as_root(endpoints: Sequence[str], pki: Path, clock: Clock) -> AsyncGenerator[EtcdStore]:
    """The control store as its root user: to set up access rights (`roles.set_up`), and for nothing else."""
    async with EtcdStore.connect(endpoints, grpc_root_credentials(pki), clock) as store:
        yield store


class _WatchCall(Protocol):
    """What is used of a grpc.aio stream."""

    async def write(self, request: pb.WatchRequest) -> None: ...

    async def read(self) -> pb.WatchResponse | object: ...

    def cancel(self) -> bool: ...


def _open_watch(channel: grpc.aio.Channel) -> _WatchCall:
    method = channel.stream_stream(
        "/etcdserverpb.Watch/Watch",
        request_serializer=pb.WatchRequest.SerializeToString,
        response_deserializer=pb.WatchResponse.FromString,
    )
    return cast("_WatchCall", method(metadata=_WATCH_METADATA))


def _watch_request(key: str, end: str, start: int) -> pb.WatchRequest:
    return pb.WatchRequest(
        create_request=pb.WatchCreateRequest(
            key=_raw(key), range_end=_raw(end), start_revision=start, prev_kv=True, fragment=True
        )
    )


async def _until_created(call: _WatchCall) -> None:
    while not (await _read(call)).created:
        pass


async def _read_batch(call: _WatchCall) -> WatchBatch:
    """The next whole revisions: a message whose events are cut in fragments counts when its last one is here."""
    events: list[Event] = []
    while True:
        response = await _read(call)
        events.extend(_event(event) for event in response.events)
        if events and not response.fragment:
            return WatchBatch(tuple(events))


async def _read(call: _WatchCall) -> pb.WatchResponse:
    response = await call.read()
    if not isinstance(response, pb.WatchResponse):  # the end of the stream
        raise StoreUnavailableError(grpc.StatusCode.UNAVAILABLE.name)
    if response.compact_revision:
        raise CompactedError(response.compact_revision)
    if response.canceled:
        if "permission denied" in response.cancel_reason:
            raise StoreDeniedError("watch")
        raise StoreUnavailableError(grpc.StatusCode.CANCELLED.name)
    return response


def _unary(channel: grpc.aio.Channel, method: str, answer: type[_Answer]) -> Callable[..., Awaitable[_Answer]]:
    return cast(
        "Callable[..., Awaitable[_Answer]]",
        channel.unary_unary(
            f"/etcdserverpb.{method}",
            request_serializer=methodcaller("SerializeToString"),
            response_deserializer=answer.FromString,
        ),
    )


def _translate(error: grpc.aio.AioRpcError) -> StoreError:
    """What a failed call means. Of the details only etcd's own fixed phrases are looked for."""
    status, details = error.code(), error.details() or ""
    if _COMPACTED in details:
        return CompactedError(0)
    if status in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
        return StoreDeniedError(status.name)
    if status is grpc.StatusCode.FAILED_PRECONDITION:
        return StoreRefusedError(details)
    # The rest is a member that cannot answer now: no quorum, too busy, restored, its view of the users out of date.
    return StoreUnavailableError(status.name)


def _target(endpoint: str) -> str:
    scheme, _, address = endpoint.partition("://")
    if scheme != "https" or not address or "/" in address:
        raise MeshError(Code.INVALID_SETTINGS, hint="An etcd endpoint is https://host:port.")
    return f"dns:///{address}"


def _range_request(request: Range) -> pb.RangeRequest:
    return pb.RangeRequest(
        key=_raw(request.key),
        range_end=_raw(request.end or ""),
        limit=request.limit,
        revision=request.revision,
        serializable=request.serializable,
    )


def _request_op(op: Op) -> pb.RequestOp:
    match op:
        case Range():
            return pb.RequestOp(request_range=_range_request(op))
        case Put():
            return pb.RequestOp(request_put=pb.PutRequest(key=_raw(op.key), value=op.value))
        case Delete():
            delete = pb.DeleteRangeRequest(key=_raw(op.key), range_end=_raw(op.end or ""))
            return pb.RequestOp(request_delete_range=delete)


def _range_result(answer: pb.RangeResponse) -> RangeResult:
    return RangeResult(answer.header.revision, tuple(_key_value(kv) for kv in answer.kvs), answer.more)


def _key_value(kv: pb.KeyValue) -> KeyValue:
    return KeyValue(_key(kv.key), kv.value, kv.mod_revision, kv.version)


def _event(event: pb.Event) -> Event:
    return Event(
        key=_key(event.kv.key),
        mod_revision=event.kv.mod_revision,
        version=event.kv.version,
        value=None if event.type == pb.Event.DELETE else event.kv.value,
        before=_key_value(event.prev_kv) if event.HasField("prev_kv") else None,
    )


def _key(raw: bytes) -> str:
    """Keys of ours are ASCII; what anybody else wrote must not end the watch, and must be paged over."""
    return raw.decode("latin-1")


def _raw(key: str) -> bytes:
    return key.encode("latin-1")
