"""Reads one YAML file strictly, before anyone asks what it means.

What YAML offers beyond tables, lists, text, numbers, booleans and null is refused: anchors (a few lines of them can
stand for gigabytes), tags, merges, dates, several documents, and a key given twice, of which other readers silently
take the last.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Protocol, cast

import yaml

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 16
_TAG = "tag:yaml.org,2002:"
_SCALARS = frozenset(_TAG + name for name in ("str", "int", "float", "bool", "null"))


class Faults:
    """What is wrong with some files.

    Messages name keys and places, never values: a ledger's URL can hold a password.
    """

    def __init__(self) -> None:
        self.items: list[str] = []

    def add(self, file: str, path: str, text: str) -> None:
        """Notes one fault."""
        self.items.append(f"{file}: {path}: {text}" if path else f"{file}: {text}")


def read_document(path: Path, file: str, faults: Faults) -> object:
    """The file as plain values, or None after a fault.

    Args:
        path: Where the file is.
        file: How faults name it.
        faults: Takes what is wrong.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        faults.add(file, "", "is missing; write it")
        return None
    except OSError as error:
        faults.add(file, "", f"cannot be read ({type(error).__name__}); check its mode and owner")
        return None
    if len(raw) > MAX_BYTES:
        faults.add(file, "", "is larger than 1 MiB; split it")
        return None
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        faults.add(file, "", "is not UTF-8; save it as UTF-8")
        return None
    before = len(faults.items)
    value = _read_text(text, file, faults)
    if value is None and len(faults.items) == before:
        faults.add(file, "", "is empty; write it")
    return value


def _read_text(text: str, file: str, faults: Faults) -> object:
    try:
        if not _is_plain(text, file, faults):
            return None
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            return None if node is None else _value(node, "", loader, file, faults)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        faults.add(
            file,
            f"line {_line(error.problem_mark)}",
            "is not YAML, or more than one document; check indentation and quotes",
        )
    except yaml.YAMLError:
        faults.add(file, "", "holds characters that YAML does not allow; remove them")
    return None


def _is_plain(text: str, file: str, faults: Faults) -> bool:
    """Whether it is shallow and without anchors: seen from the events, before anything is built from them."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            faults.add(file, f"line {_line(event.start_mark)}", "has an anchor or an alias; write the value out")
            return False
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            faults.add(file, f"line {_line(event.start_mark)}", "is nested too deep; nothing here needs that")
            return False
    return True


def _value(node: yaml.Node, path: str, loader: yaml.SafeLoader, file: str, faults: Faults) -> object:
    tag = node.tag
    if isinstance(node, yaml.MappingNode) and tag == _TAG + "map":
        return _table(node, path, loader, file, faults)
    if isinstance(node, yaml.SequenceNode) and tag == _TAG + "seq":
        children = cast("list[yaml.Node]", node.value)
        return [_value(child, f"{path}[{i}]", loader, file, faults) for i, child in enumerate(children)]
    if isinstance(node, yaml.ScalarNode) and tag in _SCALARS:
        try:
            return cast(object, loader.construct_object(node))
        except ValueError:
            faults.add(file, path, "is not a number that can be read; write plain digits")
            return None
    faults.add(file, path, "is a YAML value of an unknown kind (a tag or a date); quote it if it is text")
    return None


def _table(node: yaml.MappingNode, path: str, loader: yaml.SafeLoader, file: str, faults: Faults) -> dict[str, object]:
    table: dict[str, object] = {}
    for key_node, value_node in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
        line = _line(key_node.start_mark)
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _TAG + "str":
            faults.add(file, path or f"line {line}", f"has a key that is not text, at line {line}; quote it")
            continue
        key = cast(str, key_node.value)
        here = join(path, key)
        value = _value(value_node, here, loader, file, faults)
        if key in table:
            faults.add(file, here, f"is given twice, again at line {line}; keep one")
            continue
        table[key] = value
    return table


class _Marked(Protocol):
    @property
    def line(self) -> int: ...


def _line(mark: _Marked | None) -> int:
    return mark.line + 1 if mark else 1


def join(path: str, key: str) -> str:
    """The path of a key. A long or unprintable key is shortened: it is shown to find it, not to keep it."""
    shown = "".join(itertools.islice((c if c.isprintable() else "?" for c in key), 60))
    return f"{path}.{shown}" if path else shown
