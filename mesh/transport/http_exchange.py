"""One call at the HTTP door, from its headers to its last byte. Fulfils `gateway.ports.Exchange`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from mesh.content.facts import read_facts
from mesh.content.frames import Frame, FrameKind
from mesh.content.parcel import Sealed
from mesh.errors import Code, MeshError
from mesh.http1 import Request
from mesh.transport.answers import EVENTS, JSON, head_headers
from mesh.transport.hops import FrameHop
from mesh.types import AnswerHead, Facts, Operation, RequestId, Revision

MAX_TIMEOUT_S = 300.0
AT_LEAST = "mesh-policy-at-least"
_REVISION_DIGITS = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Relayed:
    """How an answer ended; see `gateway.ports.Relayed`."""

    began: bool
    fault: MeshError | None


class _ErrorFields(msgspec.Struct):
    code: str
    param: str | None = None
    hint: str | None = None


_ERROR = msgspec.json.Decoder(_ErrorFields)


def error_of(frame: Frame) -> MeshError:
    """The error of an ERROR frame; one that cannot be read is the replica's fault."""
    try:
        fields = _ERROR.decode(frame.payload)
        return MeshError(Code(fields.code), param=fields.param, hint=fields.hint or "")
    except (msgspec.DecodeError, ValueError):
        return MeshError(Code.REPLICA_FAILED)


def credential_of(request: Request) -> str | None:
    """What came after `Bearer `, or None."""
    value = request.header(b"authorization")
    if value is None or value[:7].lower() != b"bearer " or not value.isascii():
        return None
    return value[7:].strip().decode("ascii")


def at_least_of(value: str | None) -> Revision | None:
    """The revision that `mesh-policy-at-least` names; None where it is not there.

    Raises:
        MeshError: INVALID_PARAMETER.
    """
    if value is None:
        return None
    if not value.isascii() or not value.isdigit() or len(value) > _REVISION_DIGITS or int(value) < 1:
        raise MeshError(Code.INVALID_PARAMETER, param=AT_LEAST, hint="It must be a revision: a whole number from 1 on.")
    return Revision(int(value))


def at_least_asked(request: Request) -> Revision | None:
    """The same, of a request."""
    value = request.header(AT_LEAST.encode())
    return at_least_of(None if value is None else value.decode("latin-1"))


class HttpExchange:
    """A call with an OpenAI JSON body."""

    door = "http"

    def __init__(self, request: Request, request_id: RequestId, operation: Operation, label: str | None) -> None:
        self.request_id = request_id
        self.label = label
        self.operation = operation
        self._request = request
        self._stream = False
        self._parcel: Sealed | None = None
        self._timeout_ms = _timeout_ms(request)

    @property
    def credential(self) -> str | None:
        """What came after `Bearer `."""
        return credential_of(self._request)

    @property
    def timeout_s(self) -> float:
        """From `mesh-timeout-ms`; what is no number there is refused by `receive`, in its turn."""
        return MAX_TIMEOUT_S if self._timeout_ms is None else self._timeout_ms / 1000

    def at_least(self) -> Revision | None:
        """See `gateway.ports.Exchange`."""
        return at_least_asked(self._request)

    async def receive(self, limit_bytes: int, check: Callable[[], None]) -> Facts:
        """Reads the body. See `gateway.ports.Exchange`."""
        request = self._request
        if request.content_length is not None and request.content_length > limit_bytes:
            raise MeshError(Code.REQUEST_TOO_LARGE)
        content_type = request.header(b"content-type")
        if (
            content_type is None
            or content_type.split(b";", 1)[0].strip().lower() != b"application/json"
            or request.header(b"content-encoding") not in (None, b"identity")
        ):
            raise MeshError(Code.UNSUPPORTED_MEDIA_TYPE)
        body = await request.body(limit_bytes, check)
        self._parcel = Sealed(body, "application/json")
        facts = read_facts(body)
        if self._timeout_ms is None:
            raise MeshError(
                Code.INVALID_PARAMETER, param="mesh-timeout-ms", hint="It must be a whole number from 1 to 300000."
            )
        self._stream = facts.stream
        return facts

    @property
    def parcel(self) -> Sealed:
        """The body."""
        if self._parcel is None:
            raise RuntimeError("the parcel is read by receive()")
        return self._parcel

    async def admitted(self, head: AnswerHead) -> None:
        """Nothing: the body is here."""

    async def relay(self, hop: FrameHop, head: AnswerHead) -> Relayed:
        """Moves the answer. See `gateway.ports.Exchange`."""
        return await (self._relay_events(hop, head) if self._stream else self._relay_whole(hop, head))

    def wipe(self) -> None:
        """Overwrites the body."""
        if self._parcel is not None:
            self._parcel.wipe()

    async def _relay_whole(self, hop: FrameHop, head: AnswerHead) -> Relayed:
        try:
            while frames := await hop.read():
                for frame in frames:
                    if frame.kind is FrameKind.ERROR:
                        return Relayed(began=False, fault=error_of(frame))
                    if frame.kind is FrameKind.DATA:
                        await self._request.respond(200, [*head_headers(head), JSON], frame.payload)
                        await _read_out(hop)
                        return Relayed(began=True, fault=None)
        except MeshError as error:
            return Relayed(began=False, fault=error)
        return Relayed(began=False, fault=MeshError(Code.REPLICA_FAILED))

    async def _relay_events(self, hop: FrameHop, head: AnswerHead) -> Relayed:
        request, began, ended = self._request, False, False
        fault: MeshError | None = MeshError(Code.REPLICA_FAILED)
        try:
            while not ended and (frames := await hop.read()):
                data = b""
                for frame in frames:
                    match frame.kind:
                        case FrameKind.DATA:
                            data = data + frame.payload if data else frame.payload
                        case FrameKind.ERROR:
                            ended, fault = True, error_of(frame)
                        case FrameKind.END:
                            ended, fault = True, None
                        case FrameKind.PROGRESS:
                            pass
                if data:
                    if not began:
                        began = True
                        await request.begin(200, [*head_headers(head), EVENTS, (b"cache-control", b"no-cache")])
                    await request.write(data)
        except MeshError as error:
            fault = error
        if fault is None:
            if not began:
                await request.begin(200, [*head_headers(head), EVENTS, (b"cache-control", b"no-cache")])
            await request.end()
            await _read_out(hop)
        return Relayed(began=began, fault=fault)


async def _read_out(hop: FrameHop) -> None:
    """Takes what follows a whole answer, so that the connection can be used again; the answer stands without it."""
    try:
        while await hop.read():
            pass
    except MeshError:
        return


def _timeout_ms(request: Request) -> int | None:
    value = request.header(b"mesh-timeout-ms")
    if value is None:
        return int(MAX_TIMEOUT_S * 1000)
    if not value.isdigit() or len(value) > 6 or not 1 <= int(value) <= MAX_TIMEOUT_S * 1000:
        return None
    return int(value)
