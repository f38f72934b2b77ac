"""All models, and the rules of pins.md that a check must miss when they are left out."""

from __future__ import annotations

from itertools import chain

from pinmodel import (
    acks,
    busy,
    clocks,
    core,
    epochs,
    following,
    forward,
    ledger,
    members,
    moves,
    reading,
    records,
    replicas,
    twins,
)
from pinmodel.explore import Check
from proof_rules import RULES as IN_WORDS

_MODELS = (
    core,
    reading,
    acks,
    forward,
    replicas,
    clocks,
    members,
    twins,
    busy,
    records,
    moves,
    epochs,
    ledger,
    following,
)

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

STATED: dict[str, str] = {
    "no prev_kv": "an event of a head without the one before it is a gap",
    "mod_revision": "a head follows another only if version and mod_revision are those that were applied",
    "old events": "events at or below the revision that was fetched are dropped",
    "one revision": "a fetch reads all its pages at one revision",
    "kept": "an answer that is not caught up with is kept until it is",
    "both homes' S": IN_WORDS["both homes' S"],
    "suspend": "time in suspend counts",
    "wall": "no authority after the wall clock and BOOTTIME moved apart",
    "old op": "an op id older than six days is refused",
    "sweeper compares": "the sweeper's transaction compares the mod_revision that it saw unchanged",
    "attest fence": "a death is attested once the replicas refuse what is left of the dead gateway",
    "epoch": "records of another epoch are absent",
}
"""Rules that pins.md states without a name of their own."""

ADDED: dict[str, str] = {
    "larger of two sums": (
        "age is RAW + (BOOTTIME - MONOTONIC): after a suspend and a slew both sums are too small, so is the larger one"
    ),
    "fence kept": "a replica keeps a fence for S, not for the deadlines it was given: one may still lie in a buffer",
    "ack compares": "an acknowledgement's transaction compares that the grant holds this process's last attempt",
    "put compares": "a grant's transaction puts it only where the value before is explained, since its answer may be lost",
    "new UUID": "a process whose clocks moved apart goes on under a new UUID, since it may be a copy",
    "chain carried": "a new home's records carry the statements that lead to it; its move is complete when one does",
    "unknown narrows": (
        "after a restore, of records whose commit is unknown only what they take away is published, not what they allow"
    ),
    "earlier drains": "a change is draining while anything runs that it does not permit, whichever change ended that",
    "put again": "what is asked of a new home that has not put the statement yet is put again, also where nothing changes",
    "unbroken": "what a watch has told adds to a read only where it did not break since before the read was asked for",
    "unchanged": "where the record was put since the read, it is read again",
    "asked first": "it is the connection under which the read was asked for that must not have broken",
    "token": "who restores etcd starts it under another cluster id, or a gateway that was behind cannot see it",
}
"""Rules that these models asked for: pins.md leaves them open, or says less."""
