"""Keys as text: what is made is read again, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.policy.keys import MAX_KEY_BYTES, make_key, read_key
from mesh.types import Jurisdiction

SECRET = b"s" * 32
KEY = make_key(Jurisdiction("VN"), bytes(range(48)), SECRET)


@given(st.binary(min_size=48, max_size=48), st.sampled_from(["VN", "SG", "HK"]))
def test_round_trip(randomness: bytes, jurisdiction: str) -> None:
    made = make_key(Jurisdiction(jurisdiction), randomness, SECRET)
    assert read_key(made.text, SECRET) == made
    assert len(made.text.encode()) <= MAX_KEY_BYTES
    assert made.text.startswith(f"mk_{jurisdiction.lower()}_{made.key_id}_")


def test_it_is_not_shown() -> None:
    assert KEY.text[20:] not in repr(KEY)


@given(st.integers(0, len(KEY.text) - 1), st.characters(codec="utf-8"))
def test_one_other_character_is_another_key(at: int, character: str) -> None:
    forged = KEY.text[:at] + character + KEY.text[at + 1 :]
    if forged != KEY.text:
        assert read_key(forged, SECRET) is None


@given(st.text(max_size=100))
def test_noise_is_no_key(text: str) -> None:
    assert read_key(text, SECRET) is None


def test_another_mesh_does_not_know_it() -> None:
    assert read_key(KEY.text, b"t" * 32) is None


def test_randomness_is_not_stretched() -> None:
    with pytest.raises(ValueError, match="48"):
        make_key(Jurisdiction("VN"), b"short", SECRET)
