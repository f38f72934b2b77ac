"""What an operator may type."""

from __future__ import annotations

import pytest

from mesh.admin.names import checked_allowed, checked_label, checked_name, checked_transfer
from mesh.errors import Code, MeshError
from mesh.types import Jurisdiction, Transfer

VN = Jurisdiction("VN")


@pytest.mark.parametrize("name", ["a", "Công ty A", "x" * 64, "T_not an id", "東京"])
def test_good_names(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize("name", ["", " a", "a ", "a\tb", "a\nb", "x" * 65, "\u200b", "t_" + "a" * 16])
def test_bad_names_are_refused_by_field(name: str) -> None:
    with pytest.raises(MeshError) as refused:
        checked_name(name)
    assert (refused.value.code, refused.value.param) == (Code.INVALID_PARAMETER, "name")


def test_composed_and_decomposed_names_are_one() -> None:
    assert checked_name("Co\u0302ng") == checked_name("Công")


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([], Code.INVALID_PARAMETER),
        (["XX"], Code.UNKNOWN_JURISDICTION),
        (["VN", ""], Code.UNKNOWN_JURISDICTION),
        (["SG"], Code.HOME_OUTSIDE_PIN),
    ],
)
def test_bad_pins(codes: list[str], code: Code) -> None:
    with pytest.raises(MeshError) as refused:
        checked_allowed(codes, VN)
    assert (refused.value.code, refused.value.param) == (code, "allowed")


def test_pins_take_either_case_and_count_once() -> None:
    assert checked_allowed(["vn", "VN", "sg", "KR"], VN) == {"VN", "SG", "KR"}


def test_labels() -> None:
    reserved = frozenset({"g1"})
    assert [checked_label(label, reserved) for label in ("Acme", "", "g2")] == ["acme", "", "g2"]
    for label in ("g1", "G1", "t-" + "a" * 16, "a.b", "-"):
        with pytest.raises(MeshError) as refused:
            checked_label(label, reserved)
        assert (refused.value.code, refused.value.param) == (Code.INVALID_PARAMETER, "label")


def test_transfer() -> None:
    assert checked_transfer("") is Transfer.NEVER
    assert checked_transfer("within_allowed") is Transfer.WITHIN_ALLOWED
    with pytest.raises(MeshError):
        checked_transfer("always")
