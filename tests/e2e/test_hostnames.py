"""A mesh whose tenants have names and whose regions have fronts: what a client finds that goes by its tenant's name."""

from __future__ import annotations

import os
import signal
import socket
import ssl
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import grpc
import httpx2
import openai
import pytest
from e2e.live import CHAT, SG, VN, Json, Mesh, messages, wait_until

from mesh.v1.inference_pb2 import ChatRequest, Message
from mesh.v1.inference_pb2_grpc import InferenceStub

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(420, func_only=True)]
DOMAIN = "mesh.test"
START_S = 600


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Generator[Mesh]:
    """Two regions with names under a domain."""
    mesh = Mesh(tmp_path_factory.mktemp("named") / "home", (VN, SG))
    try:
        ran = mesh.up("--domain", DOMAIN, timeout_s=START_S)
        assert ran.code == 0, ran.err[-4000:]
        assert ran.json["state"] == "ready"
        yield mesh
    finally:
        mesh.run("down", "--json")
    assert not mesh.processes()


@dataclass(frozen=True)
class Names:
    """The names of a sample tenant, which lead where `/etc/hosts` would lead them."""

    mesh: Mesh
    sample: str

    @property
    def key(self) -> str:
        return self.mesh.key(self.sample)

    def host(self, region: str) -> str:
        return f"{self.mesh.samples[self.sample]['tenant'].replace('_', '-')}.{region}.{DOMAIN}"

    def url(self, region: str) -> str:
        return f"https://{self.host(region)}:8443"


@pytest.fixture
def acme(named: Mesh) -> Names:
    return Names(named, "acme")


@pytest.fixture
def resolves(named: Mesh, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Lets a name lead to a region's front, as a line of `/etc/hosts` does."""
    known: dict[str, str] = {}
    ask = socket.getaddrinfo

    def answer(host: Any, *args: Any, **options: Any) -> Any:
        return ask(known.get(host, host), *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", answer)

    def lead(host: str, region: str) -> None:
        known[host] = named.place(region)["http"].removeprefix("https://").rpartition(":")[0]

    return lead


def _ask(mesh: Mesh, url: str, key: str, **headers: str) -> httpx2.Response:
    with httpx2.Client(verify=mesh.trust(), timeout=60) as http:
        return http.get(url + "/v1/models", headers={"authorization": f"Bearer {key}"} | headers)


def _code(answer: httpx2.Response) -> str:
    return str(answer.json()["error"]["code"])


def test_the_official_client_by_the_tenants_name(
    named: Mesh, acme: Names, resolves: Callable[[str, str], None]
) -> None:
    resolves(acme.host(VN), VN)
    with (
        httpx2.Client(verify=named.trust(), timeout=120) as http,
        openai.OpenAI(base_url=acme.url(VN) + "/v1", api_key=acme.key, http_client=http, max_retries=0) as client,
    ):
        answer = client.chat.completions.create(model=CHAT, messages=messages("Hi"), max_tokens=3)
        assert answer.usage is not None
        assert answer.usage.completion_tokens > 0


def test_grpc_by_the_tenants_name(named: Mesh, acme: Names) -> None:
    with open(named.ca, "rb") as file:
        trust = grpc.ssl_channel_credentials(file.read())
    request = ChatRequest(model=CHAT, messages=[Message(role="user", content="Hi")], max_tokens=3)
    metadata = [("authorization", f"Bearer {acme.key}")]

    def called(name: str) -> grpc.Channel:
        options = [("grpc.ssl_target_name_override", name)]
        return grpc.secure_channel(named.place(VN)["grpc"], trust, options=options)

    with called(acme.host(VN)) as channel:
        answer = InferenceStub(channel).Chat(request, metadata=metadata, timeout=120)
        assert answer.usage.completion_tokens > 0
    with called(Names(named, "globex").host(VN)) as channel, pytest.raises(grpc.RpcError) as refused:
        InferenceStub(channel).Chat(request, metadata=metadata, timeout=120)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION  # pyright: ignore[reportAttributeAccessIssue]


def test_another_tenants_name_is_refused_and_the_connection_closed(
    named: Mesh, acme: Names, resolves: Callable[[str, str], None]
) -> None:
    other = Names(named, "globex")
    resolves(other.host(VN), VN)
    answer = _ask(named, other.url(VN), acme.key)
    assert (answer.status_code, _code(answer)) == (421, "misdirected_request")
    assert answer.headers["connection"] == "close"


def test_a_name_in_the_handshake_and_another_asked_for(
    named: Mesh, acme: Names, resolves: Callable[[str, str], None]
) -> None:
    resolves(acme.host(VN), VN)
    answer = _ask(named, acme.url(VN), acme.key, host=f"door.{VN}.mesh")
    assert (answer.status_code, _code(answer)) == (421, "misdirected_request")


@pytest.mark.parametrize("port", [8443, 8444])
def test_the_front_closes_for_a_name_of_another_region(named: Mesh, acme: Names, port: int) -> None:
    host = named.place(VN)["http"].removeprefix("https://").rpartition(":")[0]
    with (
        socket.create_connection((host, port), timeout=60) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
        named.trust().wrap_socket(plain, server_hostname=acme.host(SG)),
    ):
        pass


def test_the_wrong_door_tells_the_tenants_own_names(
    named: Mesh, acme: Names, resolves: Callable[[str, str], None]
) -> None:
    resolves(acme.host(SG), SG)
    answer = _ask(named, acme.url(SG), acme.key)
    assert (answer.status_code, _code(answer)) == (451, "residency_refused")
    assert answer.headers["mesh-allowed-endpoints"] == acme.url(VN) + "/v1"


def test_by_the_fronts_address_the_region_is_served_as_ever(named: Mesh, acme: Names) -> None:
    assert _ask(named, named.place(VN)["http"], acme.key).status_code == 200


def test_a_second_start_with_another_domain_is_refused(named: Mesh) -> None:
    ran = named.up(timeout_s=60)
    assert (ran.code, ran.error["code"]) == (1, "already_running")
    assert DOMAIN in ran.error["remedy"]


def test_a_front_that_is_killed_comes_back(named: Mesh, acme: Names, resolves: Callable[[str, str], None]) -> None:
    pid = named.region(VN)["front"]["pid"]
    os.kill(pid, signal.SIGKILL)

    def back() -> Json | None:
        front = named.region(VN)["front"]
        return front if front["state"] == "ready" and front["pid"] not in {None, pid} else None

    wait_until(back, "the front is back", deadline_s=60)
    resolves(acme.host(VN), VN)
    assert _ask(named, acme.url(VN), acme.key).status_code == 200
