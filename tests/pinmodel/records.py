"""Whose record counts: signatures, the tenant's id, moves from home to home, forks, and what was there before.

Modelled (pins.md section 2): three homes A, B and C with a key prefix and a signing key each; a tenant that began at A,
is pinned and widened, and moves between A and B; a move in its steps: the new home's record, the old home's statement,
and the new home's record again, which now carries the statement. Signatures cannot be forged. Three adversaries: the
admin of C, which never was the tenant's home, and of a former home that has moved the tenant on, sign what they like
and write it under their own prefix; a writer without a key puts what was once signed, or nothing, under one prefix.

Two readers: one that was just started knows what lies in etcd and no more, and faces the first two adversaries, who may
act together; one that runs remembers what it saw, and faces one adversary, who may also be the third.

Abstracted: no time (`moves` has the barrier). A signature is the signer's name, a hash the whole record.

Promised: nobody widens what the tenant's home signed: a reader permits J only where the home's last record does. This
is what I1 to I3 rest on. That a reader refuses is never forbidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pinmodel.explore import Check

HOMES = "ABC"
GENESIS = "A"


class Statement(NamedTuple):
    """The old home says who the new one is: signed `by` the old one."""

    moves: int
    old: str
    new: str
    revision: int
    by: str


class Record(NamedTuple):
    """A tenant's policy, or with `allowed` None the last word of a home that it left; with the statements up to it."""

    home: str
    revision: int
    allowed: bool | None
    chain: tuple[Statement, ...]
    moves: int
    by: str


class Truth(NamedTuple):
    """What the tenant's home decided: its last record, and whether the move to it is complete."""

    record: Record
    complete: bool


class Memory(NamedTuple):
    """What a reader remembers: the statements and the highest (moves, revision) it saw, and the record it served by."""

    statements: frozenset[Statement]
    seen: tuple[int, int]
    record: Record | None


class State(NamedTuple):
    store: tuple[Record | None, ...]
    truth: Truth
    signed: frozenset[Record]
    memory: Memory
    served: bool
    attacks: int
    writer: str


NOTHING = Memory(frozenset(), (0, 0), None)


@dataclass(frozen=True)
class Records:
    """The machine.

    Attributes:
        runs: Whether the reader runs all the time, so that it remembers; else it has just been started.
        revisions: How many records the tenant's homes sign, at most.
        moves: How often it moves, at most.
        attacks: How often an adversary writes, at most.
        without: The rule that is left out.
    """

    runs: bool
    revisions: int = 5
    moves: int = 1
    attacks: int = 2
    without: str = ""

    @property
    def start(self) -> State:
        first = Record(GENESIS, 1, allowed=True, chain=(), moves=0, by=GENESIS)
        store = tuple(first if home == GENESIS else None for home in HOMES)
        return State(
            store, Truth(first, complete=True), frozenset({first}), NOTHING, served=False, attacks=0, writer=""
        )

    def broken(self, state: State) -> str:
        rightful = state.truth.record.allowed
        if self.runs:
            return "I1: the reader permits J, which the home removed" if state.served else ""
        decided, _ = self._decided(state.store, NOTHING)
        return "I1: a new reader permits J, which the home removed" if decided and not rightful else ""

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        yield from self._home(state)
        if state.attacks < self.attacks:
            yield from self._adversaries(state)
        if self.runs:
            decided, memory = self._decided(state.store, state.memory)
            wrong = decided and not state.truth.record.allowed
            yield "reader reads", state._replace(memory=memory, served=wrong)

    # -- the tenant's homes

    def _put(self, state: State, home: str, record: Record | None, **others: object) -> State:
        store = tuple(record if name == home else old for name, old in zip(HOMES, state.store, strict=True))
        signed = state.signed | {record} if record else state.signed
        return state._replace(store=store, signed=signed, **others)  # pyright: ignore[reportArgumentType]

    def _home(self, state: State) -> Iterator[tuple[str, State]]:
        last, complete = state.truth
        mine = state.store[HOMES.index(last.home)]
        if mine != last or last.revision >= self.revisions:
            return  # an admin compares its record's mod_revision; what another put there is for people to look at
        if not complete:
            whole = last._replace(revision=last.revision + 1, chain=self._whole_chain(state))
            yield (
                f"{last.home} puts its record with the statement",
                self._put(state, last.home, whole, truth=Truth(whole, complete=True)),
            )
            return
        changed = last._replace(revision=last.revision + 1, allowed=not last.allowed)
        what = "allows J" if changed.allowed else "removes J"
        yield f"{last.home} {what}", self._put(state, last.home, changed, truth=Truth(changed, complete=True))
        if last.moves >= self.moves:
            return
        new = "B" if last.home == "A" else "A"
        first = Record(new, last.revision + 1, last.allowed, last.chain, last.moves + 1, new)
        if state.store[HOMES.index(new)] != first:
            yield f"{new} puts its first record", self._put(state, new, first)
        else:
            statement = Statement(last.moves + 1, last.home, new, last.revision, last.home)
            word = last._replace(allowed=None, chain=(*last.chain, statement), moves=last.moves + 1)
            yield (
                f"{last.home} states the move to {new}",
                self._put(state, last.home, word, truth=Truth(first, complete=False)),
            )

    def _whole_chain(self, state: State) -> tuple[Statement, ...]:
        last = state.truth.record
        statement = Statement(last.moves, "B" if last.home == "A" else "A", last.home, last.revision - 1, "")
        return (*last.chain, statement._replace(by=statement.old))

    # -- the adversaries

    def _adversaries(self, state: State) -> Iterator[tuple[str, State]]:
        home, attacks = state.truth.record.home, state.attacks + 1
        for name in HOMES:
            former = any(statement.old == name for statement in state.truth.record.chain) and state.truth.complete
            if name == home or not (former or name == "C") or (self.runs and state.writer not in {"", name}):
                continue
            for record in self._lies(state, name):
                if record != state.store[HOMES.index(name)]:
                    lied = self._put(state, name, record, attacks=attacks, writer=name if self.runs else "")
                    yield f"the thief of {name} puts {_words(record)}", lied
            if self.runs:
                yield from self._writer(state, name, [None, *sorted(state.signed, key=repr)])
        if self.runs and state.writer in {"", home}:
            # What the reader has not seen yet, nobody can show to it once it is gone.
            seen = state.memory.record == state.truth.record
            yield from self._writer(state, home, [None, *(sorted(state.signed, key=repr) if seen else ())])

    def _writer(self, state: State, home: str, values: list[Record | None]) -> Iterator[tuple[str, State]]:
        for record in values:
            if record != state.store[HOMES.index(home)]:
                after = self._put(state, home, record, attacks=state.attacks + 1, writer=home)
                yield f"a writer without a key puts {_words(record)} under {home}", after

    def _lies(self, state: State, thief: str) -> Iterator[Record]:
        """What a thief of one signing key can sign, and what others signed that serves it."""
        late = self.revisions + 1
        chains = sorted({record.chain[:length] for record in state.signed for length in range(len(record.chain) + 1)})
        for chain in chains:
            moves = len(chain)
            yield Record(thief, late, allowed=True, chain=chain, moves=moves, by=thief)
            yield Record(thief, late, allowed=True, chain=chain, moves=moves + 1, by=thief)
            for old in HOMES:
                forged = (*chain, Statement(moves + 1, old, "C", 1, thief))
                yield Record(thief, 1, allowed=None, chain=forged, moves=moves + 1, by=thief)
                if thief == "C":
                    yield Record(thief, late, allowed=True, chain=forged, moves=moves + 1, by=thief)
        yield from sorted(record for record in state.signed if record.allowed)

    # -- the reader

    def _decided(self, store: tuple[Record | None, ...], memory: Memory) -> tuple[bool, Memory]:
        """Whether the reader permits J, and what it remembers from now on."""
        valid = [record for home, record in zip(HOMES, store, strict=True) if record and self._verifies(record, home)]
        statements = memory.statements.union(*(record.chain for record in valid))
        if self.without == "chain carried":
            words = [record for record in valid if record.allowed is None]
            statements = memory.statements.union(*(record.chain[-1:] for record in words))
        known = memory._replace(statements=statements)
        if self.without != "fork" and len({statement.moves for statement in statements}) < len(statements):
            return False, known  # two with the same number: refused, and an alarm
        moves, end = self._longest(statements, GENESIS, 0)
        longest = [record for record in valid if record.allowed is not None]
        if self.without == "foreign-home":
            longest = sorted(longest, key=lambda record: (record.moves, record.revision))[-1:]
        else:
            longest = [record for record in longest if (record.home, record.moves) == (end, moves)]
        for record in longest:
            place = (record.moves, record.revision)
            if place >= memory.seen or self.without == "replay of an older record":
                return bool(record.allowed), known._replace(seen=max(place, memory.seen), record=record)
        if self.without == "movefallback" and memory.record and moves:
            return bool(memory.record.allowed), known
        return False, known

    def _longest(self, statements: frozenset[Statement], home: str, moves: int) -> tuple[int, str]:
        """Where the longest chain of statements leads: how many they are, and to which home."""
        nexts = [statement for statement in statements if (statement.moves, statement.old) == (moves + 1, home)]
        return max([(moves, home), *(self._longest(statements, nxt.new, nxt.moves) for nxt in nexts)])

    def _verifies(self, record: Record, home: str) -> bool:
        if record.home != home or record.by != home:
            return False
        if self.without == "foreign-home" and not record.moves:
            return True
        end = GENESIS
        for number, statement in enumerate(record.chain, 1):
            signed = statement.by == statement.old or self.without == "unsigned move"
            if statement.moves != number or statement.old != end or not signed:
                return False
            end = statement.new
        if record.allowed is None:
            return bool(record.chain) and record.chain[-1].old == home
        # A new home's first record names its number; the statement for it lies under the old home.
        return len(record.chain) in {record.moves, record.moves - 1} and (
            len(record.chain) < record.moves or end == home
        )


def _words(record: Record | None) -> str:
    if record is None:
        return "nothing"
    what = {True: "a record with J", False: "a record without J", None: "a statement"}[record.allowed]
    chain = "".join(f" {statement.old}>{statement.new} by {statement.by}" for statement in record.chain)
    return f"{what} of {record.home}, moves {record.moves}{chain}"


def _check(configuration: str, machine: Records, at_least: int = 0) -> Check:
    return Check("records", configuration, machine, at_least, machine.without)


HOLD = (
    _check("a new reader, one move", Records(runs=False), 1_000),
    _check("a reader that runs, one move", Records(runs=True, revisions=4, attacks=1), 1_000),
)
LARGE = (
    _check("a new reader, two moves", Records(runs=False, revisions=7, moves=2), 10_000),
    _check("a reader that runs, two moves", Records(runs=True, revisions=7, moves=2, attacks=1), 10_000),
    _check("a reader that runs, one move, two attacks", Records(runs=True), 10_000),
)
FOUND = (
    *(
        _check("a new reader, one move", Records(runs=False, without=rule))
        for rule in ("foreign-home", "unsigned move", "fork", "chain carried")
    ),
    *(
        _check("a reader that runs, one move", Records(runs=True, attacks=1, without=rule))
        for rule in ("replay of an older record", "movefallback")
    ),
)
