"""What every test shares: one asyncio backend, and one reproducible profile of hypothesis."""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("mesh", derandomize=True, deadline=None, max_examples=150)
settings.load_profile("mesh")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
