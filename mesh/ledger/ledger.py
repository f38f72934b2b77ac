"""The ledger as the region's programs use it: recording never waits, and what cannot be written is counted.

Records wait in a bounded queue for at most `BATCH_S`, then a batch is committed in a thread. A disk that is full, or a
database that is away, costs no request: the batch is tried again, and beyond the queue's bound records are dropped by
name, counted and logged.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from sqlalchemy.exc import OperationalError, SQLAlchemyError

from mesh.errors import Code, MeshError
from mesh.ledger.accounts import Account, LeftError
from mesh.ledger.database import Database
from mesh.ledger.records import Disclosure, SignedRecord, UsageRecord, UsageSum
from mesh.ports import Clock, TaskFactory
from mesh.telemetry import Log
from mesh.types import RegionId, RequestId, Revision, TenantId

QUEUE = 20_000
"""Records that may wait."""
BATCH = 500
BATCH_S = 0.05
"""How long a record waits for others. With a commit, what `kill -9` may lose: the last 100 ms."""
_READ_S = 5.0
_CLOSE_S = 5.0
_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 2.0
_Result = TypeVar("_Result")


class Ledger:
    """One region's ledger, open. See `open_ledger`.

    Attributes:
        dropped: Records that were not kept: the queue was full, or the end came before they could be written.
        faults: Failed attempts to write.
    """

    def __init__(self, database: Database, region: RegionId, clock: Clock, log: Log, pool: ThreadPoolExecutor) -> None:
        self.dropped = 0
        self.faults = 0
        self._database = database
        self._region = region
        self._clock = clock
        self._log = log
        self._pool = pool
        self._waiting: deque[UsageRecord | Disclosure] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._done = asyncio.Event()

    def record(self, record: UsageRecord | Disclosure) -> None:
        """Keeps a record. Never waits and never fails: with a full queue it is dropped and counted."""
        if len(self._waiting) >= QUEUE or self._closing:
            self._drop(1)
            return
        self._waiting.append(record)
        self._wake.set()

    async def usage(self, tenant: TenantId, from_s: int, to_s: int) -> list[UsageSum]:
        """What a tenant used of this region in [from_s, to_s), seconds since 1970, by model.

        Raises:
            MeshError: `internal_error` where the ledger cannot be read in time; so for every method below.
        """
        return await self._in_thread(lambda: self._database.usage(tenant, from_s, to_s))

    async def disclosures(
        self, tenant: TenantId, from_s: int, to_s: int, *, after: tuple[int, RequestId] | None = None, limit: int
    ) -> list[Disclosure]:
        """Calls of a tenant that this region refused because it is outside the pin, in [from_s, to_s), oldest first.

        Args:
            tenant: Whose.
            from_s: Seconds since 1970, UTC.
            to_s: Seconds since 1970, UTC; not included.
            after: Time in milliseconds and id of the last one that is known already.
            limit: At most so many.
        """
        return await self._in_thread(lambda: self._database.disclosures(tenant, from_s, to_s, after, limit))

    async def signed(self, key: str, value: bytes, epoch: int, revision: Revision) -> int:
        """Writes down a record of policy that was signed and is about to be sent to the control store.

        Args:
            key: Its key there.
            value: The record.
            epoch: The control epoch that it was signed for.
            revision: The policy revision of its tenant that the change makes.

        Returns:
            A number for `made` and `unmade`.

        Raises:
            MeshError: `move_unfinished`: the tenant has left this home, or may have.
        """
        return await self._sign(SignedRecord(at=key, value=value, epoch=epoch, revision=revision), "")

    async def signed_move(self, key: str, value: bytes, epoch: int, revision: Revision, *, last: bool) -> int:
        """As `signed`, for this home's last word of a tenant, or for the first record of one that may come to it.

        From a last word on nothing else about the tenant is taken, also after a restart and in another control epoch,
        until it may come back.
        """
        record = SignedRecord(at=key, value=value, epoch=epoch, revision=revision)
        return await self._sign(record, "last" if last else "first")

    async def last_words(self, key: str) -> list[tuple[int, bytes]]:
        """The last words for a record's key that are not known to have been made, and their numbers."""
        return await self._in_thread(lambda: self._database.last_words(key))

    async def unmade(self, number: int) -> None:
        """Forgets a record that surely never came into the control store."""
        await self._in_thread(lambda: self._database.drop_signed(number))

    async def made(self, numbers: Sequence[int]) -> None:
        """Notes that records are surely in the control store."""
        await self._in_thread(lambda: self._database.mark_made(numbers))

    async def signed_since_made(self) -> list[SignedRecord]:
        """Of each key the newest record that surely came into the control store, and all signed records not older.

        In the order of key, epoch, revision and signing. Where none is known to have come there, all of the key's.
        """
        return await self._in_thread(self._database.signed_since_made)

    async def add_account(self, account: Account) -> None:
        """Adds an account.

        Raises:
            AccountExistsError: The home has one of this name.
        """
        await self._in_thread(lambda: self._database.add_account(account))

    async def set_ready(self, tenant: TenantId) -> None:
        """Notes that a tenant's record is in the control store."""
        await self._in_thread(lambda: self._database.set_ready(tenant))

    async def drop_account(self, tenant: TenantId) -> None:
        """Forgets the account, and so the name, of a tenant that has left."""
        await self._in_thread(lambda: self._database.drop_account(tenant))

    async def accounts(self) -> list[Account]:
        """All accounts of this home, by name."""
        return await self._in_thread(lambda: self._database.accounts(self._region))

    async def account(self, tenant: TenantId) -> Account | None:
        """The account of a tenant."""
        return await self._in_thread(lambda: self._database.account(tenant))

    async def account_named(self, name: str) -> Account | None:
        """The account of a name in this home."""
        return await self._in_thread(lambda: self._database.account_named(self._region, name))

    async def write(self) -> None:
        """Commits what waits, batch by batch, until `close`. The ledger's own task."""
        try:
            backoff_s = _FIRST_BACKOFF_S
            while await self._batch_is_due():
                batch = [self._waiting[at] for at in range(min(BATCH, len(self._waiting)))]
                if await self._commit(batch):
                    for _ in batch:
                        self._waiting.popleft()
                    backoff_s = _FIRST_BACKOFF_S
                elif self._closing:
                    break
                else:
                    await self._clock.sleep(backoff_s)
                    backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)
        finally:
            self._done.set()

    async def close(self) -> None:
        """Writes what waits, for some seconds at most; what is left is counted as dropped."""
        self._closing = True
        self._wake.set()
        try:
            async with self._clock.timeout(_CLOSE_S):
                await self._done.wait()
        except TimeoutError:
            pass
        if self._waiting:
            self._drop(len(self._waiting))
            self._waiting.clear()

    async def _batch_is_due(self) -> bool:
        """Waits for records, and then for more of them; False when closing and nothing is left."""
        if not self._waiting and not self._closing:
            self._wake.clear()
            await self._wake.wait()
        if len(self._waiting) < BATCH and not self._closing:
            await self._clock.sleep(BATCH_S)
        return bool(self._waiting) or not self._closing

    async def _commit(self, batch: list[UsageRecord | Disclosure]) -> bool:
        """Whether a batch needs no more attempt."""
        if not batch:
            return True
        try:
            await _await(self._pool, lambda: self._database.add(batch))
        except OperationalError as error:
            # Full disk, locked or unreachable database: it may be better soon.
            self.faults += 1
            self._log.error("ledger.unavailable", error=_cause(error), records=len(self._waiting), count=self.faults)
            return False
        except SQLAlchemyError as error:
            # Something no database would take: it must not stand in the way of the rest.
            self.faults += 1
            self._log.error("ledger.refused", error=_cause(error), batch=len(batch))
            self._drop(len(batch))
        return True

    def _drop(self, count: int) -> None:
        before, self.dropped = self.dropped, self.dropped + count
        # At the first, and whenever the number has doubled: a flood must not also flood the log.
        if before == 0 or before.bit_length() != self.dropped.bit_length():
            self._log.error("ledger.dropped", dropped=self.dropped)

    async def _sign(self, record: SignedRecord, move: str) -> int:
        try:
            return await self._in_thread(lambda: self._database.add_signed(record, move))
        except LeftError:
            pass
        raise MeshError(Code.MOVE_UNFINISHED, hint="It has begun, and nothing else is changed here: finish it.")

    async def _in_thread(self, work: Callable[[], _Result]) -> _Result:
        hint = "The region's ledger does not answer."
        try:
            async with self._clock.timeout(_READ_S):
                return await _await(self._pool, work)
        except SQLAlchemyError as error:
            self._log.error("ledger.unavailable", error=_cause(error))
            hint = "The region's ledger cannot be read or written: is its disk full?"
        except TimeoutError as error:
            self._log.error("ledger.unavailable", error=type(error).__name__)
        raise MeshError(Code.INTERNAL_ERROR, hint=hint)


@asynccontextmanager
async def open_ledger(
    url: str, region: RegionId, *, clock: Clock, tasks: TaskFactory, log: Log
) -> AsyncGenerator[Ledger]:
    """Opens a region's ledger, migrated, with its writer; leaving writes what waits.

    Args:
        url: SQLAlchemy's, of SQLite or PostgreSQL; `{region}` in it stands for the region's id.
        region: Whose ledger it is.
        clock: For batches and pauses.
        tasks: For the writer.
        log: Where faults are told, by their class.

    Raises:
        MeshError: `start_failed` where it cannot be opened.
    """
    # One thread writes usage; the other is for questions, which must not wait for a disk that is full.
    pool = ThreadPoolExecutor(2, thread_name_prefix="ledger")
    try:
        try:
            database = await _await(pool, lambda: Database(url.replace("{region}", region)))
        except (SQLAlchemyError, OSError) as error:
            log.error("ledger.unavailable", error=_cause(error))  # noqa: TRY400 - a class, not the text with its values
            raise MeshError(Code.START_FAILED, hint="The region's ledger cannot be opened.") from None
        try:
            ledger = Ledger(database, region, clock, log, pool)
            async with tasks() as group:
                group.spawn(ledger.write(), "ledger-writer")
                try:
                    yield ledger
                finally:
                    await ledger.close()
        finally:
            database.close()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


async def _await(pool: ThreadPoolExecutor, work: Callable[[], _Result]) -> _Result:
    return await asyncio.wrap_future(pool.submit(work))


def _cause(error: BaseException) -> str:
    """The class of the driver's own error, where there is one: its text may quote values."""
    return type(getattr(error, "orig", None) or error).__name__
