"""What an operator does to dead letters, on both databases: what is sent, what is refused, what is written down."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from hopline import auditlog, deadletter_queries, schema
from hopline.clock import new_id
from hopline.database import Database
from hopline.deadletter_queries import Filter
from hopline.errors import OutboxFull, Undecodable, UsageError
from hopline.outbox import Outbox
from hopline.repair import check, discard, edit, pages, replay, select
from tests.support.engine import envelope_for, rows
from tests.support.letters import CODE, Lost, Packed, dead, finished, opened, parked, stranger


async def log_of(database: Database) -> list[auditlog.Recorded]:
    async with database.reading() as connection:
        return await auditlog.recent(connection, limit=100)


async def test_a_replay_sends_the_same_message_to_its_queue_in_a_new_run(database_url: str) -> None:
    envelope = envelope_for(Packed("p-1"), run=1, attempt=4)
    async with opened(database_url) as database:
        (letter,) = await parked(database, dead(Packed("p-1"), envelope))

        (judged,) = await replay(database, CODE, [letter], who="ann@host", reason="the bug is mended")

        assert judged.verdict.ok
        (sent,) = await rows(database, schema.outbox)
        assert (sent.message_id, sent.destination, sent.run, sent.attempt) == (envelope.id, "parcels", 2, 0)
        assert sent.next_at is not None
        (message,) = await rows(database, schema.messages)
        assert (message.id, message.body) == (envelope.id, envelope.body)
        (row,) = await rows(database, schema.dead_letters)
        assert (row.resolution, row.replaced_by) == ("replayed", None)
        (entry,) = await log_of(database)
    assert (entry.who, entry.action, entry.target) == ("ann@host", "replay", f"dead-letter {letter}")
    assert entry.reason == "the bug is mended"
    assert entry.before_hash == entry.after_hash == auditlog.hash_of(envelope.body)
    assert row.resolved_at <= entry.at


async def test_two_operators_at_once_replay_once(database_url: str) -> None:
    async with opened(database_url) as one, opened(database_url) as other:
        letters = await parked(one, *(dead(Packed(f"p-{number}")) for number in range(20)))

        first, second = await asyncio.gather(
            replay(one, CODE, letters, who="ann"), replay(other, CODE, list(reversed(letters)), who="bob")
        )

        assert sorted(judged.verdict.kind for judged in [*first, *second]) == ["ok"] * 20 + ["resolved"] * 20
        assert len(await rows(one, schema.outbox)) == 20
        assert len(await log_of(one)) == 20


async def test_a_replay_and_a_discard_at_once_do_one_of_the_two(database_url: str) -> None:
    async with opened(database_url) as one, opened(database_url) as other:
        letters = await parked(one, *(dead(Packed(f"p-{number}")) for number in range(20)))

        replayed, discarded = await asyncio.gather(
            replay(one, CODE, letters, who="ann"), discard(other, letters, who="bob", reason="not needed")
        )

        sent = {judged.letter_id for judged in replayed if judged.verdict.ok}
        gone = {judged.letter_id for judged in discarded if judged.verdict.ok}
        assert sent | gone == set(letters)
        assert not sent & gone
        assert len(await rows(one, schema.outbox)) == len(sent)


async def test_what_is_refused_stays_parked_and_unlogged(database_url: str) -> None:
    ids = {name: new_id() for name in ("nowhere",)}
    done = envelope_for(Packed("p-1"))
    async with opened(database_url) as database:
        (ids["done"],) = await parked(database, dead(Packed("p-1"), done))
        (ids["no-id"],) = await parked(database, stranger())
        (ids["too-old"],) = await parked(database, dead(Packed("p-2"), reason="too-old"))
        (ids["unknown"],) = await parked(database, dead(Lost("p-3")))
        (ids["undecodable"],) = await parked(database, dead(Packed("p-4"), envelope_for(Packed("p-4"), body=b"{")))
        (ids["good"],) = await parked(database, dead(Packed("p-5")))
        await finished(database, done.id)

        foreseen = await check(database, CODE, list(ids.values()))
        judged = await replay(database, CODE, list(ids.values()), who="ann")

        names = {identifier: name for name, identifier in ids.items()}
        assert [(names[one.letter_id], one.verdict.kind) for one in judged] == [
            ("nowhere", "not-found"), ("done", "done"), ("no-id", "no-id"), ("too-old", "too-old"),
            ("unknown", "unknown-type"), ("undecodable", "undecodable"), ("good", "ok"),
        ]  # fmt: skip
        assert [one.verdict.kind for one in foreseen] == [one.verdict.kind for one in judged]
        parked_still = [row.id for row in await rows(database, schema.dead_letters) if row.resolution is None]
        assert set(parked_still) == set(ids.values()) - {ids["good"], ids["nowhere"]}
        assert [entry.target for entry in await log_of(database)] == [f"dead-letter {ids['good']}"]


async def test_as_new_a_message_without_an_id_gets_one(database_url: str) -> None:
    async with opened(database_url) as database:
        (letter,) = await parked(database, stranger())

        (judged,) = await replay(database, CODE, [letter], who="ann", as_new=True)

        assert judged.verdict.ok
        (message,) = await rows(database, schema.messages)
        (row,) = await rows(database, schema.dead_letters)
        (sent,) = await rows(database, schema.outbox)
        (entry,) = await log_of(database)
    assert (message.key, message.type, message.version, message.cause_id) == ("p-1", "parcel.packed", 1, None)
    assert (row.resolution, row.replaced_by) == ("replayed", message.id)
    assert (sent.message_id, sent.destination, sent.run) == (message.id, "parcels", 0)
    assert entry.action == "replay-as-new"


async def test_an_edit_sends_a_new_message_that_names_the_old_one(database_url: str) -> None:
    old = envelope_for(Packed("p-1"), body=b'{"id": "p-1", "weight": "heavy"}', correlation_id=new_id())
    new_body = b'{"id":"p-2","weight":9}'
    async with opened(database_url) as database:
        (letter,) = await parked(database, dead(Packed("p-1"), old, reason="undecodable"))

        judged = await edit(database, CODE, letter, new_body, who="ann", reason="a number")
        again = await edit(database, CODE, letter, new_body, who="bob")

        assert judged.verdict.ok
        assert judged.verdict.envelope is not None
        (message,) = await rows(database, schema.messages)
        (row,) = await rows(database, schema.dead_letters)
        (sent,) = await rows(database, schema.outbox)
        (entry,) = await log_of(database)
    assert (message.id, message.body, message.key) == (judged.verdict.envelope.id, new_body, "p-2")
    assert (message.cause_id, message.correlation_id) == (old.id, old.correlation_id)
    assert (row.resolution, row.replaced_by, row.body) == ("edited", message.id, old.body)
    assert (sent.message_id, sent.destination, sent.run) == (message.id, "parcels", 0)
    assert (entry.before_hash, entry.after_hash) == (auditlog.hash_of(old.body), auditlog.hash_of(new_body))
    assert again.verdict.kind == "resolved"


async def test_an_edit_that_todays_code_refuses_stores_nothing(database_url: str) -> None:
    async with opened(database_url) as database:
        (letter,) = await parked(database, dead(Packed("p-1")))

        with pytest.raises(Undecodable, match="weight"):
            await edit(database, CODE, letter, b'{"id": "p-1", "weight": "heavy"}', who="ann")

        (row,) = await rows(database, schema.dead_letters)
        assert row.resolution is None
        assert await rows(database, schema.messages) == []
        assert await log_of(database) == []


async def test_a_discard_needs_a_reason_and_keeps_the_letter(database_url: str) -> None:
    async with opened(database_url) as database:
        (letter,) = await parked(database, dead(Packed("p-1")))

        with pytest.raises(UsageError, match="reason"):
            await discard(database, [letter], who="ann", reason=" ")
        (judged,) = await discard(database, [letter], who="ann", reason="a test order")
        (again,) = await discard(database, [letter], who="ann", reason="a test order")

        assert (judged.verdict.kind, again.verdict.kind) == ("ok", "resolved")
        (row,) = await rows(database, schema.dead_letters)
        assert (row.resolution, row.body) == ("discarded", b'{"id":"p-1","weight":1}')
        assert await rows(database, schema.outbox) == []
        (entry,) = await log_of(database)
    assert (entry.action, entry.reason, entry.after_hash) == ("discard", "a test order", None)


async def test_every_act_has_a_name_and_a_place_for_what_it_sends(sqlite_database_url: str) -> None:
    async with opened(sqlite_database_url) as database:
        (letter,) = await parked(database, dead(Packed("p-1")))

        with pytest.raises(UsageError, match="who acts"):
            await replay(database, CODE, [letter], who=" ")
        with pytest.raises(UsageError, match="no id"):
            await replay(database, CODE, ["p-1"], who="ann")
        with pytest.raises(UsageError, match="at most 50"):
            await discard(database, [new_id() for _ in range(51)], who="ann", reason="too many")
        database.riders.clear()
        with pytest.raises(UsageError, match="no Outbox"):
            await replay(database, CODE, [letter], who="ann")


async def test_a_replay_does_not_fill_the_outbox_over_its_limit(sqlite_database_url: str) -> None:
    async with opened(sqlite_database_url) as database:
        letters = await parked(database, dead(Packed("p-1")), dead(Packed("p-2")))
        database.riders[:] = [Outbox(limit=1, lease_seconds=30)]
        await replay(database, CODE, letters[:1], who="ann")
        database.riders[:] = [Outbox(limit=1, lease_seconds=30)]  # as another process has it

        with pytest.raises(OutboxFull):
            await replay(database, CODE, letters[1:], who="ann")

        assert [row.resolution for row in await rows(database, schema.dead_letters)] == ["replayed", None]


async def test_a_selection_is_what_was_there_when_it_was_made(database_url: str) -> None:
    async with opened(database_url) as database:
        before = await parked(database, *(dead(Packed(f"p-{number}")) for number in range(5)))
        await parked(database, dead(Packed("p-9"), queue="others"))
        selection = await select(database, Filter(queue="parcels"))
        await parked(database, dead(Packed("p-6")))

        found = [page async for page in pages(database, selection, size=2)]

        assert selection.count == 5
        assert found == [before[:2], before[2:4], before[4:]]


async def test_letters_are_found_by_every_filter_and_in_pages(database_url: str) -> None:
    async with opened(database_url) as database:
        a, b, c, d = await parked(
            database,
            dead(Packed("p-1")),
            dead(Packed("p-2"), queue="others", reason="refused"),
            replace(stranger(), cause=replace(dead(Packed("p")).cause, frame="shop:other")),
            dead(Lost("p-4")),
        )
        await discard(database, [d], who="ann", reason="why not")
        async with database.reading() as connection:

            async def ids(which: Filter, **more: object) -> list[str]:
                found = await deadletter_queries.find(connection, which, limit=10, newest_first=False, **more)  # type: ignore[arg-type]
                assert len(found) == await deadletter_queries.count(connection, which) or more
                return [letter.id for letter in found]

            every = await deadletter_queries.find(connection, Filter(state="any"), limit=10, newest_first=False)
            moments = {letter.id: letter.dead_at for letter in every}
            group = every[0].fingerprint
            assert await ids(Filter()) == [a, b, c]
            assert await ids(Filter(state="any")) == [a, b, c, d]
            assert await ids(Filter(state="discarded")) == [d]
            assert await ids(Filter(queue="others")) == [b]
            assert await ids(Filter(type="parcel.lost", state="any")) == [d]
            assert await ids(Filter(key="p-1")) == [a]
            assert await ids(Filter(reason="refused")) == [b]
            assert await ids(Filter(group=group)) == [a, b]
            assert await ids(Filter(since=moments[b], until=moments[b])) == [b]
            assert await ids(Filter(ids=(a, c))) == [a, c]
            assert await ids(Filter(), after=(moments[a], a)) == [b, c]
            newest = await deadletter_queries.find(connection, Filter(), limit=2)
            assert [letter.id for letter in newest] == [c, b]
            older = await deadletter_queries.find(connection, Filter(), limit=2, after=newest[-1].place)
            assert [letter.id for letter in older] == [a]
    with pytest.raises(UsageError, match="no id"):
        Filter(ids=("p-1",))


async def test_groups_count_what_died_of_one_cause(database_url: str) -> None:
    async with opened(database_url) as database:
        a, b, c = await parked(
            database,
            dead(Packed("p-1")),
            dead(Packed("p-2"), queue="others", error="NoStock: all gone"),
            stranger(),
        )
        async with database.reading() as connection:
            groups = await deadletter_queries.groups(connection, Filter())

        assert [(group.count, group.sample_id) for group in groups] == [(2, b), (1, c)]
        first = groups[0]
        assert (first.error_type, first.frame) == ("shop.errors.NoStock", "shop.stock:reserve")
        assert (first.queues, first.types, first.reason) == (2, 1, "exhausted")
        assert first.sample_error == "NoStock: all gone"
        letters = {row.id: row.dead_at for row in await rows(database, schema.dead_letters)}
        assert (first.first_at, first.last_at) == (letters[a], letters[b])
