"""What leaves the machine, and to whom: never a body to a region that the mesh has not just named."""

from __future__ import annotations

from dataclasses import dataclass, field

import httpx2
import pytest

from mesh.client import AsyncPinnedTransport, DiscoveryError, PinnedTransport, WrongRegionError, openai_client

VN, SG, JP = "https://vn.example:8443", "https://sg.example:8443", "https://jp.example"
PLACES = {
    "vn-1": {"region": "vn-1", "jurisdiction": "VN", "http": VN, "grpc": "vn.example:8444"},
    "jp": {"region": "jp", "jurisdiction": "JP", "http": JP, "grpc": "jp.example:8444"},
}


@dataclass
class Mesh:
    """Three doors: who was asked what, and who is away."""

    allowed: list[str] = field(default_factory=lambda: ["vn-1"])
    away: set[str] = field(default_factory=set)
    route: httpx2.Response | None = None
    refuses: bool = False
    asked: list[str] = field(default_factory=list)
    shown: list[tuple[str, bytes, str]] = field(default_factory=list)

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        host = request.url.host.split(".")[0]
        if host in self.away:
            raise httpx2.ConnectError("away", request=request)
        if request.url.path == "/v1/route":
            assert request.method == "GET"
            assert request.read() == b""
            assert request.headers["authorization"] == "Bearer mk_key"
            self.asked.append(host)
            fields = {"allowed": [PLACES[one] for one in self.allowed], "policy_revision": 3}
            return self.route or httpx2.Response(200, json=fields)
        self.shown.append((host, request.read(), request.headers["host"]))
        if self.refuses:
            return httpx2.Response(451, json={"error": {"code": "residency_refused"}})
        return httpx2.Response(200, json={"served": host})

    def transport(self, *discovery: str, region: str | None = None) -> PinnedTransport:
        inner = httpx2.MockTransport(self.answer)
        return PinnedTransport("mk_key", discovery or [SG], region=region, inner=inner)


def post(client: httpx2.Client, url: str = SG + "/v1/chat/completions") -> httpx2.Response:
    return client.post(url, content=b"a prompt")


def test_a_prompt_goes_to_the_pin_whatever_host_it_was_pointed_at() -> None:
    mesh = Mesh()
    with httpx2.Client(transport=mesh.transport()) as client:
        assert post(client).json() == {"served": "vn"}
        assert post(client, "https://elsewhere.example/v1/chat/completions").json() == {"served": "vn"}
    assert mesh.shown == [("vn", b"a prompt", "vn.example:8443")] * 2
    assert mesh.asked == ["sg"], "an answer is believed for a while"


@pytest.mark.anyio
async def test_the_same_in_asyncio() -> None:
    mesh = Mesh()
    inner = httpx2.MockTransport(mesh.answer)
    transport = AsyncPinnedTransport("mk_key", [JP, SG], inner=inner)
    mesh.away = {"jp"}
    async with httpx2.AsyncClient(transport=transport) as client:
        answer = await client.post(SG + "/v1/embeddings", content=b"a prompt")
    assert answer.json() == {"served": "vn"}
    assert (mesh.asked, [host for host, _, _ in mesh.shown]) == (["sg"], ["vn"])


def test_a_refusal_ends_what_was_believed_and_is_not_repeated_elsewhere() -> None:
    mesh = Mesh(refuses=True)
    with httpx2.Client(transport=mesh.transport()) as client:
        assert post(client).status_code == 451
        assert [host for host, _, _ in mesh.shown] == ["vn"]
        mesh.refuses, mesh.allowed = False, ["jp"]
        assert post(client).json() == {"served": "jp"}
    assert mesh.asked == ["sg", "sg"]
    assert mesh.shown[-1][2] == "jp.example"


def test_a_region_that_cannot_be_reached_gives_way_to_the_next_of_the_pin() -> None:
    mesh = Mesh(allowed=["vn-1", "jp"], away={"vn"})
    with httpx2.Client(transport=mesh.transport()) as client:
        assert post(client).json() == {"served": "jp"}
        mesh.away = {"vn", "jp"}
        with pytest.raises(httpx2.ConnectError):
            post(client)
    assert [host for host, _, _ in mesh.shown] == ["jp"]


def test_a_named_region_is_the_only_one() -> None:
    mesh = Mesh(allowed=["vn-1", "jp"])
    with httpx2.Client(transport=mesh.transport(region="jp")) as client:
        assert post(client).json() == {"served": "jp"}
    with httpx2.Client(transport=mesh.transport(region="sg")) as client, pytest.raises(WrongRegionError):
        post(client)
    assert [host for host, _, _ in mesh.shown] == ["jp"]


@pytest.mark.parametrize(
    "route",
    [
        httpx2.Response(401, json={"error": {"code": "invalid_api_key"}}),
        httpx2.Response(302, headers={"location": JP + "/v1/route"}),
        httpx2.Response(200, content=b"<html>"),
        httpx2.Response(200, json=[]),
        httpx2.Response(200, json={"allowed": [{"region": "vn-1"}], "policy_revision": 1}),
        httpx2.Response(200, json={"allowed": [PLACES["vn-1"]]}),
    ],
)
def test_without_an_answer_nothing_is_shown(route: httpx2.Response) -> None:
    mesh = Mesh(route=route)
    with httpx2.Client(transport=mesh.transport()) as client, pytest.raises(DiscoveryError):
        post(client)
    assert mesh.shown == []


def test_with_nobody_to_ask_nothing_is_shown() -> None:
    mesh = Mesh(away={"sg", "vn", "jp"})
    with httpx2.Client(transport=mesh.transport(SG, JP)) as client, pytest.raises(DiscoveryError):
        post(client)
    assert mesh.shown == []


def test_a_pin_without_regions_is_nobodys() -> None:
    mesh = Mesh(allowed=[])
    with httpx2.Client(transport=mesh.transport()) as client, pytest.raises(WrongRegionError):
        post(client)
    assert mesh.shown == []


def test_the_official_client_takes_its_options() -> None:
    client = openai_client("mk_key", SG, max_retries=0)
    assert str(client.base_url) == SG + "/v1/"
    assert (client.max_retries, client.api_key) == (0, "mk_key")
    client.close()
