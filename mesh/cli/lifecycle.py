"""`mesh up`, `mesh down` and `mesh status`: the mesh on this machine."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Group
from rich.markup import escape
from rich.text import Text

from mesh.cli.context import Status, here_of
from mesh.cli.options import Json, split
from mesh.cli.output import Column, cell, people, print_json, table, words
from mesh.embedded.configuration import catalogue
from mesh.errors import Code, MeshError
from mesh.policy.hostnames import label_of
from mesh.settings import DOMAIN_RULE, is_domain
from mesh.types import RegionId, TenantId

Row = Mapping[str, object]


def up(
    context: typer.Context,
    regions: Annotated[
        str | None,
        typer.Option(
            metavar="R,R",
            help="Region ids, comma-separated. By default vn-1, ap-southeast-1 and ap-northeast-1.",
            show_default=False,
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when every region is ready, and leave it running.")
    ] = False,
    accelerator: Annotated[str, typer.Option(help="What replicas compute on: cpu or cuda.")] = "cpu",
    domain: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Give tenants names under it, <label>.<region>.NAME, and each region a front.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Start a mesh on this machine: a control store, regions with real models, and two sample tenants."""
    here = here_of(context)
    if accelerator not in ("cpu", "cuda"):
        raise MeshError(Code.INVALID_PARAMETER, param="accelerator", hint="Known are: cpu, cuda.")
    if domain is not None and not is_domain(domain):
        raise MeshError(Code.INVALID_PARAMETER, param="domain", hint=f"It must be {DOMAIN_RULE}.")
    names = None if regions is None else split(regions, "regions")
    known = catalogue().regions
    for name in names or ():
        if RegionId(name) not in known:
            raise MeshError(Code.UNKNOWN_REGION, param="regions", hint=f"Known are: {', '.join(known)}.")
    console = words()

    def progress(text: str) -> None:
        console.print(f"[dim]·[/] {escape(text)}")

    def ready(status: Status) -> None:
        control = status.get("control")
        if as_json:
            print_json(status)
        elif isinstance(control, dict) and cast("Row", control)["went_back"]:
            people().print(picture(status))  # it serves nobody, and says what to do
        else:
            _welcome(status, here.home)
            if not detach:
                console.print("Ctrl-C stops it.", style="dim")

    here.supervisor.up(
        here.home,
        regions=names,
        accelerator=accelerator,
        domain=domain,
        detach=detach,
        progress=progress,
        ready=ready,
    )


def down(context: typer.Context, as_json: Json = False) -> None:
    """Stop the mesh: exactly what was started."""
    here = here_of(context)
    console = words()
    stopped = here.supervisor.down(here.home, progress=lambda text: console.print(f"[dim]·[/] {escape(text)}"))
    if as_json:
        print_json({"stopped": [{"name": row["name"], "pid": row["pid"]} for row in stopped]})
        return
    console.print(f"Stopped {len(stopped)} processes.", style="green")


def status(context: typer.Context, as_json: Json = False) -> None:
    """Show how the mesh is: its regions, gateways and replicas, and what is wrong."""
    here = here_of(context)
    found = here.supervisor.status(here.home)
    if as_json:
        print_json(found)
    else:
        people().print(picture(found))


def picture(status: Status) -> Group:
    """A status for people."""
    etcd = cast("Row", status["etcd"])
    healthy = "[green]healthy[/]" if etcd["healthy"] else "[red]not healthy[/]"
    if etcd["healthy"] is None:
        healthy = "[dim]not asked from here[/]"
    lines = [
        f"[bold]mesh[/]  {cell(status['state'])}    etcd {healthy} {cell(etcd['version'])}",
        *(f"  [yellow]![/] {escape(str(reason))}" for reason in cast("list[object]", status["reasons"])),
        "",
    ]
    regions: list[Row] = []
    replicas: list[Row] = []
    for region in cast("list[Row]", status["regions"]):
        gateways = [f"{gateway['id']} {gateway['state']}" for gateway in cast("list[Row]", region["gateways"])]
        regions.append({**region, "gateways": ", ".join(gateways), "ray": cast("Row", region["ray"])["state"]})
        replicas += [{"region": region["id"], **_replica(row)} for row in cast("list[Row]", region["replicas"])]
    columns = [Column(name, name) for name in ("state", "http", "grpc", "gateways", "ray")]
    columns = [Column("region", "id"), Column("in", "jurisdiction"), *columns]
    busy = [Column(name, name) for name in ("region", "model", "state", "busy", "queued", "kv", "pid")]
    return Group(*(Text.from_markup(line) for line in lines), table(regions, columns), "", table(replicas, busy))


def _welcome(status: Status, home: Path) -> None:
    """Prints what one needs to make the first calls: addresses, the CA, sample keys, and lines to paste."""
    regions = cast("list[Row]", status["regions"])
    started = {region["id"] for region in regions}
    samples = {name: row for name, row in _samples(home).items() if row["home"] in started}
    console = people()
    console.print("\n[bold green]The mesh is ready.[/]")
    console.print(table(regions, [Column(name, name) for name in ("id", "jurisdiction", "state", "http", "grpc")]))
    console.print(f"\nCA file   {escape(str(status['ca']))}", soft_wrap=True)
    if samples:
        keys = [{**row, "name": name} for name, row in samples.items()]
        console.print("\n[bold]Sample tenants[/]")
        console.print(table(keys, [Column(name, name) for name in ("name", "home", "allowed", "key")]))
        names = _names(regions, samples)
        if names:
            console.print("\n[bold]Their names[/], as lines of /etc/hosts", highlight=False)
            console.print("\n".join(names), highlight=False)
        # Not through Rich: lines to paste must not be broken where a window ends.
        sys.stdout.write(f"\n{_lines(status, samples, home)}\n\n")
        sys.stdout.flush()


def _lines(status: Status, samples: Mapping[str, Row], folder: Path) -> str:
    sample = next(iter(samples.values()))
    regions = {str(row["id"]): row for row in cast("list[Row]", status["regions"])}
    home = regions[str(sample["home"])]
    model = next((str(row["model"]) for row in cast("list[Row]", home["replicas"]) if _chats(row)), "MODEL")
    http, grpc, python = home["http"], home["grpc"], shlex.quote(sys.executable)
    mesh = shlex.quote(str(Path(sys.executable).with_name("mesh")))
    exports = {"MESH_HOME": str(folder), "MESH_CA": str(status["ca"]), "MESH_API_KEY": str(sample["key"])}
    exported = " ".join(f"{name}={shlex.quote(value)}" for name, value in exports.items())
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    return f"""\
export {exported}

curl --cacert "$MESH_CA" {http}/v1/chat/completions \\
  -H "Authorization: Bearer $MESH_API_KEY" -H 'Content-Type: application/json' \\
  -d '{body}'

{python} - <<'END'
import os, ssl, httpx2, openai
http = httpx2.Client(verify=ssl.create_default_context(cafile=os.environ["MESH_CA"]))
client = openai.OpenAI(base_url="{http}/v1", api_key=os.environ["MESH_API_KEY"], http_client=http)
answer = client.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "Hello"}}])
print(answer.choices[0].message.content)
END

{python} - <<'END'
import os, grpc
from mesh.v1 import inference_pb2, inference_pb2_grpc
trust = grpc.ssl_channel_credentials(open(os.environ["MESH_CA"], "rb").read())
with grpc.secure_channel("{grpc}", trust) as channel:
    request = inference_pb2.ChatRequest(model="{model}", messages=[{{"role": "user", "content": "Hello"}}])
    key = [("authorization", "Bearer " + os.environ["MESH_API_KEY"])]
    print(inference_pb2_grpc.InferenceStub(channel).Chat(request, metadata=key).choices[0].message.content)
END

{mesh} chat 'Hello'"""


def _names(regions: Sequence[Row], samples: Mapping[str, Row]) -> list[str]:
    """Where a sample tenant's names in the regions of its pin lead, if tenants have names."""
    lines: list[str] = []
    for region in regions:
        front = cast("Row | None", region.get("front"))
        if front is not None:
            host = str(region["http"]).removeprefix("https://").rpartition(":")[0]
            tenants = [
                row["tenant"] for row in samples.values() if region["jurisdiction"] in cast("list[str]", row["allowed"])
            ]
            lines += [f"{host} {label_of(TenantId(str(tenant)))}.{front['zone']}" for tenant in tenants]
    return lines


def _chats(replica: Row) -> bool:
    model = catalogue().models.get(replica["model"])  # pyright: ignore[reportArgumentType] - a name from the status
    return model is not None and model.kind == "chat"


def _samples(home: Path) -> dict[str, Row]:
    try:
        return cast("dict[str, Row]", json.loads((home / "samples.json").read_text()))
    except (OSError, ValueError):
        return {}


def _replica(row: Row) -> dict[str, object]:
    return {
        "model": row["model"],
        "state": row["state"],
        "busy": f"{row['running']}/{row['slots']}",
        "queued": row["queued"],
        "kv": f"{cast('float', row['kv_used']):.0%}",
        "pid": row["pid"],
    }
