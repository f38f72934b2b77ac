"""The lab's own arithmetic: forms of content, readers, slopes, bounds and the report. Needs no lab."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest
from border.canary import LANGUAGES, Canaries, Encode, forms, varint
from border.evidence import Leg, legs, streams
from border.measure import slope, student_t


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_form_of_a_prompt_is_found_inside_of_longer_text(language: str, tokenizers: Mapping[str, Encode]) -> None:
    canaries = Canaries(tokenizers)
    text = canaries.make("a path", language).text
    whole = f"before {text} after"
    ids = tokenizers["smollm2"](whole)
    shapes: dict[str, bytes] = {
        "plain": whole.encode(),
        "excerpt of the beginning": text[:40].encode(),
        "excerpt of the end": text[-40:].encode(),
        "hex": whole.encode().hex().encode(),
        "HEX": whole.encode().hex().upper().encode(),
        "utf-16": whole.encode("utf-16"),
        "utf-16 behind an odd byte": b"x" + whole.encode("utf-16-be"),
        "json": json.dumps({"a": whole}).encode(),
        "python": repr(whole.encode()).encode(),
        "ids in json": json.dumps(ids).encode(),
        "ids in dense json": json.dumps(ids, separators=(",", ":")).encode(),
        "ids in protobuf": b"".join(map(varint, ids)),
        "ids as int64": struct.pack(f"<{len(ids)}q", *ids),
        "gzip": b"head" + gzip.compress(whole.encode()) + b"tail",
        "zlib": b"head" + zlib.compress(whole.encode()),
        "gzip in gzip": gzip.compress(gzip.compress(whole.encode())),
    }
    for shift in range(3):
        shapes[f"base64 behind {shift}"] = base64.b64encode(bytes(shift) + whole.encode())
        shapes[f"base64url behind {shift}"] = base64.urlsafe_b64encode(bytes(shift) + whole.encode())
    missed = [
        name for name, data in shapes.items() if language not in {hit.language for hit in canaries.search("x", data)}
    ]
    assert missed == []
    assert {hit.paths for hit in canaries.search("x", shapes["plain"])} == {("a path",)}


def test_what_holds_no_canary_has_no_hit(tokenizers: Mapping[str, Encode]) -> None:
    canaries, others = Canaries(tokenizers), Canaries(tokenizers)
    data = b" ".join(
        form for language in LANGUAGES for form in forms(others.make("other", language).text, tokenizers).values()
    )
    assert canaries.search("x", data + bytes(range(256)) * 1000) == []


def test_a_canary_across_two_data_frames_and_chunks_is_joined(tmp_path: Path) -> None:
    canaries = Canaries()
    text = canaries.make("a path", "en").text.encode()

    def frame(stream: int, payload: bytes, flags: int = 0) -> bytes:
        return len(payload).to_bytes(3, "big") + bytes([0, flags]) + stream.to_bytes(4, "big") + payload

    padded = bytes([5]) + text[7:] + bytes(5)
    data = frame(1, text[:7]) + frame(3, b"between") + frame(1, padded, flags=8)
    assert canaries.search("x", data) != []  # the second mark of the prompt is whole
    run = text.split()[0]
    split = frame(1, run[:5]) + frame(3, b"between") + frame(1, run[5:])
    assert canaries.search("x", split) == []
    assert streams(split) == {1: run, 3: b"between"}
    (tmp_path / "00001-10.88.1.1-10.88.2.1-8445-h2.up").write_bytes(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + split)
    (tmp_path / "00002-10.88.2.1-10.88.1.1-2380-http_1.1.down").write_bytes(run[:5] + b"\r\n1a\r\n" + run[5:])
    for leg in legs(tmp_path):
        assert any(canaries.search("x", view) for view in leg.views()), leg
    assert [leg.place for leg in legs(tmp_path)] == ["vn>sg 8445", "vn>sg 2380"]
    assert isinstance(legs(tmp_path)[0], Leg)


def test_a_slope_is_what_it_is() -> None:
    exact = slope([(1, 3), (2, 5), (3, 7), (4, 9)])
    assert exact.value == pytest.approx(2)
    assert exact.high - exact.low == pytest.approx(0, abs=1e-9)
    # Source: worked by hand for these four points.
    rough = slope([(0, 0), (1, 2), (2, 1), (3, 3)])
    assert rough.value == pytest.approx(0.8)
    assert rough.high - rough.value == pytest.approx(4.303 * (1.8 / 2 / 5) ** 0.5)
    flat = slope([(1, 4), (2, 4), (3, 4), (9, 4)])
    assert (flat.low, flat.value, flat.high) == pytest.approx((0, 0, 0), abs=1e-9)
    with pytest.raises(ValueError, match="too few"):
        slope([(1, 1), (1, 2), (1, 3), (1, 4)])


def test_what_flows_all_the_time_is_told_apart() -> None:
    seconds = [1.0, 2.0, 3.0, 1.5, 2.5, 9.0]
    sizes = [1.0, 10.0, 100.0, 2.0, 50.0, 4.0]
    found = slope([(x, 7 + 0.5 * x + 100 * s) for x, s in zip(sizes, seconds, strict=True)], seconds)
    assert found.value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("freedom", "table"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (10, 2.228), (30, 2.042)]
)
def test_student(freedom: int, table: float) -> None:
    assert student_t(freedom) == pytest.approx(table, rel=5e-3)
