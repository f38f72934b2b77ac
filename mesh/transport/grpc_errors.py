"""Errors as gRPC shows them: a status of the table, and `google.rpc` details with a reason instead of free text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, cast

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from mesh.errors import TABLE, Code, MeshError

DOMAIN = "mesh"
ALLOWED_ENDPOINTS = "mesh-allowed-endpoints"
_DETAILS = "grpc-status-details-bin"
_PARAM = "param"
_CODE_OF_REASON = {row.reason: code for code, row in TABLE.items()}
# Statuses without our details: gRPC's own, or those of something between us and the other side.
_CODE_OF_STATUS = {
    grpc.StatusCode.UNAVAILABLE: Code.REGION_UNREACHABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Code.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Code.REQUEST_TOO_LARGE,
    grpc.StatusCode.UNIMPLEMENTED: Code.NOT_FOUND,
    grpc.StatusCode.UNAUTHENTICATED: Code.INVALID_API_KEY,
}
Trailers = Sequence[tuple[str, str | bytes]]


def to_status(error: MeshError) -> Status:
    """The status with its details: `ErrorInfo` always, `RetryInfo` where waiting helps."""
    status = Status(code=status_code(error).value[0], message=error.message)
    info = ErrorInfo(reason=error.row.reason, domain=DOMAIN)
    if error.param is not None:
        info.metadata[_PARAM] = error.param
    status.details.add().Pack(info)
    if error.retry_after_s is not None:
        status.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=error.retry_after_s)))
    return status


def status_code(error: MeshError) -> grpc.StatusCode:
    """The status of an error, by the table."""
    return grpc.StatusCode[error.row.grpc]


def error_trailers(error: MeshError) -> list[tuple[str, str | bytes]]:
    """The details, and for a residency refusal the doors in the pin as `host:port`, comma-separated."""
    trailers: list[tuple[str, str | bytes]] = [(_DETAILS, to_status(error).SerializeToString())]
    if error.code is Code.RESIDENCY_REFUSED:
        trailers.append((ALLOWED_ENDPOINTS, ",".join(endpoint.grpc for endpoint in error.allowed)))
    return trailers


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: MeshError, *, trailers: Trailers = ()) -> NoReturn:
    """Ends a call with an error; gRPC raises its own exception for it, which must be let through."""
    kept = cast("Trailers | None", context.trailing_metadata()) or ()
    await context.abort(status_code(error), error.message, (*kept, *error_trailers(error), *trailers))
    raise AssertionError("abort returned")


def from_rpc_error(error: grpc.RpcError) -> MeshError:
    """The mesh's error of a failed call to one of its servers; for those without details, the nearest code.

    `allowed` stays empty: the trailer holds targets and not regions.
    """
    call = cast("grpc.aio.AioRpcError", error)
    info = _info(call.trailing_metadata())
    if info is None:
        return MeshError(_CODE_OF_STATUS.get(call.code(), Code.INTERNAL_ERROR))
    code = _CODE_OF_REASON.get(info.reason)
    if code is None:
        return MeshError(Code.INTERNAL_ERROR)
    # The message is the row's and a hint of ours, if the other side is of this version; else all of it is a hint.
    hint = (call.details() or "").removeprefix(TABLE[code].message).strip()
    return MeshError(code, param=info.metadata.get(_PARAM), hint=hint)


def _info(trailers: grpc.aio.Metadata | None) -> ErrorInfo | None:
    """Our `ErrorInfo`, if there is one."""
    for key, value in trailers or ():
        if key == _DETAILS and isinstance(value, bytes):
            status, info = Status(), ErrorInfo()
            try:
                status.ParseFromString(value)
                for detail in status.details:
                    if detail.Unpack(info) and info.domain == DOMAIN:
                        return info
            except DecodeError:
                return None
    return None
