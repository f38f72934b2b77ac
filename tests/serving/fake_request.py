"""A hop's request in memory: what a gateway sends, and the frames that it gets."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from mesh.content.frames import Frame, FrameKind, FrameParser

GATEWAY = {"subjectAltName": (("DNS", "gateway.vn-1.mesh"), ("URI", "mesh://vn-1/gateway/g1"))}


class FakePeer:
    def __init__(self, certificate: Mapping[str, object] | None) -> None:
        self.address, self.port, self.certificate = "127.0.0.1", 1, certificate


class FakeRequest:
    def __init__(
        self,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        method: str = "POST",
        certificate: Mapping[str, object] | None = GATEWAY,
    ) -> None:
        self.method, self.path, self.query = method, path, ""
        self.headers = tuple((name.encode(), value.encode()) for name, value in headers.items())
        self.peer = FakePeer(certificate)
        self.content_length = len(body)
        self.begun = self.in_pieces = False
        self.sent = bytearray(body)
        self.status: int | None = None
        self.answer = b""
        self.ended = False
        self.writes: asyncio.Queue[bytes] = asyncio.Queue()
        self.slow: asyncio.Semaphore | None = None
        self.held = asyncio.Event()
        """A piece waits for `slow`."""

    def header(self, name: bytes) -> bytes | None:
        return dict(self.headers).get(name)

    async def body(self, limit_bytes: int) -> bytearray:
        assert len(self.sent) <= limit_bytes
        return self.sent

    async def respond(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes = b"") -> None:
        assert not self.begun
        del headers
        self.status, self.answer, self.begun, self.ended = status, body, True, True

    async def begin(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        assert not self.begun
        assert dict(headers)[b"content-type"] == b"application/x-mesh-frames"
        self.status, self.begun, self.in_pieces = status, True, True

    async def write(self, data: bytes) -> None:
        assert self.begun
        assert not self.ended
        if self.slow is not None:
            if self.slow.locked():
                self.held.set()
            await self.slow.acquire()
        self.answer += data
        self.writes.put_nowait(data)

    async def end(self) -> None:
        assert not self.ended
        self.ended, self.in_pieces = True, False

    @property
    def frames(self) -> list[Frame]:
        return list(FrameParser().feed(self.answer))

    @property
    def data(self) -> bytes:
        return b"".join(frame.payload for frame in self.frames if frame.kind is FrameKind.DATA)

    @property
    def last(self) -> Frame:
        assert self.ended
        return self.frames[-1]


def as_request(request: FakeRequest) -> Any:
    return request
