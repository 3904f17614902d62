"""Undoing: what was discarded is parked again, and what was replayed is while its message is still scheduled."""

from __future__ import annotations

import asyncio

import msgspec

from hopline import outbox, repair, schema
from hopline.clock import new_id
from hopline.database import Database
from tests.support.engine import rows
from tests.support.letters import CODE, Packed, dead, opened, parked

LATER = 3_600.0


async def states(database: Database) -> list[str | None]:
    return [row.resolution for row in await rows(database, schema.dead_letters)]


async def test_what_was_discarded_is_parked_again_and_can_be_replayed(database_url: str) -> None:
    async with opened(database_url) as database:
        (letter,) = await parked(database, dead(Packed("p-1")))
        await repair.discard(database, [letter], who="ann", reason="a mistake")

        (undone,) = await repair.undo(database, [letter], who="bob", reason="not at all")

        assert undone.verdict.ok
        (row,) = await rows(database, schema.dead_letters)
        assert (row.resolution, row.resolved_at, row.replaced_by) == (None, None, None)
        (again,) = await repair.replay(database, CODE, [letter], who="bob")
        assert again.verdict.ok
        log = await rows(database, schema.audit_log)
    assert [(entry.who, entry.action, entry.reason) for entry in log] == [
        ("ann", "discard", "a mistake"), ("bob", "undo", "not at all"), ("bob", "replay", ""),
    ]  # fmt: skip
    assert log[1].target == f"dead-letter {letter}"
    assert log[1].before_hash is None
    assert log[1].after_hash == log[0].before_hash


async def test_a_scheduled_replay_and_a_scheduled_edit_are_taken_back(database_url: str) -> None:
    async with opened(database_url) as database:
        replayed, edited = await parked(database, dead(Packed("p-1")), dead(Packed("p-2")))
        await repair.replay(database, CODE, [replayed], who="ann", delay_seconds=LATER)
        body = msgspec.json.encode(Packed("p-2", weight=2))
        await repair.edit(database, CODE, edited, body, who="ann", delay_seconds=LATER)

        undone = await repair.undo(database, [replayed, edited], who="ann")

        assert [one.verdict.kind for one in undone] == ["ok", "ok"]
        assert await states(database) == [None, None]
        assert all(send.next_at is None and send.sent_at is None for send in await rows(database, schema.outbox))
        again = await repair.replay(database, CODE, [replayed, edited], who="ann")
        assert [one.verdict.kind for one in again] == ["ok", "ok"]
        assert sum(send.next_at is not None for send in await rows(database, schema.outbox)) == 2


async def test_what_is_due_or_sent_is_not_taken_back(database_url: str) -> None:
    async with opened(database_url) as database:
        due, sent, untouched = await parked(database, *(dead(Packed(f"p-{number}")) for number in range(3)))
        await repair.replay(database, CODE, [sent], who="ann")
        async with database.transaction() as tx:
            ((send, _),) = await outbox.claim(tx, limit=1, lease_seconds=30)
            outbox.mark_sent(tx, {send.id: 0.0})
        await repair.replay(database, CODE, [due], who="ann")

        undone = await repair.undo(database, [due, sent, untouched, new_id()], who="bob")

        assert [one.verdict.kind for one in undone] == ["sent", "sent", "parked", "not-found"]
        assert await states(database) == ["replayed", "replayed", None]
        assert len(await rows(database, schema.audit_log)) == 2


async def test_an_undo_at_the_same_time_as_the_send_is_one_of_the_two(database_url: str) -> None:
    """Each replay is made due and claimed while somebody takes it back: it is claimed or parked, never both."""
    async with opened(database_url) as one, opened(database_url) as other:
        letters = await parked(one, *(dead(Packed(f"p-{number}")) for number in range(8)))
        await repair.replay(one, CODE, letters, who="ann", delay_seconds=LATER)
        sends = {row.message_id: row.id for row in await rows(one, schema.outbox)}
        message_of = {row.id: row.message_id for row in await rows(one, schema.dead_letters)}

        async def claim() -> list[str]:
            async with one.transaction() as tx:
                return [send.id for send, _ in await outbox.claim(tx, limit=1, lease_seconds=30)]

        async def send_at_once(identifier: str) -> list[str]:
            await repair.run_now(one, [identifier], who="ann")
            return await claim()

        for letter in letters:
            send = sends[message_of[letter]]
            claimed, (undone,) = await asyncio.gather(send_at_once(send), repair.undo(other, [letter], who="bob"))
            claimed += await claim()  # a relay skips a row that is being looked at, and comes again
            assert len(claimed) + undone.verdict.ok == 1
