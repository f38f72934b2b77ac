"""What an operator types, checked: names, jurisdictions, transfer. A fault names its field and never its value."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from mesh.control.records import is_tenant_id
from mesh.errors import Code, MeshError
from mesh.policy.hostnames import is_public_label
from mesh.settings import JURISDICTIONS
from mesh.types import Jurisdiction, Transfer

MAX_NAME_CHARS = 64
MAX_DRAIN_S = 3600.0


def checked_name(name: str) -> str:
    """A tenant's name: 1 to 64 printable characters, no space at either end, and not of the form of an id.

    Names that look alike because of composed characters are one name (NFC). Case counts.

    Raises:
        MeshError: `invalid_parameter`, `name`.
    """
    name = unicodedata.normalize("NFC", name)
    if not 1 <= len(name) <= MAX_NAME_CHARS or not name.isprintable() or name != name.strip():
        raise MeshError(
            Code.INVALID_PARAMETER,
            param="name",
            hint=f"A name has 1 to {MAX_NAME_CHARS} printable characters and no space at its ends.",
        )
    if is_tenant_id(name):
        raise MeshError(Code.INVALID_PARAMETER, param="name", hint="A name must not look like a tenant's id.")
    return name


def checked_allowed(codes: Iterable[str], home: Jurisdiction) -> frozenset[Jurisdiction]:
    """A pin: known jurisdictions in either case, the home's among them; what is named twice counts once.

    Raises:
        MeshError: `invalid_parameter` for none at all, `unknown_jurisdiction`, `home_outside_pin`.
    """
    allowed = frozenset(Jurisdiction(code.upper()) for code in codes)
    known = ", ".join(sorted(JURISDICTIONS))
    if not allowed:
        raise MeshError(Code.INVALID_PARAMETER, param="allowed", hint=f"Name one or more of {known}.")
    if not allowed <= JURISDICTIONS:
        raise MeshError(Code.UNKNOWN_JURISDICTION, param="allowed", hint=f"Known are {known}.")
    if home not in allowed:
        hint = f"The home is in {home}: choose another for a new tenant, or move one that exists first."
        raise MeshError(Code.HOME_OUTSIDE_PIN, param="allowed", hint=hint)
    return allowed


def checked_transfer(transfer: str) -> Transfer:
    """Whether content may be forwarded inside the pin; empty means `never`.

    Raises:
        MeshError: `invalid_parameter`, `transfer`.
    """
    if transfer == "":
        return Transfer.NEVER
    if transfer not in list(Transfer):
        raise MeshError(Code.INVALID_PARAMETER, param="transfer", hint=f"It is one of {', '.join(Transfer)}.")
    return Transfer(transfer)


def checked_label(label: str, reserved: frozenset[str]) -> str:
    """A public label, in either case; empty is none.

    Raises:
        MeshError: `invalid_parameter`, `label`.
    """
    label = label.lower()
    if label and (not is_public_label(label) or label in reserved):
        hint = "It has 1 to 63 letters, digits and inner hyphens, and is no tenant's id and no name of the mesh itself."
        raise MeshError(Code.INVALID_PARAMETER, param="label", hint=hint)
    return label


def checked_drain_s(drain_s: float) -> float:
    """How long what runs may go on after a removal: at most an hour; authority ends it sooner.

    Raises:
        MeshError: `invalid_parameter`, `drain`.
    """
    if not 0 <= drain_s <= MAX_DRAIN_S:
        raise MeshError(Code.INVALID_PARAMETER, param="drain", hint="At most an hour.")
    return drain_s
