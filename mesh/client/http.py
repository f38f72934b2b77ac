"""The OpenAI API through httpx2, the library that the `openai` package itself uses: prompts go inside the pin only."""

from __future__ import annotations

import ssl
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import httpx2

from mesh.client.routes import Belief, DiscoveryError, Place, Route, read_route

if TYPE_CHECKING:
    import openai

TIMEOUT_S = 300.0
"""For a whole call, as the mesh's own limit."""
_ASK_S = 10.0
_REFUSED = 451


def base_url(key: str, discovery: str | Sequence[str], *, ca: str | None = None, region: str | None = None) -> str:
    """The base URL, with `/v1`, at which a key is served now: the home's, unless a region is named.

    Args:
        key: The tenant's key.
        discovery: Origins of any regions' doors, such as `https://vn-1.mesh.example`, tried in order. They need not be
            in the pin: they are only asked.
        ca: A file of the certificates to trust instead of the system's.
        region: Which region of the pin to take.

    Raises:
        DiscoveryError: Nobody could say.
        WrongRegionError: The pin has no such region.
    """
    with PinnedTransport(key, discovery, ca=ca, region=region) as transport:
        return transport.places()[0].http + "/v1"


class _Asking:
    """What the two transports share: whom to ask, what to believe, and how a request is addressed."""

    def __init__(self, key: str, discovery: str | Sequence[str], region: str | None) -> None:
        self._origins = [discovery] if isinstance(discovery, str) else list(discovery)
        if not self._origins:
            raise ValueError("discovery needs an origin")
        self._headers = {"authorization": f"Bearer {key}"}
        self._region = region
        self._belief = Belief()

    def _questions(self) -> list[httpx2.Request]:
        timeout = httpx2.Timeout(_ASK_S).as_dict()
        return [
            httpx2.Request(
                "GET",
                origin.rstrip("/").removesuffix("/v1") + "/v1/route",
                headers=self._headers,
                extensions={"timeout": timeout},
            )
            for origin in self._origins
        ]

    def _learn(self, response: httpx2.Response, asked_s: float) -> Route:
        try:
            document: object = response.json()
        except ValueError:
            document = None
        return self._belief.learn(read_route(response.status_code, document), asked_s)

    def _aim(self, request: httpx2.Request, place: Place) -> None:
        origin = httpx2.URL(place.http)
        request.url = request.url.copy_with(scheme=origin.scheme, host=origin.host, port=origin.port)
        request.headers["host"] = origin.netloc.decode("ascii")


class PinnedTransport(httpx2.BaseTransport, _Asking):
    """Sends every request to a region of the key's pin, whatever host its URL names; never anywhere else.

    For `httpx2.Client(transport=...)`. Where a region cannot be connected to, the next one of the pin is tried.
    """

    def __init__(
        self,
        key: str,
        discovery: str | Sequence[str],
        *,
        ca: str | None = None,
        region: str | None = None,
        inner: httpx2.BaseTransport | None = None,
    ) -> None:
        super().__init__(key, discovery, region)
        self._inner = inner or httpx2.HTTPTransport(verify=_trust(ca))

    def places(self) -> tuple[Place, ...]:
        """Where a call would go, in order, asked for if the last answer is too old.

        Raises:
            DiscoveryError: Nobody could say.
            WrongRegionError: The pin has no such region.
        """
        route = self._belief.route()
        return (route or self._ask()).preferring(self._region)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends one request inside the pin. For httpx2."""
        fault: httpx2.ConnectError | httpx2.ConnectTimeout | None = None
        for place in self.places():
            self._aim(request, place)
            try:
                response = self._inner.handle_request(request)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                fault = error  # nothing was sent
                continue
            if response.status_code == _REFUSED:
                self._belief.forget()
            return response
        assert fault is not None  # noqa: S101 - there is at least one place
        raise fault

    def close(self) -> None:
        """Closes the connections."""
        self._inner.close()

    def _ask(self) -> Route:
        fault: Exception | None = None
        for question in self._questions():
            asked_s = time.monotonic()
            try:
                response = self._inner.handle_request(question)
                try:
                    response.read()
                finally:
                    response.close()
                return self._learn(response, asked_s)
            except (httpx2.TransportError, DiscoveryError) as error:
                fault = error
        raise _nobody(fault)


class AsyncPinnedTransport(httpx2.AsyncBaseTransport, _Asking):
    """`PinnedTransport` for `httpx2.AsyncClient`."""

    def __init__(
        self,
        key: str,
        discovery: str | Sequence[str],
        *,
        ca: str | None = None,
        region: str | None = None,
        inner: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(key, discovery, region)
        self._inner = inner or httpx2.AsyncHTTPTransport(verify=_trust(ca))

    async def places(self) -> tuple[Place, ...]:
        """As `PinnedTransport.places`."""
        route = self._belief.route()
        return (route or await self._ask()).preferring(self._region)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends one request inside the pin. For httpx2."""
        fault: httpx2.ConnectError | httpx2.ConnectTimeout | None = None
        for place in await self.places():
            self._aim(request, place)
            try:
                response = await self._inner.handle_async_request(request)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                fault = error
                continue
            if response.status_code == _REFUSED:
                self._belief.forget()
            return response
        assert fault is not None  # noqa: S101 - there is at least one place
        raise fault

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._inner.aclose()

    async def _ask(self) -> Route:
        fault: Exception | None = None
        for question in self._questions():
            asked_s = time.monotonic()
            try:
                response = await self._inner.handle_async_request(question)
                try:
                    await response.aread()
                finally:
                    await response.aclose()
                return self._learn(response, asked_s)
            except (httpx2.TransportError, DiscoveryError) as error:
                fault = error
        raise _nobody(fault)


def openai_client(
    key: str,
    discovery: str | Sequence[str],
    *,
    ca: str | None = None,
    region: str | None = None,
    **options: Any,  # noqa: ANN401 - passed on
) -> openai.OpenAI:
    """The official client, held inside the key's pin. `options` are those of `openai.OpenAI`."""
    import openai  # noqa: PLC0415 - a tenant that calls by gRPC need not have it

    http = httpx2.Client(
        transport=PinnedTransport(key, discovery, ca=ca, region=region), timeout=TIMEOUT_S, follow_redirects=False
    )
    return openai.OpenAI(api_key=key, base_url=_any_origin(discovery), http_client=http, **options)


def async_openai_client(
    key: str,
    discovery: str | Sequence[str],
    *,
    ca: str | None = None,
    region: str | None = None,
    **options: Any,  # noqa: ANN401 - passed on
) -> openai.AsyncOpenAI:
    """The official asynchronous client, held inside the key's pin. `options` are those of `openai.AsyncOpenAI`."""
    import openai  # noqa: PLC0415 - as above

    http = httpx2.AsyncClient(
        transport=AsyncPinnedTransport(key, discovery, ca=ca, region=region), timeout=TIMEOUT_S, follow_redirects=False
    )
    return openai.AsyncOpenAI(api_key=key, base_url=_any_origin(discovery), http_client=http, **options)


def _any_origin(discovery: str | Sequence[str]) -> str:
    """The client wants a base URL; its path is what counts, since the transport puts in the host."""
    origin = discovery if isinstance(discovery, str) else discovery[0]
    return origin.rstrip("/").removesuffix("/v1") + "/v1"


def _trust(ca: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if ca is None:
        context.load_default_certs()
    else:
        context.load_verify_locations(ca)
    return context


def _nobody(fault: Exception | None) -> DiscoveryError:
    if isinstance(fault, DiscoveryError):
        return fault
    return DiscoveryError("No region's door could be asked where this key is served; nothing was sent.")
