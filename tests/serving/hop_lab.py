"""A gateway's side of a hop, over real mTLS."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from serving.fleet_lab import VN

from mesh.content.frames import Frame, FrameKind, FrameParser
from mesh.http1 import Pool, Response
from mesh.tls import client_context, internal_name
from mesh.types import Role


class HopClient:
    """Calls the replica at an address. `lease` makes the header that allows a hop."""

    def __init__(self, pki: Path, address: str, lease: Callable[[], str], role: Role = Role.GATEWAY) -> None:
        self._lease = lease
        self._pool = Pool(client_context(pki, VN, role))
        self._host, _, port = address.rpartition(":")
        self._port = int(port)

    def close(self) -> None:
        self._pool.close()

    async def open(self, operation: str, body: dict[str, Any], **headers: str) -> Response:
        """The head of an answer."""
        said = {
            "host": internal_name(Role.REPLICA, VN),
            "content-type": "application/json",
            "mesh-request-id": "0123456789abcdef",
            "mesh-tenant": "t_aaaaaaaaaaaaaaaa",
            "mesh-key": "k_1",
            "mesh-lease": self._lease(),
            "mesh-model": body["model"],
            "mesh-timeout-ms": "60000",
            "mesh-stream": "1" if body.get("stream") else "0",
        }
        said |= {name.replace("_", "-"): value for name, value in headers.items()}
        return await self._pool.request(
            self._host,
            self._port,
            server_name=internal_name(Role.REPLICA, VN),
            method="POST",
            target=f"/v1/hop/{operation}",
            headers=[(name.encode(), value.encode()) for name, value in said.items()],
            body=json.dumps(body).encode(),
        )

    async def call(self, operation: str, body: dict[str, Any], **headers: str) -> list[Frame]:
        """All frames of an answer."""
        response = await self.open(operation, body, **headers)
        try:
            assert response.status == 200, (response.status, await response.read())
            return [frame async for frame in frames(response)]
        finally:
            response.close()


@asynccontextmanager
async def calling(
    pki: Path, address: str, lease: Callable[[], str], role: Role = Role.GATEWAY
) -> AsyncGenerator[HopClient]:
    client = HopClient(pki, address, lease, role)
    try:
        yield client
    finally:
        client.close()


async def frames(response: Response) -> AsyncGenerator[Frame]:
    """Frames as they come."""
    parser = FrameParser()
    while data := await response.read():
        for frame in parser.feed(data):
            yield frame


def data_of(found: list[Frame]) -> bytes:
    return b"".join(frame.payload for frame in found if frame.kind is FrameKind.DATA)
