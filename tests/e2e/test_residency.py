"""A pin as it is seen from outside: refused before the body, told where to go, sent on only inside it, nothing kept."""

from __future__ import annotations

import json
import os

import grpc
import httpx2
import pytest
from e2e.live import CHAT, ELSEWHERE, EMBEDDING, JP, SG, VN, Json, Mesh, bearer, messages, wait_until

from mesh.v1.inference_pb2 import ChatRequest, Message
from mesh.v1.inference_pb2_grpc import InferenceStub

pytestmark = pytest.mark.mesh


def _head(key: str, length: int, *lines: str) -> bytes:
    fixed = [
        "POST /v1/chat/completions HTTP/1.1",
        "Host: mesh",
        f"Authorization: Bearer {key}",
        "Content-Type: application/json",
        f"Content-Length: {length}",
    ]
    return "\r\n".join([*fixed, *lines, "", ""]).encode()


def test_acme_is_refused_in_singapore_and_told_where_to_go(mesh: Mesh, acme: str) -> None:
    vn = mesh.place(VN)
    for path, body in [
        ("/v1/chat/completions", {"model": CHAT, "messages": messages("Hi")}),
        ("/v1/completions", {"model": CHAT, "prompt": "Hi"}),
        ("/v1/embeddings", {"model": EMBEDDING, "input": "Hi"}),
        ("/v1/chat/completions", {"no": "model"}),
    ]:
        answer = mesh.post(SG, path, body, acme)
        assert answer.status == 451
        assert (answer.error["code"], answer.error["type"]) == ("residency_refused", "permission_error")
        assert answer.error["allowed"] == [{"region": VN, "jurisdiction": "VN", "http": vn["http"], "grpc": vn["grpc"]}]
        assert answer.headers["mesh-allowed-endpoints"] == vn["http"] + "/v1"
        assert answer.headers["x-should-retry"] == "false"
        assert answer.headers["connection"] == "close"
        assert int(answer.headers["mesh-policy-revision"]) >= 1
    listed = mesh.get(SG, "/v1/models", acme)
    assert (listed.status, int(listed.headers["mesh-policy-revision"]) >= 1) == (451, True)


def test_the_refusal_comes_before_any_body(mesh: Mesh, acme: str) -> None:
    with mesh.wire(SG) as wire:
        wire.send(_head(acme, 4_000_000))
        assert wire.read().status == 451


def test_who_asks_before_sending_is_not_told_to_go_on(mesh: Mesh, acme: str) -> None:
    with mesh.wire(SG) as wire:
        wire.send(_head(acme, 4_000_000, "Expect: 100-continue"))
        assert wire.read().status == 451
    body = json.dumps({"model": CHAT, "messages": messages("Hi"), "max_tokens": 2}).encode()
    with mesh.wire(VN) as wire:
        wire.send(_head(acme, len(body), "Expect: 100-continue"))
        assert wire.read().status == 100
        wire.send(body)
        assert wire.read().status == 200


def test_who_writes_everything_first_still_sees_the_refusal(mesh: Mesh, acme: str) -> None:
    with mesh.wire(SG) as wire:
        wire.send(_head(acme, 200_000) + b" " * 200_000)
        answer = wire.read()
        assert answer.status == 451
        assert answer.error["allowed"]
        # Nothing follows: the connection is over.
        assert wire.stream.recv(1) == b""


def test_a_refused_call_can_be_made_where_it_says(mesh: Mesh, acme: str) -> None:
    refusal = mesh.post(SG, "/v1/chat/completions", {"model": CHAT, "messages": messages("Hi")}, acme)
    base = refusal.headers["mesh-allowed-endpoints"].split(",")[0].strip()
    assert base == mesh.place(VN)["http"] + "/v1"
    assert (
        mesh.post(VN, "/v1/chat/completions", {"model": CHAT, "messages": messages("Hi"), "max_tokens": 2}, acme).status
        == 200
    )


def test_globex_is_served_in_both_and_nowhere_else(mesh: Mesh, globex: str) -> None:
    body: Json = {"model": CHAT, "messages": messages("Hi"), "max_tokens": 3}
    for region, jurisdiction in ((VN, "VN"), (SG, "SG")):
        answer = mesh.post(region, "/v1/chat/completions", body, globex)
        assert answer.status == 200
        assert (answer.headers["mesh-region"], answer.headers["mesh-jurisdiction"]) == (region, jurisdiction)
    answer = mesh.post(JP, "/v1/chat/completions", body, globex)
    assert answer.status == 451
    assert [end["region"] for end in answer.error["allowed"]] == [VN, SG]


@pytest.mark.parametrize("stream", [False, True])
def test_globex_in_vietnam_is_answered_by_a_model_in_singapore(mesh: Mesh, globex: str, stream: bool) -> None:
    body: Json = {"model": ELSEWHERE, "messages": messages("Hi"), "max_tokens": 4, "temperature": 0, "stream": stream}
    answer = mesh.post(VN, "/v1/chat/completions", body, globex)
    assert answer.status == 200
    assert (answer.headers["mesh-region"], answer.headers["mesh-jurisdiction"]) == (SG, "SG")
    if stream:
        assert answer.body.endswith(b"data: [DONE]\n\n")
    else:
        # The same weights as at home.
        local = mesh.post(VN, "/v1/chat/completions", body | {"model": CHAT}, globex)
        assert json.loads(answer.body)["choices"] == json.loads(local.body)["choices"]


def test_the_same_over_grpc(mesh: Mesh, globex: str, acme: str) -> None:
    request = ChatRequest(model=ELSEWHERE, max_tokens=3, messages=[Message(role="user", content="Hi")])
    with mesh.channel(VN) as channel:
        stream = InferenceStub(channel).ChatStream(request, metadata=bearer(globex), timeout=60)
        assert list(stream)
        head = dict(stream.initial_metadata())
        assert (head["mesh-region"], head["mesh-jurisdiction"]) == (SG, "SG")
        with pytest.raises(grpc.RpcError) as caught:
            InferenceStub(channel).Chat(request, metadata=bearer(acme), timeout=60)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_errors_of_a_model_elsewhere_come_back_as_they_are(mesh: Mesh, globex: str) -> None:
    body: Json = {"model": ELSEWHERE, "messages": messages("Hi"), "max_tokens": 5000}
    answer = mesh.post(VN, "/v1/chat/completions", body, globex)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (
        400,
        "context_length_exceeded",
        "messages",
    )


def test_a_tenant_that_allows_both_but_no_sending_on_has_no_such_model(mesh: Mesh) -> None:
    key = mesh.tenant("careful", "--allow", "VN,SG")["key"]
    for region in (VN, SG):
        mesh.seen(key, region)
    body: Json = {"model": ELSEWHERE, "messages": messages("Hi"), "max_tokens": 2}
    assert mesh.post(VN, "/v1/chat/completions", body, key).error["code"] == "model_not_found"
    assert mesh.post(SG, "/v1/chat/completions", body, key).status == 200


def test_route_answers_where_calls_would_be_refused(mesh: Mesh, acme: str, globex: str) -> None:
    answer = mesh.get(SG, f"/v1/route?model={CHAT}", acme)
    assert answer.status == 200
    told = json.loads(answer.body)
    assert (told["here"], told["served_here"]) == (SG, False)
    assert [end["region"] for end in told["allowed"]] == [VN]
    assert (told["route"]["outcome"], told["route"]["code"]) == ("refuse", "residency_refused")
    told = json.loads(mesh.get(VN, f"/v1/route?model={ELSEWHERE}", globex).body)
    assert (told["served_here"], told["route"]["outcome"], told["route"]["region"]) == (True, "forward", SG)


def test_usage_is_recorded_where_it_was_served(mesh: Mesh) -> None:
    tenant = mesh.tenant("counted", "--allow", "VN,SG", "--transfer", "within_allowed")
    key = tenant["key"]
    for region in (VN, SG):
        mesh.seen(key, region)
    mesh.seen(key, JP)
    body: Json = {"model": CHAT, "messages": messages("Hi"), "max_tokens": 3, "temperature": 0}
    spent = {}
    for at, model in ((VN, CHAT), (SG, CHAT), (VN, ELSEWHERE)):
        answer = mesh.post(at, "/v1/chat/completions", body | {"model": model}, key)
        spent[at, model] = json.loads(answer.body)["usage"]
    assert mesh.post(JP, "/v1/chat/completions", body, key).status == 451

    def rows() -> dict[tuple[str, str], Json] | None:
        found = {(row["region"], row["model"]): row for row in mesh.ask("usage", tenant["tenant"]).items}
        whole = {(VN, CHAT), (SG, CHAT), (SG, ELSEWHERE)} <= found.keys() and any(at == JP for at, _ in found)
        return found if whole else None

    found = wait_until(rows, "usage of three regions", deadline_s=10)
    assert found[VN, CHAT]["requests"] == 1
    for row, call in (((VN, CHAT), (VN, CHAT)), ((SG, CHAT), (SG, CHAT)), ((SG, ELSEWHERE), (VN, ELSEWHERE))):
        assert found[row]["prompt_tokens"] == spent[call]["prompt_tokens"]
        assert found[row]["completion_tokens"] == spent[call]["completion_tokens"]
    assert (VN, ELSEWHERE) not in found
    refused = [row for (at, _), row in found.items() if at == JP]
    assert sum(row["refused"] for row in refused) == 1
    assert sum(row["completion_tokens"] for row in refused) == 0


def test_nothing_of_a_prompt_is_kept_anywhere(mesh: Mesh, globex: str, acme: str) -> None:
    """A marked prompt goes through success and errors, on both doors, here and in the other region."""
    mark = "qz" + os.urandom(8).hex()
    calls: list[tuple[str, str, Json]] = []
    for model in (CHAT, ELSEWHERE):
        plain: Json = {"model": model, "messages": messages(f"My secret is {mark}"), "max_tokens": 3}
        calls += [
            (VN, globex, plain),
            (VN, globex, plain | {"stream": True}),
            (VN, globex, plain | {"shiny": mark}),
            (VN, globex, plain | {f"{mark} and more": 1}),
            (VN, globex, plain | {"stop": mark, "user": mark}),
            (VN, globex, plain | {"temperature": mark}),
            (VN, globex, plain | {"messages": messages(f"{mark} " * 800)}),
        ]
    calls += [(VN, acme, {"model": mark}), (SG, acme, calls[0][2]), (VN, mark, calls[0][2])]
    for region, key, body in calls:
        answer = mesh.post(
            region, f"/v1/chat/completions?{mark}=1" if key == mark else "/v1/chat/completions", body, key
        )
        if answer.status != 200:
            assert mark.encode() not in answer.raw
    mesh.post(VN, "/v1/chat/completions", f'{{"model": "{mark}'.encode(), acme)
    mesh.post(VN, f"/{mark}", b"", acme, {"x-request-id": mark, "traceparent": mark, "user-agent": mark})
    mesh.post(VN, "/v1/embeddings", {"model": EMBEDDING, "input": mark}, acme)
    with mesh.channel(VN) as channel:
        stub = InferenceStub(channel)
        for model, key in ((CHAT, acme), (ELSEWHERE, globex), (mark, acme), (CHAT, mark)):
            request = ChatRequest(model=model, max_tokens=2, messages=[Message(role="user", content=mark)])
            try:
                stub.Chat(request, metadata=bearer(key), timeout=60)
            except grpc.RpcError as error:
                assert mark not in f"{error.details()}{error.trailing_metadata()}"
    # Whatever is written late has been written once the usage of later calls is there.
    tenant = mesh.tenant("after", "--allow", "VN,SG")
    for region in (VN, SG):
        mesh.seen(tenant["key"], region)
        mesh.post(
            region, "/v1/chat/completions", {"model": CHAT, "messages": messages("Hi"), "max_tokens": 1}, tenant["key"]
        )
    wait_until(lambda: len(mesh.ask("usage", tenant["tenant"]).items) == 2, "usage of later calls", deadline_s=10)

    needle = mark.encode()
    searched, found = 0, []
    for folder in (mesh.home, mesh.temp):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                searched += 1
                if needle in path.read_bytes():
                    found.append(path.relative_to(folder))
    assert found == []
    assert searched > 20
    operator = mesh.region(VN)["operator"]
    with httpx2.Client(timeout=60) as http:
        assert mark not in http.get(f"{operator}/metrics").text
    assert mark not in json.dumps(mesh.status())
