"""`mesh chat`: one question over a region's HTTP door, as any client would ask it."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Annotated, cast

import httpx2
import typer

from mesh.cli.context import Site, Sites, here_of
from mesh.cli.options import Json
from mesh.cli.output import UsageFault, print_json
from mesh.cli.running import CALL_TIMEOUT_S
from mesh.errors import Code, MeshError

_ANSWER_TIMEOUT_S = 300.0
_OK = 200
Body = Mapping[str, object]


def chat(
    context: typer.Context,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to say.", show_default=False)],
    key: Annotated[
        str | None,
        typer.Option(help="An API key. By default MESH_API_KEY, since arguments show in ps.", show_default=False),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="REGION", help="Which door. By default the first that serves this key.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="By default the key's first chat model there.", show_default=False)
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="The longest answer. By default as long as the model's context.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask a model something; the answer streams to stdout."""
    here = here_of(context)
    secret = key or here.key
    if secret is None:
        raise UsageFault("A key is needed: give --key, or set MESH_API_KEY.", param="key")
    if not secret.isascii() or not secret.isprintable():
        raise MeshError(Code.INVALID_API_KEY)
    sites = here.supervisor.sites(here.home)
    answer = asyncio.run(_chat(sites, text, secret, at, model, max_tokens, as_json=as_json))
    if as_json:
        print_json(answer)
    else:
        sys.stdout.write("\n")


async def _chat(
    sites: Sites,
    text: str,
    key: str,
    at: str | None,
    model: str | None,
    max_tokens: int | None,
    *,
    as_json: bool,
) -> dict[str, object]:
    headers = {"authorization": f"Bearer {key}"}
    # Not from the environment: a proxy, or a file of TLS secrets, is none of the prompt's business.
    async with httpx2.AsyncClient(
        verify=_trust(sites.ca), trust_env=False, headers=headers, timeout=CALL_TIMEOUT_S
    ) as client:
        door = await _door(client, sites.regions, at)
        if model is None:
            model = await _model(client, door)
        request: dict[str, object] = {
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if max_tokens is not None:
            request["max_tokens"] = max_tokens
        said: list[str] = []
        usage: object = None
        stream = client.stream("POST", f"{door}/v1/chat/completions", json=request, timeout=_ANSWER_TIMEOUT_S)
        async with _Reached(door), stream as answer:
            if answer.status_code != _OK:
                raise _refusal(_object(await answer.aread()))
            async for event in _events(answer):
                piece = _text_of(event)
                said.append(piece)
                usage = event.get("usage") or usage
                if not as_json:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
            return {
                "text": "".join(said),
                "usage": usage,
                "region": answer.headers.get("mesh-region"),
                "request_id": answer.headers.get("x-request-id"),
            }


async def _door(client: httpx2.AsyncClient, sites: Sequence[Site], at: str | None) -> str:
    if at is not None:
        for site in sites:
            if site.id == at:
                return site.http
        raise MeshError(Code.UNKNOWN_REGION, hint=f"It has: {', '.join(site.id for site in sites)}.")
    refusal = MeshError(Code.REGION_UNREACHABLE, hint="No door answers: 'mesh status' says what is wrong.")
    for site in sites:
        try:
            answer = await client.get(f"{site.http}/v1/route")
        except httpx2.TransportError:
            continue
        if answer.status_code == _OK:
            if _object(answer.content).get("served_here") is True:
                return site.http
            refusal = MeshError(Code.RESIDENCY_REFUSED, hint="No region of this mesh is in the key's pin.")
        else:
            refusal = _refusal(_object(answer.content))
            if refusal.code is Code.INVALID_API_KEY:
                break
    raise refusal


async def _model(client: httpx2.AsyncClient, door: str) -> str:
    async with _Reached(door):
        answer = await client.get(f"{door}/v1/models")
    body = _object(answer.content)
    if answer.status_code != _OK:
        raise _refusal(body)
    for row in cast("list[Body]", body.get("data") or []):
        if row.get("kind") == "chat":
            return str(row["id"])
    raise MeshError(Code.MODEL_NOT_FOUND, hint="This key may use no chat model from there.")


class _Reached:
    """Says that a door cannot be reached, instead of how a library says it: that can quote the request."""

    def __init__(self, door: str) -> None:
        self._door = door

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, httpx2.TimeoutException):
            raise MeshError(Code.DEADLINE_EXCEEDED) from None
        if kind is not None and issubclass(kind, httpx2.TransportError):
            hint = f"{self._door} broke off or does not answer: 'mesh status' says what is wrong."
            raise MeshError(Code.REGION_UNREACHABLE, hint=hint) from None


async def _events(answer: httpx2.Response) -> AsyncGenerator[Body]:
    """The events of a stream, up to `[DONE]`.

    Raises:
        MeshError: What an error event says; REPLICA_FAILED when the stream ends early.
    """
    async for line in answer.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        event = _object(data)
        if "error" in event:
            raise _refusal(event)
        yield event
    raise MeshError(Code.REPLICA_FAILED)


def _text_of(event: Body) -> str:
    for choice in cast("list[Body]", event.get("choices") or []):
        content = cast("Body", choice.get("delta") or {}).get("content")
        if isinstance(content, str):
            return content
    return ""


def _refusal(body: Body) -> MeshError:
    """A door's error by its code: our words for it, not the body's."""
    error = body.get("error")
    fields = cast("Body", error) if isinstance(error, dict) else {}
    try:
        code = Code(str(fields.get("code")))
    except ValueError:
        code = Code.INTERNAL_ERROR
    hint = ""
    if code is Code.RESIDENCY_REFUSED:
        allowed = cast("list[Body]", fields.get("allowed") or [])
        hint = f"Its pin has: {', '.join(str(row.get('region')) for row in allowed)}." if allowed else ""
    param = fields.get("param")
    return MeshError(code, param=param if isinstance(param, str) else None, hint=hint)


def _object(data: str | bytes) -> Body:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return cast("Body", value) if isinstance(value, dict) else {}


def _trust(ca: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError:
        raise MeshError(Code.INVALID_SETTINGS, hint=f"{ca}: not a CA file.") from None
    except OSError as error:
        hint = f"{ca}: {error.strerror}. The CA that clients of the doors trust belongs there."
        raise MeshError(Code.INVALID_SETTINGS, hint=hint) from None
    return context
