"""Health and reflection at the gRPC door, by the messages of the standard clients."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_lab import KEY, info_of, opened
from grpc_reflection.v1alpha import reflection_pb2 as v1alpha
from grpc_reflection.v1alpha import reflection_pb2_grpc as v1alpha_grpc

from mesh.reflection.v1 import reflection_pb2 as v1
from mesh.reflection.v1 import reflection_pb2_grpc as v1_grpc
from mesh.v1 import admin_pb2, fleet_pb2  # noqa: F401 - they are known to this process, and no part of the door

VERSIONS = [(v1, v1_grpc), (v1alpha, v1alpha_grpc)]
BY_VERSION = pytest.mark.parametrize(("messages", "stubs"), VERSIONS, ids=["v1", "v1alpha"])


async def story(_) -> None:
    raise AssertionError("nobody calls it here")


async def ask(channel: grpc.aio.Channel, messages, stubs, *questions, metadata=KEY) -> list:
    call = stubs.ServerReflectionStub(channel).ServerReflectionInfo(metadata=metadata)
    answers = []
    for question in questions:
        await call.write(messages.ServerReflectionRequest(host="h", **question))
        answer = await call.read()
        assert (answer.valid_host, answer.original_request.host) == ("h", "h")
        answers.append(answer)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    return answers


@BY_VERSION
async def test_reflection_lists_what_the_door_serves(pki: Path, messages, stubs) -> None:
    async with opened(pki, story) as door:
        [answer] = await ask(door.channel, messages, stubs, {"list_services": "*"})
        assert [each.name for each in answer.list_services_response.service] == [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            "mesh.v1.Inference",
            "mesh.v1.Router",
        ]
        # All that is listed is served.
        for name in (each.name for each in answer.list_services_response.service):
            [found] = await ask(door.channel, messages, stubs, {"file_containing_symbol": name})
            assert found.HasField("file_descriptor_response"), name
        assert door.failures == []


@BY_VERSION
async def test_a_client_can_build_every_message_from_what_it_is_told(pki: Path, messages, stubs) -> None:
    async with opened(pki, story) as door:
        for symbol, holder in (
            ("mesh.v1.Inference", "inference"),
            ("mesh.v1.Router.Explain", "router"),
            ("mesh.v1.ChatRequest", "inference"),
            ("mesh.v1.ChatRequest.messages", "inference"),
            ("mesh.v1.OUTCOME_SERVE", "router"),
        ):
            [answer] = await ask(door.channel, messages, stubs, {"file_containing_symbol": symbol})
            files = {}
            for serialized in answer.file_descriptor_response.file_descriptor_proto:
                file = descriptor_pb2.FileDescriptorProto.FromString(serialized)
                files[file.name] = file
            assert "google/protobuf/descriptor.proto" in files
            pool = descriptor_pool.DescriptorPool()

            def add(name: str, pool=pool, files=files, added: set = set()) -> None:  # noqa: B006
                if (id(pool), name) not in added:
                    added.add((id(pool), name))
                    for each in files[name].dependency:
                        add(each)
                    pool.Add(files[name])

            for name in files:
                add(name)
            assert next(iter(files)) == f"mesh/v1/{holder}.proto"
        [by_name] = await ask(door.channel, messages, stubs, {"file_by_filename": "mesh/v1/inference.proto"})
        first = descriptor_pb2.FileDescriptorProto.FromString(by_name.file_descriptor_response.file_descriptor_proto[0])
        assert first.name == "mesh/v1/inference.proto"


@BY_VERSION
async def test_reflection_knows_extensions_and_what_it_does_not_know(pki: Path, messages, stubs) -> None:
    options = "google.protobuf.FieldOptions"
    async with opened(pki, story) as door:
        extension, numbers, *unknown, empty = await ask(
            door.channel,
            messages,
            stubs,
            {"file_containing_extension": {"containing_type": options, "extension_number": 50601}},
            {"all_extension_numbers_of_type": options},
            {"file_containing_extension": {"containing_type": options, "extension_number": 1}},
            {"all_extension_numbers_of_type": "no.Such"},
            {"file_by_filename": "no.proto"},
            {"file_containing_symbol": "no.Such"},
            {"file_containing_symbol": "mesh.v1.Admin"},
            {"file_by_filename": "mesh/v1/fleet.proto"},
            {},
        )
        file = descriptor_pb2.FileDescriptorProto.FromString(
            extension.file_descriptor_response.file_descriptor_proto[0]
        )
        assert file.name == "mesh/v1/classification.proto"
        assert list(numbers.all_extension_numbers_response.extension_number) == [50601]
        assert [each.error_response.error_code for each in unknown] == [grpc.StatusCode.NOT_FOUND.value[0]] * 6
        assert empty.error_response.error_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


@BY_VERSION
async def test_reflection_needs_a_key(pki: Path, messages, stubs) -> None:
    async with opened(pki, story) as door:
        call = stubs.ServerReflectionStub(door.channel).ServerReflectionInfo()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert (caught.value.code(), info_of(caught.value)[0].reason) == (
            grpc.StatusCode.UNAUTHENTICATED,
            "INVALID_API_KEY",
        )


async def test_health_needs_no_key(pki: Path) -> None:
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    async with opened(pki, story) as door:
        stub = health_pb2_grpc.HealthStub(door.channel)
        for service in ("", "mesh.v1.Inference"):
            assert (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status == serving
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="mesh.v1.Admin"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="mesh.v1.Inference"))
        assert (await watch.read()).status == serving
        await door.door.close()
        assert (await watch.read()).status == not_serving


async def test_only_so_many_watch_the_health(pki: Path) -> None:
    async with opened(pki, story) as door:
        stub = health_pb2_grpc.HealthStub(door.channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest(service="")) for _ in range(64)]
        for watch in watches:
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        one_more = stub.Watch(health_pb2.HealthCheckRequest(service=""))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await one_more.read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (
            await stub.Check(health_pb2.HealthCheckRequest(service=""))
        ).status == health_pb2.HealthCheckResponse.SERVING
        for watch in watches:
            watch.cancel()
