"""One mesh for all of these tests, started as a process; tests that break its parts come last."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from pathlib import Path

import pytest
from e2e.live import JP, SG, VN, Mesh, wait_until

TEST_TIMEOUT_S = 180
_FIRST_START_S = 1500
"""The first start of a machine installs packages and converts the weights."""

# A shell that starts this in the background has SIGINT ignored by all that it starts; Ctrl-C is one of the things tested.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts tests that break parts last, and gives each test of a mesh the time that a loaded machine needs."""
    items.sort(key=lambda item: (item.get_closest_marker("fault") is not None, _rank(item)))
    for item in items:
        if item.get_closest_marker("mesh") and not item.get_closest_marker("timeout"):
            # The start of the shared mesh has a limit of its own.
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S, func_only=True))


def _rank(item: pytest.Item) -> bool:
    """All that needs no mesh goes first: it fails sooner."""
    return item.get_closest_marker("mesh") is not None


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Generator[Mesh]:
    """Three regions, ready. `MESH_E2E_HOME` names the home of a mesh that runs already and is left running."""
    if given := os.environ.get("MESH_E2E_HOME"):
        mesh = Mesh(Path(given).resolve())
        mesh.wait_ready()
        yield mesh
        return
    mesh = Mesh(tmp_path_factory.mktemp("mesh") / "home", (VN, SG, JP))
    try:
        ran = mesh.up(timeout_s=_FIRST_START_S)
        assert ran.code == 0, ran.err[-4000:]
        assert ran.json["state"] == "ready"
        yield mesh
    finally:
        down = mesh.run("down", "--json")
    assert down.code == 0, down.err[-4000:]
    assert down.json["stopped"]
    wait_until(lambda: not mesh.processes(), "nothing is left running", deadline_s=10)
    assert not mesh.temp.exists()


@pytest.fixture(scope="session")
def acme(mesh: Mesh) -> str:
    """The key of a tenant that allows VN."""
    return mesh.key("acme")


@pytest.fixture(scope="session")
def globex(mesh: Mesh) -> str:
    """The key of a tenant that allows VN and SG, and sending on between them."""
    return mesh.key("globex")
