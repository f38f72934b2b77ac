"""A door's certificate is good for its own region only, or nothing is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.embedded.authority import make_pki
from mesh.errors import Code, MeshError
from mesh.tls import check_door_names
from mesh.types import RegionId

VN = RegionId("vn-1")
FOREIGN = ["sg-1.mesh.test", "jp-1.other.test"]


@pytest.mark.parametrize("zone", ["vn-1.mesh.test", "xsg-1.mesh.test", None])
def test_names_of_its_own(tmp_path: Path, zone: str | None) -> None:
    make_pki(tmp_path, {VN: ["127.0.0.1"]}, ["127.0.0.1"], zones={} if zone is None else {VN: zone})
    check_door_names(tmp_path, VN, FOREIGN)


@pytest.mark.parametrize("zone", ["sg-1.mesh.test", "a.sg-1.mesh.test", "jp-1.other.test", "mesh.test"])
def test_names_of_another_region(tmp_path: Path, zone: str) -> None:
    make_pki(tmp_path, {VN: ["127.0.0.1"]}, ["127.0.0.1"], zones={VN: zone})
    with pytest.raises(MeshError) as caught:
        check_door_names(tmp_path, VN, FOREIGN)
    assert caught.value.code is Code.INVALID_SETTINGS
    assert "door.pem" in caught.value.hint


def test_what_is_no_certificate(tmp_path: Path) -> None:
    make_pki(tmp_path, {VN: ["127.0.0.1"]}, ["127.0.0.1"])
    (tmp_path / VN / "door.pem").write_bytes(b"no certificate")
    with pytest.raises(MeshError) as caught:
        check_door_names(tmp_path, VN, FOREIGN)
    assert caught.value.code is Code.INVALID_SETTINGS
