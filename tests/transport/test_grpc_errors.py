"""Every error of the table, as a gRPC client gets it, and back."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import grpc
import pytest
from grpc_lab import KEY, SINGAPORE, VN, info_of, opened

from mesh.errors import TABLE, Code, MeshError, Retry
from mesh.transport.grpc_errors import from_rpc_error, to_status
from mesh.v1.inference_pb2 import ChatRequest
from mesh.v1.inference_pb2_grpc import InferenceStub


def test_statuses_are_told_apart_by_their_reason() -> None:
    reasons = [to_status(MeshError(code)).details[0].value for code in Code]
    assert len(set(reasons)) == len(Code)


async def test_every_code_arrives_with_its_reason_and_comes_back_as_itself(pki: Path) -> None:
    raised: list[MeshError] = []

    async def refuse(_) -> None:
        raise raised[-1]

    async with opened(pki, refuse) as door:
        for code in Code:
            raised.append(MeshError(code, param="messages[0].role", hint="Only our words.", allowed=[SINGAPORE]))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await InferenceStub(door.channel).Chat(ChatRequest(model="m"), metadata=KEY)
            error = caught.value
            info, retry = info_of(error)
            trailers = dict(error.trailing_metadata())
            assert error.code().name == TABLE[code].grpc
            assert (info.domain, info.reason, dict(info.metadata)) == (
                "mesh",
                "RESIDENCY" if code is Code.RESIDENCY_REFUSED else code.value.upper(),
                {"param": "messages[0].role"},
            )
            assert (retry is not None) == (TABLE[code].retry is Retry.LATER)
            assert trailers.get("mesh-allowed-endpoints") == (
                SINGAPORE.grpc if code is Code.RESIDENCY_REFUSED else None
            )
            assert trailers["x-request-id"] == "req-1"
            assert trailers["mesh-region"] == VN
            back = from_rpc_error(error)
            assert (back.code, back.param, back.message) == (code, "messages[0].role", raised[-1].message)
        assert door.failures == []


async def test_a_policy_revision_that_is_known_stands_in_the_trailers(pki: Path) -> None:
    async def refuse(_) -> None:
        error = MeshError(Code.TENANT_SUSPENDED)
        error.revision = 12
        raise error

    async with opened(pki, refuse) as door:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await InferenceStub(door.channel).Chat(ChatRequest(model="m"), metadata=KEY)
        assert dict(caught.value.trailing_metadata())["mesh-policy-revision"] == "12"


async def test_what_nobody_foresaw_is_internal_and_keeps_its_text_to_itself(pki: Path) -> None:
    async def break_down(_) -> None:
        raise ValueError("the prompt was: secret")

    async with opened(pki, break_down) as door:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await InferenceStub(door.channel).Chat(ChatRequest(model="m"), metadata=KEY)
        info, _ = info_of(caught.value)
        assert info.reason == "INTERNAL_ERROR"
        assert "secret" not in repr(caught.value)
        assert [type(each) for each in door.failures] == [ValueError]


async def test_grpc_itself_does_not_write_down_what_a_client_says(pki: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def never(_) -> None:
        raise AssertionError

    tls = ssl.create_default_context(cafile=str(pki / "doors-ca.pem"))
    tls.set_alpn_protocols(["h2"])
    text = b"my secret words"
    goodbye = (8 + len(text)).to_bytes(3) + b"\x07" + bytes(5) + bytes(4) + (2).to_bytes(4) + text
    ping = (8).to_bytes(3) + b"\x06" + bytes(5) + bytes(8)
    async with opened(pki, never) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.server.port, ssl=tls)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5) + goodbye + ping)
        # Until the ping's answer, or the end: by then the goodbye was read.
        seen = b""
        while b"\x06\x01" not in seen and (more := await reader.read(4096)):
            seen += more
        writer.close()
    assert "secret" not in capfd.readouterr().err


async def test_a_failure_without_details_gets_the_nearest_code(pki: Path) -> None:
    async def never(_) -> None:
        raise AssertionError

    async with opened(pki, never) as door:
        unknown = door.channel.unary_unary("/mesh.v1.Inference/Nothing")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unknown(b"")
        assert from_rpc_error(caught.value).code is Code.NOT_FOUND
