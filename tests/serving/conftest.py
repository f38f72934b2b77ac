"""The models that tests run, converted once and kept beside the repository's other caches; and one event loop.

grpc has one poller a process, and fails where an event's loop was closed before: so all tests of a session share a loop.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def models_dir() -> Path:
    return Path(__file__).parents[2] / ".mesh-test-cache" / "models"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
async def one_loop(anyio_backend: str) -> AsyncGenerator[None]:
    yield  # noqa: PT022 - while it is suspended, the loop lives
