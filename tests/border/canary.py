"""Content that is recognised wherever it comes out: marked prompts in six scripts, and every form in which they may leak.

A prompt is `RUN TAG words TAG RUN`. RUN is random text in the prompt's own script, the same in one set of canaries, so
that few needles are searched for; TAG is random for each prompt and tells which one it was. Both stand at each end: an
excerpt of either end shows it.
"""

from __future__ import annotations

import base64
import json
import random
import secrets
import struct
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import quote

Encode = Callable[[str], Sequence[int]]
"""A tokenizer: text to token ids, without marks around them."""

_WORDS = {
    "vi": ("Hãy giữ bí mật hợp đồng này", "ăâđêôơưắằẵặấầẩẫậếềểễệốồổỗộớờởỡợứừửữự"),
    "ja": (
        "この契約の内容は秘密です",
        "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほ東京都市銀行契約秘密株式会社",
    ),
    "ko": ("이 계약은 비밀입니다", "".join(map(chr, range(0xAC00, 0xD7A3, 97)))),
    "hi": ("यह अनुबंध गोपनीय है", "कखगघचछजझटठडढतथदधनपफबभमयरलवशषसह"),
    "th": ("สัญญานี้เป็นความลับ", "กขคฆงจฉชซญฎฏฐฑฒณดตถทธนบปผฝพฟภมยรลวศษสหฬอฮ"),
    "en": ("Please keep this contract secret", "abcdefghijkmnopqrstuvwxyz23456789"),
}
LANGUAGES = tuple(_WORDS)
_RUN_LENGTH = {"en": 14}
_LEAST = 8
"""Bytes: a shorter form would be found by chance."""
_INFLATED = 64 * 1024 * 1024
_ZSTD = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True)
class Canary:
    """One marked prompt."""

    text: str
    language: str
    tag: str
    path: str

    def shows_in(self, said: bytes) -> bool:
        """Whether an answer says something of this very prompt."""
        return any(form in said for form in forms(self.tag).values())


@dataclass(frozen=True, slots=True)
class Hit:
    """Content where it was found. `paths` are those whose tags are there too."""

    place: str
    language: str
    form: str
    paths: tuple[str, ...] = ()


@dataclass
class Canaries:
    """A set of canaries that is searched for together.

    Attributes:
        tokenizers: Those of the models that the prompts go to, by name.
    """

    tokenizers: Mapping[str, Encode] = field(default_factory=dict)

    def __post_init__(self) -> None:
        dice = random.Random(secrets.randbits(128))
        self._runs = {
            language: "".join(dice.choices(letters, k=_RUN_LENGTH.get(language, 10)))
            for language, (_, letters) in _WORDS.items()
        }
        self._tags: dict[str, str] = {}
        self._needles = [
            (language, name, form)
            for language, run in self._runs.items()
            for name, form in forms(run, self.tokenizers).items()
        ]

    def make(self, path: str, language: str) -> Canary:
        """A prompt for one call on a path."""
        run, tag = self._runs[language], "q" + secrets.token_hex(5)
        self._tags[tag] = path
        return Canary(f"{run} {tag} {_WORDS[language][0]} {tag} {run}", language, tag, path)

    @property
    def made(self) -> int:
        """How many prompts there are."""
        return len(self._tags)

    def search(self, place: str, data: bytes) -> list[Hit]:
        """Every form of every canary in some bytes, and in what is compressed in them."""
        hits = [Hit(place, language, name) for language, name, form in self._needles if form in data]
        if hits:
            paths = tuple(sorted({path for tag, path in self._tags.items() if self._shows(tag, data)}))
            hits = [replace(hit, paths=paths) for hit in hits]
        for n, inner in enumerate(inflated(data)):
            hits += self.search(f"{place} (compressed {n})", inner)
        return hits

    def _shows(self, tag: str, data: bytes) -> bool:
        return any(form in data for form in forms(tag, self.tokenizers).values())


def forms(text: str, tokenizers: Mapping[str, Encode] | None = None) -> dict[str, bytes]:
    """The bytes by which a text can be found, by the name of the form."""
    plain = text.encode()
    found = {
        "plain": plain,
        "decomposed": unicodedata.normalize("NFD", text).encode(),
        "hex": plain.hex().encode(),
        "HEX": plain.hex().upper().encode(),
        "utf-16-le": text.encode("utf-16-le"),
        "utf-16-be": text.encode("utf-16-be"),
        "json": json.dumps(text)[1:-1].encode(),
        "JSON": json.dumps(text)[1:-1].upper().replace("\\U", "\\u").encode(),
        "python bytes": repr(plain)[2:-1].encode(),
        "url": quote(text).encode(),
    }
    for shift in range(3):
        # Within a longer text: three alignments, and only the characters that this text alone decides.
        whole = base64.b64encode(bytes(shift) + plain)
        part = whole[-(-shift * 8 // 6) : (shift + len(plain)) * 8 // 6]
        found[f"base64+{shift}"] = part
        found[f"base64url+{shift}"] = part.translate(bytes.maketrans(b"+/", b"-_"))
    for name, encode in (tokenizers or {}).items():
        # A word of its own in a prompt, at its beginning and within.
        for where, ids in (("first", encode(text)), ("within", encode(f" {text}"))):
            if len(set(ids)) < 4:
                continue  # a vocabulary without this script
            numbers = list(map(str, ids))
            found[f"{name} ids {where}, json"] = ", ".join(numbers).encode()
            found[f"{name} ids {where}, dense json"] = ",".join(numbers).encode()
            found[f"{name} ids {where}, varint"] = b"".join(map(varint, ids))
            for code in ("<H", ">H", "<I", ">I", "<Q", ">Q"):
                found[f"{name} ids {where}, {code}"] = b"".join(struct.pack(code, one) for one in ids)
    kept: dict[bytes, str] = {}
    for name, form in found.items():
        if len(form) >= _LEAST:
            kept.setdefault(form, name)
    return {name: form for form, name in kept.items()}


def varint(number: int) -> bytes:
    """A number as protobuf packs it."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def inflated(data: bytes) -> Iterator[bytes]:
    """What gzip and zlib have packed somewhere in some bytes, as far as it can be unpacked."""
    for magic, bits in (
        (b"\x1f\x8b\x08", 31),
        (b"\x78\x01", 15),
        (b"\x78\x5e", 15),
        (b"\x78\x9c", 15),
        (b"\x78\xda", 15),
    ):
        at = data.find(magic)
        while at >= 0:
            try:
                inner = zlib.decompressobj(bits).decompress(data[at : at + _INFLATED], _INFLATED)
            except zlib.error:
                inner = b""
            if len(inner) >= _LEAST:
                yield inner
            at = data.find(magic, at + 1)


def opaque(data: bytes) -> bool:
    """Whether it may hold what was packed in a way that nobody here can unpack."""
    return _ZSTD in data
