"""Frames survive any cut of the stream; facts are read without the text, and refusals hold nothing of it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.content.facts import read_facts
from mesh.content.frames import Frame, FrameError, FrameKind, FrameParser, encode
from mesh.errors import Code, MeshError
from mesh.types import Facts, Usage

counts = st.integers(0, 2**32 - 1)
frames = st.builds(Frame, st.sampled_from(list(FrameKind)), st.builds(Usage, counts, counts), st.binary(max_size=200))


@given(st.lists(frames, max_size=8), st.lists(st.integers(1, 50), max_size=40))
def test_any_cut_gives_the_same_frames(sent: list[Frame], cuts: list[int]) -> None:
    stream = b"".join(encode(frame.kind, frame.usage, frame.payload) for frame in sent)
    parser, seen = FrameParser(), []
    for size in [*cuts, len(stream)]:
        seen += parser.feed(stream[:size])
        stream = stream[size:]
    assert seen == sent
    assert not parser.mid_frame


@pytest.mark.parametrize("bad", [b"\x09" + bytes(12), b"\x01\xff\xff\xff\xff" + bytes(8)])
def test_what_is_no_frame_is_refused(bad: bytes) -> None:
    with pytest.raises(FrameError):
        list(FrameParser().feed(bad))


def test_a_frame_does_not_show_its_payload() -> None:
    assert "secret" not in repr(Frame(FrameKind.DATA, Usage(), b"secret"))


FACTS = [
    ('{"model":"m","messages":[{"role":"user","content":"x"}]}', Facts(model="m", stream=False)),
    ('{"stream":true,"model":"m"}', Facts(model="m", stream=True)),
    ('{"stream":null,"model":"m","x":[[[]]]}', Facts(model="m", stream=False)),
]
FAULTS = [
    ("", Code.MALFORMED_BODY, None),
    ("[]", Code.MALFORMED_BODY, None),
    ('"x"', Code.MALFORMED_BODY, None),
    ('{"model":"m"} trailing', Code.MALFORMED_BODY, None),
    ('{"model":"m","x":' + "[" * 100_000 + "]" * 100_000 + "}", Code.MALFORMED_BODY, None),
    ("{}", Code.INVALID_PARAMETER, "model"),
    ('{"model":null}', Code.INVALID_PARAMETER, "model"),
    ('{"model":["secret"]}', Code.INVALID_PARAMETER, "model"),
    ('{"model":""}', Code.INVALID_PARAMETER, "model"),
    ('{"model":"m","stream":"secret"}', Code.INVALID_PARAMETER, "stream"),
]


@pytest.mark.parametrize(("body", "facts"), FACTS)
def test_facts(body: str, facts: Facts) -> None:
    assert read_facts(bytearray(body.encode())) == facts


@pytest.mark.parametrize(("body", "code", "param"), FAULTS, ids=range(len(FAULTS)))
def test_faults(body: str, code: Code, param: str | None) -> None:
    with pytest.raises(MeshError) as caught:
        read_facts(body.encode())
    assert (caught.value.code, caught.value.param) == (code, param)
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None


json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(["model", "stream", "messages"]), json_values))
def test_any_object_gives_facts_or_a_named_fault(body: dict[str, object]) -> None:
    try:
        facts = read_facts(json.dumps(body).encode())
    except MeshError as error:
        assert error.code is Code.INVALID_PARAMETER
        assert error.param in ("model", "stream")
    else:
        assert facts.model == body["model"]


@given(st.binary(max_size=60))
def test_any_bytes_give_facts_or_a_named_fault(body: bytes) -> None:
    try:
        read_facts(body)
    except MeshError as error:
        assert error.code in (Code.MALFORMED_BODY, Code.INVALID_PARAMETER)
