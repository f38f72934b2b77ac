"""The models that tests run, converted once and kept beside the repository's other caches."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def models_dir() -> Path:
    return Path(__file__).parents[2] / ".mesh-test-cache" / "models"
