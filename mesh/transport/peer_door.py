"""The door for parcels from other regions' gateways: HTTP/1.1 over mTLS, frames back.

It trusts the sender's identity, never its decision: the story decides again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

import msgspec

from mesh.content.frames import CONTENT_TYPE, FrameKind, encode
from mesh.content.parcel import Sealed
from mesh.errors import Code, MeshError
from mesh.http1 import Request
from mesh.tls import identity_of
from mesh.transport.hops import FrameHop
from mesh.transport.http_exchange import MAX_TIMEOUT_S, Relayed, error_of
from mesh.types import AnswerHead, Facts, KeyId, Operation, RegionId, RequestId, Role, TenantId, Usage

_PATHS = {f"/v1/hop/{operation.value}": operation for operation in Operation}
_HEADERS = [(b"content-type", CONTENT_TYPE)]
_CUT = frozenset({Code.RESIDENCY_REFUSED, Code.POLICY_STALE, Code.TENANT_SUSPENDED, Code.INVALID_API_KEY})
"""Why an answer that has begun may not go on."""
_MEDIA_TYPES = frozenset({b"application/json", b"application/x-protobuf"})


class PeerExchange:
    """A call that another region's gateway sent on. Fulfils `gateway.ports.ForwardedExchange`."""

    door = "peer"

    def __init__(self, request: Request, entry: RegionId) -> None:
        operation = _PATHS.get(request.path)
        if operation is None or request.method != "POST":
            raise MeshError(Code.NOT_FOUND)
        self.operation = operation
        self.entry = entry
        self.request_id = RequestId(_header(request, b"mesh-request-id", 64))
        self.tenant = TenantId(_header(request, b"mesh-tenant", 64))
        self.key_id = KeyId(_header(request, b"mesh-key", 64))
        self.timeout_s = min(MAX_TIMEOUT_S, int(_header(request, b"mesh-timeout-ms", 6, digits=True)) / 1000)
        trace = request.header(b"traceparent")
        self.trace = trace.decode("ascii") if trace is not None and trace.isascii() else None
        self._model = _header(request, b"mesh-model", 128)
        self._stream = _header(request, b"mesh-stream", 1) == "1"
        media_type = request.header(b"content-type")
        if media_type not in _MEDIA_TYPES:
            raise MeshError(Code.UNSUPPORTED_MEDIA_TYPE)
        self._media_type = media_type.decode("ascii")
        self._request = request
        self._parcel: Sealed | None = None

    async def receive(self, limit_bytes: int, check: Callable[[], None]) -> Facts:
        """Reads the parcel. What is known of it came beside it; the replica holds it to that."""
        self._parcel = Sealed(await self._request.body(limit_bytes, check), self._media_type)
        return Facts(model=self._model, stream=self._stream)

    @property
    def parcel(self) -> Sealed:
        """The body."""
        if self._parcel is None:
            raise RuntimeError("the parcel is read by receive()")
        return self._parcel

    async def admitted(self, head: AnswerHead) -> None:
        """Nothing: the body is here."""

    async def relay(self, hop: FrameHop, head: AnswerHead) -> Relayed:
        """Moves the frames as they come."""
        request, began = self._request, False
        fault: MeshError | None = MeshError(Code.REPLICA_FAILED)
        try:
            while frames := await hop.read():
                last = frames[-1]
                # An error is not passed on as it came: the story may try another replica, and tells what stays.
                whole = frames[:-1] if last.kind is FrameKind.ERROR else frames
                if whole:
                    if not request.begun:
                        await request.begin(200, _HEADERS)
                    began = began or any(frame.kind is FrameKind.DATA for frame in whole)
                    await request.write(b"".join(encode(f.kind, f.usage, f.payload) for f in whole))
                if last.kind is FrameKind.ERROR:
                    fault = error_of(last)
                    break
                if last.kind is FrameKind.END:
                    fault = None
        except MeshError as error:
            fault = error
        if fault is None:
            await request.end()
        return Relayed(began=began, fault=fault)

    def wipe(self) -> None:
        """Overwrites the body."""
        if self._parcel is not None:
            self._parcel.wipe()


class PeerDoor:
    """Handles parcels from the gateways of the other regions."""

    def __init__(
        self, *, serve: Callable[[PeerExchange], Awaitable[None]], here: RegionId, regions: Collection[RegionId]
    ) -> None:
        self._serve = serve
        self._here = here
        self._regions = frozenset(regions)

    async def handle(self, request: Request) -> None:
        """Answers one parcel."""
        try:
            exchange = PeerExchange(request, self._sender(request))
            try:
                await self._serve(exchange)
            finally:
                exchange.wipe()
        except MeshError as error:
            frame = error_frame(error)
            if request.in_pieces and error.code in _CUT:
                # What of the answer has not left this host must not leave it later.
                request.cut_off()
            elif request.in_pieces:
                await request.write(frame)
                await request.end()
            elif request.begun:
                raise  # nothing may follow a whole answer
            else:
                await request.respond(200, _HEADERS, frame)

    def _sender(self, request: Request) -> RegionId:
        certificate = request.peer.certificate
        identity = None if certificate is None else identity_of(certificate)
        if (
            identity is None
            or identity.role is not Role.GATEWAY
            or identity.region == self._here
            or identity.region not in self._regions
        ):
            raise MeshError(Code.INVALID_API_KEY)
        return identity.region

    def fault(self, error: MeshError, _: Request | None) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """How the server's own refusals look."""
        return error.row.http, _HEADERS, error_frame(error)


def error_frame(error: MeshError) -> bytes:
    """An ERROR frame."""
    fields = {"code": error.code.value, "param": error.param, "hint": error.hint}
    return encode(FrameKind.ERROR, Usage(), msgspec.json.encode(fields))


def _header(request: Request, name: bytes, most: int, *, digits: bool = False) -> str:
    value = request.header(name)
    if value is None or not 0 < len(value) <= most or not value.isascii() or (digits and not value.isdigit()):
        raise MeshError(Code.MALFORMED_REQUEST)
    return value.decode("ascii")
