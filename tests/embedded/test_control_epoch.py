"""The control epoch of a home: kept for later starts, in every program's settings, never guessed."""

from pathlib import Path

import pytest

from mesh.embedded.addresses import Addresses
from mesh.embedded.configuration import catalogue, embedded_settings, places, write_settings
from mesh.embedded.control_epoch import control_epoch, keep_control_epoch
from mesh.embedded.home import Home
from mesh.errors import Code, MeshError
from mesh.settings import load
from mesh.types import RegionId

VN = RegionId("vn-1")


def test_it_is_kept_and_read_by_every_program(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert control_epoch(home) == 1
    keep_control_epoch(home, 3)
    assert control_epoch(home) == 3
    addresses = Addresses("0" * 32, 7, 20_000, places(catalogue()))
    settings = embedded_settings(
        catalogue(), (VN,), home, addresses, tmp_path / "models", "cpu", {VN: ()}, control_epoch(home)
    )
    write_settings(settings, home.config)
    assert load(home.config).control_epoch == 3


@pytest.mark.parametrize("text", ["", "{}", '{"epoch": 0}', '{"epoch": "2"}', '{"epoch": 2'])
def test_a_damaged_file_is_no_first_epoch(tmp_path: Path, text: str) -> None:
    home = Home(tmp_path)
    home.control.write_text(text)
    with pytest.raises(MeshError) as refused:
        control_epoch(home)
    assert refused.value.code is Code.START_FAILED
    assert "control.json" in refused.value.hint
