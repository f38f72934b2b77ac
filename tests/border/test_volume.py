"""How many bytes cross a border for each byte of a prompt. The router counts packets, so this needs no keys.

First an open border: there the slope is about one. Then borders that no pin opens: there it is none, for what is served
at home and for what is refused elsewhere. What the gateways always tell each other, and the control store, are counted
apart: they flow whether there are prompts or not.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from border import paths
from border.calls import wait_until
from border.countries import ABROAD, CHAT, Countries, Tenant
from border.measure import Slope, slope
from border.namespaces import ETCD, ETCD_PEER, INTERNAL, PEER
from border.paths import CHAT_PATH, Asker
from proof_report import Report

pytestmark = pytest.mark.border
KIB = 1024
SERVED = (KIB // 10, 2 * KIB, 6 * KIB)
REFUSED = (KIB, 64 * KIB, 256 * KIB)
REPEATS = 4
SERVICES = {"content": (PEER,), "border": (INTERNAL,), "control store": (ETCD, ETCD_PEER)}
WORDS = [
    "government",
    "information",
    "development",
    "university",
    "international",
    "important",
    "different",
    "president",
]
QUIET_S = 0.3
"""More than any round trip: what a request sent has crossed by then."""
AT_HOME, REFUSED_IN = "volume: served at home", "volume: refused in {}"
Series = dict[tuple[str, str], Slope]


def measured(
    countries: Countries, sizes: tuple[int, ...], send: Callable[[bytes], str]
) -> tuple[Series, dict[str, Any]]:
    """A slope for each border and service, how the prompts ended, and all bytes on the content port of each border.

    Each point is a stretch of the same length, so that what always flows is the same in all of them.
    """
    # A connection that is kept for later and closed meanwhile would be counted, and so would a handshake.
    countries.router.ask("reset connections", port=PEER)
    send(b"Hello")
    began_s = time.monotonic()
    send(text(max(sizes)).encode())
    stretch_s = 1.25 * (time.monotonic() - began_s) + QUIET_S
    points: defaultdict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    packets: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    content: defaultdict[str, int] = defaultdict(int)
    ended: set[str] = set()
    for size, _ in itertools.product(sizes, range(REPEATS)):
        lines, code = wait_until(lambda size=size: once(countries, size, send, stretch_s), "not 503", deadline_s=120)
        ended.add(code)
        for line, (service, ports) in itertools.product(lines, SERVICES.items()):
            seen = [lines[line]["ports"].get(str(port), {"bytes": 0, "packets": 0}) for port in ports]
            points[line, service].append((size, sum(one["bytes"] for one in seen)))
            packets[line, service].append(sum(one["packets"] for one in seen))
            if service == "content":
                content[line] += sum(one["bytes"] for one in seen)
        assert all("0" not in lines[line]["ports"] for line in lines), "something crossed that belongs to no service"
    # What always flows comes in small packets: content in them would make them more bytes than so many packets have.
    series = {key: slope(each, None if key[1] == "content" else packets[key]) for key, each in points.items()}
    return series, {"ended": ended, "content": dict(content)}


def once(
    countries: Countries, size: int, send: Callable[[bytes], str], stretch_s: float
) -> tuple[dict[str, Any], str] | None:
    """One prompt: what the lines counted, and how it ended. None where there was no room for it."""
    countries.router.ask("reset")
    began_s = time.monotonic()
    ended = send(text(size).encode())
    time.sleep(max(QUIET_S, stretch_s - (time.monotonic() - began_s)))
    lines = countries.router.lines()
    return None if ended in ("502", "503") else (lines, ended)


def text(size: int) -> str:
    """Words, so that 6 KiB fit into a model's context."""
    dice, words, length = random.Random(size), list[str](), 0
    while length < size:
        words.append(dice.choice(WORDS))
        length += len(words[-1]) + 1
    return " ".join(words)[:size]


def poster(countries: Countries, tenant: Tenant, country: str, model: str) -> Callable[[bytes], str]:
    """Sends a prompt; tells how it ended."""
    asker = Asker(countries, tenant, country, model, lambda _: ())

    def send(prompt: bytes) -> str:
        body = json.dumps(paths.chat_body(asker, prompt.decode(), max_tokens=1)).encode()
        return str(countries.post(country, CHAT_PATH, body, tenant.key).status)

    return send


def note(report: Report, what: str, series: Series, seen: Mapping[str, Any]) -> None:
    """Into the report: each border and service with its interval."""
    rows = report.facts.setdefault("volume: bytes on the border for each byte of a prompt", [])
    for (line, service), found in sorted(series.items()):
        contains = "yes" if found.low <= 0 <= found.high else "no"
        rows.append(
            {
                "prompts": f"{what} ({' and '.join(sorted(seen['ended']))})",
                "border": line,
                "service": service,
                "slope": round(found.value, 4),
                "95 % from": round(found.low, 4),
                "to": round(found.high, 4),
                "holds 0": contains,
                "n": found.n,
                "bytes on the content port": seen["content"][line] if service == "content" else "-",
            }
        )


@pytest.fixture(scope="module")
def control(countries: Countries, tenants: Mapping[str, Tenant], report: Report) -> Series:
    """The positive control: prompts that globex's pin lets cross from vn to sg. All else here rests on it."""
    countries.relay(on=False)
    send = poster(countries, tenants["globex"], "vn", ABROAD)
    wait_until(lambda: send(b"Hello") == "200", "globex is served from sg", deadline_s=60)
    served, seen = measured(countries, SERVED, send)
    note(report, "open border, served abroad", served, seen)
    assert seen["ended"] == {"200"}
    refused, seen = measured(countries, REFUSED, send)
    note(report, "open border, up to 256 KiB", refused, seen)
    assert seen["ended"] == {"200", "400"}  # the large ones do not fit the model's context
    for series in (served, refused):
        assert series["vn>sg", "content"].low > 0.9
        assert series["vn>sg", "content"].high < 1.2
    # And only there: nothing of it went to or came from jp.
    for line in ("vn>jp", "jp>vn", "sg>jp", "jp>sg"):
        assert refused[line, "content"] == Slope(0, 0, 0, len(REFUSED) * REPEATS)
    return refused


def test_on_an_open_border_each_byte_of_a_prompt_crosses(control: Series) -> None:
    assert control["vn>sg", "content"].value == pytest.approx(1.04, abs=0.05)


def test_what_is_served_at_home_moves_no_byte_across_a_border(
    control: Series, direct: Countries, tenants: Mapping[str, Tenant], report: Report
) -> None:
    series, seen = measured(direct, SERVED, poster(direct, tenants["acme"], "vn", CHAT))
    note(report, "pinned to vn, served in vn", series, seen)
    assert seen["ended"] == {"200"}
    assert_nothing_crosses(series, seen, ("border",), within=0.25)
    counted(report, AT_HOME, len(SERVED) * REPEATS)


@pytest.mark.parametrize("country", ["sg", "jp"])
def test_what_is_refused_elsewhere_moves_no_byte_across_a_border(
    control: Series, direct: Countries, tenants: Mapping[str, Tenant], report: Report, country: str
) -> None:
    series, seen = measured(direct, REFUSED, poster(direct, tenants["acme"], country, CHAT))
    note(report, f"pinned to vn, refused in {country}", series, seen)
    assert seen["ended"] == {"451"}
    assert_nothing_crosses(series, seen, ("border", "control store"), within=0.05)
    counted(report, REFUSED_IN.format(country), len(REFUSED) * REPEATS)


def counted(report: Report, way: str, prompts: int) -> None:
    """A way on which nothing crossed; the claim is shown once all of them were counted."""
    row = report.path(way)
    row.episodes = row.requests = prompts
    if {AT_HOME, *map(REFUSED_IN.format, ("sg", "jp"))} <= report.paths.keys():
        report.claim("volume", "0 bytes on the port for content; on an open border each byte of a prompt crosses")


def assert_nothing_crosses(
    series: Series, seen: Mapping[str, Any], services: tuple[str, ...], *, within: float
) -> None:
    """Not one byte on the port that carries content; on what always flows, a slope that is none as far as can be told.

    Args:
        series: The slopes.
        seen: The bytes of the content port.
        services: What always flows. The control store's own noise is larger than the small prompts that a model takes.
        within: How far from none the interval of those may reach.
    """
    assert set(seen["content"].values()) == {0}
    for (line, service), found in series.items():
        if service in services:
            assert -within < found.low, (line, service, found)
            assert found.high < within, (line, service, found)
