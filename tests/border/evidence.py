"""What there is to search: the legs that the relay wrote down in clear, and the files that the countries left.

A leg is searched as it came, without the sizes that HTTP puts between chunks, and as the joined DATA of each HTTP/2
stream. Not read: header fields that HPACK packed with Huffman's code, which grpc does not use towards a server.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from border.canary import Canaries, Hit, opaque
from border.namespaces import COUNTRIES, Network

_CHUNK_SIZE = re.compile(rb"\r\n[0-9A-Fa-f]{1,8}\r\n")
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _PADDED = 0, 8
_BY_ADDRESS = {one.border: name for name, one in COUNTRIES.items()}


@dataclass(frozen=True, slots=True)
class Leg:
    """One direction of one connection across a border.

    Attributes:
        client: The country that connected.
        server: The country that was connected to.
        up: Whether these are the client's bytes.
    """

    file: Path
    client: str
    server: str
    port: int
    alpn: str
    up: bool

    @property
    def place(self) -> str:
        """From where to where, and the service, such as `vn>sg 8447`."""
        a, b = (self.client, self.server) if self.up else (self.server, self.client)
        return f"{a}>{b} {self.port}"

    def views(self) -> Iterator[bytes]:
        """Its bytes in every way in which content could stand in them."""
        data = self.file.read_bytes()
        yield data
        if self.alpn == "h2":
            yield from streams(data.removeprefix(_PREFACE)).values()
        else:
            yield _CHUNK_SIZE.sub(b"", data)


def legs(clear: Path, since: int = 0, places: Mapping[str, str] = _BY_ADDRESS) -> list[Leg]:
    """What was written down, from the connection of this number on. `places`: who has which address."""
    found: list[Leg] = []
    for file in sorted(clear.iterdir()):
        if file.suffix not in (".up", ".down"):
            continue
        number, client, server, port, alpn = file.stem.split("-", 4)
        if int(number) >= since:
            found.append(Leg(file, places[client], places[server], int(port), alpn, file.suffix == ".up"))
    return found


def streams(data: bytes) -> dict[int, bytes]:
    """The DATA of each stream of one direction of an HTTP/2 connection, joined."""
    joined: dict[int, bytearray] = {}
    at = 0
    while len(data) >= at + 9:
        size, kind, flags = int.from_bytes(data[at : at + 3], "big"), data[at + 3], data[at + 4]
        if kind == _DATA:
            payload = data[at + 9 : at + 9 + size]
            if flags & _PADDED and payload:
                payload = payload[1 : len(payload) - payload[0]]
            joined.setdefault(int.from_bytes(data[at + 5 : at + 9], "big"), bytearray()).extend(payload)
        at += 9 + size
    return {stream: bytes(parts) for stream, parts in joined.items()}


def search_legs(canaries: Canaries, found: list[Leg]) -> tuple[list[Hit], list[str]]:
    """Hits, each with the leg's place; and the places with something that cannot be read."""
    hits: list[Hit] = []
    unread: list[str] = []
    for leg in found:
        for view in leg.views():
            hits += canaries.search(leg.place, view)
            if opaque(view):
                unread.append(leg.place)
    return hits, unread


def kept_files(network: Network) -> Iterator[Path]:
    """Every file of the countries: logs, ledgers, the store's data, Ray's folders, settings. Not the lab's own copies."""
    return files_below(network.folder, {network.folder / "renewed", *network.folder.glob("clear-*")})


def files_below(root: Path, but: set[Path]) -> Iterator[Path]:
    """Every file below a folder, but those in some folders."""
    for at, _, names in os.walk(root):
        folder = Path(at)
        if but & {folder, *folder.parents}:
            continue
        for name in names:
            path = folder / name
            with suppress(FileNotFoundError):
                if stat.S_ISREG(path.lstat().st_mode):
                    yield path


def search_files(canaries: Canaries, network: Network) -> tuple[list[Hit], int]:
    """Hits in what is kept, and how many files were looked at."""
    return search_each(canaries, kept_files(network), network.folder)


def search_each(canaries: Canaries, files: Iterable[Path], root: Path) -> tuple[list[Hit], int]:
    """The same in these files below `root`."""
    hits: list[Hit] = []
    looked = 0
    for path in files:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue  # a log that was turned over just now
        looked += 1
        hits += canaries.search(str(path.relative_to(root)), data.rstrip(b"\0"))
    return hits, looked
