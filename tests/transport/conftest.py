"""Certificates for three regions on loopback."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.embedded.authority import make_pki
from mesh.types import RegionId


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    regions = {RegionId(name): ["127.0.0.1"] for name in ("vn-1", "ap-southeast-1", "ap-northeast-1")}
    make_pki(folder, regions, ["127.0.0.1"])
    return folder
