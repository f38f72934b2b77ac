"""What every test shares: one event loop, and one reproducible profile of hypothesis.

grpc has one poller a process, and fails where an event arrives for a loop that was closed: so all tests share a loop.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator

import pytest
from hypothesis import HealthCheck, settings

from mesh.tls import prepare_process

# grpc reads this when it is imported, so before any test module is.
prepare_process(os.environ)

# How long it takes to make examples says how busy the machine is.
settings.register_profile(
    "mesh", derandomize=True, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("mesh")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
async def one_loop(anyio_backend: str) -> AsyncGenerator[None]:
    yield  # noqa: PT022 - while it is suspended, the loop lives
