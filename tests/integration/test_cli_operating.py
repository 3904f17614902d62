"""The commands of an operator, as a person and as a program reads them, on a database without a broker."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from datetime import timedelta
from types import ModuleType
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner, Result

from hopline import schema
from hopline.app import Hopline
from hopline.audit import register
from hopline.cli import app as hopline
from hopline.clock import first_id, utcnow
from hopline.database import Database
from hopline.rows import insert
from hopline.settings import Settings
from tests.support.engine import envelope_for, rows
from tests.support.letters import Packed, dead, handlers, opened, parked

NOBODY = "amqp://guest:guest@127.0.0.1:9/%2F"

Run = Callable[..., Result]


@pytest.fixture
def run(sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `hopline` on a program with an empty database."""
    program = Hopline(handlers=[handlers], settings=Settings(database_url=sqlite_database_url, broker_url=NOBODY))
    asyncio.run(program.migrate())
    loaded = ModuleType("operated_program")
    vars(loaded)["app"] = program
    monkeypatch.setitem(sys.modules, loaded.__name__, loaded)

    def run(*words: str) -> Result:
        return CliRunner().invoke(hopline, [*words, "--app", "operated_program:app"])

    return run


def on(url: str, work: Callable[[Database], Coroutine[Any, Any, Any]]) -> Any:
    """Works on the database between two commands."""

    async def main() -> Any:
        async with opened(url) as database:
            return await work(database)

    return asyncio.run(main())


def test_a_queue_is_paused_seen_and_resumed(run: Run) -> None:
    unasked = run("queue", "pause", "parcels", "--reason", "wrong labels")
    paused = run("queue", "pause", "parcels", "--reason", "wrong labels", "--who", "ann", "--yes")
    again = run("queue", "pause", "parcels", "--reason", "wrong labels", "--yes", "--json")
    listed, shown = run("queue", "list"), run("queue", "show", "parcels", "--json")
    status = run("status", "--no-audit", "--json")
    resumed = run("queue", "resume", "parcels", "--who", "bob", "--yes")
    log = run("log", "--target", "queue parcels", "--json")

    assert (unasked.exit_code, paused.exit_code, again.exit_code, resumed.exit_code) == (2, 0, 1, 0)
    assert paused.stdout == "The queue parcels is paused.\n"
    assert json.loads(again.stdout) == {"queue": "parcels", "changed": False}
    assert "paused by ann" in listed.stdout
    assert json.loads(shown.stdout)["held"]["reason"] == "wrong labels"
    told = json.loads(status.stdout)
    assert [one["queue"] for one in told["held"]] == ["parcels"]
    (check,) = [one for one in told["checks"] if one["key"] == "held"]
    assert (check["tone"], check["hint"]) == ("idle", "hopline queue resume parcels")
    assert not any("parcels: wrong" in text for text in told["troubles"])  # somebody wants it so
    assert [(e["who"], e["action"]) for e in json.loads(log.stdout)["entries"]] == [("bob", "resume"), ("ann", "pause")]


def test_a_pause_needs_a_queue_that_there_is_and_a_reason(run: Run) -> None:
    assert "no handler for the queue 'nowhere'" in str(run("queue", "pause", "nowhere", "--reason", "x").exception)
    assert "say why" in str(run("queue", "pause", "parcels", "--yes").exception)
    assert run("queue", "resume", "parcels", "--yes").exit_code == 1


def test_a_queue_is_shown_with_the_policy_of_each_handler(run: Run) -> None:
    text = run("queue", "show", "parcels").stdout

    assert "parcels/parcel.packed" in text
    assert "8 attempts, after 1.0 s, 2.0 s, 4.0 s" in text


def test_processes_are_listed_with_what_they_do_and_one_is_asked_to_drain(run: Run, sqlite_database_url: str) -> None:
    running = {"endpoint": "parcels/parcel.packed", "message_id": first_id(utcnow()), "key": "p-1"}
    state = {"queues": ["parcels"], "busy": 1, "running": [{**running, "since": utcnow().isoformat()}]}
    row = {"instance": "worker-1", "role": "worker", "version": "0.1.0", "state": state}

    async def begin(database: Database) -> None:
        async with database.transaction() as tx:
            moments = {"started_at": utcnow(), "heartbeat_at": utcnow()}
            await tx.execute(insert(tx.dialect, schema.workers).values(**row, **moments))

    on(sqlite_database_url, begin)

    listed = run("worker", "list")
    drained = run("worker", "drain", "worker-1", "--who", "ann", "--yes")
    again = run("worker", "drain", "worker-1", "--yes", "--json")
    unknown = run("worker", "drain", "worker-2", "--yes")
    after = run("worker", "list", "--json")

    assert "worker-1 is handling" in listed.stdout
    assert "p-1" in listed.stdout
    assert (drained.exit_code, again.exit_code, unknown.exit_code) == (0, 1, 1)
    assert json.loads(again.stdout) == {"instance": "worker-1", "answer": "asked-before"}
    assert "no process that is known" in unknown.stdout
    (one,) = json.loads(after.stdout)["workers"]
    assert (one["draining"], one["running"][0]["key"]) == (True, "p-1")


def test_what_was_sent_is_found_and_shown_whole(run: Run, sqlite_database_url: str) -> None:
    async def send(database: Database) -> str:
        async with database.transaction() as tx:
            return tx.send(Packed("p-1")).id

    identifier = on(sqlite_database_url, send)

    found, nothing = run("search", identifier, "--json"), run("search", "p-2")
    old = run("search", first_id(utcnow() - timedelta(days=30)))
    whole, text, none = (
        run("message", "show", identifier, "--json"),
        run("message", "show", identifier),
        run("message", "show", first_id(utcnow())),
    )
    trace = run("trace", identifier, "--json")

    assert [hit["kind"] for hit in json.loads(found.stdout)["hits"]] == ["message", "flow"]
    assert (found.exit_code, nothing.exit_code, none.exit_code) == (0, 1, 1)
    assert "Looked for as: business key, idempotency key" in nothing.stderr
    assert "was purged" in old.stderr
    assert json.loads(json.loads(whole.stdout)["body_text"]) == {"id": "p-1", "weight": 1}
    assert "Sends" in text.stdout
    steps = json.loads(trace.stdout)["steps"]
    assert [(step["what"], step["tone"], step["key"]) for step in steps] == [
        ("message", "idle", "p-1"), ("outbox", "busy", "p-1"),
    ]  # fmt: skip


def test_the_history_is_drawn_and_told(run: Run) -> None:
    told = json.loads(run("history", "--window", "1h", "--endpoint", "parcels/parcel.packed", "--json").stdout)
    drawn = run("history")
    wrong = run("history", "--window", "2h")

    assert (told["step_seconds"], len(told["points"])) == (20, 180)
    assert "created to done p99" in drawn.stdout
    assert "--window is one of 15m, 1h, 24h" in str(wrong.exception)


def test_a_discarded_letter_is_parked_again(run: Run, sqlite_database_url: str) -> None:
    (letter,) = on(sqlite_database_url, lambda database: parked(database, dead(Packed("p-1"))))
    run("dead", "discard", letter, "--reason", "a mistake", "--who", "ann")

    undone, twice = run("dead", "undo", letter, "--who", "ann"), run("dead", "undo", letter, "--json")
    delayed = run("dead", "replay", letter, "--delay", "60", "--who", "ann")
    taken_back = run("dead", "undo", letter, "--who", "ann")
    groups = run("dead", "groups", "--json")
    log = run("log", "--by", "ann", "--action", "undo", "--limit", "1", "--json")

    assert undone.stdout == "1 letter parked again.\n"
    assert (twice.exit_code, json.loads(twice.stdout)["parked"]) == (1, [])
    assert (delayed.exit_code, taken_back.exit_code) == (0, 0)
    (group,) = json.loads(groups.stdout)["groups"]
    assert (group["count"], sum(group["trend"]), len(group["trend"])) == (1, 1, 24)
    (entry,) = json.loads(log.stdout)["entries"]
    assert run("log", "--by", "ann", "--before", entry["id"], "--json").exit_code == 0
    sends = on(sqlite_database_url, lambda database: rows(database, schema.outbox))
    assert all(send.next_at is None for send in sends)


def test_an_audit_without_rabbitmq_gives_the_half_of_the_database(run: Run, sqlite_database_url: str) -> None:
    on(sqlite_database_url, _sent_long_ago)

    text, told = run("audit"), run("audit", "--json")

    assert (text.exit_code, told.exit_code) == (3, 3)
    assert "1 send is not settled, and nothing proves where: the queues cannot be read" in text.stdout
    found = json.loads(told.stdout)
    assert (found["unproven"], found["missing"], found["is_fine"]) == (1, 0, False)
    assert found["trouble"].startswith("the queues cannot be read")


def test_nothing_is_sent_again_without_rabbitmq_or_a_reason(run: Run, sqlite_database_url: str) -> None:
    on(sqlite_database_url, _sent_long_ago)

    assert "say why" in str(run("audit", "--resend").exception)
    assert "nothing was sent again" in str(run("audit", "--resend", "--reason", "purged", "--yes").exception)
    assert "give --resend" in str(run("audit", "--id", "x").exception)


async def _sent_long_ago(database: Database) -> None:
    await register(database, list(handlers))
    async with database.transaction() as tx:
        tx.schedule(envelope_for(Packed("p-1")), queue="parcels", delay_seconds=0)
    async with database.transaction() as tx:
        await tx.execute(sa.update(schema.endpoints).values(since=utcnow() - timedelta(days=1)))
        await tx.execute(sa.update(schema.outbox).values(next_at=None, sent_at=utcnow() - timedelta(hours=1)))
