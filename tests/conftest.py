"""What every test shares: one asyncio backend, and one reproducible profile of hypothesis."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from mesh.tls import prepare_process

# grpc reads this when it is imported, so before any test module is.
prepare_process(os.environ)

settings.register_profile("mesh", derandomize=True, deadline=None, max_examples=150)
settings.load_profile("mesh")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
