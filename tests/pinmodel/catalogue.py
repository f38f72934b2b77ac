"""All models, and the rules of pins.md that a check must miss when they are left out."""

from __future__ import annotations

from itertools import chain

from pinmodel import acks, busy, clocks, core, epochs, forward, members, moves, reading, records, replicas, twins
from pinmodel.explore import Check

_MODELS = (core, reading, acks, forward, replicas, clocks, members, twins, busy, records, moves, epochs)

HOLD: tuple[Check, ...] = tuple(chain.from_iterable(model.HOLD for model in _MODELS))
"""The protocol as it is, in configurations that take seconds."""

LARGE: tuple[Check, ...] = tuple(chain.from_iterable(model.LARGE for model in _MODELS))
"""The protocol as it is, in configurations that take up to some minutes each."""

FOUND: tuple[Check, ...] = tuple(chain.from_iterable(model.FOUND for model in _MODELS))
"""The protocol with one rule left out."""

RULES: dict[str, tuple[str, ...]] = {
    "2": (
        "gap", "twowatch", "foreign-home", "replay of an older record", "unsigned move", "movefallback", "fork",
        "ledgerlate",
    ),
    "3": (
        "t0recv", "latemember", "lease", "watchonly", "exact", "sendhome", "newS", "chainS", "lowerack", "drainlive",
        "slew", "static", "twin",
    ),
    "4": ("live", "pauseadmit", "pingreuse", "longstep", "senderdecides"),
    "5": (
        "cumulative ack", "jumpack", "nodrain", "fence", "ackclose", "silentearly", "shortW", "op-last", "supersede",
        "sweepshort", "sweeprec",
    ),
    "6": ("restore", "lostmember"),
}  # fmt: skip
"""The mutants that pins.md names, by its section."""
