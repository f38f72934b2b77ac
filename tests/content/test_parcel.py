"""A parcel shows its size, and nothing else."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from mesh.content.parcel import Sealed

SECRET = b"the-prompt"


@pytest.mark.parametrize("show", [str, repr, lambda p: f"{p}", lambda p: f"{[p]!r}", lambda p: f"{ {'p': p} }"])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_it_is_shown_by_its_size(show, kind) -> None:
    shown = show(Sealed(kind(SECRET), "application/json"))
    assert "10 bytes" in shown
    assert "prompt" not in shown


@pytest.mark.parametrize(
    "take", [pickle.dumps, copy.copy, copy.deepcopy, json.dumps, vars, bytes], ids=lambda each: each.__name__
)
def test_it_is_neither_pickled_nor_copied(take) -> None:
    with pytest.raises(TypeError) as caught:
        take(Sealed(SECRET, "application/json"))
    assert "prompt" not in str(caught.value)


def test_wiping_overwrites_what_can_be_overwritten_and_forgets_the_rest() -> None:
    body = bytearray(SECRET)
    view = memoryview(body)  # as a socket holds it
    parcel = Sealed(body, "application/json")
    assert parcel.open() is body
    parcel.wipe()
    parcel.wipe()
    assert bytes(view) == bytes(len(SECRET))
    assert parcel.size_bytes == len(SECRET)
    with pytest.raises(RuntimeError):
        parcel.open()
    fixed = Sealed(SECRET, "application/json")
    fixed.wipe()
    with pytest.raises(RuntimeError):
        fixed.open()
