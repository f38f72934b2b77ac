"""Typed reading of one table: what does not fit is noted as a fault and read on, so that all faults show at once.

After a fault a reader returns a value of the right type that nobody will use: `load` raises before it hands any out.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping
from typing import cast

from mesh.settings.document import Faults, join
from mesh.settings.model import Address

LINE = re.compile(r"[^\x00-\x1f\x7f]{1,4096}")
"""One line of text, whatever it says."""
_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)", re.IGNORECASE)
_NOWHERE = Address("", 0)


class Table:
    """One mapping of a file. Each key is asked for once; `close` notes those that nobody asked for."""

    def __init__(self, value: object, file: str, path: str, faults: Faults) -> None:
        self.file = file
        self.path = path
        self._faults = faults
        self._values: Mapping[str, object] = {}
        self._known: list[str] = []
        self._usable = isinstance(value, dict)
        if isinstance(value, dict):
            self._values = cast("Mapping[str, object]", value)
        elif value is not None or path:
            self.fault(None, "must be a table of keys and values")

    def fault(self, key: str | None, text: str) -> None:
        """Notes a fault at a key, or at the table itself."""
        self._faults.add(self.file, self.path if key is None else join(self.path, key), text)

    def keys(self) -> list[str]:
        """What it holds, in the file's order."""
        return list(self._values)

    def has(self, key: str) -> bool:
        """Whether the key is there and not null. Makes the key known."""
        self._known.append(key)
        return self._values.get(key) is not None

    def text(self, key: str, pattern: re.Pattern[str], rule: str) -> str:
        """Text that matches a pattern whole; `rule` says what is wanted."""
        value = self._take(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            self.fault(key, f"must be text (quote it): {rule}")
        elif not pattern.fullmatch(value):
            self.fault(key, f"must be {rule}")
        else:
            return value
        return ""

    def texts(self, key: str, pattern: re.Pattern[str], rule: str, *, least: int = 1) -> tuple[str, ...]:
        """A list of different texts."""
        taken: list[str] = []
        for i, value in enumerate(self._list(key, least)):
            if not isinstance(value, str):
                self.fault(f"{key}[{i}]", f"must be text (quote it): {rule}")
            elif not pattern.fullmatch(value):
                self.fault(f"{key}[{i}]", f"must be {rule}")
            elif value in taken:
                self.fault(f"{key}[{i}]", "stands here twice; keep one")
            else:
                taken.append(value)
        return tuple(taken)

    def choice(self, key: str, allowed: Collection[str]) -> str:
        """One of a few words."""
        value = self._take(key)
        if value is None or (isinstance(value, str) and value in allowed):
            return value or ""
        self.fault(key, "must be one of " + ", ".join(sorted(allowed)))
        return ""

    def integer(self, key: str, low: int, high: int) -> int:
        """A whole number in [low, high]. A boolean is none."""
        value = self._take(key)
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        if value is not None:
            self.fault(key, f"must be a whole number from {low} to {high}")
        return low

    def number(self, key: str, low: float, high: float) -> float:
        """A finite number in [low, high]. A boolean is none."""
        value = self._take(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
            return float(value)  # NaN is in no range
        if value is not None:
            self.fault(key, f"must be a number from {low:g} to {high:g}")
        return low

    def address(self, key: str) -> Address:
        """`host:port`, with a name, an IPv4 address, or an IPv6 address in brackets."""
        value = self._take(key)
        if value is None:
            return _NOWHERE
        found = parse_address(value) if isinstance(value, str) else None
        if found is None:
            self.fault(key, "must be host:port, such as 127.0.0.1:8443 or [::1]:8443")
        return found or _NOWHERE

    def table(self, key: str) -> Table:
        """A table within."""
        value = self._take(key)
        # A missing one was noted already: read it as an empty one that notes nothing more.
        faults = self._faults if value is not None else Faults()
        return Table(value if value is not None else {}, self.file, join(self.path, key), faults)

    def tables(self, key: str, *, least: int = 1) -> list[Table]:
        """A list of tables."""
        path = join(self.path, key)
        return [
            Table({} if value is None else value, self.file, f"{path}[{i}]", self._faults)
            for i, value in enumerate(self._list(key, least))
        ]

    def close(self) -> None:
        """Notes unknown keys."""
        for key in self._values:
            if key not in self._known:
                known = ", ".join(dict.fromkeys(self._known))
                self.fault(key, f"is not known; known here: {known}")

    def _take(self, key: str) -> object:
        self._known.append(key)
        value = self._values.get(key)
        if value is None and self._usable:
            self.fault(key, "is missing; give it a value")
        return value

    def _list(self, key: str, least: int) -> list[object]:
        value = self._take(key)
        if value is None:
            return []
        if not isinstance(value, list):
            self.fault(key, "must be a list")
            return []
        if len(value) < least:
            self.fault(key, f"must have at least {least} item{'s' if least > 1 else ''}")
        return cast("list[object]", value)


def parse_address(text: str) -> Address | None:
    """`host:port` as an address, or None. Ports are 1 to 65535."""
    host, colon, digits = text.rpartition(":")
    if not colon or not (digits.isascii() and digits.isdigit()) or len(digits) > 5 or digits[0] == "0":
        return None
    port = int(digits)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            return None
    elif ":" in host:
        return None
    if not 1 <= port <= 65535 or not _is_host(host):
        return None
    return Address(host, port)


def is_address(text: str) -> bool:
    """Whether it is an IP address in its shortest form."""
    try:
        return str(ipaddress.ip_address(text)) == text and "%" not in text
    except ValueError:
        return False


def _is_host(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        # A name whose last label is a number is a mistyped address: no top-level domain is one.
        labels = host.split(".")
        return len(host) <= 253 and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdigit()
    return "%" not in host
