"""A tenant's move from one home to another, in three steps, each of which may be made again.

1. The new home makes ready: it puts its first record, made from the old home's, and takes over the keys' records. None
   of it counts.
2. The old home leaves: in one transaction, which compares both homes' records, its own is replaced by its last word,
   with the statement that names the new home's record. From then on that record counts, and the old home signs nothing.
3. The new home finishes: it puts its record again, with the statement in it. Whatever it changes first does so too.

Gateways go on serving meanwhile, first by the one record and then by the other. A move takes away that anybody acts on
the old one: it is waited for as for other changes that take something away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mesh.control import edits, layout
from mesh.control.commits import DEADLINE_S, Commits
from mesh.control.drafts import Before, Draft, Journal, Outcome, existing, key_record, tenant_record
from mesh.control.homes import chained
from mesh.control.memberships import members_of
from mesh.control.ops import new_op_id
from mesh.control.records import KeyRecord, RecordError, TenantRecord, Trust, decode_tenant, digest_of, next_revision
from mesh.control.statements import Statement, make_statement
from mesh.control.store import Compare, KeyValue, Range, RangeResult, StoreDeniedError, StoreUnavailableError
from mesh.errors import Code, MeshError
from mesh.policy.shards import shard_of
from mesh.ports import Clock, Entropy
from mesh.types import KeyId, RegionId, Revision, TenantId

_TRIES = 8
_BATCH = 50
"""Records in one transaction: with their compares far below the store's limit of 128."""


class Moves:
    """One home's part in moves of tenants, to it and from it. Every method raises MeshError; see `Changes`."""

    def __init__(
        self, commits: Commits, home: RegionId, clock: Clock, entropy: Entropy, trust: Trust, journal: Journal
    ) -> None:
        self._commits = commits
        self._home = home
        self._clock = clock
        self._entropy = entropy
        self._trust = trust
        self._journal = journal

    async def prepare(self, tenant: TenantId, old_home: RegionId) -> TenantRecord:
        """Makes this home ready for a tenant of another one. What there is already is not put again.

        Raises:
            MeshError: `tenant_not_found`: the other home has no such tenant. `home_outside_pin`.
        """
        if old_home == self._home:
            raise MeshError(Code.INVALID_PARAMETER, param="home", hint="It is the tenant's home already.")
        deadline_s = self._clock.now_s() + DEADLINE_S
        try:
            for _ in range(_TRIES):
                first, puts = await self._plan(tenant, old_home, deadline_s)
                batches = [puts[start : start + _BATCH] for start in range(0, len(puts), _BATCH)]
                for batch in batches:
                    if not await self._commits.put(tenant, batch, deadline_s):
                        break
                else:
                    return first
        except StoreUnavailableError:
            raise MeshError(Code.POLICY_STORE_UNAVAILABLE) from None
        except StoreDeniedError:
            raise MeshError(Code.INTERNAL_ERROR, hint="The control store refuses this program's certificate.") from None
        raise MeshError(Code.MOVE_UNFINISHED, hint="The tenant is being changed all the time: try again.")

    async def leave(self, tenant: TenantId, new_home: RegionId, op_id: str | None = None) -> Outcome:
        """Says, for good, that a tenant of this home has moved to one that is ready for it.

        Raises:
            MeshError: `move_unfinished`: the new home is not ready, or the tenant was changed since it was; or a move
                to another home has begun. `home_outside_pin`, `unknown_region`.
        """
        if new_home not in self._trust.homes:
            raise MeshError(Code.UNKNOWN_REGION, param="home")
        if new_home == self._home:
            raise MeshError(Code.INVALID_PARAMETER, param="home", hint="It is the tenant's home already.")
        signer = self._commits.signer()
        said: dict[tuple[Revision, bytes], Statement] = {}
        while True:
            pending = await self._pending(tenant)

            def edit(before: Before, pending: Sequence[tuple[int, Statement]] = pending) -> Draft:
                found = before.found
                if found is not None and found.left and found.chain[-1].new_home == new_home:
                    return Draft(tenant=found, changed=False, shrink=edits.taken_by_move(found.policy))
                record = existing(before)
                first = self._first(record, new_home)
                theirs, ours = before.more
                if not _is_ready(first, theirs, record, ours, self._trust):
                    raise MeshError(Code.MOVE_UNFINISHED, hint=f"{new_home} is not ready for the tenant as it is now.")
                at = record.policy.revision, digest_of(first)
                for number, one in pending:
                    if one.revision == at[0] and one.new_home != new_home:
                        hint = f"A move to {one.new_home} has begun: finish that one, and move on from there."
                        raise MeshError(Code.MOVE_UNFINISHED, hint=hint)
                    if (one.revision, one.first) != at:
                        raise _VoidError(number)
                    said[at] = one
                if at not in said:
                    said[at] = make_statement(
                        tenant=tenant,
                        moves=first.policy.moves,
                        home=self._home,
                        new_home=new_home,
                        revision=record.policy.revision,
                        first=at[1],
                        epoch=self._trust.epoch,
                        made_s=int(self._clock.wall_s()),
                        signer=signer,
                    )
                policy = replace(record.policy, revision=first.policy.revision, moves=first.policy.moves)
                last = replace(record, policy=policy, chain=(*record.chain, said[at]), left=True)
                shrink = edits.taken_by_move(record.policy)
                mod_revision = theirs.items[0].mod_revision
                compares = (Compare(layout.policy_key(new_home, tenant), mod_revision),)
                return Draft(tenant=last, changed=True, shrink=shrink, compares=compares)

            more = (Range(*layout.tenant_range(new_home, tenant)), Range(*layout.tenant_range(self._home, tenant)))
            try:
                return await self._commits.change(tenant, op_id, edit, ("leave", new_home), more=more)
            except _VoidError as error:
                # What it names has changed since, so that its transaction, if it is still on its way, comes to nothing.
                await self._journal.unmade(error.number)

    async def finish(self, tenant: TenantId) -> tuple[Outcome, TenantRecord]:
        """Completes the last move of a tenant to this home.

        Returns:
            What there is to be waited for, as a change of the old home, and the record that stands here.

        Raises:
            MeshError: `move_unfinished`: the old home has not said yet that it left. `invalid_parameter`: it never
                moved.
        """

        def edit(before: Before) -> Draft:
            if before.tenant is None and before.found is not None and before.found.is_first:
                raise MeshError(Code.MOVE_UNFINISHED, hint="Its old home has not said yet that the tenant has left.")
            record = existing(before)
            if not record.policy.moves:
                raise MeshError(Code.INVALID_PARAMETER, param="home", hint="It is the tenant's home already.")
            if before.found == record:
                return Draft(tenant=record, changed=False)
            return Draft(tenant=next_revision(record), changed=True)

        record = (await self._commits.change(tenant, None, edit, ("finish_move",))).tenant
        statement = record.chain[-1]
        shards = shard_of(statement.home, tenant), shard_of(self._home, tenant)
        reads = [*(Range(layout.head_key(shard)) for shard in shards), Range(*layout.GRANTS)]
        try:
            *heads, grants = await self._commits.ask(reads, self._clock.now_s() + DEADLINE_S)
        except StoreUnavailableError:
            raise MeshError(Code.POLICY_STORE_UNAVAILABLE) from None
        left, here = (head.items[0].version if head.items else 0 for head in heads)
        # As of now, so at least as high as in the old home's commit; and whoever held a grant then and holds none now
        # has left, or its death was attested. Who knows that the tenant has left may not know yet what this home has
        # said since of its times, which are forgotten once this was waited for.
        policy = replace(record.policy, home=statement.home, moves=statement.moves - 1)
        outcome = Outcome(
            tenant=replace(record, policy=policy),
            key=None,
            changed=False,
            revision=Revision(statement.revision + 1),
            op_id=new_op_id(self._clock, self._entropy),
            resumed=False,
            number=left,
            beside={shards[1]: here},
            members=members_of(grants.items),
            shrink=edits.taken_by_move(record.policy),
            key_id=None,
            drain_s=0.0,
            committed=self._clock.instant(),
        )
        return outcome, record

    async def has_left(self, tenant: TenantId) -> bool:
        """Whether a tenant has left this home, and has not come back."""
        at = layout.policy_key(self._home, tenant)
        try:
            (found,) = await self._commits.ask([Range(at)], self._clock.now_s() + DEADLINE_S)
        except StoreUnavailableError:
            raise MeshError(Code.POLICY_STORE_UNAVAILABLE) from None
        record = _tenant_in(found, self._home, tenant, self._trust)
        return record is not None and record.left

    async def _plan(
        self, tenant: TenantId, old_home: RegionId, deadline_s: float
    ) -> tuple[TenantRecord, list[tuple[TenantRecord | KeyRecord, int]]]:
        """The first record here, and what of it and of the keys is still to be put, over which mod_revision."""
        reads = [Range(*layout.tenant_range(home, tenant)) for home in (old_home, self._home)]
        theirs, ours = await self._commits.ask(reads, deadline_s)
        at, mine = layout.policy_key(self._home, tenant), _by_key(ours)
        own = tenant_record(mine[at], self._trust) if at in mine else None
        if at in mine and own is None:
            raise MeshError(Code.INTERNAL_ERROR, hint="The tenant's record in the control store is not valid.")
        found = _tenant_in(theirs, old_home, tenant, self._trust)
        has_left = found is not None and found.left and found.chain[-1].new_home == self._home
        if found is not None and has_left:
            # It has left already. What it has named is still here, or can be made again.
            record = _before_leaving(found)
            first = self._first(record, self._home)
            if own is not None and not own.left and (not own.is_first or chained(own, found.chain)):
                return own, []
            if chained(first, found.chain) is None:
                raise MeshError(Code.INTERNAL_ERROR, hint="What the old home has named cannot be made again.")
        else:
            record = await self._commits.counting(found, deadline_s)
            if record is None:
                raise MeshError(Code.TENANT_NOT_FOUND, param="tenant")
            if own is not None and not own.left and not own.is_first:
                raise MeshError(Code.INTERNAL_ERROR, hint="Two homes have a record of the tenant that counts.")
            first = self._first(record, self._home)
        self._check_next(own, first)
        puts = list[tuple[TenantRecord | KeyRecord, int]]()
        if own != first:
            puts.append((first, mine[at].mod_revision if at in mine else 0))
        keys = _keys_in(theirs, record, self._trust)
        for key_id, key in keys.items():
            key_at = layout.key_key(self._home, tenant, key_id)
            copy = replace(key, home=self._home, moves=first.policy.moves)
            known = key_record(mine[key_at], self._trust) if key_at in mine else None
            if known != copy:
                puts.append((copy, mine[key_at].mod_revision if key_at in mine else 0))
        if not has_left:
            # A copy of an earlier time of what the old home does not have any more: a recovery has left it out.
            for key_id, key in _keys_in(ours, first, self._trust).items():
                if key_id not in keys and not key.key.revoked:
                    ended, now_s = replace(key.key, revoked=True), int(self._clock.wall_s())
                    revoked = replace(key, key=ended, revision=first.policy.revision, revoked_s=now_s)
                    puts.append((revoked, mine[layout.key_key(self._home, tenant, key_id)].mod_revision))
        return first, puts

    def _check_next(self, own: TenantRecord | None, first: TenantRecord) -> None:
        """Refuses who asks late: the tenant came, and has moved on. What says so is never put over."""
        if own is not None and own.policy.moves > first.policy.moves:
            raise MeshError(Code.TENANT_NOT_FOUND, param="tenant")

    def _first(self, record: TenantRecord, home: RegionId) -> TenantRecord:
        """The first record of a new home, as it follows from the old home's."""
        place = self._trust.homes[home].jurisdiction
        if place not in record.policy.allowed:
            hint = (
                f"{home} is in {place}, which the pin does not allow. Pin the tenant to {place} as well, then move it."
            )
            raise MeshError(Code.HOME_OUTSIDE_PIN, param="home", hint=hint)
        return replace(record, policy=edits.moved(record.policy, home, place))

    async def _pending(self, tenant: TenantId) -> list[tuple[int, Statement]]:
        """The statements of last words that were signed here and are not known to have been made."""
        at = layout.policy_key(self._home, tenant)
        parsed = layout.parse(at)
        assert isinstance(parsed, layout.PolicyKey)  # noqa: S101 - it was built just now
        found = list[tuple[int, Statement]]()
        for number, value in await self._journal.last_words(at):
            try:
                found.append((number, decode_tenant(parsed, value, self._trust).chain[-1]))
            except RecordError:
                continue  # of another epoch: it is published again by the recovery
        return found


class _VoidError(Exception):
    """A last word that was signed can never be made any more."""

    def __init__(self, number: int) -> None:
        super().__init__("void")
        self.number = number


def _before_leaving(word: TenantRecord) -> TenantRecord:
    """The record that a last word has replaced."""
    policy, statement = word.policy, word.chain[-1]
    before = replace(policy, revision=statement.revision, moves=policy.moves - 1)
    return replace(word, policy=before, chain=word.chain[:-1], left=False)


def _is_ready(first: TenantRecord, theirs: RangeResult, record: TenantRecord, ours: RangeResult, trust: Trust) -> bool:
    """Whether the new home has put the first record that follows from this one, and has its keys and no others."""
    if _tenant_in(theirs, first.policy.home, first.policy.tenant, trust) != first:
        return False
    keys, own = _keys_in(theirs, first, trust), _keys_in(ours, record, trust)
    return all((copy := keys.get(key_id)) is not None and copy.key == key.key for key_id, key in own.items()) and all(
        key.key.revoked for key_id, key in keys.items() if key_id not in own
    )


def _by_key(result: RangeResult) -> dict[str, KeyValue]:
    return {item.key: item for item in result.items}


def _tenant_in(result: RangeResult, home: RegionId, tenant: TenantId, trust: Trust) -> TenantRecord | None:
    item = _by_key(result).get(layout.policy_key(home, tenant))
    return None if item is None else tenant_record(item, trust)


def _keys_in(result: RangeResult, record: TenantRecord, trust: Trust) -> dict[KeyId, KeyRecord]:
    """The keys that count with a record."""
    keys = (key_record(item, trust) for item in result.items)
    return {key.key.key_id: key for key in keys if key is not None and key.moves == record.policy.moves}
