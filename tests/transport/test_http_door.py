"""The HTTP door, the story and the hops together, over real sockets: what clients see, and what nobody may see."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from gateway.world import JP, KEY, SG, TENANT, VN, World, replica
from grpc_lab import HEAD, FakeHop, data, end, unchecked

from mesh.content.frames import CONTENT_TYPE, FrameKind, encode
from mesh.content.parcel import Sealed
from mesh.errors import Code, MeshError
from mesh.gateway.ports import HopHead
from mesh.http1 import Pool, Request, listen
from mesh.policy.bundle import TenantKey
from mesh.policy.hostnames import DoorNames
from mesh.settings import Address
from mesh.tls import client_context, server_context
from mesh.transport.hops import FrameHop, HttpHops
from mesh.transport.http_door import HttpDoor
from mesh.transport.http_exchange import HttpExchange
from mesh.transport.peer_door import PeerDoor
from mesh.types import ModelId, Operation, RequestId, Role, TenantId, TenantState, Transfer, Usage

SECRET_WORDS = "my secret words"
CHAT = json.dumps({"model": "chat", "messages": [{"role": "user", "content": SECRET_WORDS}]}).encode()
STREAM = json.dumps({"model": "chat", "stream": True, "messages": []}).encode()
LARGE = b"a" * (32 << 20)
FRAMES = [(b"content-type", CONTENT_TYPE)]
KEY_HEADER = {"authorization": f"Bearer {KEY.text}"}
Handler = Callable[[Request], Awaitable[None]]


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, object]:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)["error"]


@dataclass
class Lab:
    """A door with its story, and a replica that a test writes itself."""

    port: int
    world: World
    pool: Pool
    failures: list[tuple[str, str]] = field(default_factory=list)

    async def send(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        said = {"host": "door.test", "content-length": str(len(body)), **(headers or {})}
        lines = "".join(f"{name}: {value}\r\n" for name, value in said.items())
        writer.write(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body)
        return reader, writer

    async def ask(self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Answer:
        reader, writer = await self.send(method, path, {"connection": "close", **(headers or {})}, body)
        try:
            return answer_of(await reader.read())
        finally:
            writer.close()

    async def chat(self, body: bytes = CHAT, **headers: str) -> Answer:
        said = {"content-type": "application/json", **KEY_HEADER, **headers}
        return await self.ask("POST", "/v1/chat/completions", said, body)


def answer_of(wire: bytes) -> Answer:
    head, _, body = wire.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    return Answer(int(lines[0].split()[1]), dict(line.split(": ", 1) for line in lines[1:]), body)


async def well(request: Request) -> None:
    """A replica that answers."""
    await request.body(1 << 20)
    whole = encode(FrameKind.DATA, Usage(3, 5), b'{"ok":1}') + encode(FrameKind.END, Usage(3, 5))
    await request.respond(200, FRAMES, whole)


@asynccontextmanager
async def opened(handler: Handler = well, serve: object = None, **world: object) -> AsyncGenerator[Lab]:
    async with listen(handler, "127.0.0.1", 0, tls=None, fault=lambda *_: (500, [], b"")) as hosted:
        made = World(**{"replicas": (replica("a", address=f"127.0.0.1:{hosted.port}"),), **world})
        pool = Pool(None)
        made.story._hops = HttpHops(pool, pool, VN, made.clock)
        lab = Lab(0, made, pool)
        at = made.story._here
        door = HttpDoor(
            serve=serve or made.story.serve,
            queries=made.answers,
            here=at,
            names=DoorNames(plain=frozenset()),
            next_request_id=lambda: RequestId("req_7"),
            openapi=b"{}",
            failed=lambda error, request_id: lab.failures.append((type(error).__name__, request_id)),
        )
        async with listen(door.handle, "127.0.0.1", 0, tls=None, fault=door.fault) as server:
            lab.port = server.port
            yield lab
        pool.close()


async def test_a_call_is_moved_and_says_where_it_was_served() -> None:
    async with opened() as lab:
        answer = await lab.chat()
        assert (answer.status, answer.body) == (200, b'{"ok":1}')
        said = {name: answer.headers[name] for name in answer.headers if name.startswith(("mesh-", "x-"))}
        assert said == {
            "x-request-id": "req_7", "mesh-region": VN, "mesh-jurisdiction": "VN", "mesh-policy-revision": "1"
        }  # fmt: skip
        [record] = lab.world.settled
        assert (record.code, record.usage) == ("ok", Usage(3, 5))


POST = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status", "code", "param"),
    [
        ("POST", POST, {}, CHAT, 401, "invalid_api_key", None),
        ("GET", "/nowhere", {}, b"", 401, "invalid_api_key", None),
        ("GET", "/v1/models", {"authorization": "Basic x"}, b"", 401, "invalid_api_key", None),
        ("GET", "/nowhere?key=secret", KEY_HEADER, b"", 404, "not_found", None),
        ("POST", "/v1/chat%2Fcompletions", KEY_HEADER, CHAT, 404, "not_found", None),
        ("POST", POST + "/", KEY_HEADER, CHAT, 404, "not_found", None),
        ("GET", POST, KEY_HEADER, b"", 405, "method_not_allowed", None),
        ("OPTIONS", "/v1/models", KEY_HEADER, b"", 405, "method_not_allowed", None),
        ("DELETE", "/livez", {}, b"", 405, "method_not_allowed", None),
        ("GET", "/v1/models?secret%20words=1", KEY_HEADER, b"", 400, "unsupported_parameter", "?"),
        ("GET", "/v1/models/secret", KEY_HEADER, b"", 404, "model_not_found", "model"),
        ("GET", "/v1/route?model=secret", KEY_HEADER, b"", 404, "model_not_found", "model"),
        ("POST", POST, {**KEY_HEADER, "content-length": "99999"}, b"{", 413, "request_too_large", None),
        ("POST", POST, {**KEY_HEADER, "content-type": "text/plain"}, CHAT, 415, "unsupported_media_type", None),
        ("POST", POST, KEY_HEADER, b"{", 400, "malformed_body", None),
        ("POST", POST, KEY_HEADER, b'{"model":"secret"}', 404, "model_not_found", "model"),
        ("POST", "/v1/embeddings", KEY_HEADER, CHAT, 400, "unsupported_operation", "model"),
    ],
)
async def test_refusals(
    method: str, path: str, headers: dict[str, str], body: bytes, status: int, code: str, param: str | None
) -> None:
    async with opened() as lab:
        answer = await lab.ask(method, path, {"content-type": "application/json", **headers}, body)
        assert (answer.status, answer.error["code"], answer.error["param"]) == (status, code, param)
        assert answer.headers["x-request-id"] == "req_7"
        assert answer.headers["x-should-retry"] == "false"
        assert ("allow" in answer.headers) == (status == 405)
        said = repr(answer).lower()
        assert "secret" not in said
        assert KEY.text.lower() not in said


@pytest.mark.parametrize("state", list(TenantState))
async def test_outside_the_pin_the_path_comes_first_and_then_the_place(state: TenantState) -> None:
    async with opened(at=SG) as lab:
        lab.world.set_policy(2, ("VN",), state=state)
        suspended = state is TenantState.SUSPENDED
        assert (await lab.ask("GET", "/nowhere", KEY_HEADER)).status == (403 if suspended else 404)
        # The body is announced and never sent: nobody waits for it.
        headers = {**KEY_HEADER, "content-length": "5000000"}
        answer = await lab.ask("POST", POST, headers)
        assert answer.status == (403 if suspended else 451)
        assert answer.headers["mesh-policy-revision"] == "2"
        assert answer.headers["connection"] == "close"
        if not suspended:
            assert answer.headers["mesh-allowed-endpoints"] == f"https://{VN}:8443/v1"
            assert [each["region"] for each in answer.error["allowed"]] == [VN]


async def test_a_deadline_puts_nothing_into_an_answer_of_one_piece() -> None:
    async def serve(exchange: HttpExchange) -> None:
        relaying = asyncio.ensure_future(exchange.relay(FakeHop([data(LARGE), end()]), HEAD))
        while not exchange._request.begun:
            await asyncio.sleep(0)
        relaying.cancel()
        raise MeshError(Code.DEADLINE_EXCEEDED)

    async with opened(serve=serve) as lab:
        reader, writer = await lab.send("POST", POST, KEY_HEADER)
        answer = answer_of(await reader.read())
        assert answer.headers["content-length"] == str(len(LARGE))
        assert len(answer.body) < len(LARGE)
        assert set(answer.body) <= {ord("a")}
        writer.close()


async def test_a_deadline_puts_nothing_behind_a_whole_stream() -> None:
    async def serve(exchange: HttpExchange) -> None:
        request = exchange._request
        await request.begin(200, [])
        for work in (request.write(LARGE), request.end()):
            waiting = asyncio.ensure_future(work)
            for _ in range(10):
                await asyncio.sleep(0)
            assert not waiting.done()
            waiting.cancel()
        raise MeshError(Code.DEADLINE_EXCEEDED)

    async with opened(serve=serve) as lab:
        reader, writer = await lab.send("POST", POST, {**KEY_HEADER, "connection": "close"})
        assert (await reader.read()).endswith(b"a\r\n0\r\n\r\n")
        assert lab.failures == []
        writer.close()


async def test_what_nobody_foresaw_keeps_its_text_and_is_told_with_the_calls_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def serve(exchange: HttpExchange) -> None:
        raise ValueError(SECRET_WORDS)

    async with opened(serve=serve) as lab:
        answer = await lab.chat()
        assert (answer.status, answer.error["code"]) == (500, "internal_error")
        assert lab.failures == [("ValueError", answer.headers["x-request-id"])]
        assert SECRET_WORDS not in caplog.text + repr(answer)


async def test_a_stream_that_is_cut_ends_with_an_error_and_without_done() -> None:
    async def handler(request: Request) -> None:
        await request.body(1 << 20)
        await request.begin(200, FRAMES)
        await request.write(encode(FrameKind.DATA, Usage(3, 1), b"data: {}\n\n"))
        raise ConnectionAbortedError

    async with opened(handler) as lab:
        answer = await lab.chat(STREAM)
        assert answer.status == 200
        assert b'"code":"replica_failed"' in answer.body
        assert b"[DONE]" not in answer.body
        [record] = lab.world.settled
        assert (record.code, record.usage) == ("replica_failed", Usage(3, 1))


@pytest.mark.parametrize("phase", ["body", "head", "stream"])
async def test_a_client_that_hangs_up_ends_the_hop_and_is_recorded_once(phase: str) -> None:
    entered, left = asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> None:
        try:
            if phase != "body":
                await request.body(1 << 30)
            if phase == "stream":
                await request.begin(200, FRAMES)
                await request.write(encode(FrameKind.DATA, Usage(3, 2), b"data: {}\n\n"))
            entered.set()
            await asyncio.Event().wait()
        finally:
            left.set()

    async with opened(handler) as lab:
        body = STREAM if phase != "body" else STREAM[:-1] + b',"x":"' + LARGE + b'"}'
        lab.world.story._max_body_bytes = len(body)
        reader, writer = await lab.send("POST", POST, {**KEY_HEADER, "content-type": "application/json"}, body)
        await entered.wait()
        if phase == "stream":
            await reader.readuntil(b"data: {}")
        writer.transport.abort()
        if phase != "body":  # a server that holds a body back does not see its sender go
            await left.wait()
        while not lab.world.settled or lab.pool._count:
            await asyncio.sleep(0)
        [record] = lab.world.settled
        assert (record.code, record.usage) == ("cancelled", Usage(3, 2) if phase == "stream" else Usage())


# --- between regions


@asynccontextmanager
async def peers(pki: Path, handler: Handler = well, **policy: object) -> AsyncGenerator[tuple[World, int]]:
    """SG's peer door and its story, with a replica of its own."""
    context = server_context(pki, SG, Role.REPLICA)
    async with listen(handler, "127.0.0.1", 0, tls=context, fault=lambda *_: (500, [], b"")) as hosted:
        address = f"127.0.0.1:{hosted.port}"
        there = World(at=SG, replicas=(replica("b", "chat-sg", address=address),), **policy)
        pool = Pool(client_context(pki, SG, Role.GATEWAY))
        there.story._hops = HttpHops(pool, pool, SG, there.clock)
        door = PeerDoor(serve=there.story.serve_forwarded, here=SG, regions=[VN, SG])
        context = server_context(pki, SG, Role.GATEWAY)
        async with listen(door.handle, "127.0.0.1", 0, tls=context, fault=door.fault) as server:
            yield there, server.port
        pool.close()


async def sent_on(pool: Pool, port: int, world: World, model: str = "chat-sg") -> FrameHop:
    head = HopHead(
        request_id=RequestId("req_7"), tenant=TenantId("t_aaaaaaaaaaaaaaaa"), key_id=KEY.key_id, operation=Operation.CHAT,
        model=ModelId(model), stream=False, timeout_s=30.0,
    )  # fmt: skip
    return await HttpHops(pool, pool, VN, world.clock).to_peer(
        SG, Address("127.0.0.1", port), Sealed(bytearray(CHAT), "application/json"), head, unchecked
    )


async def forward(pki: Path, port: int, region: str, role: Role, world: World, model: str = "chat-sg") -> list:
    """A parcel to SG's peer door by a certificate of a test's choice; the frames that came."""
    pool = Pool(client_context(pki, region, role))
    hop = await sent_on(pool, port, world, model)
    frames = []
    while found := await hop.read():
        frames += found
    hop.close()
    pool.close()
    return frames


IN_PIN = {"allowed": ("VN", "SG"), "transfer": Transfer.WITHIN_ALLOWED}


async def test_a_parcel_is_served_for_another_regions_gateway(pki: Path) -> None:
    async with peers(pki, **IN_PIN) as (there, port):
        frames = await forward(pki, port, VN, Role.GATEWAY, there)
        assert [frame.kind for frame in frames] == [FrameKind.DATA, FrameKind.END]
        [record] = there.settled
        assert (record.door, record.entry, record.code, record.usage) == ("peer", VN, "ok", Usage(3, 5))


@pytest.mark.parametrize(
    ("region", "role", "policy", "code"),
    [
        (SG, Role.GATEWAY, IN_PIN, "invalid_api_key"),
        (JP, Role.GATEWAY, IN_PIN, "invalid_api_key"),
        (VN, Role.REPLICA, IN_PIN, "invalid_api_key"),
        (VN, Role.GATEWAY, {"allowed": ("SG",), "transfer": Transfer.WITHIN_ALLOWED}, "residency_refused"),
        (VN, Role.GATEWAY, {"allowed": ("VN", "SG"), "transfer": Transfer.NEVER}, "residency_refused"),
    ],
)
async def test_a_parcel_that_may_not_be_here_reaches_no_replica(
    pki: Path, region: str, role: Role, policy: dict[str, object], code: str
) -> None:
    async def handler(request: Request) -> None:
        raise AssertionError

    async with peers(pki, handler, **policy) as (there, port):
        [frame] = await forward(pki, port, region, role, there)
        assert frame.kind is FrameKind.ERROR
        assert json.loads(frame.payload)["code"] == code


@pytest.mark.parametrize(
    ("value", "status", "code"),
    [
        ("1", 200, None),
        ("2", 503, "policy_stale"),
        ("0", 400, "invalid_parameter"),
        ("-1", 400, "invalid_parameter"),
        ("1.0", 400, "invalid_parameter"),
        ("", 400, "invalid_parameter"),
        ("1, 1", 400, "invalid_parameter"),
        ("9" * 19, 400, "invalid_parameter"),
    ],
)
@pytest.mark.parametrize("path", [POST, "/v1/models", "/v1/route"])
async def test_the_oldest_policy_to_be_decided_by(path: str, value: str, status: int, code: str | None) -> None:
    async with opened() as lab:

        async def renewed() -> None:
            lab.world.authority.granted({}, lab.world.clock.instant())

        lab.world.renewed = renewed
        said = {"content-type": "application/json", **KEY_HEADER, "mesh-policy-at-least": value}
        answer = await (lab.ask("POST", path, said, CHAT) if path == POST else lab.ask("GET", path, said))
        assert answer.status == status
        if code is not None:
            assert answer.error["code"] == code
        if code == "invalid_parameter":
            assert answer.error["param"] == "mesh-policy-at-least"


async def test_a_stream_whose_key_ends_says_so_and_resets_the_hop() -> None:
    hung_up = asyncio.Event()

    async def handler(request: Request) -> None:
        await request.body(1 << 20)
        await request.begin(200, FRAMES)
        await request.write(encode(FrameKind.DATA, Usage(3, 1), b"data: {}\n\n"))
        try:
            await asyncio.Event().wait()
        finally:
            hung_up.set()

    async with opened(handler) as lab:
        headers = {"content-type": "application/json", **KEY_HEADER}
        reader, writer = await lab.send("POST", POST, headers, STREAM)
        await reader.readuntil(b"data: {}\n\n")
        lab.world.book.put_key(TenantKey(key_id=KEY.key_id, tenant=TENANT, hash="", revoked=True))
        rest = await reader.readuntil(b"0\r\n\r\n")
        assert b'"code":"invalid_api_key"' in rest
        assert b"[DONE]" not in rest
        await hung_up.wait()
        writer.close()
        [record] = lab.world.settled
        assert (record.code, record.usage) == ("invalid_api_key", Usage(3, 1))


async def test_an_answer_that_may_not_go_back_any_more_is_cut_off(pki: Path) -> None:
    async def handler(request: Request) -> None:
        await request.body(1 << 20)
        await request.begin(200, FRAMES)
        await request.write(encode(FrameKind.DATA, Usage(3, 1), b"piece"))
        await asyncio.Event().wait()

    async with peers(pki, handler, **IN_PIN) as (there, port):
        pool = Pool(client_context(pki, VN, Role.GATEWAY))
        hop = await sent_on(pool, port, there)
        assert [frame.payload for frame in await hop.read()] == [b"piece"]
        there.set_policy(2, ("SG",), Transfer.WITHIN_ALLOWED)
        with pytest.raises(MeshError) as caught:
            await hop.read()
        assert caught.value.code is Code.REPLICA_FAILED
        hop.close()
        pool.close()
        assert [record.code for record in there.settled] == ["residency_refused"]
