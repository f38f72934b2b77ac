"""gRPC channels that are held inside a key's pin: `Router.Resolve`, which holds no content, is asked first.

A channel leads to one region. Before a call's message leaves, the region itself is asked, at most every few seconds,
whether it still serves the key; if not, the call ends with `WrongRegionError` and nothing was shown. Then open another.
"""

# ruff: noqa: ANN401 - the shapes of grpc's interceptors, which have no types of their own
from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
import grpc.aio

from mesh.client.routes import Belief, DiscoveryError, Place, Route, WrongRegionError
from mesh.v1.router_pb2 import ResolveRequest, ResolveResponse
from mesh.v1.router_pb2_grpc import RouterStub

_ASK_S = 10.0
Options = Sequence[tuple[str, Any]]


def channel(
    key: str,
    discovery: str | Sequence[str],
    *,
    credentials: grpc.ChannelCredentials | None = None,
    region: str | None = None,
    options: Options = (),
) -> grpc.Channel:
    """A channel to the region that serves a key: the home's, unless a region is named. It sends the key by itself.

    Args:
        key: The tenant's key.
        discovery: `host:port` of any regions' gRPC doors, tried in order. They need not be in the pin.
        credentials: What to trust; by default the system's certificates.
        region: Which region of the pin to take.
        options: Of the channel.

    Raises:
        DiscoveryError: Nobody could say where the key is served.
        WrongRegionError: The pin has no such region.
    """
    trusted = credentials or grpc.ssl_channel_credentials()
    place: Place | None = None
    fault: DiscoveryError | None = None
    for target in _targets(discovery):
        with grpc.secure_channel(target, trusted, options=list(options)) as asked:
            try:
                place = _resolve(asked, key).preferring(region)[0]
                break
            except DiscoveryError as error:
                fault = error
    if place is None:
        raise fault or _nobody()
    plain = grpc.secure_channel(place.grpc, trusted, options=list(options))
    return grpc.intercept_channel(plain, _Pinned(key, place, lambda: _resolve(plain, key)))


async def aio_channel(
    key: str,
    discovery: str | Sequence[str],
    *,
    credentials: grpc.ChannelCredentials | None = None,
    region: str | None = None,
    options: Options = (),
) -> grpc.aio.Channel:
    """`channel` for asyncio. Raises as it does."""
    trusted = credentials or grpc.ssl_channel_credentials()
    place: Place | None = None
    fault: DiscoveryError | None = None
    for target in _targets(discovery):
        async with grpc.aio.secure_channel(target, trusted, options=list(options)) as asked:
            try:
                place = (await _aio_resolve(asked, key)).preferring(region)[0]
                break
            except DiscoveryError as error:
                fault = error
    if place is None:
        raise fault or _nobody()
    # Asked over a channel of its own: an interceptor cannot use the one that it is part of.
    asking = grpc.aio.secure_channel(place.grpc, trusted, options=list(options))
    held = [_AioUnaryUnary, _AioUnaryStream, _AioStreamUnary, _AioStreamStream]
    check = _AioCheck(key, place, asking)
    return grpc.aio.secure_channel(
        place.grpc, trusted, options=list(options), interceptors=[kind(check) for kind in held]
    )


class _Pinned(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Lets a call go only while its region serves the key."""

    def __init__(self, key: str, place: Place, ask: Callable[[], Route]) -> None:
        self._authorization = ("authorization", f"Bearer {key}")
        self._place = place
        self._ask = ask
        self._belief = Belief()

    def _pass(self, continuation: Callable[[Any, Any], Any], details: grpc.ClientCallDetails, request: Any) -> Any:
        route = self._belief.route()
        if route is None:
            asked_s = time.monotonic()
            route = self._belief.learn(self._ask(), asked_s)
        _check(route, self._place)
        return continuation(_Details(details, self._authorization), request)

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._pass(continuation, client_call_details, request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._pass(continuation, client_call_details, request)

    def intercept_stream_unary(
        self, continuation: Any, client_call_details: Any, request_iterator: Iterator[Any]
    ) -> Any:
        return self._pass(continuation, client_call_details, request_iterator)

    def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Iterator[Any]
    ) -> Any:
        return self._pass(continuation, client_call_details, request_iterator)


class _Details(grpc.ClientCallDetails):
    """A call's details with the key added."""

    def __init__(self, details: Any, authorization: tuple[str, str]) -> None:
        self.method = details.method
        self.timeout = details.timeout
        self.metadata = (*(details.metadata or ()), authorization)
        self.credentials = details.credentials
        self.wait_for_ready = getattr(details, "wait_for_ready", None)
        self.compression = getattr(details, "compression", None)


class _AioCheck:
    """What the four interceptors of one channel share."""

    def __init__(self, key: str, place: Place, asking: grpc.aio.Channel) -> None:
        self._key = key
        self._place = place
        self._asking = asking
        self._belief = Belief()

    async def admit(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        """The details with the key, if the region still serves it."""
        route = self._belief.route()
        if route is None:
            asked_s = time.monotonic()
            route = self._belief.learn(await _aio_resolve(self._asking, self._key), asked_s)
        _check(route, self._place)
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        metadata.add("authorization", f"Bearer {self._key}")
        return grpc.aio.ClientCallDetails(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
        )


class _AioUnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, check: _AioCheck) -> None:
        self._check = check

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(await self._check.admit(client_call_details), request)


class _AioUnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, check: _AioCheck) -> None:
        self._check = check

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(await self._check.admit(client_call_details), request)


class _AioStreamUnary(grpc.aio.StreamUnaryClientInterceptor):
    def __init__(self, check: _AioCheck) -> None:
        self._check = check

    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(await self._check.admit(client_call_details), request_iterator)


class _AioStreamStream(grpc.aio.StreamStreamClientInterceptor):
    def __init__(self, check: _AioCheck) -> None:
        self._check = check

    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(await self._check.admit(client_call_details), request_iterator)


def _check(route: Route, place: Place) -> None:
    if all(known.region != place.region for known in route.places):
        raise WrongRegionError("This region is not in the key's pin any more; open another channel.")


def _resolve(on: grpc.Channel, key: str) -> Route:
    try:
        answer = RouterStub(on).Resolve(ResolveRequest(), timeout=_ASK_S, metadata=_metadata(key))
    except grpc.RpcError as error:
        raise _unanswered(error) from None
    return _route(answer)


async def _aio_resolve(on: grpc.aio.Channel, key: str) -> Route:
    try:
        answer = await RouterStub(on).Resolve(ResolveRequest(), timeout=_ASK_S, metadata=_metadata(key))
    except grpc.aio.AioRpcError as error:
        raise _unanswered(error) from None
    return _route(answer)


def _route(answer: ResolveResponse) -> Route:
    places = (Place(one.region, one.jurisdiction, one.http, one.grpc) for one in answer.allowed)
    return Route(tuple(places), answer.policy_revision)


def _metadata(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


def _unanswered(error: Any) -> DiscoveryError:
    return DiscoveryError(f"The mesh does not say where this key is served: {error.code().name}.")


def _targets(discovery: str | Sequence[str]) -> Sequence[str]:
    return [discovery] if isinstance(discovery, str) else discovery


def _nobody() -> DiscoveryError:
    return DiscoveryError("No region's door could be asked where this key is served; nothing was sent.")
