"""The tenants' client against a running mesh: pointed at the wrong country, it shows nothing there."""

from __future__ import annotations

from pathlib import Path

import grpc
import grpc.aio
import pytest
from e2e.live import CHAT, SG, VN, Json, Mesh

from mesh.client import WrongRegionError, aio_channel, base_url, channel, openai_client
from mesh.v1.inference_pb2 import ChatRequest, Message
from mesh.v1.inference_pb2_grpc import InferenceStub

pytestmark = pytest.mark.mesh
QUESTION = [{"role": "user", "content": "Say hello."}]


def seen_by_all(mesh: Mesh, made: Json) -> Json:
    for region in mesh.regions:
        mesh.seen(made["key"], region)
    return made


def disclosures(mesh: Mesh, tenant: str) -> list:
    return mesh.ask("usage", tenant, "--disclosures").items


def test_openai_pointed_at_the_wrong_country(mesh: Mesh) -> None:
    made = seen_by_all(mesh, mesh.tenant("client-http", "--allow", "VN"))
    ca = mesh.status()["ca"]
    wrong = mesh.region(SG)["http"]
    assert base_url(made["key"], wrong, ca=ca) == mesh.region(VN)["http"] + "/v1"
    with openai_client(made["key"], wrong, ca=ca, max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(model=CHAT, messages=QUESTION, max_tokens=3)
        assert raw.headers["mesh-region"] == VN
        events = list(client.chat.completions.create(model=CHAT, messages=QUESTION, max_tokens=3, stream=True))
        assert events[-1].choices[0].finish_reason
    assert disclosures(mesh, made["tenant"]) == []


def credentials(mesh: Mesh) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(Path(mesh.status()["ca"]).read_bytes())


def request() -> ChatRequest:
    return ChatRequest(model=CHAT, messages=[Message(role="user", content="Say hello.")], max_tokens=3)


def test_grpc_pointed_at_the_wrong_country_and_a_pin_that_moves_away(mesh: Mesh) -> None:
    made = seen_by_all(mesh, mesh.tenant("client-grpc", "--allow", "VN,SG"))
    wrong = mesh.region("ap-northeast-1")["grpc"]
    with channel(made["key"], wrong, credentials=credentials(mesh), region=SG) as held:
        assert InferenceStub(held).Chat(request(), timeout=60).usage.completion_tokens > 0
    mesh.ask("pin", made["tenant"], "--allow", "VN")
    with pytest.raises(WrongRegionError):
        channel(made["key"], wrong, credentials=credentials(mesh), region=SG)
    with channel(made["key"], wrong, credentials=credentials(mesh)) as held:
        answers = list(InferenceStub(held).ChatStream(request(), timeout=60))
        assert answers
    assert disclosures(mesh, made["tenant"]) == []


async def test_grpc_in_asyncio(mesh: Mesh) -> None:
    made = seen_by_all(mesh, mesh.tenant("client-aio", "--allow", "VN"))
    held = await aio_channel(made["key"], mesh.region(SG)["grpc"], credentials=credentials(mesh))
    async with held:
        answer = await InferenceStub(held).Chat(request(), timeout=60)
        assert answer.usage.completion_tokens > 0
        streamed = [chunk async for chunk in InferenceStub(held).ChatStream(request(), timeout=60)]
        assert streamed
    assert disclosures(mesh, made["tenant"]) == []
