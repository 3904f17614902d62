"""Migrations on real databases: both ways to today's tables are equal, rows survive, and the audit log is closed."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from typer.testing import CliRunner, Result

from hopline import database as module
from hopline import migrations, schema
from hopline.app import Hopline
from hopline.auditlog import Entry, append, recent
from hopline.cli import app as hopline
from hopline.clock import id_time, new_id
from hopline.database import Database
from hopline.errors import DatabaseContention, UsageError
from hopline.fingerprint import NO_CAUSE, fingerprint
from hopline.migrations import HEAD, VERSION_TABLE, Migration, migrating
from hopline.redaction import redacted
from hopline.settings import Settings
from tests.support.engine import rows

TIME = "2026-11-24 12:00:00.000"
LATER = "2026-11-24 12:05:00.000"
MESSAGE, STRANGER = new_id(), new_id()
WAITING, SENT, CANCELLED = new_id(), new_id(), new_id()
LETTERS = {name: new_id() for name in ("ours", "named", "nameless")}
BODY = b"\x00 any bytes \xff"

FIRST = {"run": 0, "attempt": 1, "worker": "w", "started_at": TIME}
SEND = {"message_id": MESSAGE, "destination": "", "run": 0, "attempt": 1, "sends": 0}
LETTER = {"queue": "orders", "run": 0, "attempt": 3, "error": "e", "stack": "s", "dead_at": TIME, "body": BODY}

OLD_ROWS: dict[str, list[dict[str, object]]] = {
    "messages": [
        {"id": MESSAGE, "type": "order.placed", "version": 3, "key": "o1", "correlation_id": MESSAGE}
        | {"headers": "{}", "body": BODY, "created_at": TIME}
    ],
    "outbox": [
        {"id": WAITING, **SEND, "next_at": LATER},
        {"id": SENT, **SEND, "sent_at": TIME},
        {"id": CANCELLED, **SEND},
    ],
    "inbox": [{"message_id": MESSAGE, "endpoint": "e", "outcome": "done", "note": "n", "done_at": TIME, **FIRST}],
    "attempts": [
        {"message_id": MESSAGE, "endpoint": "e", "outcome": "retry", "error": "e", "stack": "s", **FIRST}
        | {"finished_at": TIME}
    ],
    "dead_letters": [
        {"id": LETTERS["ours"], "fingerprint": "a", "message_id": MESSAGE, "reason": "error", **LETTER}
        | {"properties": '{"type": "order.placed"}'},
        {"id": LETTERS["named"], "fingerprint": "b", "message_id": STRANGER, "reason": "unknown-type", **LETTER}
        | {"properties": json.dumps({"type": "t" * 300})},
        {"id": LETTERS["nameless"], "fingerprint": "c", "reason": "undecodable", **LETTER, "properties": "{}"},
    ],
    "suspects": [{"message_id": MESSAGE, "endpoint": "e", "worker": "w", "started_at": TIME}],
    "workers": [{"instance": "w", "role": "worker", "queues": "orders", "started_at": TIME, "heartbeat_at": TIME}],
    "endpoints": [{"endpoint": "e", "queue": "orders", "type": "order.placed", "since": TIME}],
    "idempotency": [{"scope": "s", "key": "k", "request_hash": "h", "response": "{}", "created_at": TIME}],
    "audit_log": [{"id": new_id(), "at": TIME, "who": "ann", "action": "discard", "target": "t", "reason": "r"}],
}
"""Rows of every table of version 0001."""

program = sa.MetaData()
sa.Table("things", program, sa.Column("id", sa.Integer, primary_key=True))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(database_url)
    yield opened
    await opened.close()


def first_version(connection: sa.Connection) -> None:
    """The tables as Hopline made them before it kept their version."""
    unstamped(connection, "0001")


def unstamped(connection: sa.Connection, version: str) -> None:
    """The tables of a version, in a database that does not say so."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["connection"] = connection
    command.upgrade(config, version)
    connection.execute(sa.text(f"DROP TABLE {VERSION_TABLE}"))


async def make_old(database: Database, *, filled: bool = False) -> None:
    """The tables of version 0001, with OLD_ROWS if `filled`."""
    async with database.transaction() as tx:
        await tx.connection.run_sync(first_version)
        for table, old in OLD_ROWS.items() if filled else ():
            for row in old:
                await tx.connection.exec_driver_sql(inserting(f"hopline_{table}", row, database.dialect))


def inserting(table: str, row: Mapping[str, object], dialect: str) -> str:
    """An INSERT of literals: the tables of the old version are not known to today's code."""
    values = ", ".join(literal(value, dialect) for value in row.values())
    return f"INSERT INTO {table} ({', '.join(row)}) VALUES ({values})"


def literal(value: object, dialect: str) -> str:
    if isinstance(value, bytes):
        return f"'\\x{value.hex()}'" if dialect == "postgresql" else f"X'{value.hex()}'"
    return str(value) if isinstance(value, int) else f"'{value}'"


async def described(database: Database) -> dict[str, Any]:
    """Everything of the database's tables that has a name or an effect, but not the order of columns."""
    async with database.reading() as connection:
        tables: dict[str, Any] = await connection.run_sync(describe)
        found = (await connection.execute(sa.text(TRIGGERS[database.dialect]))).fetchall()
        options = (await connection.execute(sa.text(OPTIONS[database.dialect]))).fetchall()
    triggers = sorted(" ".join(row[0].split()) for row in found)
    return {**tables, "triggers": triggers, "options": {row.relname: sorted(row.reloptions) for row in options}}


TRIGGERS = {
    "sqlite": "SELECT sql FROM sqlite_master WHERE type = 'trigger'",
    "postgresql": "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
}


OPTIONS = {
    "sqlite": "SELECT '' AS relname, '' AS reloptions WHERE false",
    "postgresql": "SELECT relname, reloptions FROM pg_class WHERE relkind = 'r' AND reloptions IS NOT NULL",
}


def describe(connection: sa.Connection) -> dict[str, Any]:
    inspector = sa.inspect(connection)

    def of(table: str) -> dict[str, Any]:
        return {
            "columns": {
                column["name"]: (column["type"].compile(connection.dialect), column["nullable"], column["default"])
                for column in inspector.get_columns(table)
            },
            "key": inspector.get_pk_constraint(table),
            "unique": sorted(map(str, inspector.get_unique_constraints(table))),
            "indexes": sorted(map(readable, inspector.get_indexes(table))),
        }

    return {table: of(table) for table in inspector.get_table_names()}


def readable(index: Any) -> str:
    """An index as text; SQLite's predicate is a clause, whose text differs by its quotes only."""
    options = {name: str(value) for name, value in index.get("dialect_options", {}).items()}
    return str({**index, "dialect_options": options})


async def differences(database: Database) -> list[Any]:
    """What Alembic would write into a next version."""

    def compare(connection: sa.Connection) -> list[Any]:
        options = {"version_table": VERSION_TABLE, "compare_type": True, "compare_server_default": True}
        found: list[Any] = compare_metadata(MigrationContext.configure(connection, opts=options), schema.metadata)
        return found

    async with database.reading() as connection:
        return await connection.run_sync(compare)


async def drop_everything(database: Database) -> None:
    """An empty database again."""
    async with database.transaction() as tx:
        metadata = sa.MetaData()
        await tx.connection.run_sync(metadata.reflect)
        await tx.connection.run_sync(metadata.drop_all)


async def test_a_fresh_database_and_one_that_went_through_all_versions_are_what_the_schema_says(
    database: Database,
) -> None:
    fresh = await database.create()
    assert fresh == Migration(None, HEAD)
    fresh_tables, fresh_differences = await described(database), await differences(database)
    await drop_everything(database)
    await make_old(database)

    migrated = await database.create()

    assert migrated == Migration("0001", HEAD)
    assert fresh_differences == []
    assert await differences(database) == []
    assert await described(database) == fresh_tables
    if database.dialect == "postgresql":
        assert fresh_tables["options"]["hopline_inbox"] == ["fillfactor=60"]
    await database.check()


async def test_rows_of_every_table_are_kept_and_get_the_values_that_are_new(database: Database) -> None:
    await make_old(database, filled=True)

    await database.create()

    for table, old in OLD_ROWS.items():
        kept = await rows(database, schema.metadata.tables[f"hopline_{table}"])
        assert len(kept) == len(old), table
    sends = {row.id: row for row in await rows(database, schema.outbox)}
    assert sends[WAITING].due_at == sends[WAITING].next_at == datetime.fromisoformat(LATER).replace(tzinfo=UTC)
    assert sends[SENT].due_at == sends[SENT].sent_at == datetime.fromisoformat(TIME).replace(tzinfo=UTC)
    assert sends[CANCELLED].due_at == id_time(CANCELLED)
    assert not any(send.suspect for send in sends.values())
    (worker,) = await rows(database, schema.workers)
    assert (worker.instance, worker.version, worker.state) == ("w", "", {})
    (message,) = await rows(database, schema.messages)
    assert message.body == BODY
    (endpoint,) = await rows(database, schema.endpoints)
    assert (endpoint.endpoint, endpoint.version, endpoint.declared_at) == ("e", 0, endpoint.since)


async def test_old_dead_letters_get_their_type_and_the_cause_that_todays_code_would_give_them(
    database: Database,
) -> None:
    await make_old(database, filled=True)

    await database.create()

    letters = {row.id: row for row in await rows(database, schema.dead_letters)}
    ours, named, nameless = (letters[LETTERS[name]] for name in ("ours", "named", "nameless"))
    assert (ours.type, ours.version, ours.identity) == ("order.placed", 3, "a")
    assert (named.type, named.version, named.identity) == ("t" * 255, 0, "b")
    assert (nameless.type, nameless.version, nameless.identity) == ("", 0, "c")
    for letter in letters.values():
        assert letter.fingerprint == fingerprint(NO_CAUSE, letter.reason, letter.type)
        assert (letter.body, letter.error_type, letter.frame, letter.replaced_by) == (BODY, "", "", None)


async def test_more_rows_than_one_batch_are_all_filled(database: Database) -> None:
    await make_old(database)
    ids = [new_id() for _ in range(1_100)]
    async with database.transaction() as tx:
        for identifier in ids:
            await tx.connection.exec_driver_sql(
                inserting("hopline_outbox", {"id": identifier, **SEND}, database.dialect)
            )

    await database.create()

    assert {row.id: row.due_at for row in await rows(database, schema.outbox)} == {i: id_time(i) for i in ids}


@pytest.mark.parametrize("old", [True, False])
async def test_of_two_migrations_at_once_one_waits_for_the_other(database: Database, *, old: bool) -> None:
    if old:
        await make_old(database, filled=True)
    other = Database(database.url)

    done = await asyncio.gather(database.create(program), other.create(program))

    assert {each.before for each in done} == {"0001" if old else None, HEAD}
    assert sorted(each.tables for each in done) == [(), ("things",)]
    assert await differences(database) != []  # `things`, which is the program's
    await database.check(program)
    await other.close()


async def test_a_second_time_nothing_is_done(database: Database) -> None:
    await database.create(program)

    assert await database.create(program) == Migration(HEAD, HEAD)


async def test_a_database_of_a_later_version_is_left_alone(database: Database) -> None:
    await database.create()
    async with database.transaction() as tx:
        await tx.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '0099'"))
    before = await described(database)

    with pytest.raises(UsageError, match="0099, which this Hopline"):
        await database.create(program)
    with pytest.raises(UsageError, match="Run the Hopline that migrated it or a later one"):
        await database.check()

    assert await described(database) == before


async def test_a_program_does_not_start_on_older_tables(database: Database) -> None:
    await make_old(database)

    with pytest.raises(UsageError, match="version 0001, and 0005 is needed; run `hopline migrate`"):
        await database.check()


async def test_tables_from_before_versions_were_kept_are_completed(database: Database) -> None:
    await database.create()
    whole = await described(database)
    await drop_everything(database)
    async with database.transaction() as tx:
        await tx.connection.run_sync(unstamped, "0002")
        await tx.execute(sa.text("DROP INDEX ix_hopline_audit_log_target"))
    with pytest.raises(UsageError, match="hopline migrate"):
        await database.check()

    assert await database.create() == Migration("0002", HEAD)

    assert await described(database) == whole
    await database.check()


async def test_a_migration_that_fails_changes_nothing(database: Database) -> None:
    await make_old(database, filled=True)
    async with database.transaction() as tx:  # in the way of the last steps of 0002
        await tx.execute(sa.text("CREATE INDEX ix_hopline_audit_log_target ON hopline_audit_log (who)"))
    before = await described(database)

    with pytest.raises(sa.exc.DBAPIError, match="already exists"):
        await database.create(program)

    assert await described(database) == before


async def test_one_process_does_not_alter_two_databases_at_once(database: Database) -> None:
    await make_old(database)

    with migrating._alembic_is_busy, pytest.raises(UsageError, match="one after the other"):
        await database.create()

    assert await database.create() == Migration("0001", HEAD)


async def test_a_table_that_is_in_use_is_not_waited_for(
    postgres_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_TIMEOUT_SECONDS", 0.1)
    user, database = Database(postgres_database_url), Database(postgres_database_url)
    await make_old(database)

    async with user.transaction() as tx:
        await tx.execute(sa.text("LOCK TABLE hopline_outbox IN ACCESS SHARE MODE"))
        with pytest.raises(DatabaseContention, match="stop what uses the database first"):
            await database.create()

    await database.create()
    await user.close()
    await database.close()


@pytest.mark.parametrize("old", [True, False])
async def test_the_audit_log_can_only_be_added_to(database: Database, *, old: bool) -> None:
    if old:
        await make_old(database)
    await database.create()
    async with database.transaction() as tx:
        await append(tx, [Entry("ann", "discard", "send 1", None, None)])
    (entry,) = await rows(database, schema.audit_log)

    forbidden = ["UPDATE hopline_audit_log SET who = 'bob'", "DELETE FROM hopline_audit_log"]
    if database.dialect == "postgresql":
        forbidden.append("TRUNCATE hopline_audit_log")
    else:
        columns = "id, at, 'bob', action, target, before_hash, after_hash, reason"
        forbidden.append(f"INSERT OR REPLACE INTO hopline_audit_log SELECT {columns} FROM hopline_audit_log")
    for statement in forbidden:
        with pytest.raises(sa.exc.IntegrityError, match="rows are only ever added"):
            async with database.transaction() as tx:
                await tx.execute(sa.text(statement))

    async with database.transaction() as tx:
        await append(tx, [Entry("bob", "discard", "send 2", None, None)])
    async with database.reading() as connection:
        log = await recent(connection, limit=10)
    assert [(each.who, each.target) for each in log] == [("bob", "send 2"), ("ann", "send 1")]
    assert log[1].id == entry.id


def test_the_command_says_what_was_done(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = ModuleType("migrated_program")
    vars(loaded)["app"] = Hopline(tables=[program], settings=Settings(database_url=database_url))
    monkeypatch.setitem(sys.modules, loaded.__name__, loaded)
    asyncio.run(opened_and_old(database_url))

    def migrate(*options: str) -> Result:
        return CliRunner().invoke(hopline, ["migrate", "--app", "migrated_program:app", *options])

    first, second, third = migrate(), migrate(), migrate("--json")

    place = f"The database is {redacted(database_url)}.\n"
    assert first.stdout == (
        "The engine's tables were brought from version 0001 to 0005.\nThe program's tables were made: things.\n" + place
    )
    assert second.stdout == "The engine's tables are up to date, at version 0005.\n" + place
    assert json.loads(third.stdout) == {"before": "0005", "after": "0005", "tables": []}


async def opened_and_old(database_url: str) -> None:
    database = Database(database_url)
    await make_old(database)
    await database.close()
