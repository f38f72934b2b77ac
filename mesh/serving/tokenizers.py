"""Text to token ids and back, on the fast tokenizers of Hugging Face. Keeps no text: their word cache is off.

What a user wrote is never read as a control token: `<|im_end|>` in a message is seven ordinary tokens, so that nobody
ends a turn, or begins one, from inside a message.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as FastTokenizer

from mesh.errors import Code, MeshError

ROLES = ("system", "developer", "user", "assistant")
"""Who may speak in a conversation; models were taught `system` for both of the first two."""


class TextTokenizer:
    """A model's tokenizer; any thread. `encode` takes about 0.5 s for 1 MB of text and lets other threads run."""

    def __init__(self, folder: Path) -> None:
        """Reads `tokenizer.json`, and `chat_template.jinja` where there is one."""
        self._fast: Any = FastTokenizer.from_file(str(folder / "tokenizer.json"))
        self._fast.no_truncation()
        self._fast.no_padding()
        self._fast.encode_special_tokens = True
        # BPE remembers the words that it has split, and has no public switch for it.
        if hasattr(self._fast.model, "_resize_cache"):
            self._fast.model._resize_cache(0)  # noqa: SLF001
        added = self._fast.get_added_tokens_decoder()
        self._specials: dict[str, int] = {token.content: number for number, token in added.items() if token.special}
        template = folder / "chat_template.jinja"
        self._render: Callable[..., str] | None = None
        if template.is_file():
            sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
            self._render = sandbox.from_string(template.read_text(encoding="utf-8")).render
        self._split = re.compile("(" + "|".join(re.escape(text) for text in self._specials) + ")")

    @property
    def vocabulary_size(self) -> int:
        """Token ids are 0 to this minus 1."""
        return self._fast.get_vocab_size(with_added_tokens=True)

    @property
    def specials(self) -> frozenset[int]:
        """Control tokens: they stand for no text."""
        return frozenset(self._specials.values())

    def encode(self, text: str) -> list[int]:
        """Plain text; an embedding model's own marks (`[CLS]`, `[SEP]`) are added around it.

        Bytes that a vocabulary has no token for, some control characters, are left out: the result may be empty.

        Raises:
            MeshError: INVALID_PARAMETER for a lone surrogate.
        """
        return self._ids(text, marks=True)

    def render_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """A conversation of (role, text), ready for the assistant's answer. Roles are `ROLES`.

        Raises:
            MeshError: UNSUPPORTED_OPERATION if the model does not chat; INVALID_PARAMETER for another role, and as
                `encode`.
        """
        if self._render is None:
            raise MeshError(Code.UNSUPPORTED_OPERATION, param="model")
        if any(role not in ROLES for role, _ in messages):
            raise MeshError(Code.INVALID_PARAMETER, param="messages", hint=f"Roles are: {', '.join(ROLES)}.")
        # The template sees a mark in place of each text: every control token in its output is its own.
        turns = [
            {"role": "system" if role == "developer" else role, "content": f"\0{number}\0"}
            for number, (role, _) in enumerate(messages)
        ]
        ids: list[int] = []
        for part in self._split.split(self._render(messages=turns, add_generation_prompt=True)):
            if part in self._specials:
                ids.append(self._specials[part])
            elif part:
                plain = re.sub("\0([0-9]+)\0", lambda mark: messages[int(mark[1])][1], part)
                ids += self._ids(plain, marks=False)
        return ids

    def _ids(self, text: str, *, marks: bool) -> list[int]:
        try:
            return self._fast.encode(text, add_special_tokens=marks).ids
        except TypeError:
            pass  # not here: the fault's context would hold on to the text
        raise MeshError(Code.INVALID_PARAMETER, hint="Text is Unicode, without lone surrogates.")

    def pieces(self) -> list[bytes]:
        """The bytes that each token id stands for. Computed anew: keep it.

        Raises:
            MeshError: START_FAILED for a tokenizer that is not byte-level.
        """
        if json.loads(self._fast.to_str()).get("decoder", {}).get("type") != "ByteLevel":
            raise MeshError(Code.START_FAILED, hint="Only models with a byte-level tokenizer can generate.")
        letters = _byte_letters()
        specials = self.specials
        pieces: list[bytes] = []
        for number in range(self.vocabulary_size):
            piece: str = self._fast.id_to_token(number) or ""
            if number in specials or any(letter not in letters for letter in piece):
                pieces.append(piece.encode())
            else:
                pieces.append(bytes(letters[letter] for letter in piece))
        return pieces


def _byte_letters() -> dict[str, int]:
    """The letter that stands for each byte in a byte-level vocabulary: itself if it prints, else one from 256 on."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(256 + number): byte for number, byte in enumerate(others)}


class Detokenizer:
    """One sequence's tokens to text, as they come. Never splits a character; control tokens are no text.

    Bytes that cannot be part of a character become U+FFFD as soon as that is certain; those of a character that may
    still be completed wait, until `flush` if need be. All together is what decoding the whole sequence would give.
    """

    def __init__(self, pieces: Sequence[bytes], specials: frozenset[int]) -> None:
        self._pieces = pieces
        self._specials = specials
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def step(self, token: int) -> str:
        """The text that this token completes; often one word, sometimes nothing."""
        return "" if token in self._specials else self._utf8.decode(self._pieces[token])

    def flush(self) -> str:
        """The end: what is incomplete becomes U+FFFD."""
        return self._utf8.decode(b"", final=True)
