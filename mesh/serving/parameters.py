"""The rules of the API: which parameters there are, what they may be, what is refused. One set for JSON and protobuf.

A parameter of OpenAI's that the mesh does not do is accepted where it means nothing (null, or the value that turns it
off), else refused by name: an answer that silently ignored it would be a wrong one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never, cast

from mesh.errors import Code, MeshError
from mesh.serving.fields import Document, Fields
from mesh.serving.requests import Call, ChatCall, CompletionCall, EmbeddingCall, Options, Prompt
from mesh.types import Operation

MAX_ANSWERS = 8
MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20
MAX_INPUTS = 2048
DEFAULT_COMPLETION_TOKENS = 16
_SEED_LOW, _SEED_HIGH = -(2**63), 2**64 - 1
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Models are taught `system`; `developer` is its newer name."""

_Off = Callable[[object], bool]


def _never(value: object) -> bool:
    del value
    return False


def _zero(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == 0


def _one(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value == 1


def _false(value: object) -> bool:
    return value is False


def _boolean(value: object) -> bool:
    return isinstance(value, bool)


def _empty_list(value: object) -> bool:
    return isinstance(value, list) and not value


def _empty_table(value: object) -> bool:
    return isinstance(value, dict) and not value


def _words(*words: str) -> _Off:
    return lambda value: isinstance(value, str) and value in words


def _text_only(value: object) -> bool:
    return value == ["text"]


_OFF: dict[str, _Off] = {
    "audio": _never,
    "frequency_penalty": _zero,
    "function_call": _words("none", "auto"),
    "functions": _empty_list,
    "logit_bias": _empty_table,
    "metadata": _empty_table,
    "modalities": _text_only,
    "moderation": _never,
    "parallel_tool_calls": _boolean,
    "prediction": _never,
    "presence_penalty": _zero,
    "prompt_cache_key": _never,
    "prompt_cache_retention": _never,
    "reasoning_effort": _words("none"),
    "safety_identifier": _never,
    "service_tier": _words("auto", "default"),
    "store": _false,
    "tool_choice": _words("none", "auto"),
    "tools": _empty_list,
    "verbosity": _words("medium"),
    "web_search_options": _never,
}
"""OpenAI's parameters that the mesh does not do, with what turns them off. Null does for all."""
_OFF_COMPLETION: dict[str, _Off] = _OFF | {"best_of": _one, "echo": _false, "suffix": _words("")}
_OFF_EMBEDDING: dict[str, _Off] = {"dimensions": _never, "stream": _false}
_OFF_MESSAGE: dict[str, _Off] = {
    "annotations": _empty_list,
    "audio": _never,
    "function_call": _never,
    "refusal": _never,
    "tool_call_id": _never,
    "tool_calls": _empty_list,
}
"""What an answer of ours, sent back as a turn of the conversation, may bring along."""

_COMMON = frozenset(
    (
        *("model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "stop", "seed"),
        *("logprobs", "stream", "stream_options", "user"),
    )
)
_CHAT = _COMMON | {"messages", "top_logprobs", "response_format"} | _OFF.keys()
_COMPLETION = _COMMON | {"prompt", "response_format"} | _OFF_COMPLETION.keys()
_EMBEDDING = frozenset({"model", "input", "encoding_format", "user"}) | _OFF_EMBEDDING.keys()
_MESSAGE = frozenset({"role", "content", "name"}) | _OFF_MESSAGE.keys()


def read_model(document: Document) -> str:
    """The model that a body names.

    Raises:
        MeshError: INVALID_PARAMETER.
    """
    model = Fields(document).text("model")
    if not model:
        raise MeshError(Code.INVALID_PARAMETER, param="model", hint="It must be the name of a model.")
    return model


def read_call(operation: Operation, document: Document) -> Call:
    """The call that a body asks for.

    Raises:
        MeshError: UNSUPPORTED_PARAMETER or INVALID_PARAMETER, with the field's path and nothing of its value.
    """
    fields = Fields(document)
    match operation:
        case Operation.CHAT:
            return _chat(fields)
        case Operation.COMPLETIONS:
            return _completion(fields)
        case Operation.EMBEDDINGS:
            return _embedding(fields)
        case _:
            assert_never(operation)


def _chat(fields: Fields) -> ChatCall:
    fields.only(_CHAT)
    _refuse_on(fields, _OFF)
    messages = _messages(fields)
    top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if fields.flag("logprobs"):
        top = top or 0
    elif top:
        raise fields.invalid("It needs logprobs to be true.", "top_logprobs")
    else:
        top = None
    return ChatCall(messages=messages, options=_options(fields, top, None))


def _completion(fields: Fields) -> CompletionCall:
    fields.only(_COMPLETION)
    _refuse_on(fields, _OFF_COMPLETION)
    prompts, listed = _prompts(fields, "prompt")
    top = fields.integer("logprobs", 0, MAX_TOP_LOGPROBS)
    return CompletionCall(prompts=prompts, listed=listed, options=_options(fields, top, DEFAULT_COMPLETION_TOKENS))


def _embedding(fields: Fields) -> EmbeddingCall:
    fields.only(_EMBEDDING)
    _refuse_on(fields, _OFF_EMBEDDING)
    inputs, listed = _prompts(fields, "input")
    encoding = fields.text("encoding_format") or "float"
    if encoding not in {"float", "base64"} or fields.get("encoding_format") == "":
        raise fields.invalid("It must be float or base64.", "encoding_format")
    fields.text("user")
    return EmbeddingCall(inputs=inputs, listed=listed, base64=encoding == "base64")


def _refuse_on(fields: Fields, off: dict[str, _Off]) -> None:
    for name, is_off in off.items():
        value = fields.get(name)
        if value is not None and not is_off(value):
            raise fields.unsupported(name)


def _options(fields: Fields, top_logprobs: int | None, max_tokens: int | None) -> Options:
    asked, newer = fields.integer("max_tokens", 1), fields.integer("max_completion_tokens", 1)
    if asked is not None and newer is not None:
        raise fields.invalid("Give max_tokens or max_completion_tokens, not both.", "max_tokens")
    if asked is None:
        asked = newer
    temperature, top_p = fields.number("temperature", 0, 2), fields.number("top_p", 0, 1, above=True)
    n, seed = fields.integer("n", 1, MAX_ANSWERS), fields.integer("seed", _SEED_LOW, _SEED_HIGH)
    stop, stream = _stop(fields), fields.flag("stream")
    include_usage = _include_usage(fields, stream)
    form = fields.table("response_format")
    if form is not None:
        form.only({"type"})
        if form.get("type") != "text":
            raise fields.unsupported("response_format")
    fields.text("user")  # checked, and never kept
    return Options(
        max_tokens=max_tokens if asked is None else asked,
        temperature=1.0 if temperature is None else temperature,
        top_p=1.0 if top_p is None else top_p,
        n=n or 1,
        seed=seed,
        stop=stop,
        top_logprobs=top_logprobs,
        stream=stream,
        include_usage=include_usage,
    )


def _include_usage(fields: Fields, stream: bool) -> bool:
    options = fields.table("stream_options")
    if options is None:
        return False
    if not stream:
        raise fields.invalid("It needs stream to be true.", "stream_options")
    options.only({"include_usage", "include_obfuscation"})
    if options.flag("include_obfuscation"):
        raise options.unsupported("include_obfuscation")
    return options.flag("include_usage")


def _stop(fields: Fields) -> tuple[str, ...]:
    value = fields.get("stop")
    if value is None:
        return ()
    if isinstance(value, str):
        if not value:
            raise fields.invalid("A stop string must not be empty.", "stop")
        return (value,)
    if not isinstance(value, list):
        raise fields.invalid(f"It must be a string or a list of up to {MAX_STOPS} strings.", "stop")
    stops = cast("list[object]", value)
    if len(stops) > MAX_STOPS:
        raise fields.invalid(f"There may be up to {MAX_STOPS} stop strings.", "stop")
    for i, one in enumerate(stops):
        if not isinstance(one, str) or not one:
            raise fields.invalid("It must be a string that is not empty.", "stop", i)
    return tuple(cast("list[str]", stops))


def _messages(fields: Fields) -> tuple[tuple[str, str], ...]:
    value = fields.get("messages")
    if not isinstance(value, list) or not value:
        raise fields.invalid("It must be a list of at least one message.", "messages")
    return tuple(_message(fields, one, i) for i, one in enumerate(cast("list[object]", value)))


def _message(fields: Fields, value: object, index: int) -> tuple[str, str]:
    if not isinstance(value, dict):
        raise fields.invalid("It must be an object with role and content.", "messages", index)
    message = Fields(cast("dict[str, object]", value), "messages", index)
    message.only(_MESSAGE)
    _refuse_on(message, _OFF_MESSAGE)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise message.invalid("It must be system, developer, user or assistant.", "role")
    message.text("name")
    return _ROLES[role], _content(message)


def _content(message: Fields) -> str:
    value = message.get("content")
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise message.invalid("It must be a string or a list of text parts.", "content")
    return "\n".join(_part(message, part, i) for i, part in enumerate(cast("list[object]", value)))


def _part(message: Fields, value: object, index: int) -> str:
    if not isinstance(value, dict):
        raise message.invalid("It must be an object with type and text.", "content", index)
    part = cast("dict[str, object]", value)
    if part.get("type") != "text":
        raise message.invalid("Only text is supported.", "content", index, "type")
    for name in part:
        if name not in {"type", "text"}:
            raise message.unsupported("content", index, name)
    text = part.get("text")
    if not isinstance(text, str):
        raise message.invalid("It must be a string.", "content", index, "text")
    return text


def _prompts(fields: Fields, name: str) -> tuple[tuple[Prompt, ...], bool]:
    """Prompts or inputs, and whether they came as a list of them: `["a"]` and `[[1]]` are, `"a"` and `[1]` are not."""
    value = fields.get(name)
    if isinstance(value, str):
        return (_text(fields, value, name),), False
    if not isinstance(value, list) or not value:
        raise fields.invalid("It must be a string, token ids, or a list of either, and not be empty.", name)
    items = cast("list[object]", value)
    if not isinstance(items[0], str | list):
        return (_ids(fields, items, name),), False
    if len(items) > MAX_INPUTS:
        raise fields.invalid(f"It may hold up to {MAX_INPUTS} items.", name)
    return tuple(_prompt(fields, one, name, i) for i, one in enumerate(items)), True


def _prompt(fields: Fields, value: object, name: str, index: int) -> Prompt:
    if isinstance(value, str):
        return _text(fields, value, name, index)
    if isinstance(value, list) and value:
        return _ids(fields, cast("list[object]", value), name, index)
    raise fields.invalid("It must be a string or token ids, and not be empty.", name, index)


def _text(fields: Fields, value: str, *steps: str | int) -> str:
    if not value:
        raise fields.invalid("It must not be empty.", *steps)
    return value


def _ids(fields: Fields, values: list[object], *steps: str | int) -> tuple[int, ...]:
    for i, value in enumerate(values):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise fields.invalid("It must be a token id.", *steps, i)
    return tuple(cast("list[int]", values))
