"""One transaction for each change, made once, and known for what it is also when its answer was lost.

A transaction compares the records that it replaces and that its op key is not there, and puts the tenant's record, the
key's record where a key changes, the shard's head and the op key; it reads the head's new version and who the members
are. What it puts was signed, and written into the home's ledger, before it is sent.

While the store is known to answer, what a change starts from is first asked of the nearest member alone, which may be
behind: the compares find that out, and then the store is asked linearizably. So a change costs one round of the store,
not two. Whatever is no commit that succeeded, such as an error or that nothing changes, is told on a linearizable read
only. Where the store may be away, that read comes first: it fails before anything was sent whose outcome is unknown.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256

from mesh.control import layout
from mesh.control.asked import Request, left_homes, mark_of, number_of, told, unchanged
from mesh.control.drafts import Before, Draft, Journal, Outcome, key_record, tenant_record
from mesh.control.history import StoreHistory
from mesh.control.homes import chained
from mesh.control.memberships import members_of
from mesh.control.ops import checked_op_id, new_op_id
from mesh.control.records import (
    KeyRecord,
    OpMark,
    TenantRecord,
    Trust,
    encode_head,
    encode_key,
    encode_op,
    encode_tenant,
    next_revision,
)
from mesh.control.signing import Signer, fields
from mesh.control.store import (
    Compare,
    KeyValue,
    Op,
    Put,
    Range,
    RangeResult,
    Store,
    StoreDeniedError,
    StoreUnavailableError,
    TxnResult,
)
from mesh.errors import Code, MeshError
from mesh.policy.shards import shard_of
from mesh.ports import Clock, Entropy, Instant
from mesh.types import KeyId, RegionId, TenantId

DEADLINE_S = 4.0
"""For a whole change or read, tries included: `admin` says within 5 s that the store is away."""
_TRIES = 8
_CALL_S = 2.0
_PAUSE_S = 0.1
_PAGE = 500


class Commits:
    """Reads and commits for one home. Every method raises MeshError; see `Changes`."""

    def __init__(
        self,
        store: Store,
        home: RegionId,
        clock: Clock,
        entropy: Entropy,
        signer: Signer | None,
        trust: Trust,
        journal: Journal,
        history: StoreHistory,
        store_answers: Callable[[], bool],
    ) -> None:
        self._store = store
        self._home = home
        self._clock = clock
        self._entropy = entropy
        self._signer = signer
        self._trust = trust
        self._journal = journal
        self._history = history
        self._store_answers = store_answers

    async def change(
        self,
        tenant: TenantId,
        op_id: str | None,
        edit: Callable[[Before], Draft],
        asked: tuple[bytes | str | int, ...],
        key_id: KeyId | None = None,
        more: tuple[Range, ...] = (),
    ) -> Outcome:
        """Reads, edits and commits, again while others change the same record, and until the outcome is known.

        With `more` to be read, all is read linearizably.
        """
        given = op_id is not None
        request = Request(
            tenant=tenant,
            key_id=key_id,
            op_id=checked_op_id(op_id, self._clock.wall_s()) if given else new_op_id(self._clock, self._entropy),
            given=given,
            asked=sha256(fields(b"mesh.asked.v1", *asked)).digest(),
            edit=edit,
            more=more,
        )
        deadline_s = self._clock.now_s() + DEADLINE_S
        sent = False
        lost = False
        quick = self._store_answers() and not more
        for _ in range(_TRIES):
            if self._left_s(deadline_s) <= 0:
                break
            try:
                near = await self._near(request, deadline_s) if quick else None
                quick = False
                if near is not None:
                    before, draft = near
                else:
                    before = await self._before(request, deadline_s)
                    if before.op is not None:
                        return told(before, before.op, request, resumed=not sent)
                    made = await self._made_before(before, request, deadline_s)
                    if made is not None:
                        return made
                    draft = edit(before)
                    if not draft.changed and not before.is_unfinished:
                        return unchanged(before, draft, request)
                    if not draft.changed:
                        # What stands does not say that the tenant has left its old home: whoever has applied it may
                        # not know that, and go by what was there. So it is put again, and says so.
                        draft = replace(
                            draft,
                            tenant=next_revision(draft.tenant),
                            changed=True,
                            drain_s=draft.tenant.policy.drain_s,
                        )
                puts = self._signed(draft)
                try:
                    numbers = await self._write_down(draft, puts, deadline_s)
                except MeshError as error:
                    takes = draft.shrink is not None and not draft.tenant.left
                    if error.code is not Code.MOVE_UNFINISHED or not takes or not await self._void(tenant, deadline_s):
                        raise
                    continue
                sent = lost = True  # lost until the store says what became of it
                outcome = await self._commit(before, draft, puts, request, deadline_s)
                if outcome is not None:
                    await self._note_made(numbers, deadline_s)
                    return outcome
                lost = False
                for number in numbers:
                    await self._journal.unmade(number)
            except StoreUnavailableError:
                await self._clock.sleep(_PAUSE_S)
            except StoreDeniedError:
                raise MeshError(
                    Code.INTERNAL_ERROR, hint="The control store refuses this program's certificate."
                ) from None
        raise MeshError(
            Code.POLICY_STORE_UNAVAILABLE,
            hint="Its last answer was lost, so the change may have been made: look before you repeat it."
            if lost
            else "Nothing was changed.",
        )

    async def _near(self, request: Request, deadline_s: float) -> tuple[Before, Draft] | None:
        """What to commit by what the nearest member has; None where only a linearizable read can tell."""
        self._history.check()
        seen, reads = self._history.seen(), [replace(one, serializable=True) for one in self._reads(request)]
        with suppress(StoreUnavailableError, MeshError):
            answer = await self._store.txn((), reads, timeout_s=self._left_s(deadline_s))
            if not self._history.fits(answer, seen):
                return None
            before = self._found(answer, request, self._clock.instant())
            draft = request.edit(before) if before.op is None else None
            if draft is not None and draft.changed:
                return before, draft
        return None

    async def _before(self, request: Request, deadline_s: float) -> Before:
        """The records, the op and the members, all as of one revision."""
        seen = self._history.seen()
        answer = await self._store.txn((), self._reads(request), timeout_s=self._left_s(deadline_s))
        read = self._clock.instant()
        self._history.take(answer, seen)
        before = self._found(answer, request, read)
        return replace(before, tenant=await self.counting(before.found, deadline_s))

    async def _made_before(self, before: Before, request: Request, deadline_s: float) -> Outcome | None:
        """What a home that the tenant has left made under this op id; None if it made nothing."""
        homes = left_homes(before.tenant, self._home) if request.given else []
        if not homes:
            return None
        shards = {home: shard_of(home, request.tenant) for home in homes}
        ops = [Range(layout.op_key(home, request.tenant, request.op_id)) for home in homes]
        found = await self.ask([*ops, *(Range(layout.head_key(shard)) for shard in shards.values())], deadline_s)
        for op, head, shard in zip(found[: len(homes)], found[len(homes) :], shards.values(), strict=True):
            mark = mark_of(op.items[0]) if op.items else None
            if mark is not None:
                # Whoever has applied both shards has applied that change, and goes by this home.
                return told(before, mark, request, resumed=True, beside={shard: number_of(head)})
        return None

    async def counting(self, record: TenantRecord | None, deadline_s: float | None = None) -> TenantRecord | None:
        """A record that stands, if it counts, with the statements of all moves; else None.

        A new home's first one counts, and gets the statement that it lacks, once the old home has made that.
        """
        if record is None or record.left or not record.is_first:
            return None if record is None or record.left else record
        came_from = record.came_from
        assert came_from is not None  # noqa: S101 - a first record is of a move
        deadline_s = self._clock.now_s() + DEADLINE_S if deadline_s is None else deadline_s
        (found,) = await self.ask([Range(layout.policy_key(came_from, record.policy.tenant))], deadline_s)
        said = tenant_record(found.items[0], self._trust) if found.items else None
        return None if said is None else chained(record, said.chain)

    async def ask(self, reads: Sequence[Range], deadline_s: float) -> tuple[RangeResult, ...]:
        """Linearizable reads, all as of one revision."""
        seen = self._history.seen()
        answer = await self._store.txn((), reads, timeout_s=self._left_s(deadline_s))
        self._history.take(answer, seen)
        return answer.ranges

    def _reads(self, request: Request) -> list[Range]:
        home, tenant = self._home, request.tenant
        reads = [
            Range(layout.policy_key(home, tenant)),
            Range(layout.op_key(home, tenant, request.op_id)),
            Range(layout.head_key(shard_of(home, tenant))),
            Range(*layout.GRANTS),
        ]
        if request.key_id is not None:
            reads.append(Range(layout.key_key(home, tenant, request.key_id)))
        return [*reads, *request.more]

    def _found(self, answer: TxnResult, request: Request, read: Instant) -> Before:
        own = len(answer.ranges) - len(request.more)
        record, op, _, _, *key = (result.items[0] if result.items else None for result in answer.ranges[:own])
        held = key[0] if key else None
        known = tenant_record(record, self._trust) if record else None
        if record is not None and known is None:
            # Readers refuse it as it is; to write over it could widen what it was meant to be.
            raise MeshError(Code.INTERNAL_ERROR, hint="The tenant's record in the control store is not valid.")
        return Before(
            tenant=None if known is None or known.left or known.is_first else known,
            found=known,
            tenant_at=record.mod_revision if record else 0,
            key=key_record(held, self._trust) if held else None,
            key_at=held.mod_revision if held else 0,
            op=mark_of(op),
            number=number_of(answer.ranges[2]),
            members=members_of(answer.ranges[3].items),
            read=read,
            more=answer.ranges[own:],
        )

    def _signed(self, draft: Draft) -> list[Put]:
        """The records to be put, the tenant's first: a reader takes a key only after its tenant."""
        signer, epoch, policy = self.signer(), self._trust.epoch, draft.tenant.policy
        puts = [Put(layout.policy_key(self._home, policy.tenant), encode_tenant(draft.tenant, signer, epoch))]
        if draft.key is not None:
            at = layout.key_key(self._home, policy.tenant, draft.key.key.key_id)
            puts.append(Put(at, encode_key(draft.key, signer, epoch)))
        return puts

    async def _write_down(self, draft: Draft, puts: list[Put], deadline_s: float) -> list[int]:
        """Keeps what was signed before it is sent: what may be in the store is in the ledger."""
        records = [draft.tenant] if draft.key is None else [draft.tenant, draft.key]
        return await self._keep(puts, records, deadline_s)

    async def _keep(
        self, puts: Sequence[Put], records: Sequence[TenantRecord | KeyRecord], deadline_s: float
    ) -> list[int]:
        """Keeps records, each by the revision that it says itself: by that it is known again in the store."""
        journal, epoch, numbers = self._journal, self._trust.epoch, list[int]()
        try:
            async with self._clock.timeout(self._left_s(deadline_s)):
                for put, record in zip(puts, records, strict=True):
                    if isinstance(record, KeyRecord):
                        kept = await journal.signed(put.key, put.value, epoch, record.revision)
                    elif record.left or record.is_first:
                        revision = record.policy.revision
                        kept = await journal.signed_move(put.key, put.value, epoch, revision, last=record.left)
                    else:
                        kept = await journal.signed(put.key, put.value, epoch, record.policy.revision)
                    numbers.append(kept)
                return numbers
        except TimeoutError:
            pass
        raise MeshError(Code.INTERNAL_ERROR, hint="The region's ledger does not answer; nothing was changed.")

    async def put(
        self,
        tenant: TenantId,
        records: Sequence[tuple[TenantRecord | KeyRecord, int]],
        deadline_s: float,
    ) -> bool:
        """Puts records, a tenant's before its keys', each over the one of a mod_revision; False if any was another."""
        signer, epoch = self.signer(), self._trust.epoch
        puts, compares = list[Put](), list[Compare]()
        for record, mod_revision in records:
            if isinstance(record, TenantRecord):
                put = Put(layout.policy_key(self._home, tenant), encode_tenant(record, signer, epoch))
            else:
                at = layout.key_key(self._home, tenant, record.key.key_id)
                put = Put(at, encode_key(record, signer, epoch))
            puts.append(put)
            compares.append(Compare(put.key, mod_revision))
        numbers = await self._keep(puts, [record for record, _ in records], deadline_s)
        head = Put(
            layout.head_key(shard_of(self._home, tenant)),
            encode_head(puts[-1].key, new_op_id(self._clock, self._entropy)),
        )
        seen = self._history.seen()
        answer = await self._store.txn(compares, [*puts, head], timeout_s=self._left_s(deadline_s))
        self._history.take(answer, seen)
        if answer.succeeded:
            await self._note_made(numbers, deadline_s)
        else:
            for number in numbers:
                await self._journal.unmade(number)
        return answer.succeeded

    async def _void(self, tenant: TenantId, deadline_s: float) -> bool:
        """Sees to it that last words which were signed, and which nobody knows to have been made, never can be.

        Each is made only over the record that it was signed to replace. So that is put again, as it stands: what is
        taken away at home need not wait until a move is taken up again, perhaps by a home that is gone.

        Returns:
            Whether there was any; not where the tenant has left, as far as this home's ledger knows.
        """
        at = layout.policy_key(self._home, tenant)
        words = await self._journal.last_words(at)  # before the store: of what is signed later it tells nothing
        if not words:
            return False
        (found,) = await self.ask([Range(at)], deadline_s)
        item = found.items[0] if found.items else None
        record = tenant_record(item, self._trust) if item else None
        if item is None or record is None or record.left:
            return True  # one was made: whoever reads it now is told so
        head = Put(
            layout.head_key(shard_of(self._home, tenant)), encode_head(at, new_op_id(self._clock, self._entropy))
        )
        seen = self._history.seen()
        answer = await self._store.txn(
            [Compare(at, item.mod_revision)], [Put(at, item.value), head], timeout_s=self._left_s(deadline_s)
        )
        self._history.take(answer, seen)
        if answer.succeeded:
            for number, _ in words:
                await self._journal.unmade(number)
        return True

    def signer(self) -> Signer:
        """This home's policy key. Raises MeshError, `invalid_settings`."""
        if self._signer is None:
            hint = f"regions/{self._home}.yaml has no 'policy_keys', so the region cannot be a tenant's home."
            raise MeshError(Code.INVALID_SETTINGS, hint=hint)
        return self._signer

    async def _note_made(self, numbers: list[int], deadline_s: float) -> None:
        """Notes that a change was made. Without the note a recovery takes it for one that may not have been."""
        with suppress(MeshError, TimeoutError):
            async with self._clock.timeout(self._left_s(deadline_s)):
                await self._journal.made(numbers)

    async def _commit(
        self, before: Before, draft: Draft, puts: list[Put], request: Request, deadline_s: float
    ) -> Outcome | None:
        """What was made; None when another change came first."""
        revision = draft.tenant.policy.revision
        op_at = layout.op_key(self._home, request.tenant, request.op_id)
        head = layout.head_key(shard_of(self._home, request.tenant))
        compares = [Compare(put.key, at) for put, at in zip(puts, (before.tenant_at, before.key_at), strict=False)]
        mark = OpMark(
            revision=revision, asked=request.asked, shrink=draft.shrink, key_id=draft.key_id, drain_s=draft.drain_s
        )
        ops: list[Op] = [
            *puts,
            Put(head, encode_head(puts[-1].key, request.op_id)),
            Put(op_at, encode_op(mark)),
            Range(head),
            Range(*layout.GRANTS),
        ]
        seen = self._history.seen()
        compares += [*draft.compares, Compare(op_at, 0)]
        if request.given:
            homes = left_homes(draft.tenant, self._home)
            compares += [Compare(layout.op_key(home, request.tenant, request.op_id), 0) for home in homes]
        answer = await self._store.txn(compares, ops, timeout_s=self._left_s(deadline_s))
        committed = self._clock.instant()
        self._history.take(answer, seen)
        if not answer.succeeded:
            return None
        return Outcome(
            tenant=draft.tenant,
            key=draft.key,
            changed=True,
            revision=revision,
            op_id=request.op_id,
            resumed=False,
            number=number_of(answer.ranges[0]),
            members=members_of(answer.ranges[1].items),
            shrink=draft.shrink,
            key_id=draft.key_id,
            drain_s=draft.drain_s,
            committed=committed,
        )

    async def read(self, key: str, end: str | None) -> AsyncGenerator[KeyValue]:
        """A range in pages, as of one revision; nothing of a store that went back."""
        self._history.check()
        deadline_s, revision = self._clock.now_s() + DEADLINE_S, 0
        while True:
            try:
                answer = await self._store.range(
                    Range(key, end, limit=_PAGE, revision=revision), timeout_s=self._left_s(deadline_s)
                )
            except StoreUnavailableError:
                raise MeshError(Code.POLICY_STORE_UNAVAILABLE) from None
            except StoreDeniedError:
                raise MeshError(
                    Code.INTERNAL_ERROR, hint="The control store refuses this program's certificate."
                ) from None
            revision = revision or answer.revision
            for item in answer.items:
                yield item
            if not answer.more:
                return
            key = answer.items[-1].key + "\0"

    def _left_s(self, deadline_s: float) -> float:
        return min(_CALL_S, deadline_s - self._clock.now_s())
