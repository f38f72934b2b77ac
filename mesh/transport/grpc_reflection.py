"""Reflection: what a door serves, told to those who hold a key. Both versions are the same bytes.

It tells of the services it was given and of the files that they import, and of nothing else in this process.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection_pb2 as reflection_v1alpha

from mesh.errors import Code, MeshError
from mesh.reflection.v1.reflection_pb2 import (
    DESCRIPTOR,
    ErrorResponse,
    ExtensionNumberResponse,
    FileDescriptorResponse,
    ListServiceResponse,
    ServerReflectionRequest,
    ServerReflectionResponse,
    ServiceResponse,
)
from mesh.transport.grpc_exchange import read_message
from mesh.transport.grpc_server import Context, Failed, service, stream

Authenticate = Callable[[Context], Awaitable[None]]
_OWN = tuple(
    file.services_by_name["ServerReflection"].full_name for file in (DESCRIPTOR, reflection_v1alpha.DESCRIPTOR)
)
_QUESTION_BYTES = 4096


class Reflection:
    """Answers for a set of services, and for reflection itself."""

    def __init__(self, services: Iterable[str], authenticate: Authenticate) -> None:
        """Takes the full names of the services, whose generated code must be imported, and what lets a caller in."""
        self._services = sorted((*services, *_OWN))
        self._authenticate = authenticate
        self._files: dict[str, FileDescriptor] = {}
        for each in self._services:
            _gather(Default().FindFileContainingSymbol(each), self._files)
        self._symbols = {symbol: file for file in self._files.values() for symbol in _symbols_of(file)}

    def handlers(self, failed: Failed) -> tuple[grpc.GenericRpcHandler, ...]:
        """`grpc.reflection.v1` and `v1alpha`."""
        return tuple(service(name, {"ServerReflectionInfo": stream(self._serve, None, failed)}) for name in _OWN)

    async def _serve(self, context: Context) -> None:
        await self._authenticate(context)
        while (message := await read_message(context)) is not None:
            question = _parse(message)
            if question is None:
                raise MeshError(Code.MALFORMED_BODY)
            answer = self.answer(question)
            answer.valid_host = question.host
            answer.original_request.CopyFrom(question)
            await context.write(answer.SerializeToString())

    def answer(self, question: ServerReflectionRequest) -> ServerReflectionResponse:
        """Answers one question."""
        kind = question.WhichOneof("message_request")
        match kind:
            case "list_services":
                names = [ServiceResponse(name=each) for each in self._services]
                return ServerReflectionResponse(list_services_response=ListServiceResponse(service=names))
            case "file_by_filename":
                return self._file(self._files.get(question.file_by_filename))
            case "file_containing_symbol":
                return self._file(self._symbols.get(question.file_containing_symbol))
            case "file_containing_extension":
                wanted = question.file_containing_extension
                return self._file(self._extensions(wanted.containing_type).get(wanted.extension_number))
            case "all_extension_numbers_of_type":
                name = question.all_extension_numbers_of_type
                numbers = sorted(self._extensions(name))
                if not numbers and name not in self._symbols:
                    return _none()
                found = ExtensionNumberResponse(base_type_name=name, extension_number=numbers)
                return ServerReflectionResponse(all_extension_numbers_response=found)
            case _:
                status = grpc.StatusCode.INVALID_ARGUMENT
                return ServerReflectionResponse(error_response=ErrorResponse(error_code=status.value[0]))

    def _file(self, file: FileDescriptor | None) -> ServerReflectionResponse:
        """A file, and after it all that it imports."""
        if file is None:
            return _none()
        files: dict[str, FileDescriptor] = {}
        _gather(file, files)
        serialized = [each.serialized_pb for each in files.values()]
        return ServerReflectionResponse(
            file_descriptor_response=FileDescriptorResponse(file_descriptor_proto=serialized)
        )

    def _extensions(self, message: str) -> dict[int, FileDescriptor]:
        """Where each extension of a message is declared, by its number."""
        return {
            extension.number: file
            for file in self._files.values()
            for extension in file.extensions_by_name.values()
            if extension.containing_type is not None and extension.containing_type.full_name == message
        }


def _gather(file: FileDescriptor, into: dict[str, FileDescriptor]) -> None:
    if file.name not in into:
        into[file.name] = file
        for each in file.dependencies:
            _gather(each, into)


def _symbols_of(file: FileDescriptor) -> Iterator[str]:
    """All full names that a file declares. The pool's own search does not know methods."""
    proto = FileDescriptorProto.FromString(file.serialized_pb)
    scope = f"{proto.package}." if proto.package else ""
    for service_ in proto.service:
        yield scope + service_.name
        yield from (f"{scope}{service_.name}.{method.name}" for method in service_.method)
    yield from (scope + extension.name for extension in proto.extension)
    yield from _enum_symbols(scope, proto.enum_type)
    for message in proto.message_type:
        yield from _message_symbols(scope, message)


def _message_symbols(scope: str, message: DescriptorProto) -> Iterator[str]:
    yield scope + message.name
    inner = f"{scope}{message.name}."
    for named in (*message.field, *message.oneof_decl, *message.extension):
        yield inner + named.name
    yield from _enum_symbols(inner, message.enum_type)
    for nested in message.nested_type:
        yield from _message_symbols(inner, nested)


def _enum_symbols(scope: str, enums: Iterable[EnumDescriptorProto]) -> Iterator[str]:
    for enum in enums:
        yield scope + enum.name
        # An enum's values stand beside it, in protobuf's scoping.
        yield from (scope + value.name for value in enum.value)


def _parse(message: bytes) -> ServerReflectionRequest | None:
    if len(message) > _QUESTION_BYTES:
        return None
    try:
        return ServerReflectionRequest.FromString(message)
    except DecodeError:
        return None


def _none() -> ServerReflectionResponse:
    code, text = grpc.StatusCode.NOT_FOUND.value
    return ServerReflectionResponse(error_response=ErrorResponse(error_code=code, error_message=text))
