"""A client that hangs up frees its slot, on either door, streaming or not, before and after the first token."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import grpc
import pytest
from e2e.live import CHAT, VN, Json, Mesh, bearer, wait_until

from mesh.v1.inference_pb2 import ChatRequest, Message
from mesh.v1.inference_pb2_grpc import InferenceStub

pytestmark = pytest.mark.mesh
FREED_S = 10
"""A second is promised. The answers asked for here take a minute and more, so that this can fail."""
_PROMPT = "Write down all the numbers from one to one thousand in words, one per line, without leaving any out."
_LONG = "The quick brown fox jumps over the lazy dog. " * 130
"""A prompt that takes seconds to read on a CPU: whoever leaves meanwhile leaves before the first token."""
Start = Callable[[Mesh, str], Callable[[], None]]
"""Makes a call and returns how to hang up."""


@pytest.fixture
def tenant(mesh: Mesh) -> Json:
    made = mesh.tenant("leaving", "--allow", "VN")
    mesh.seen(made["key"])
    return made


def _post(mesh: Mesh, key: str, body: Json, *, first_token: bool) -> Callable[[], None]:
    stack = ExitStack()
    wire = stack.enter_context(mesh.wire(VN))
    data = json.dumps(body).encode()
    head = [
        "POST /v1/chat/completions HTTP/1.1",
        "Host: mesh",
        f"Authorization: Bearer {key}",
        "Content-Type: application/json",
        f"Content-Length: {len(data)}",
    ]
    wire.send("\r\n".join([*head, "", ""]).encode() + data)
    if first_token:
        while b'"content":"' not in wire.held.replace(b'"content":""', b""):
            wire.held += wire.stream.recv(65_536)
    return stack.close


def _body(**fields: object) -> Json:
    return {"model": CHAT, "messages": [{"role": "user", "content": _PROMPT}], "n": 4, "max_tokens": 1500} | fields


def http_stream_after_first_token(mesh: Mesh, key: str) -> Callable[[], None]:
    return _post(mesh, key, _body(stream=True), first_token=True)


def http_stream_before_first_token(mesh: Mesh, key: str) -> Callable[[], None]:
    long = [{"role": "user", "content": _LONG}]
    return _post(mesh, key, _body(stream=True, messages=long, max_tokens=400), first_token=False)


def http_whole(mesh: Mesh, key: str) -> Callable[[], None]:
    return _post(mesh, key, _body(), first_token=False)


def http_half_closed(mesh: Mesh, key: str) -> Callable[[], None]:
    """Says that it sends no more: half a close is a whole one."""
    stack = ExitStack()
    wire = stack.enter_context(mesh.wire(VN))
    data = json.dumps(_body()).encode()
    wire.send(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: mesh\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        + data
    )

    def leave() -> None:
        wire.stream.shutdown(1)
        stack.callback(lambda: None)

    return leave


def _request() -> ChatRequest:
    return ChatRequest(model=CHAT, n=4, max_tokens=1500, messages=[Message(role="user", content=_PROMPT)])


def grpc_stream(mesh: Mesh, key: str) -> Callable[[], None]:
    stack = ExitStack()
    channel = stack.enter_context(mesh.channel(VN))
    call = InferenceStub(channel).ChatStream(_request(), metadata=bearer(key))
    next(call)

    def leave() -> None:
        call.cancel()
        stack.close()

    return leave


def grpc_whole(mesh: Mesh, key: str) -> Callable[[], None]:
    stack = ExitStack()
    channel = stack.enter_context(mesh.channel(VN))
    call = InferenceStub(channel).Chat.future(_request(), metadata=bearer(key))

    def leave() -> None:
        call.cancel()
        stack.close()

    return leave


def grpc_connection_lost(mesh: Mesh, key: str) -> Callable[[], None]:
    stack = ExitStack()
    channel = stack.enter_context(mesh.channel(VN))
    call = InferenceStub(channel).ChatStream(_request(), metadata=bearer(key))
    next(call)
    # A call that nobody holds is cancelled by its own end.
    stack.callback(lambda: call)
    return stack.close


@contextmanager
def idle(mesh: Mesh) -> Iterator[None]:
    """Nothing runs before, so that what is seen is what was started."""

    def nothing() -> bool:
        row = mesh.replica(VN)
        return row["running"] + row["queued"] == 0

    wait_until(nothing, "nothing runs", deadline_s=60)
    yield
    wait_until(nothing, "its slots are free", deadline_s=FREED_S)


@pytest.mark.parametrize(
    ("start", "spent"),
    [
        (http_stream_after_first_token, True),
        (http_stream_before_first_token, False),
        (http_whole, True),
        (http_half_closed, True),
        (grpc_stream, True),
        (grpc_whole, True),
        (grpc_connection_lost, True),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_hanging_up_frees_the_slots_and_settles(mesh: Mesh, tenant: Json, start: Start, spent: bool) -> None:
    # A sequence runs from when its prompt is begun to be read, one after the other: with the second the first has tokens.
    least = 2 if spent else 1

    def runs() -> Json | None:
        row = mesh.replica(VN)
        return row if row["running"] >= least else None

    with idle(mesh):
        leave = start(mesh, tenant["key"])
        try:
            row = wait_until(runs, "the call runs", deadline_s=30)
            assert row["running"] <= row["slots"]
        finally:
            leave()

    def settled() -> Json | None:
        items = mesh.ask("usage", tenant["tenant"]).items
        return items[0] if items else None

    used = wait_until(settled, "its usage is settled", deadline_s=10)
    assert (used["region"], used["model"]) == (VN, CHAT)
    assert used["requests"] + used["refused"] == 1
    assert used["completion_tokens"] < 4 * 1500
    if spent:
        assert used["prompt_tokens"] > 0
        assert used["completion_tokens"] > 0


def test_a_client_that_only_reads_slowly_is_no_client_that_left(mesh: Mesh, tenant: Json) -> None:
    with mesh.wire(VN) as wire:
        data = json.dumps(_body(n=1, max_tokens=30, stream=True, temperature=0)).encode()
        wire.send(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: mesh\r\nAuthorization: Bearer {tenant['key']}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        wait_until(
            lambda: any(row["completion_tokens"] for row in mesh.ask("usage", tenant["tenant"]).items),
            "it was made without being read",
            deadline_s=60,
        )
        while b"[DONE]" not in wire.held:
            wire.held += wire.stream.recv(65_536)


def test_a_call_that_was_cancelled_is_cancelled_for_its_client_too(mesh: Mesh, tenant: Json) -> None:
    with mesh.channel(VN) as channel:
        call = InferenceStub(channel).ChatStream(_request(), metadata=bearer(tenant["key"]))
        next(call)
        call.cancel()
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
    assert caught.value.code() is grpc.StatusCode.CANCELLED
