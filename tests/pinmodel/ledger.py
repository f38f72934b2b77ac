"""What a home publishes from its ledger after a restore, when not every commit's outcome is known there.

Modelled (pins.md sections 2, 5 and 6): a removal of J and another op that allows J again, from two admins of one home
that work at once; each signs its record into the ledger, then sends its transaction, which compares the revision that
it replaces, then notes the outcome. Each of them may stop for good between two steps. A caller who retries the removal
finds it in etcd and gets its return. At any moment etcd is lost, and the home publishes from its ledger.

Abstracted: gateways do what is published (`epochs` has them); no time.

Promised: what is published after the removal has returned does not allow J, unless the other op had committed after
the removal (I1). Less than was committed may be published: that is told, and asked for again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pinmodel.explore import Check

REMOVAL, WIDENING = "removal of J", "J allowed again"


class Entry(NamedTuple):
    """A signed record in the ledger: its revision, and its outcome as far as was noted: unknown, committed, failed."""

    op: str
    revision: int
    allowed: bool
    outcome: str


class State(NamedTuple):
    """`committed` is the order in which ops committed in etcd, `answered` the ops whose transaction has an outcome."""

    ledger: tuple[Entry, ...]
    committed: tuple[str, ...]
    answered: frozenset[str]
    returned: bool
    published: bool | None


@dataclass(frozen=True)
class Ledger:
    """The machine.

    Attributes:
        removals: How many removals are made, at most; each by an op of its own.
        widenings: How many times J is allowed again, at most.
        without: The rule that is left out.
    """

    removals: int = 1
    widenings: int = 1
    without: str = ""

    @property
    def start(self) -> State:
        return State((Entry("", 1, allowed=True, outcome="committed"),), (), frozenset(), False, None)

    def broken(self, state: State) -> str:
        later = state.committed[::-1]
        rightful = bool(later) and later[0].startswith(WIDENING)
        if state.published and state.returned and not rightful:
            return "I1: J is published as allowed after the return"
        return ""

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        if state.published is not None:
            return
        yield "etcd is lost, the ledger is published", state._replace(published=self._published(state.ledger))
        revision = 1 + len(state.committed)
        signed = {entry.op: entry for entry in state.ledger}
        ops = [f"{REMOVAL} {number + 1}" for number in range(self.removals)]
        ops += [f"{WIDENING} {number + 1}" for number in range(self.widenings)]
        for op in ops:
            entry = signed.get(op)
            if entry is None:
                fresh = Entry(op, revision + 1, op.startswith(WIDENING), "unknown")
                yield f"signed: {op}", state._replace(ledger=(*state.ledger, fresh))
            elif op not in state.answered:
                answered = state.answered | {op}
                if entry.revision == revision + 1:
                    done = state._replace(committed=(*state.committed, op), answered=answered, returned=False)
                    yield f"COMMIT: {op}", done
                else:
                    yield f"compare fails: {op}", state._replace(answered=answered)
            elif entry.outcome == "unknown":
                outcome = "committed" if op in state.committed else "failed"
                noted = tuple(other._replace(outcome=outcome) if other == entry else other for other in state.ledger)
                yield f"{outcome}, noted: {op}", state._replace(ledger=noted)
        if state.committed and state.committed[-1].startswith(REMOVAL) and not state.returned:
            yield "RETURN of the removal", state._replace(returned=True)

    def _published(self, ledger: tuple[Entry, ...]) -> bool:
        """Whether what is published allows J."""
        signed = [entry for entry in ledger if entry.outcome != "failed"]
        if self.without == "unknown narrows":
            return signed[-1].allowed
        known = max((entry for entry in signed if entry.outcome == "committed"), key=lambda entry: entry.revision)
        unknown = [entry for entry in signed if entry.outcome == "unknown" and entry.revision >= known.revision]
        return known.allowed and all(entry.allowed for entry in unknown)


def _check(configuration: str, machine: Ledger, at_least: int = 0) -> Check:
    return Check("ledger", configuration, machine, at_least, machine.without)


HOLD = (_check("one removal, one widening", Ledger(), 50), _check("two of each", Ledger(2, 2), 1_000))
LARGE = (_check("three removals, one widening", Ledger(3, 1), 20_000),)
FOUND = (_check("one removal, one widening", Ledger(without="unknown narrows")),)
