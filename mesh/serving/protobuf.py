"""A protobuf body as the same plain document that a JSON body becomes, so that one set of rules reads both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from mesh.errors import Code, MeshError, field_path
from mesh.types import Operation
from mesh.v1 import inference_pb2 as pb

_REQUESTS: dict[Operation, type[pb.ChatRequest | pb.CompletionRequest | pb.EmbeddingRequest]] = {
    Operation.CHAT: pb.ChatRequest,
    Operation.COMPLETIONS: pb.CompletionRequest,
    Operation.EMBEDDINGS: pb.EmbeddingRequest,
}
_SCALARS = (
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "n",
    "seed",
    "logprobs",
    "top_logprobs",
    "user",
)


class Parcel:
    """A decoded message. Its unknown fields are refused by `document`, after the caller looked at the model."""

    __slots__ = ("_message",)

    def __init__(self, operation: Operation, body: bytes | bytearray) -> None:
        """Decodes.

        Raises:
            MeshError: MALFORMED_BODY.
        """
        message = _REQUESTS[operation]()
        try:
            message.ParseFromString(bytes(body))
            fine = True
        except DecodeError:
            fine = False
        if not fine:
            raise MeshError(Code.MALFORMED_BODY, hint="It must be the protobuf message of this call.")
        self._message = message

    @property
    def model(self) -> str:
        """The model that it names."""
        return self._message.model

    def document(self, *, stream: bool) -> dict[str, object]:
        """The fields that are set, by OpenAI's names. `stream` is the RPC's, since the messages have no such field.

        Raises:
            MeshError: UNSUPPORTED_PARAMETER for fields that the messages do not have.
        """
        message = self._message
        _refuse_unknown(message)
        document: dict[str, object] = {"model": message.model}
        for name in _SCALARS:
            if name in message.DESCRIPTOR.fields_by_name and message.HasField(name):
                document[name] = getattr(message, name)
        if isinstance(message, pb.EmbeddingRequest):
            document["input"] = _inputs(message.input, "input")
            return document
        if stream:
            document["stream"] = True
        if message.stop:
            document["stop"] = list(message.stop)
        if message.HasField("stream_options"):
            _refuse_unknown(message.stream_options, "stream_options")
            document["stream_options"] = {"include_usage": message.stream_options.include_usage}
        if isinstance(message, pb.ChatRequest):
            document["messages"] = [_turn(turn, i) for i, turn in enumerate(message.messages)]
        else:
            document["prompt"] = _inputs(message.prompt, "prompt")
        return document


def _turn(turn: pb.Message, index: int) -> dict[str, object]:
    _refuse_unknown(turn, "messages", index)
    document: dict[str, object] = {"role": turn.role, "content": turn.content}
    if turn.HasField("name"):
        document["name"] = turn.name
    return document


def _inputs(inputs: Iterable[pb.Input], name: str) -> list[object]:
    taken: list[object] = []
    for i, one in enumerate(inputs):
        _refuse_unknown(one, name, i)
        match one.WhichOneof("input"):
            case "text":
                taken.append(one.text)
            case "tokens":
                _refuse_unknown(one.tokens, name, i)
                ids: Sequence[int] = one.tokens.ids
                taken.append(list(ids))
            case _:
                raise MeshError(
                    Code.INVALID_PARAMETER, param=field_path(name, i), hint="It must hold text or token ids."
                )
    return taken


def _refuse_unknown(message: Message, *steps: str | int) -> None:
    if len(UnknownFieldSet(message)):
        # An unknown field has only a number, which the client chose: the path ends at the message that holds it.
        raise MeshError(
            Code.UNSUPPORTED_PARAMETER,
            param=field_path(*steps) or None,
            hint="The message has a field that this version of the API does not know.",
        )
