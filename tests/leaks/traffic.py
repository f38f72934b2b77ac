"""What is sent through the small mesh, and what the detectors of the lab then find.

The same prompts on the same ways each time: served, streamed, refused, sent on, out of a pin, with a replica that dies,
a bug, an unknown model, content in the path and in the key. Only the part that leaks differs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import grpc
import grpc.aio
from border.canary import LANGUAGES, Canaries, Canary, Encode, Hit
from border.evidence import files_below, search_each, search_legs
from border.measure import Slope, slope
from border.namespaces import PEER
from grpc_lab import connected, counting_proxy
from leaks.small_mesh import ABROAD, CHAT, FAULTY, FLAKY, FORBIDDEN, HERE, SmallMesh, Tenant

from mesh.types import Transfer
from mesh.v1 import inference_pb2 as pb

CHAT_PATH = "/v1/chat/completions"
OPEN = frozenset({f"vn>sg {PEER}", f"sg>vn {PEER}"})
"""Where globex's content may be, until it takes Singapore out of its pin."""
VOLUME_WITHIN = 0.05
"""How far a slope may be from none; the lab's own measure for what is refused."""
KIB = 1024
SIZES = (KIB, 64 * KIB, 256 * KIB)


@dataclass(frozen=True)
class Said:
    """An answer: to which prompt, of which set, and whether it was a good one."""

    way: str
    canaries: Canaries
    canary: Canary
    good: bool
    raw: bytes


@dataclass
class Found:
    """What each detector found."""

    hits: dict[str, list[Hit]] = field(default_factory=dict)
    looked: dict[str, int] = field(default_factory=dict)
    slope: Slope | None = None


class Traffic:
    """One run of it."""

    def __init__(self, mesh: SmallMesh, tokenizers: Mapping[str, Encode]) -> None:
        self.mesh = mesh
        self.inside = Canaries(tokenizers)
        """Of acme, which may be in vn only."""
        self.sent_on = Canaries(tokenizers)
        """Of globex, which may be in vn and sg."""
        self.after = Canaries(tokenizers)
        """Of globex, once sg is out of its pin."""
        self.others = Canaries(tokenizers)
        """Of initech, like acme."""
        self.acme, self.globex, self.initech = (Tenant(name) for name in ("acme", "globex", "initech"))
        self.said: list[Said] = []
        self.points: list[tuple[float, float]] = []

    async def send(self) -> dict[str, set[str]]:
        """All of it; by which ways calls ended how."""
        mesh = self.mesh
        mesh.set_policy(self.acme, 1, "VN")
        mesh.set_policy(self.initech, 1, "VN")
        mesh.set_policy(self.globex, 1, "VN", "SG", transfer=Transfer.WITHIN_ALLOWED)
        ended: dict[str, set[str]] = {}
        async with connected(mesh.pki, mesh.countries["vn"].grpc) as vn:
            for language in LANGUAGES:
                for way, code in (await self._inside(language, vn)).items():
                    ended.setdefault(way, set()).add(code)
        mesh.set_policy(self.globex, 2, "VN", transfer=Transfer.WITHIN_ALLOWED)
        for language in LANGUAGES:
            code = await self._ask("out of the pin", self.globex, self.after, language, model=ABROAD)
            ended.setdefault("out of the pin", set()).add(code)
        await mesh.exchange_loads()
        await self._weigh()
        return ended

    async def _inside(self, language: str, vn: grpc.aio.Channel) -> dict[str, str]:
        acme, inside = self.acme, self.inside
        return {
            "served": await self._ask("served", acme, inside, language),
            "streamed": await self._ask("streamed", acme, inside, language, stream=True),
            "served another": await self._ask("served another", self.initech, self.others, language),
            "wrong country": await self._ask("wrong country", acme, inside, language, country="jp"),
            "model abroad": await self._ask("model abroad", acme, inside, language, model=FORBIDDEN),
            "replica dies": await self._ask("replica dies", acme, inside, language, model=FLAKY),
            "bug": await self._ask("bug", acme, inside, language, model=FAULTY),
            "in the model's name": await self._ask("in the model's name", acme, inside, language, model=None),
            "in the path": await self._ask("in the path", acme, inside, language, path="/v1/{text}?{text}={text}"),
            "in the key": await self._ask("in the key", acme, inside, language, key="{text}"),
            "sent on": await self._ask("sent on", self.globex, self.sent_on, language, model=ABROAD),
            "gRPC, served": await self._call("gRPC, served", language, vn, CHAT),
            "gRPC, bug": await self._call("gRPC, bug", language, vn, FAULTY),
            "gRPC, in the model's name": await self._call("gRPC, in the model's name", language, vn, None),
        }

    async def _ask(
        self,
        way: str,
        tenant: Tenant,
        canaries: Canaries,
        language: str,
        *,
        country: str = "vn",
        model: str | None = CHAT,
        path: str = CHAT_PATH,
        key: str = "",
        **more: Any,
    ) -> str:
        canary = canaries.make(way, language)
        text = quote(canary.text)
        body = _body(model or canary.text, canary.text, **more)
        port = self.mesh.countries[country].http
        raw = await _post(port, path.format(text=text), key.format(text=text) or tenant.key.text, body)
        status = raw.split(b" ", 2)[1].decode()
        self.said.append(Said(way, canaries, canary, status == "200", raw))
        return status

    async def _call(self, way: str, language: str, channel: grpc.aio.Channel, model: str | None) -> str:
        canary = self.inside.make(way, language)
        message = pb.ChatRequest(
            model=model or canary.text, messages=[pb.Message(role="user", content=canary.text)]
        ).SerializeToString()
        call = channel.unary_unary("/mesh.v1.Inference/Chat")
        try:
            raw = await call(message, metadata=(("authorization", f"Bearer {self.acme.key.text}"),), timeout=250)
            code = "OK"
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            trailers = [one.encode() if isinstance(one, str) else one for _, one in error.trailing_metadata()]
            raw = b"\n".join([(error.details() or "").encode(), *trailers])
        self.said.append(Said(way, self.inside, canary, code == "OK", raw))
        return code

    async def _weigh(self) -> None:
        """How many bytes a door takes of prompts that it must refuse, from a client that sends what it is asked for."""
        async with counting_proxy(self.mesh.countries["jp"].http) as proxy:
            for size in (*SIZES, *SIZES):
                before = proxy.sent_bytes
                body = _body(CHAT, "word " * (size // 5))
                raw = await _post(proxy.port, CHAT_PATH, self.acme.key.text, body, wait=True)
                assert raw.split(b" ", 2)[1] == b"451"
                self.points.append((len(body), proxy.sent_bytes - before))

    def found(self) -> Found:
        """What the detectors find in all that crossed, was kept, was shown and was answered. After the mesh has ended."""
        found, mesh = Found(), self.mesh
        crossed, kept, shown, answered, heavy, opaque = (found.hits.setdefault(name, []) for name in DETECTORS)
        all_legs = mesh.legs()
        files = list(files_below(mesh.folder / "home", set()))
        looked = (len(all_legs), len(files), len(mesh.countries), len(self.said), len(self.points), len(all_legs))
        found.looked = dict(zip(DETECTORS, looked, strict=True))
        for canaries in (self.inside, self.sent_on, self.after, self.others):
            hits, unread = search_legs(canaries, all_legs)
            allowed = OPEN if canaries is self.sent_on else frozenset[str]()
            crossed += [hit for hit in hits if hit.place not in allowed]
            opaque += [Hit(place, "any", "packed") for place in unread]
            kept += search_each(canaries, files, mesh.folder)[0]
            for country, gateway in mesh.countries.items():
                shown += canaries.search(f"metrics of {country}", gateway.metrics)
            for said in self.said:
                if said.canaries is not canaries:
                    answered += canaries.search(f"answer: {said.way}", said.raw)
        answered += [
            Hit(f"answer: {said.way}", said.canary.language, "its tag", (said.way,))
            for said in self.said
            if not said.good and said.canary.shows_in(said.raw)
        ]
        found.slope = slope(self.points)
        if max(abs(found.slope.low), abs(found.slope.high)) > VOLUME_WITHIN:
            heavy.append(Hit("jp's door", "any", "bytes for each byte of a prompt"))
        return found


DETECTORS = (
    "canaries on legs, in clear",
    "canaries in files",
    "canaries in metrics",
    "canaries in answers",
    "volume by size of prompt",
    "bytes on legs that nobody can read",
)
"""By what the lab finds leaks; the code is the lab's (`border.canary`, `border.evidence`, `border.measure`)."""


def _body(model: str, text: str, **more: Any) -> bytes:
    fields = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    return json.dumps(fields, ensure_ascii=False).encode()


async def _post(port: int, path: str, key: str, body: bytes, *, wait: bool = False) -> bytes:
    """One request on a connection of its own. With `wait` the body is sent only once the server asks for it."""
    lines = [f"POST {path} HTTP/1.1", "host: door.test", "content-type: application/json", "connection: close"]
    lines += [f"authorization: Bearer {key}", f"content-length: {len(body)}"]
    lines += ["expect: 100-continue"] if wait else []
    async with asyncio.timeout(250):
        reader, writer = await asyncio.open_connection(HERE, port, limit=1 << 20)
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode() + (b"" if wait else body))
            first = b""
            if wait:
                first = await reader.readuntil(b"\r\n\r\n")
                if first.split(b" ", 2)[1] == b"100":
                    writer.write(body)
                    first = b""
            return first + await reader.read()
        finally:
            writer.close()
