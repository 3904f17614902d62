"""The database: one engine, write transactions that carry the messages they send, and errors translated once.

Invariant: whatever a transaction sends becomes rows in that same transaction (its riders write them just
before COMMIT), so a message exists exactly if its cause does. SQLAlchemy's and the drivers' exceptions for
outside failures become hopline.errors here and nowhere else; a statement's own fault (a broken constraint)
passes through as it is.

SQLite: WAL, synchronous=FULL, BEGIN IMMEDIATE on one writer connection per process (a pool of one), readers
beside it. Postgres: READ COMMITTED, lock_timeout 2 s, idle_in_transaction_session_timeout 10 s.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncTransaction, create_async_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import functions

from hopline import codec, migrations, schema
from hopline.clock import new_id, utcnow
from hopline.errors import (
    CommitUnknown,
    DatabaseContention,
    DatabaseError,
    DatabaseUnavailable,
    UsageError,
)
from hopline.message import Envelope, type_of
from hopline.redaction import redacted
from hopline.rows import Dialect, Parameters

LOCK_TIMEOUT_SECONDS = 2.0
IDLE_IN_TRANSACTION_SECONDS = 10.0
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

SINGLE = "hopline_single"
"""Execution option of a connection, on SQLite: it runs one query, and begins no transaction for it."""

WRITES_TOGETHER = 64
"""Combinations of deferred statements that are kept built, of which a program has a few."""

KEY_CHARACTERS = 255
HEADER_NAME_BYTES = 128
HEADERS_BYTES = 4096
TRACE_HEADERS = ("traceparent",)

Result = TypeVar("Result")
Write = sa.Insert | sa.Update | sa.Delete

# SQLSTATE: serialization_failure, deadlock_detected, lock_not_available (Postgres documentation, appendix A).
_CONTENTION_STATES = frozenset({"40001", "40P01", "55P03"})
# 08xxx and 57P0x are a server going away, 53xxx one without disk, memory or connections, 57014 (query_canceled)
# is what a statement timeout gives.
_LOST_STATES = ("08", "57P0", "53", "57014")
_SQLITE_CONTENTION = ("SQLITE_BUSY", "SQLITE_LOCKED")
_SQLITE_LOST = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_CORRUPT")


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

    def __init__(self, connection: AsyncConnection, dialect: Dialect, message_limit_bytes: int) -> None:
        self.connection = connection
        self.dialect = dialect
        self.sends: list[Send] = []
        self.cause: Envelope | None = None
        """The message that is being handled; what is sent meanwhile belongs to its flow."""
        self._deferred: list[tuple[Write, Parameters]] = []
        self._message_limit_bytes = message_limit_bytes

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
        later by the database's clock. MessageTooLarge and UsageError are raised here, before anything is stored.
        """
        declared = type_of(message)
        identifier = new_id()
        cause = self.cause
        envelope = Envelope(
            id=identifier,
            type=declared.name,
            version=declared.version,
            key=checked_key(declared.key_of(message), declared.name),
            correlation_id=cause.correlation_id if cause else identifier,
            cause_id=cause.id if cause else None,
            created_at=utcnow(),
            body=codec.encode(message, limit_bytes=self._message_limit_bytes),
            headers=_with_inherited(_checked_headers(headers) if headers else {}, cause),
        )
        self.sends.append(Send(new_id(), envelope, queue, max(0.0, delay_seconds), new=True))
        return envelope

    def schedule(self, envelope: Envelope, *, queue: str, delay_seconds: float) -> None:
        """Sends an existing message to one queue (again): a retry, a deferral or a replay."""
        self.sends.append(Send(new_id(), envelope, queue, max(0.0, delay_seconds), new=False))

    async def execute(
        self,
        statement: sa.Executable,
        parameters: Parameters | None = None,
    ) -> sa.CursorResult[Any]:
        """Runs a statement; outside failures arrive as DatabaseError."""
        try:
            return await self.connection.execute(statement, parameters)
        except Exception as error:
            raise translate(error) from error

    async def rows(
        self, statement: sa.Executable, parameters: Mapping[str, Any] | None = None
    ) -> Sequence[sa.Row[Any]]:
        """All rows of a query."""
        return (await self.execute(statement, parameters)).fetchall()

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
        savepoint = Savepoint(self.sends, self._deferred, await self.connection.begin_nested())
        try:
            yield savepoint
            if savepoint.is_open:
                await self.flush()
        except BaseException:
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
    ) -> None:
        self.url = _parse(url)
        self.dialect: Dialect = "sqlite" if self.url.get_backend_name() == "sqlite" else "postgresql"
        self.message_limit_bytes = message_limit_bytes
        self.riders: list[Rider] = []
        self._reader = _engine(self.url, POOL_CONNECTIONS, statement_seconds=statement_seconds)
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

        Raises DatabaseUnavailable or DatabaseContention when nothing was stored, CommitUnknown when the
        connection died during COMMIT.
        """
        async with self._connected(self._writer) as connection:
            tx = Transaction(connection, self.dialect, self.message_limit_bytes)
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
            with _ending():
                await connection.commit()
        else:
            ((statement, parameters),) = deferred
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
            raise translate(error) from error
        try:
            yield connection
        finally:
            await asyncio.shield(_release(connection))

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
        if isinstance(error, Exception) and not isinstance(error, DatabaseError):
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
            if isinstance(cause, DatabaseUnavailable):
                raise CommitUnknown(f"the connection to the database died during COMMIT: {cause}") from error
            if cause is not error:
                raise cause from error


def translate(error: Exception) -> Exception:
    """The hopline.errors equivalent of a driver's exception; the exception itself if it is no outside failure."""
    if isinstance(error, exc.DBAPIError):
        return _translate_driver(error)
    if isinstance(error, exc.TimeoutError | TimeoutError):
        return DatabaseUnavailable("no connection to the database within the deadline")
    if isinstance(error, OSError):
        return DatabaseUnavailable(f"no connection to the database: {error}")
    return error


def _translate_driver(error: exc.DBAPIError) -> Exception:
    original = error.orig if error.orig is not None else error
    state = str(getattr(original, "sqlstate", "") or "")  # Postgres
    code = str(getattr(original, "sqlite_errorname", "") or "")  # https://www.sqlite.org/rescode.html
    text = str(original).strip()
    if state in _CONTENTION_STATES or code.startswith(_SQLITE_CONTENTION):
        return DatabaseContention(f"the database refused for now: {text}")
    lost = error.connection_invalidated or isinstance(error, exc.InterfaceError)
    if lost or state.startswith(_LOST_STATES) or code.startswith(_SQLITE_LOST):
        return DatabaseUnavailable(f"the database cannot be used now: {text}")
    return error


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


def checked_key(key: str, type_name: str) -> str:
    """A business key as every column and header can hold it."""
    storable = (key.isascii() and "\x00" not in key) or schema.storable(key) == key
    if not 0 < len(key) <= KEY_CHARACTERS or not storable:
        raise UsageError(
            f"the key of a {type_name!r} must have 1 to {KEY_CHARACTERS} characters and no NUL: {key[:50]!r}"
        )
    return key


def _checked_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Headers travel in one frame with every send of the message, so they are few and short."""
    if schema.storable_json(headers) != headers:
        raise UsageError("headers are text without NUL and without half characters")
    size = sum(len(name.encode()) + len(value.encode()) for name, value in headers.items())
    if size > HEADERS_BYTES or any(not 0 < len(name.encode()) <= HEADER_NAME_BYTES for name in headers):
        raise UsageError(
            f"headers have names of 1 to {HEADER_NAME_BYTES} bytes and at most {HEADERS_BYTES} bytes in all"
        )
    return headers


def _with_inherited(headers: Mapping[str, str], cause: Envelope | None) -> Mapping[str, str]:
    """With the headers that go on along a flow."""
    if cause is None or not cause.headers:
        return headers
    return {**{name: cause.headers[name] for name in TRACE_HEADERS if name in cause.headers}, **headers}


def _parse(url: str | sa.URL) -> sa.URL:
    try:
        parsed = sa.make_url(url)
        driver = parsed.drivername
    except exc.ArgumentError:
        driver = ""
    if driver not in ("sqlite+aiosqlite", "postgresql+asyncpg"):
        raise UsageError(
            f"the database URL begins with {driver or str(url).split(':', maxsplit=1)[0]!r}; "
            "use sqlite+aiosqlite:///FILE or postgresql+asyncpg://user:password@host/name"
        )
    return parsed


def _engine(
    url: sa.URL,
    connections: int,
    sqlite_begin: str = "BEGIN",
    *,
    busy_seconds: float = SQLITE_BUSY_SECONDS,
    statement_seconds: float = STATEMENT_TIMEOUT_SECONDS,
) -> AsyncEngine:
    if url.get_backend_name() == "sqlite":
        engine = create_async_engine(
            url,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=POOL_WAIT_SECONDS,
            connect_args={"timeout": busy_seconds},
        )
        sa.event.listen(engine.sync_engine, "connect", _configure_sqlite)
        sa.event.listen(engine.sync_engine, "begin", _begin(sqlite_begin))
        return engine
    return create_async_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=POOL_WAIT_SECONDS,
        connect_args={
            "timeout": CONNECT_TIMEOUT_SECONDS,
            "command_timeout": statement_seconds,
            "server_settings": {
                "application_name": "hopline",
                "lock_timeout": f"{int(LOCK_TIMEOUT_SECONDS * 1000)}",
                "idle_in_transaction_session_timeout": f"{int(IDLE_IN_TRANSACTION_SECONDS * 1000)}",
                "jit": "off",
                # A plan that is kept was made for the table as it was: a queue's tables grow from nothing within
                # minutes, and until the next ANALYZE such a plan reads them whole.
                "plan_cache_mode": "force_custom_plan",
                # What is looked up was written a moment ago and is in memory; at 4, as for a disk that turns, 200 rows
                # are read by a walk over a table of 20,000.
                "random_page_cost": "1.1",
            },
        },
    )


def _begin(statement: str) -> Callable[[sa.Connection], None]:
    def begin(connection: sa.Connection) -> None:
        if not connection.get_execution_options().get(SINGLE):
            connection.exec_driver_sql(statement)

    return begin


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver must not begin by itself: see _begin
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout")
    (own_milliseconds,) = cursor.fetchone()
    for pragma in (
        f"busy_timeout={int(SQLITE_BUSY_SECONDS * 1000)}",  # a new file becomes WAL under a lock, by whoever is first
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"busy_timeout={own_milliseconds}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


async def _rollback(connection: AsyncConnection) -> None:
    # A connection that died has nothing left to undo: the server has rolled back. It is thrown away below.
    with suppress(exc.DBAPIError, OSError):
        await connection.rollback()


async def _release(connection: AsyncConnection) -> None:
    with suppress(exc.DBAPIError, OSError):
        await connection.close()
