"""One call at the gRPC door, from its metadata to its last message. Fulfils `gateway.ports.Exchange`.

Messages are bytes from end to end: of a request only the model is read, an answer is moved as the replica made it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar, cast

import grpc.aio
from google.protobuf.message import DecodeError

from mesh.content.frames import FrameKind
from mesh.content.parcel import Sealed
from mesh.errors import Code, MeshError
from mesh.transport.grpc_server import Context
from mesh.transport.hops import FrameHop
from mesh.transport.http_exchange import AT_LEAST, MAX_TIMEOUT_S, Relayed, at_least_of, error_of
from mesh.types import AnswerHead, Facts, Here, Operation, RequestId, Revision
from mesh.v1.inference_pb2 import AdmitChatAnswer, AdmitChatParcel, Admitted, RequestFacts

PROTOBUF = "application/x-protobuf"
_MARGIN_S = 0.05
_HANG_UP_S = 0.1
"""A client that hangs up while it is read looks like one that has nothing to say, until gRPC cancels the task."""
_NO_MODEL = "It must be the name of a model."
Metadata = list[tuple[str, str]]
_M = TypeVar("_M", AdmitChatParcel, RequestFacts)


def credential_of(context: Context) -> str | None:
    """What came after `Bearer ` in the one `authorization`, or None."""
    found = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    if len(found) != 1 or not isinstance(found[0], str) or found[0][:7].lower() != "bearer ":
        return None
    return found[0][7:].strip()


def at_least_asked(context: Context) -> Revision | None:
    """The revision that `mesh-policy-at-least` names; None where it is not there.

    Raises:
        MeshError: INVALID_PARAMETER, also where it was given twice.
    """
    found = [value for key, value in context.invocation_metadata() or () if key == AT_LEAST]
    if not found:
        return None
    return at_least_of(found[0] if len(found) == 1 and isinstance(found[0], str) else "")


def timeout_s_of(context: Context) -> float:
    """What is left of the client's deadline, at most 300 s; a moment less, so that our answer comes before its own."""
    left_s = cast("float | None", context.time_remaining())
    if left_s is None or left_s >= MAX_TIMEOUT_S:
        return MAX_TIMEOUT_S
    return max(0.001, left_s - min(_MARGIN_S, left_s / 10))


def head_metadata(head: AnswerHead) -> Metadata:
    """`x-request-id`, where it was served, and the policy it was decided by."""
    metadata = [
        ("x-request-id", str(head.request_id)),
        ("mesh-region", str(head.region)),
        ("mesh-jurisdiction", str(head.jurisdiction)),
    ]
    if head.revision is not None:
        metadata.append(("mesh-policy-revision", str(head.revision)))
    return metadata


def refusal_metadata(error: MeshError, request_id: RequestId, here: Here) -> Metadata:
    """The same for a call without an answer: it ended here."""
    metadata = head_metadata(AnswerHead(request_id=request_id, region=here.region, jurisdiction=here.jurisdiction))
    if error.revision is not None:
        metadata.append(("mesh-policy-revision", str(error.revision)))
    return metadata


async def read_message(context: Context) -> bytes | None:
    """The next message, or None where the client sends no more."""
    try:
        message = await context.read()
    except grpc.aio.InternalError:
        raise _hung_up() from None
    return message if isinstance(message, bytes) else None


async def _write(context: Context, message: bytes) -> None:
    try:
        await context.write(message)
    except grpc.aio.InternalError:
        raise _hung_up() from None


def _hung_up() -> asyncio.CancelledError:
    """What gRPC will do to the task in a moment: the operation noticed it first."""
    return asyncio.CancelledError()


class GrpcExchange:
    """A call with one request message."""

    door = "grpc"

    def __init__(
        self, context: Context, request_id: RequestId, operation: Operation, label: str | None, *, stream: bool
    ) -> None:
        self.request_id = request_id
        self.label = label
        self.operation = operation
        self.timeout_s = timeout_s_of(context)
        self.began = False
        self._context = context
        self._stream = stream
        self._parcel: Sealed | None = None

    @property
    def credential(self) -> str | None:
        """What came after `Bearer `."""
        return credential_of(self._context)

    def at_least(self) -> Revision | None:
        """See `gateway.ports.Exchange`."""
        return at_least_asked(self._context)

    async def receive(self, limit_bytes: int, check: Callable[[], None]) -> Facts:
        """Reads the message. See `gateway.ports.Exchange`."""
        message = await read_message(self._context)
        check()
        if message is None:
            await asyncio.sleep(_HANG_UP_S)
            raise MeshError(Code.MALFORMED_BODY)
        self._parcel = Sealed(message, PROTOBUF)
        if len(message) > limit_bytes:
            raise MeshError(Code.REQUEST_TOO_LARGE)
        return Facts(model=_model_of(message), stream=self._stream)

    @property
    def parcel(self) -> Sealed:
        """The message."""
        if self._parcel is None:
            raise RuntimeError("the parcel is not here yet")
        return self._parcel

    async def admitted(self, head: AnswerHead) -> None:
        """Nothing: the message is here."""

    async def relay(self, hop: FrameHop, head: AnswerHead) -> Relayed:
        """Moves the answer: each DATA frame is one message. See `gateway.ports.Exchange`."""
        began, ended = False, False
        fault: MeshError | None = MeshError(Code.REPLICA_FAILED)
        try:
            while not ended and (frames := await hop.read()):
                for frame in frames:
                    match frame.kind:
                        case FrameKind.DATA:
                            await self._begin(head)
                            began = True
                            await self._send(frame.payload)
                            if not self._stream:
                                ended, fault = True, None
                                break
                        case FrameKind.ERROR:
                            ended, fault = True, error_of(frame)
                        case FrameKind.END:
                            ended, fault = True, None
                        case FrameKind.PROGRESS:
                            pass
        except MeshError as error:
            fault = error
        if fault is None and not self._stream and not began:
            fault = MeshError(Code.REPLICA_FAILED)
        if fault is None:
            await self._begin(head)
            await _read_out(hop)
        return Relayed(began=began, fault=fault)

    def wipe(self) -> None:
        """Lets the message go."""
        if self._parcel is not None:
            self._parcel.wipe()

    async def _begin(self, head: AnswerHead) -> None:
        if not self.began:
            self.began = True
            await self._context.send_initial_metadata(head_metadata(head))

    async def _send(self, payload: bytes) -> None:
        await _write(self._context, payload)


class AdmitExchange(GrpcExchange):
    """A conversation whose content comes only after it was admitted: `parcel` is there once `admitted` returned."""

    def __init__(self, context: Context, request_id: RequestId, label: str | None) -> None:
        super().__init__(context, request_id, Operation.CHAT, label, stream=True)
        self._model = ""
        self._limit_bytes = 0
        self._told: AnswerHead | None = None

    async def receive(self, limit_bytes: int, check: Callable[[], None]) -> Facts:
        """Reads the facts."""
        step = await self._step("facts")
        check()
        facts = step.facts
        if facts.content_bytes > limit_bytes:
            raise MeshError(Code.REQUEST_TOO_LARGE)
        if not facts.model:
            raise MeshError(Code.INVALID_PARAMETER, param="facts.model", hint=_NO_MODEL)
        self._model = facts.model
        self._limit_bytes = limit_bytes
        return Facts(model=facts.model, stream=True)

    async def admitted(self, head: AnswerHead) -> None:
        """Tells where it will be served, and asks for the content; another region later is told too."""
        if self._told is None or self._told.region != head.region:
            if self._told is not None:
                # What the initial metadata said of the place has become untrue.
                self._context.set_trailing_metadata(head_metadata(head))
            self._told = head
            await self._begin(head)
            told = Admitted(region=head.region, jurisdiction=head.jurisdiction, policy_revision=head.revision or 0)
            await _write(self._context, AdmitChatAnswer(admitted=told).SerializeToString())
        if self._parcel is None:
            content = (await self._step("content")).content
            self._parcel = Sealed(content, PROTOBUF)
            if len(content) > self._limit_bytes:
                raise MeshError(Code.REQUEST_TOO_LARGE)
            if _model_of(content) != self._model:
                raise MeshError(Code.INVALID_PARAMETER, param="model", hint="It must be the model that was admitted.")

    async def _step(self, wanted: str) -> AdmitChatParcel:
        message = await read_message(self._context)
        if message is None:
            await asyncio.sleep(_HANG_UP_S)
        step = None if message is None else _parse(AdmitChatParcel(), message)
        if step is None or step.WhichOneof("step") != wanted:
            raise MeshError(Code.MALFORMED_BODY, hint=f"'{wanted}' was to come now.")
        return step

    async def _send(self, payload: bytes) -> None:
        await _write(self._context, AdmitChatAnswer(chunk=payload).SerializeToString())


def _model_of(message: bytes) -> str:
    facts = _parse(RequestFacts(), message)
    if facts is None:
        raise MeshError(Code.MALFORMED_BODY)
    if not facts.model:
        raise MeshError(Code.INVALID_PARAMETER, param="model", hint=_NO_MODEL)
    return facts.model


def _parse(into: _M, message: bytes) -> _M | None:
    """None where it is not such a message; the exception, which may tell of its content, ends here."""
    try:
        into.ParseFromString(message)
    except DecodeError:
        return None
    return into


async def _read_out(hop: FrameHop) -> None:
    """Takes what follows a whole answer, so that the connection can be used again; the answer stands without it."""
    try:
        while await hop.read():
            pass
    except MeshError:
        return
