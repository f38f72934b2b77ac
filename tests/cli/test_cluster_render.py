"""`mesh region render` fills cluster.yaml for each region, and Ray's cluster launcher takes what comes out."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from mesh.cli.cluster import render_cluster
from mesh.errors import SettingsError
from mesh.settings import load_catalogue

ROOT = Path(__file__).parents[2]
REGIONS = load_catalogue(ROOT / "regions").regions


@pytest.mark.parametrize("region", REGIONS.values(), ids=list(REGIONS))
def test_ray_takes_it(region) -> None:
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    text = render_cluster(ROOT / "cluster.yaml", region)
    config = yaml.safe_load(text)
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    assert [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(config)] == []
    validate_config(prepare_config(copy.deepcopy(config)))
    assert "${" not in text
    assert config["cluster_name"] == f"mesh-{region.id}"


@pytest.mark.parametrize("region", REGIONS.values(), ids=list(REGIONS))
def test_it_keeps_what_ray_must_not_do(region) -> None:
    config = yaml.safe_load(render_cluster(ROOT / "cluster.yaml", region))
    commands = config["head_start_ray_commands"] + config["worker_start_ray_commands"] + config["setup_commands"]
    assert not any("ray stop" in command for command in commands)
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][0]
    assert all("/etc/mesh/ray.env" in command for command in commands if "ray start" in command)


def test_a_region_without_machines_says_so() -> None:
    region = dataclasses.replace(REGIONS["vn-1"], provider={})
    with pytest.raises(SettingsError, match="invalid_settings"):
        render_cluster(ROOT / "cluster.yaml", region)


def test_a_value_cannot_become_structure(tmp_path: Path) -> None:
    template = tmp_path / "cluster.yaml"
    template.write_text("all: {cluster_name: 'mesh-${region}'}\nlocal: {provider: {head_ip: '${provider.head_ip}'}}\n")
    provider = {**REGIONS["vn-1"].provider, "head_ip": "1\nmax_workers: 9"}
    region = dataclasses.replace(REGIONS["vn-1"], provider=provider)
    assert yaml.safe_load(render_cluster(template, region)) == {
        "cluster_name": "mesh-vn-1",
        "provider": {"head_ip": "1\nmax_workers: 9"},
    }


def test_a_name_that_no_file_has(tmp_path: Path) -> None:
    template = tmp_path / "cluster.yaml"
    template.write_text("all: {cluster_name: '${provider.colour}'}\nlocal: {}\n")
    with pytest.raises(SettingsError) as caught:
        render_cluster(template, REGIONS["vn-1"])
    assert "provider.colour" in caught.value.faults[0]
