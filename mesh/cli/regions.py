"""`mesh region` and `mesh model`: what is configured. Works without a running mesh."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mesh.cli.cluster import render_cluster
from mesh.cli.context import checkout, here_of
from mesh.cli.options import Json
from mesh.cli.output import Column, print_json, show_items, show_object
from mesh.embedded.front import haproxy_binary, render_front
from mesh.errors import Code, MeshError
from mesh.settings import Catalogue, Region
from mesh.types import RegionId

regions = typer.Typer(no_args_is_help=True, help="List and show regions, and fill cluster.yaml from them.")
models = typer.Typer(no_args_is_help=True, help="List models.")

RegionArgument = Annotated[str, typer.Argument(metavar="REGION", help="A region's id.", show_default=False)]
_SUMMARY = ("id", "jurisdiction", "name", "accelerator", "gpus_per_replica")


@regions.command("list")
def list_regions(context: typer.Context, as_json: Json = False) -> None:
    """List the regions: those of the mesh as it was last started, or those that may be."""
    known = here_of(context).catalogue()
    items = [_summary(region) for region in known.regions.values()]
    columns = [Column(name.replace("_", " "), name) for name in _SUMMARY]
    show_items(items, columns, as_json=as_json)


@regions.command("show")
def show_region(context: typer.Context, region: RegionArgument, as_json: Json = False) -> None:
    """Show a region: its doors, gateways and deployments."""
    found = _find(here_of(context).catalogue(), region)
    gateways = [
        {
            "id": gateway.id,
            "http": str(gateway.http),
            "grpc": str(gateway.grpc),
            "internal": str(gateway.internal),
            "peer": str(gateway.peer),
            "operator": str(gateway.operator),
        }
        for gateway in found.gateways
    ]
    deployments = [
        {
            "name": deployment.name,
            "models": list(deployment.models),
            "replicas": deployment.replicas,
            "gpus_per_replica": deployment.gpus_per_replica,
            "cpus_per_replica": deployment.cpus_per_replica,
        }
        for deployment in found.deployments
    ]
    doors = {"http": found.endpoint.http, "grpc": found.endpoint.grpc, "admin": str(found.admin)}
    answer = {**_summary(found), **doors, "gateways": gateways, "deployments": deployments}
    show_object(answer, as_json=as_json)


@regions.command("render")
def render_region(
    context: typer.Context,
    region: RegionArgument,
    template: Annotated[
        Path | None, typer.Option(help="The template; by default cluster.yaml of the checkout.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Fill cluster.yaml for a region: a file for Ray's cluster launcher, 'ray up FILE'."""
    if template is None:
        template = (checkout() or Path.cwd()) / "cluster.yaml"
    text = render_cluster(template, _find(here_of(context).machines(), region))
    if as_json:
        print_json({"region": region, "cluster": text})
    else:
        sys.stdout.write(text)


@regions.command("front")
def render_region_front(context: typer.Context, region: RegionArgument, as_json: Json = False) -> None:
    """Print the configuration of a region's front, for HAProxy in TCP mode: 'haproxy -f FILE'."""
    known = here_of(context).machines()
    text, binary = render_front(known, _find(known, region)), haproxy_binary()
    if as_json:
        print_json({"region": region, "config": text, "haproxy": None if binary is None else str(binary)})
    else:
        sys.stdout.write(text)


@models.command("list")
def list_models(context: typer.Context, as_json: Json = False) -> None:
    """List the models, and the regions that host each."""
    known = here_of(context).catalogue()
    items = [
        {
            "model": model.id,
            "kind": model.kind.value,
            "regions": [region.id for region in known.regions.values() if model.id in region.models],
            "context": model.context,
        }
        for model in known.models.values()
    ]
    columns = [Column(name, name) for name in ("model", "kind", "context", "regions")]
    show_items(items, columns, as_json=as_json)


def _find(known: Catalogue, region: str) -> Region:
    found = known.regions.get(RegionId(region))
    if found is None:
        raise MeshError(Code.UNKNOWN_REGION, hint=f"Known are: {', '.join(known.regions)}.")
    return found


def _summary(region: Region) -> dict[str, object]:
    gpus = max((deployment.gpus_per_replica for deployment in region.deployments), default=0.0)
    return {
        "id": region.id,
        "jurisdiction": region.jurisdiction,
        "name": region.name,
        "accelerator": region.accelerator,
        "gpus_per_replica": gpus,
    }
