"""The database: one engine, write transactions that carry the messages they send, and errors translated once.

Invariant: whatever a transaction sends becomes rows in that same transaction (its riders write them just
before COMMIT), so a message exists exactly if its cause does. SQLAlchemy's and the drivers' exceptions for
outside failures become hopline.errors here and nowhere else; a statement's own fault (a broken constraint)
passes through as it is.

SQLite: WAL, synchronous=FULL, BEGIN IMMEDIATE on one writer connection per process (a pool of one), readers
beside it. Postgres: READ COMMITTED, lock_timeout 2 s, idle_in_transaction_session_timeout 10 s, in a worker as long
as its slowest handler may take and 10 s more.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncTransaction, create_async_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import functions
from sqlalchemy.util import await_only

from hopline import database_url, migrations, schema, topology
from hopline.clock import new_id, utcnow
from hopline.errors import (
    CommitUnknown,
    DatabaseContention,
    DatabaseError,
    DatabaseUnavailable,
    HoplineError,
    TransactionAborted,
    UsageError,
)
from hopline.message import Envelope
from hopline.outcome import LONGEST_DELAY_SECONDS, checked_delay
from hopline.outgoing import envelope_of_message
from hopline.redaction import redacted
from hopline.rows import Dialect, Parameters
from hopline.sqlite_stopping import stop_when_invalidated

LOCK_TIMEOUT_SECONDS = 2.0
IDLE_IN_TRANSACTION_SECONDS = 10.0
"""A frozen process lets go of its locks after so long; a worker's handlers may take their deadline in addition."""
STAY_AWAKE_SECONDS = IDLE_IN_TRANSACTION_SECONDS / 2
"""Between the handlers of a group a transaction is not idle for longer, or their waits would add up."""
SQLITE_BUSY_SECONDS = 5.0
SQLITE_GROUP_MEMBERS = 64
SQLITE_PAUSE_SECONDS = 0.001
SQLITE_PAUSE_CAP_SECONDS = 0.005
STATEMENT_TIMEOUT_SECONDS = 30.0
MIGRATION_STATEMENT_SECONDS = 3_600.0
"""A migration may have to rewrite a large table, or to wait for another migration that does."""
POOL_CONNECTIONS = 8
POOL_WAIT_SECONDS = 20.0
CONNECT_TIMEOUT_SECONDS = 5.0
DELAY_PART = 0.9
"""The part of the inbox's retention that a new message may be delayed; the rest is for its retries and outages."""

SINGLE = "hopline_single"
"""Execution option of a connection, on SQLite: it runs one query, and begins no transaction for it."""

INSIDE = "hopline_inside"
"""In the info of a connection while a handler has its transaction."""
NOT_THE_HANDLERS = "a handler must not commit, roll back or close its transaction: Hopline does, with the claim"

_ENDS_TRANSACTION = re.compile(r"\s*(commit|end|rollback|abort)\b(?!\s+to\b)", re.IGNORECASE)

WRITES_TOGETHER = 64
"""Combinations of deferred statements that are kept built, of which a program has a few."""

Result = TypeVar("Result")
Write = sa.Insert | sa.Update | sa.Delete

# SQLSTATE: serialization_failure, deadlock_detected, lock_not_available (Postgres documentation, appendix A).
_CONTENTION_STATES = frozenset({"40001", "40P01", "55P03"})
# 08xxx and 57P0x are a server going away, 28xxx and 3Dxxx one that does not let us in, 25006 one that must not be
# written (a standby, or a primary that has become one).
_READ_ONLY_STATE = "25006"
_LOST_STATES = ("08", "57P0", "28", "3D", _READ_ONLY_STATE)
# Without disk, memory or connections. Not 53400: this is a limit that the statement itself has exceeded.
_EXHAUSTED_STATES = ("53",)
# query_canceled (statement_timeout), idle_in_transaction_session_timeout, transaction_timeout,
# in_failed_sql_transaction, configuration_limit_exceeded (temp_file_limit).
_ABORTED_STATES = frozenset({"57014", "25P03", "25P04", "25P02", "53400"})
_SQLITE_CONTENTION = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")
_SQLITE_LOST = ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_PERM")
_SQLITE_EXHAUSTED = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_NOMEM")

_READ_ONLY = sa.text("SELECT pg_is_in_recovery() AS standby, current_setting('transaction_read_only') AS read_only")
_POSTGRES_MILLISECONDS = (1 << 31) - 1
"""Largest value of a Postgres setting."""

_FAILED = "hopline_failed"
"""Entry of a connection's info: the error of a statement that Postgres refuses to commit after."""


class now(functions.GenericFunction[Any]):  # noqa: N801 - an SQL function, spelled like one
    """The database's clock, plus an offset in seconds: `now()`, `now(30)`, `now(bindparam('delay'))`."""

    type = schema.UtcTime()
    name = "hopline_now"
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: Any, **options: Any) -> str:
    offset = compiler.process(element.clauses, **options) or "0"
    return f"strftime('{schema.SQLITE_TIME}', 'now', ({offset}) || ' seconds')"


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: Any, **options: Any) -> str:
    offset = compiler.process(element.clauses, **options)
    return f"(clock_timestamp() + make_interval(secs => {offset}))" if offset else "clock_timestamp()"


@dataclass(frozen=True, slots=True)
class Send:
    """One send of one message: becomes a row of the outbox, and the messages row if the message is new."""

    id: str
    envelope: Envelope
    destination: str
    """A queue's name, or empty for all queues that are bound to the type."""
    delay_seconds: float
    new: bool
    """Whether the message is made by this transaction (else it may be stored already)."""


class Rider(Protocol):
    """Writes along with every write transaction of the process."""

    async def board(self, tx: Transaction) -> Callable[[bool], None] | None:
        """Called just before COMMIT; may execute or defer statements. What it returns is called once with whether
        the commit is known to have happened."""
        ...


class Transaction:
    """An open write transaction. Made by Database.transaction(); used by one task at a time."""

    def __init__(
        self,
        connection: AsyncConnection,
        dialect: Dialect,
        message_limit_bytes: int,
        longest_delay_seconds: float = LONGEST_DELAY_SECONDS,
    ) -> None:
        self.connection = connection
        self.dialect = dialect
        self.sends: list[Send] = []
        self.cause: Envelope | None = None
        """The message that is being handled; what is sent meanwhile belongs to its flow."""
        self._deferred: list[tuple[Write, Parameters]] = []
        self.message_limit_bytes = message_limit_bytes
        self._longest_delay_seconds = longest_delay_seconds
        self._awake_at = time.monotonic()

    def send(
        self,
        message: msgspec.Struct,
        *,
        queue: str = "",
        delay_seconds: float = 0.0,
        headers: Mapping[str, str] | None = None,
    ) -> Envelope:
        """Sends a message with this transaction: it leaves after the commit, and only then.

        `queue` sends it to one queue instead of all that are bound to its type; `delay_seconds` makes it due
        later by the database's clock: a finite number from 0 to nine tenths of the inbox's retention, and at most
        LONGEST_DELAY_SECONDS. MessageTooLarge and UsageError are raised here, before anything is stored.
        """
        delay = 0.0 if delay_seconds == 0.0 else checked_send_delay(delay_seconds, self._longest_delay_seconds)
        if queue:
            topology.check_queue_name(queue)
        envelope = envelope_of_message(message, cause=self.cause, limit_bytes=self.message_limit_bytes, headers=headers)
        self.sends.append(Send(new_id(), envelope, queue, delay, new=True))
        return envelope

    def add(self, envelope: Envelope) -> None:
        """Sends a new message whose envelope is made already (outgoing.py)."""
        self.sends.append(Send(new_id(), envelope, "", 0.0, new=True))

    def schedule(self, envelope: Envelope, *, queue: str, delay_seconds: float) -> None:
        """Sends an existing message to one queue (again): a retry, a deferral or a replay.

        UsageError if `delay_seconds` is no number from 0 to LONGEST_DELAY_SECONDS.
        """
        delay = checked_delay("delay_seconds", delay_seconds)
        self.sends.append(Send(new_id(), envelope, queue, delay, new=False))

    async def execute(
        self,
        statement: sa.Executable,
        parameters: Parameters | None = None,
    ) -> sa.CursorResult[Any]:
        """Runs a statement; outside failures arrive as DatabaseError."""
        if isinstance(statement, sa.TextClause) and _ENDS_TRANSACTION.match(statement.text):
            raise UsageError(NOT_THE_HANDLERS)
        with translated():
            result = await self.connection.execute(statement, parameters)
        self._awake_at = time.monotonic()
        return result

    async def rows(
        self, statement: sa.Executable, parameters: Mapping[str, Any] | None = None
    ) -> Sequence[sa.Row[Any]]:
        """All rows of a query."""
        return (await self.execute(statement, parameters)).fetchall()

    @contextmanager
    def only_inside(self) -> Iterator[None]:
        """A block of a handler's code, which must not end the transaction: its claim and its effects are one.

        A commit in it is refused where it is tried; after a rollback in it, the block ends with UsageError.
        """
        unit = self.connection.get_transaction()
        info = self.connection.info
        info[INSIDE] = True
        try:
            yield
        finally:
            info.pop(INSIDE, None)
        if self.connection.get_transaction() is not unit:
            raise UsageError(NOT_THE_HANDLERS)

    async def stay_awake(self) -> None:
        """Keeps Postgres from ending a transaction in which no statement has run for a while; else does nothing."""
        if self.dialect == "postgresql" and time.monotonic() - self._awake_at > STAY_AWAKE_SECONDS:
            await self.execute(sa.select(1))

    def defer(self, statement: Write, parameters: Parameters) -> None:
        """Runs a statement later, at the latest just before COMMIT, together with others; nobody reads what it gives.

        Of two deferred statements none may touch a row that the other one writes: Postgres runs them as one.
        """
        self._deferred.append((statement, parameters))

    async def flush(self) -> None:
        """Runs what was deferred: on Postgres in one round trip."""
        for statement, parameters in self.deferred():
            await self.execute(statement, parameters)

    def deferred(self) -> list[tuple[sa.Executable, Parameters]]:
        """Takes what was deferred, as few statements as the database allows."""
        deferred: list[tuple[sa.Executable, Parameters]] = (
            _merged(self._deferred) if self.dialect == "postgresql" else [*self._deferred]
        )
        self._deferred.clear()
        return deferred

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[Savepoint]:
        """A part that can fail alone: on an exception, or by `undo()`, its writes and its sends are undone."""
        await self.flush()
        with translated():
            nested = await self.connection.begin_nested()
        savepoint = Savepoint(self.sends, self._deferred, nested)
        try:
            yield savepoint
            if savepoint.is_open:
                await self.flush()
        except BaseException:
            with suppress(DatabaseError):  # of a connection that is gone; the reason for undoing tells more
                await savepoint.undo()
            raise
        await savepoint.keep()


class Savepoint:
    """The open part of a transaction. Made by Transaction.savepoint()."""

    def __init__(self, sends: list[Send], deferred: list[Any], nested: AsyncTransaction) -> None:
        self._sends = sends
        self._deferred = deferred
        self._sends_before = len(sends)
        self._nested = nested

    @property
    def is_open(self) -> bool:
        """Whether it was neither undone nor kept."""
        return self._nested.is_active

    async def undo(self) -> None:
        """Takes back what was written, deferred and sent since the savepoint."""
        del self._sends[self._sends_before :]
        self._deferred.clear()
        if self._nested.is_active:
            with translated():
                await self._nested.rollback()

    async def keep(self) -> None:
        """Makes it part of the transaction, unless it was undone."""
        if self._nested.is_active:
            with translated():
                await self._nested.commit()


class Database:
    """One database, by URL. Lazily connected; `close()` it in the loop that used it."""

    def __init__(
        self,
        url: str | sa.URL,
        *,
        message_limit_bytes: int = 1 << 20,
        statement_seconds: float = STATEMENT_TIMEOUT_SECONDS,
        handler_seconds: float = 0.0,
        retention_seconds: float = math.inf,
    ) -> None:
        """`handler_seconds` is the longest deadline of the handlers that work in its transactions, so that neither the
        driver nor Postgres ends what a handler may still do. `retention_seconds` is how long the inbox remembers: it
        bounds the delays of new messages, because what is older on its arrival is parked.

        UsageError if the URL is wrong, or its driver is not installed.
        """
        self.url = database_url.parse(url)
        self.idle_seconds = IDLE_IN_TRANSACTION_SECONDS + handler_seconds
        """How long Postgres lets a transaction be without a statement."""
        self._longest_delay_seconds = min(LONGEST_DELAY_SECONDS, retention_seconds * DELAY_PART)
        self.dialect: Dialect = "sqlite" if self.url.get_backend_name() == "sqlite" else "postgresql"
        self.message_limit_bytes = message_limit_bytes
        self.riders: list[Rider] = []
        self._reader = _engine(
            self.url,
            POOL_CONNECTIONS,
            statement_seconds=max(statement_seconds, self.idle_seconds),
            idle_seconds=self.idle_seconds,
        )
        self._writer = (
            _engine(self.url, 1, "BEGIN IMMEDIATE", busy_seconds=0.0) if self.dialect == "sqlite" else self._reader
        )
        single: dict[str, Any] = {SINGLE: True} if self.dialect == "sqlite" else {"isolation_level": "AUTOCOMMIT"}
        self._single = self._reader.execution_options(**single)

    def group_members(self, wanted: int) -> int:
        """How many members a group commit may have here: SQLite's one writer must not be held for long."""
        return min(wanted, SQLITE_GROUP_MEMBERS) if self.dialect == "sqlite" else wanted

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """One write transaction: committed at the end of the block, rolled back on any exception.

        Raises DatabaseUnavailable, DatabaseContention or TransactionAborted when nothing was stored, CommitUnknown
        when the connection died during COMMIT.
        """
        async with self._connected(self._writer) as connection:
            tx = Transaction(connection, self.dialect, self.message_limit_bytes, self._longest_delay_seconds)
            landings: list[Callable[[bool], None]] = []
            committed = False
            try:
                if self.dialect == "sqlite":  # on Postgres it begins with the first statement
                    await self._begin(connection)
                yield tx
                for rider in self.riders:
                    landing = await rider.board(tx)
                    if landing is not None:
                        landings.append(landing)
                await self._commit(tx)
                committed = True
            finally:
                if not committed:
                    await _rollback(connection)
                for landing in landings:
                    landing(committed)

    async def _begin(self, connection: AsyncConnection) -> None:
        """On SQLite this waits for the other processes' writers. SQLite's own waiting sleeps up to 100 ms at a
        time while the lock changes hands many times a second, so it is done here, in small steps."""
        give_up_at = time.monotonic() + SQLITE_BUSY_SECONDS
        pause = SQLITE_PAUSE_SECONDS
        while True:
            try:
                with translated():
                    await connection.begin()
                    return
            except DatabaseContention:
                await _rollback(connection)
                if time.monotonic() > give_up_at:
                    raise
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(SQLITE_PAUSE_CAP_SECONDS, pause * 1.5)

    async def _commit(self, tx: Transaction) -> None:
        """Runs what was deferred, and commits. What is one statement in all needs no BEGIN and no COMMIT."""
        connection, deferred = tx.connection, tx.deferred()
        if connection.in_transaction() or len(deferred) != 1:
            for statement, parameters in deferred:
                await tx.execute(statement, parameters)
            with translated():
                _refuse_failed(connection)
            with _ending():
                await connection.commit()
        else:
            ((statement, parameters),) = deferred
            with translated():
                await connection.execution_options(isolation_level="AUTOCOMMIT")
            with _ending():
                await connection.execute(statement, parameters)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection for queries, in one read transaction: one snapshot on SQLite and, by REPEATABLE READ,
        on Postgres."""
        async with self._connected(self._reader) as connection:
            with translated():
                if self.dialect == "postgresql":
                    await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
                await connection.begin()
                yield connection
            await _rollback(connection)

    async def query(
        self, statement: sa.Executable, parameters: Mapping[str, Any] | None = None
    ) -> Sequence[sa.Row[Any]]:
        """All rows of one query. It sees one moment by itself, so no transaction is begun and ended around it."""
        async with self._connected(self._single) as connection:
            with translated():
                return (await connection.execute(statement, parameters)).fetchall()

    @asynccontextmanager
    async def _connected(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        connection = engine.connect()
        try:
            async with asyncio.timeout(POOL_WAIT_SECONDS + CONNECT_TIMEOUT_SECONDS):
                await connection.start()
        except Exception as error:
            raise _not_connected(error) from error
        try:
            yield connection
        finally:
            await asyncio.shield(_release(connection))

    async def check_writable(self) -> None:
        """DatabaseUnavailable if the database cannot be written, as far as this can be seen without writing.

        On Postgres: a query succeeds, and the server is neither a standby nor set to read-only. On SQLite: a query
        succeeds, this process may write to the file and its folder, and their file system is neither read-only nor
        full. No lock is taken, so a busy writer is no trouble. It does not prove that a statement will succeed.
        """
        if self.dialect == "postgresql":
            trouble = await self._postgres_trouble()
        else:
            await self.query(sa.select(1))
            trouble = await asyncio.to_thread(_sqlite_trouble, self.url.database or "")
        if trouble:
            raise DatabaseUnavailable(f"the database cannot be written: {trouble}")

    async def _postgres_trouble(self) -> str:
        """Why the server cannot be written, as it says itself; empty if it can."""
        async with self._connected(self._single) as connection:
            with translated():
                row = (await connection.execute(_READ_ONLY)).one()
                if not row.standby and row.read_only == "off":
                    return ""
                await connection.invalidate()  # a new one may lead to the server that has taken over
                return "it is a standby" if row.standby else "it is set to read-only"

    async def create(self, *programs: sa.MetaData) -> migrations.Migration:
        """Brings the engine's tables to today's version, and makes those of the programs' that are missing.

        Safe to repeat, and from several processes at once. UsageError if the database is of a later version than
        this code, DatabaseContention if what uses it holds on to a table: stop that first.
        """
        patient = Database(self.url, statement_seconds=MIGRATION_STATEMENT_SECONDS)
        try:
            async with patient.transaction() as tx:
                if self.dialect == "postgresql":
                    await _lock_migrations(tx)
                with translated():
                    return await tx.connection.run_sync(migrations.migrate, *programs)
        except DatabaseContention as error:
            raise DatabaseContention(f"{error}; nothing was migrated: stop what uses the database first") from error
        finally:
            await patient.close()

    async def check(self, *programs: sa.MetaData) -> None:
        """UsageError that says what to do if the tables are of another version, or a program's are missing."""
        async with self.reading() as connection:
            state = await connection.run_sync(migrations.read)
        try:
            migrations.check(state, [table for metadata in programs for table in metadata.tables])
        except UsageError as error:
            raise UsageError(f"{error} (the database is {redacted(str(self.url))})") from None

    async def close(self) -> None:
        """Closes all connections."""
        await self._writer.dispose()
        if self._reader is not self._writer:
            await self._reader.dispose()


async def _lock_migrations(tx: Transaction) -> None:
    """Waits for another migration, but not for whoever uses a table: all others would wait behind it."""
    await tx.execute(sa.text(f"SET LOCAL lock_timeout = {int(MIGRATION_STATEMENT_SECONDS * 1000)}"))
    await tx.execute(sa.select(sa.func.pg_advisory_xact_lock(migrations.ONE_AT_A_TIME)))
    await tx.execute(sa.text(f"SET LOCAL lock_timeout = {int(LOCK_TIMEOUT_SECONDS * 1000)}"))


def _merged(deferred: Sequence[tuple[Write, Parameters]]) -> list[tuple[sa.Executable, Parameters]]:
    """The same writes with those in one statement whose parameters are of different names."""
    alone: list[tuple[sa.Executable, Parameters]] = []
    statements: list[Write] = []
    together: dict[str, Any] = {}
    for statement, parameters in deferred:
        if isinstance(parameters, Mapping) and not together.keys() & parameters.keys():
            statements.append(statement)
            together.update(parameters)
        else:
            alone.append((statement, parameters))
    if len(statements) < 2:
        return [*deferred]
    return [(_as_one(*statements), together), *alone]


@lru_cache(WRITES_TOGETHER)
def _as_one(*statements: Write) -> sa.Select[Any]:
    """Statements that write, as parts of one (Postgres documentation, 7.8.4, data-modifying statements in WITH)."""
    parts = (statement.cte(f"write_{number}") for number, statement in enumerate(statements))
    return sa.select(sa.literal_column("1")).add_cte(*parts)


class translated:  # noqa: N801 - a context manager, spelled like a function
    """Turns drivers' outside failures in its block into DatabaseErrors."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Exception):
            cause = translate(error)
            if cause is not error:
                raise cause from error


class _ending:  # noqa: N801 - as above
    """As `translated`, for the step that commits: if the connection dies, nobody knows whether it was carried out."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Exception):
            cause = translate(error)
            # A statement that a server refuses to write has done nothing.
            refused = getattr(getattr(error, "orig", None), "sqlstate", None) == _READ_ONLY_STATE
            if (isinstance(cause, DatabaseUnavailable) and not refused) or isinstance(error, TimeoutError):
                raise CommitUnknown(f"the connection to the database died during COMMIT: {cause}") from error
            if cause is not error:
                raise cause from error


def translate(error: Exception) -> Exception:
    """The hopline.errors equivalent of a driver's exception; the exception itself if it is no outside failure."""
    if isinstance(error, HoplineError):
        return error
    if isinstance(error, exc.DBAPIError):
        return _translate_driver(error, error.orig or error, lost=error.connection_invalidated)
    if isinstance(error, TimeoutError | exc.PendingRollbackError):  # of the driver's command_timeout, and what follows
        return TransactionAborted("a statement took longer than the driver's limit, so its transaction is over")
    if isinstance(error, OSError):
        return DatabaseUnavailable(f"no connection to the database: {error}")
    if _is_asyncpg(error):  # what SQLAlchemy passes on as it is
        return _translate_driver(error, error, lost=False)
    return error


def _translate_driver(error: Exception, original: BaseException, *, lost: bool) -> Exception:
    """The equivalent of what the driver raised originally; `lost` says whether its connection is gone."""
    state = str(getattr(original, "sqlstate", "") or "")  # Postgres
    code = str(getattr(original, "sqlite_errorname", "") or "")  # https://www.sqlite.org/rescode.html
    text = str(original).strip()
    if state in _CONTENTION_STATES or code.startswith(_SQLITE_CONTENTION):
        return DatabaseContention(f"the database refused for now: {text}")
    if state in _ABORTED_STATES:
        return TransactionAborted(f"the database ended the transaction: {text}")
    if state.startswith(_EXHAUSTED_STATES) or code.startswith(_SQLITE_EXHAUSTED):
        return DatabaseUnavailable(f"the database cannot be used now: {text}", exhausted=True)
    if lost or state.startswith(_LOST_STATES) or code.startswith(_SQLITE_LOST):
        return DatabaseUnavailable(f"the database cannot be used now: {text}")
    return error


def _not_connected(error: Exception) -> HoplineError:
    """The equivalent of anything that connecting raises. Drivers raise errors of many unrelated classes there."""
    cause = translate(error)
    if isinstance(cause, DatabaseUnavailable | DatabaseContention | UsageError):
        return cause
    if isinstance(error, exc.TimeoutError | TimeoutError):
        return DatabaseUnavailable("no connection to the database within the deadline")
    original = getattr(error, "orig", None) or error
    return DatabaseUnavailable(f"no connection to the database: {type(original).__name__}: {original}")


def _is_asyncpg(error: Exception) -> bool:
    """Whether the driver, which is an extra, has the class of an error."""
    return any(kind.__module__.startswith("asyncpg.") for kind in type(error).__mro__)


async def clock_ahead(connection: AsyncConnection) -> timedelta:
    """How far the database's clock is ahead of this process's; negative if it is behind. Exact to a round trip."""
    theirs: datetime = (await connection.execute(sa.select(now()))).scalar_one()
    return theirs - utcnow()


async def retried(work: Callable[[], Awaitable[Result]], *, attempts: int = 5, first_seconds: float = 0.01) -> Result:
    """Runs a whole transaction again after DatabaseContention, which rolled it back: a bounded number of times."""
    for attempt in range(attempts):
        try:
            return await work()
        except DatabaseContention:
            if attempt == attempts - 1:
                raise
            await asyncio.sleep(first_seconds * 2**attempt)
    raise AssertionError("unreachable: the loop returns or raises")


def checked_send_delay(delay_seconds: object, longest_seconds: float) -> float:
    """Returns the delay of a new message; UsageError for what cannot be stored, or is parked on its arrival."""
    delay = checked_delay("delay_seconds", delay_seconds)
    if delay > longest_seconds:
        raise UsageError(
            f"delay_seconds={delay:g} is over the {longest_seconds:g} s ({DELAY_PART:.0%} of the inbox's "
            "retention) that a new message may be delayed, or it would be parked as too old on its arrival: "
            f"raise HOPLINE_INBOX_RETENTION_DAYS to {math.ceil(delay / 86_400 / DELAY_PART)}, or send it "
            "with a shorter delay and delay it again"
        )
    return delay


def _engine(
    url: sa.URL,
    connections: int,
    sqlite_begin: str = "BEGIN",
    *,
    busy_seconds: float = SQLITE_BUSY_SECONDS,
    statement_seconds: float = STATEMENT_TIMEOUT_SECONDS,
    idle_seconds: float = IDLE_IN_TRANSACTION_SECONDS,
) -> AsyncEngine:
    if url.get_backend_name() == "sqlite":
        engine = _pooled(url, connections, {"timeout": busy_seconds})
        sa.event.listen(engine.sync_engine, "connect", _configure_sqlite)
        sa.event.listen(engine.sync_engine, "begin", _begin(sqlite_begin))
        stop_when_invalidated(engine.sync_engine)
        return engine
    url, arguments = database_url.postgres_options(url)
    settings = {
        "application_name": "hopline",
        **arguments.pop("server_settings", {}),
        "lock_timeout": f"{int(LOCK_TIMEOUT_SECONDS * 1000)}",
        "idle_in_transaction_session_timeout": f"{int(min(idle_seconds * 1000, _POSTGRES_MILLISECONDS))}",
        "jit": "off",
        # A plan that is kept was made for the table as it was: a queue's tables grow from nothing within
        # minutes, and until the next ANALYZE such a plan reads them whole.
        "plan_cache_mode": "force_custom_plan",
        # What is looked up was written a moment ago and is in memory; at 4, as for a disk that turns, 200 rows
        # are read by a walk over a table of 20,000.
        "random_page_cost": "1.1",
    }
    limits = {"timeout": CONNECT_TIMEOUT_SECONDS, "command_timeout": statement_seconds}
    engine = _pooled(url, connections, {**limits, "server_settings": settings, **arguments})
    sa.event.listen(engine.sync_engine, "handle_error", _on_postgres_error)
    for event in ("begin", "rollback_savepoint"):
        sa.event.listen(engine.sync_engine, event, _forget_failure)
    return engine


def _pooled(url: sa.URL, connections: int, arguments: Mapping[str, Any]) -> AsyncEngine:
    try:
        engine = create_async_engine(
            url,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=POOL_WAIT_SECONDS,
            connect_args=dict(arguments),
            hide_parameters=True,  # an error's text goes to logs, traces and stored stacks
        )
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the driver {error.name} for this database is not installed: pip install 'hopline[postgres]'"
        ) from None
    except exc.ArgumentError as error:
        raise UsageError(f"the database URL is refused: {error}") from None
    sa.event.listen(engine.sync_engine, "commit", _refuse_inside)
    return engine


def _refuse_inside(connection: sa.Connection) -> None:
    if connection.info.get(INSIDE):
        raise UsageError(NOT_THE_HANDLERS)


def _on_postgres_error(context: sa.engine.ExceptionContext) -> None:
    """Takes rows' values out of an error, and remembers that the transaction has failed."""
    error: BaseException | None = context.original_exception
    while error is not None:
        if getattr(error, "detail", None):  # "Key (email)=(…) already exists", "Failing row contains (…)"
            error.detail = None  # type: ignore[attr-defined]
        error = error.__cause__
    if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY_STATE:
        context.is_disconnect = True  # pooled connections to a former primary stay read-only; new ones find the new one
    failed = getattr(context.original_exception, "sqlstate", None) and not context.is_disconnect
    if failed and context.connection is not None and not context.connection.invalidated:
        context.connection.info[_FAILED] = str(context.original_exception)


def _forget_failure(connection: sa.Connection, *_savepoint: object) -> None:
    """A new transaction, or one that was taken back to before the failure, can commit."""
    connection.info.pop(_FAILED, None)


def _refuse_failed(connection: AsyncConnection) -> None:
    """Postgres answers a COMMIT of a transaction that has failed with a rollback, and with no error."""
    if connection.in_transaction() and (failure := connection.info.get(_FAILED)):
        raise TransactionAborted(f"nothing was stored, because a statement in the transaction has failed: {failure}")


def _begin(statement: str) -> Callable[[sa.Connection], None]:
    def begin(connection: sa.Connection) -> None:
        if not connection.get_execution_options().get(SINGLE):
            connection.exec_driver_sql(statement)

    return begin


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver must not begin by itself: see _begin
    cursor = connection.cursor()
    _use_wal(cursor)
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _use_wal(cursor: Any) -> None:
    """A new file becomes WAL by whoever is first. SQLite itself does not wait for the others' locks here."""
    give_up_at = time.monotonic() + SQLITE_BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if not error.sqlite_errorname.startswith(_SQLITE_CONTENTION) or time.monotonic() > give_up_at:
                raise
        else:
            return
        await_only(asyncio.sleep(SQLITE_PAUSE_CAP_SECONDS))


def _sqlite_trouble(path: str) -> str:
    """Why a SQLite file cannot be written, as far as the operating system knows; empty if it can."""
    if not path or path == ":memory:":
        return ""
    folder = os.path.dirname(path) or "."
    for place in (path, folder):  # the folder holds the write-ahead log
        if not os.access(place, os.W_OK):
            return f"this process may not write to {place}"
    system = os.statvfs(folder)
    if system.f_flag & os.ST_RDONLY:
        return f"the file system of {folder} is read-only"
    return "" if system.f_bavail else f"the disk of {folder} is full"


async def _rollback(connection: AsyncConnection) -> None:
    # A connection that died has nothing left to undo: the server has rolled back. It is thrown away below.
    with suppress(exc.SQLAlchemyError, OSError):
        await connection.rollback()


async def _release(connection: AsyncConnection) -> None:
    with suppress(exc.DBAPIError, OSError):
        await connection.close()
