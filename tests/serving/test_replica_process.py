"""A replica as the process that it is: real models, real mTLS, a gateway that sees it come, work, drain and go."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from serving.fleet_lab import FleetGateway, lab_pki, lab_settings, write_settings
from serving.hop_lab import HopClient, calling, data_of, frames

from mesh.content.frames import FrameKind
from mesh.tls import check_tls13, prepare_process
from mesh.types import Role
from mesh.v1 import fleet_pb2 as pb

pytestmark = pytest.mark.timeout(900)  # torch is imported, and the first run ever converts the weights
CHAT, EMBEDDING = "smollm2-135m", "minilm-l6-v2"


@dataclass
class Running:
    """A replica process, the gateway that it joined, and a client of its port."""

    process: asyncio.subprocess.Process
    gateway: FleetGateway
    pki: Path
    report: pb.ReplicaReport
    client: HopClient

    def load(self) -> tuple[int, int]:
        row = next(row for row in self.gateway.reports[-1].models if row.model == CHAT)
        return row.running, row.queued


@asynccontextmanager
async def running(folder: Path, models_dir: Path) -> AsyncGenerator[Running]:
    prepare_process(os.environ)
    pki, gateway = lab_pki(folder / "pki"), FleetGateway()
    async with gateway.listening(pki) as address:
        config = write_settings(lab_settings(pki, [address], models_dir), folder / "config")
        arguments = ("--config", str(config), "--region", "vn-1", "--deployment", "all")
        with (folder / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "mesh.serving.replica", *arguments, stdout=log, stderr=log
            )
        try:
            await gateway.states(CHAT, pb.REPLICA_STATE_STARTING)
            await gateway.states(CHAT, pb.REPLICA_STATE_READY)
            report = await gateway.states(EMBEDDING, pb.REPLICA_STATE_READY)
            async with calling(pki, report.address, gateway.lease) as client:
                yield Running(process, gateway, pki, report, client)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.fixture(scope="module")
async def replica(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory, models_dir: Path
) -> AsyncGenerator[Running]:
    del anyio_backend
    async with running(tmp_path_factory.mktemp("replica"), models_dir) as one:
        yield one


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": CHAT, "messages": [{"role": "user", "content": "Count to five."}], "temperature": 0} | fields


async def test_reports_itself(replica: Running) -> None:
    report = replica.report
    assert report.pid == replica.process.pid
    assert len(report.replica) == 16
    assert [(row.model, row.slots, row.queue_limit) for row in report.models] == [(CHAT, 2, 4), (EMBEDDING, 2, 4)]


async def test_chat_whole_and_streamed_agree(replica: Running) -> None:
    whole = await replica.client.call("chat", chat(max_tokens=8, n=2, logprobs=True, top_logprobs=2))
    answer = json.loads(data_of(whole))
    first, second = (choice["message"]["content"] for choice in answer["choices"])
    assert first == second != ""
    usage = whole[-1].usage
    assert answer["usage"]["completion_tokens"] == usage.completion_tokens
    assert usage.completion_tokens <= 16
    tokens = answer["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(token["bytes"]) for token in tokens).decode().startswith(first)
    assert all(len(token["top_logprobs"]) == 2 for token in tokens)
    streamed = await replica.client.call("chat", chat(max_tokens=8, stream=True))
    events = data_of(streamed).decode().split("\n\n")
    assert events[-2] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == first
    assert streamed[-1].kind is FrameKind.END


async def test_embeddings_have_length_one(replica: Running) -> None:
    found = await replica.client.call("embeddings", {"model": EMBEDDING, "input": ["reset password", "forgot login"]})
    rows = json.loads(data_of(found))["data"]
    for row in rows:
        assert sum(x * x for x in row["embedding"]) == pytest.approx(1, abs=1e-4)
    assert sum(a * b for a, b in zip(rows[0]["embedding"], rows[1]["embedding"], strict=True)) > 0.4


async def test_refuses_what_does_not_fit(replica: Running) -> None:
    (frame,) = await replica.client.call("chat", chat(max_tokens=600))
    assert json.loads(frame.payload)["code"] == "context_length_exceeded"
    (frame,) = await replica.client.call("completions", {"model": CHAT, "prompt": [1, 10**6]})
    assert json.loads(frame.payload)["param"] == "prompt[1]"


async def test_hanging_up_frees_the_slot(replica: Running) -> None:
    response = await replica.client.open("chat", chat(max_tokens=400, n=2, stream=True, temperature=1, seed=1))
    async for frame in frames(response):
        assert frame.usage.prompt_tokens > 0
        break
    await replica.gateway.until(lambda: replica.load()[0] > 0)
    response.close()
    await replica.gateway.until(lambda: replica.load() == (0, 0))


async def test_only_gateways_of_the_mesh(replica: Running) -> None:
    async with calling(replica.pki, replica.report.address, replica.gateway.lease, Role.ADMIN) as stranger:
        response = await stranger.open("chat", chat())
        assert response.status == 403
        response.close()
    host, _, port = replica.report.address.rpartition(":")
    await check_tls13(host, int(port))


async def test_drains_and_goes(tmp_path: Path, models_dir: Path) -> None:
    async with running(tmp_path, models_dir) as one:
        response = await one.client.open("chat", chat(max_tokens=60, stream=True, temperature=1, seed=3))
        stream = frames(response)
        first = await anext(stream)
        one.process.send_signal(signal.SIGTERM)
        await one.gateway.states(CHAT, pb.REPLICA_STATE_DRAINING)
        rest = [frame async for frame in stream]
        assert rest[-1].kind is FrameKind.END
        assert rest[-1].usage.completion_tokens > first.usage.completion_tokens
        response.close()
        assert await one.process.wait() == 0
        await one.gateway.until(lambda: one.gateway.open == 0)
    log = (tmp_path / "log").read_text()
    assert all(json.loads(line)["program"] == "replica" for line in log.splitlines())
    assert "Count" not in log
