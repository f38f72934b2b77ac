"""Whatever a client sends is a call or a refusal by name, and a refusal never holds what was sent."""

from __future__ import annotations

import json
import traceback
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from mesh.errors import Code, MeshError
from mesh.serving import openai_json
from mesh.serving.parameters import read_call, read_model
from mesh.serving.protobuf import Parcel
from mesh.types import Operation

CANARY = "Zyzzyva"
NAMES = [
    "model",
    "messages",
    "prompt",
    "input",
    "role",
    "content",
    "name",
    "type",
    "text",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "n",
    "stop",
    "seed",
    "logprobs",
    "top_logprobs",
    "stream",
    "stream_options",
    "include_usage",
    "user",
    "encoding_format",
    "dimensions",
    "tools",
    "metadata",
    "response_format",
    "logit_bias",
    "tool_calls",
    "echo",
    "best_of",
    "suffix",
]

words = st.one_of(
    st.sampled_from(["user", "system", "text", "float", "base64", ""]),
    st.text(max_size=8).map(lambda text: CANARY + text),
)
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), words, st.sampled_from([0, 1, 16])
)
keys = st.one_of(st.sampled_from(NAMES), words)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5), max_leaves=25
)
message = st.fixed_dictionaries({"role": words, "content": values}, optional={"name": values, "foo": values})
documents = st.one_of(
    st.dictionaries(keys, values, max_size=8),
    st.fixed_dictionaries(
        {"model": words},
        optional={name: values for name in NAMES if name != "model"}
        | {"messages": st.lists(message | values, max_size=3)},
    ),
)


def read(operation: Operation, body: bytes) -> None:
    try:
        document = openai_json.decode(body)
        read_model(document)
        read_call(operation, document)
    except MeshError as error:
        shows_nothing(error)


def shows_nothing(error: MeshError) -> None:
    shown = "".join([error.message, repr(error.param), repr(error), *traceback.format_exception(error)])
    assert CANARY not in shown
    assert error.__context__ is None
    assert error.__cause__ is None


@given(st.sampled_from(Operation), st.binary(max_size=200))
def test_any_bytes(operation: Operation, body: bytes) -> None:
    read(operation, body)
    try:
        read_call(operation, Parcel(operation, body).document(stream=False))
    except MeshError as error:
        shows_nothing(error)


@given(st.sampled_from(Operation), st.text(max_size=60))
@example(Operation.CHAT, '{"model": "Zyzzyva", "Zyzzyva": 1')
@example(Operation.CHAT, '{"Zyzzyva": 1, "Zyzzyva": 2}')
def test_any_text(operation: Operation, text: str) -> None:
    read(operation, text.encode("utf-8", "surrogatepass"))


@given(st.sampled_from(Operation), documents)
@example(Operation.CHAT, {"model": "m", "messages": [{"role": "user", "content": "Hi", CANARY: 1}]})
@example(Operation.CHAT, {"model": "m", "messages": [{"role": CANARY, "content": "Hi"}]})
@example(Operation.COMPLETIONS, {"model": "m", "prompt": "Hi", CANARY + " ": {CANARY: 1}})
def test_any_document(operation: Operation, document: dict[str, Any]) -> None:
    try:
        parsed = openai_json.decode(json.dumps(document).encode())
        read_model(parsed)
        read_call(operation, parsed)
    except MeshError as error:
        assert CANARY not in error.message
        assert error.__context__ is None
        if CANARY in (error.param or ""):
            # The one thing said back: the name of a field that is not known, where it looks like a field's name.
            assert error.code is Code.UNSUPPORTED_PARAMETER
            assert " " not in (error.param or "")


@given(st.sampled_from(Operation), st.binary(max_size=30), st.binary(max_size=30))
def test_any_fields_of_a_protobuf(operation: Operation, text: bytes, tail: bytes) -> None:
    body = b"\x0a\x01m\x82\x01" + bytes([len(text)]) + text + tail
    try:
        read_call(operation, Parcel(operation, body).document(stream=True))
    except MeshError as error:
        shows_nothing(error)
