"""The control epoch of an embedded mesh: it grows with each recovery of its store, and is kept as long as the home."""

from __future__ import annotations

import json

from mesh.embedded.home import Home, read_json, write_private
from mesh.errors import Code, MeshError

_FIRST = 1


def control_epoch(home: Home) -> int:
    """The epoch that this home is in; the first where none was kept.

    Raises:
        MeshError: `start_failed`: the file is damaged. Policy of another epoch does not count, so none is guessed.
    """
    if not home.control.exists():
        return _FIRST
    epoch = read_json(home.control).get("epoch")
    if not isinstance(epoch, int) or epoch < _FIRST:
        raise MeshError(Code.START_FAILED, hint=f"{home.control}: has no control epoch; put the file back.")
    return epoch


def keep_control_epoch(home: Home, epoch: int) -> None:
    """Keeps an epoch for this start and all later ones.

    Raises:
        MeshError: `start_failed`.
    """
    write_private(home.control, json.dumps({"epoch": epoch}))
