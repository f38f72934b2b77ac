"""One event loop for these tests: grpc has one poller a process, and fails where an event's loop was closed before."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from mesh.embedded.authority import make_pki
from mesh.types import RegionId


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
async def one_loop(anyio_backend: str) -> AsyncGenerator[None]:
    yield  # noqa: PT022 - while it is suspended, the loop lives


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    regions = {RegionId(name): ["127.0.0.1"] for name in ("vn-1", "ap-southeast-1", "ap-northeast-1")}
    make_pki(folder, regions, ["127.0.0.1"])
    return folder
