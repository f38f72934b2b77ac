"""The operator's port: whether the program lives, whether it is ready, and its metrics.

An ordinary ASGI app. It speaks clear text on loopback only; on any other address it takes TLS 1.3 with an operator's
client certificate or does not start.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Generator, Sequence

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mesh.errors import Code, MeshError
from mesh.settings import Address
from mesh.tls import identity_of
from mesh.types import Role

Ready = Callable[[], tuple[bool, Sequence[str]]]
"""Whether the program takes work, and the codes of what it lacks, such as `policy_stale`."""

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_KEEP_ALIVE_S = 30
_CONNECTIONS = 64
_DRAIN_S = 1


def operator_app(*, ready: Ready, metrics: Callable[[], bytes]) -> Starlette:
    """`/livez`, `/readyz`, `/metrics`."""

    async def livez(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_: Request) -> Response:
        is_ready, reasons = ready()
        body = {"status": "ready" if is_ready else "not_ready", "reasons": list(reasons)}
        return JSONResponse(body, 200 if is_ready else 503)

    async def show_metrics(_: Request) -> Response:
        return Response(metrics(), media_type=_PROMETHEUS)

    app = Starlette(routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", show_metrics)])
    # A redirect would repeat what the client sent.
    app.router.redirect_slashes = False
    return app


async def serve_operator(
    address: Address, *, ready: Ready, metrics: Callable[[], bytes], tls: ssl.SSLContext | None
) -> None:
    """Serves the operator's port until it is cancelled; then lets go of it within seconds.

    Args:
        address: Where to listen.
        ready: Asked at each `/readyz`.
        metrics: Asked at each `/metrics`: Prometheus' text format.
        tls: A server context of the mesh's internal CA that demands a certificate; may be None on loopback only.

    Raises:
        MeshError: INVALID_SETTINGS when others than the operator could read it; START_FAILED when the port is taken.
    """
    _check_private(address, tls)
    config = uvicorn.Config(
        operator_app(ready=ready, metrics=metrics),
        http=HttpToolsProtocol if tls is None else _OperatorOnly,
        ws="none",
        loop="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_DRAIN_S,
        ssl_context_factory=None if tls is None else lambda _config, _default: tls,
    )
    server = _Server(config)
    with _bound(address) as listener:
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(server.serve(sockets=[listener]), name="operator-port")
            try:
                await asyncio.shield(serving)
            except asyncio.CancelledError:
                server.should_exit = True
                async with asyncio.timeout(_DRAIN_S + 2):
                    await asyncio.shield(serving)
                raise


class _Server(uvicorn.Server):
    """Signals belong to the program, not to one of its ports."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


class _OperatorOnly(HttpToolsProtocol):
    """Hangs up on certificates of the mesh that are not an operator's."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        identity = identity_of(transport.get_extra_info("peercert"))
        if identity is None or identity.role is not Role.OPERATOR:
            transport.abort()


def _check_private(address: Address, tls: ssl.SSLContext | None) -> None:
    if tls is None:
        if address.is_loopback:
            return
        raise MeshError(
            Code.INVALID_SETTINGS, hint="The operator's port beyond loopback needs TLS with an operator's certificate."
        )
    if tls.verify_mode is not ssl.CERT_REQUIRED or tls.minimum_version < ssl.TLSVersion.TLSv1_3:
        raise MeshError(Code.INVALID_SETTINGS, hint="The operator's port takes TLS 1.3 with a client's certificate.")


def _bound(address: Address) -> socket.socket:
    try:
        return socket.create_server(
            (address.host, address.port), family=socket.AF_INET6 if ":" in address.host else socket.AF_INET
        )
    except OSError as error:
        raise MeshError(Code.START_FAILED, hint=f"Cannot listen on {address}: {error.strerror}.") from None
