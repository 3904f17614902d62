"""Search in real databases: everything that can name a message finds its flow, and what is gone says so."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hopline import messages, schema, search
from hopline.clock import first_id, new_id, utcnow
from hopline.database import Database
from hopline.idempotency import IdempotentRequest, claim
from hopline.search import Found, LookedUp, Lookup
from hopline.timeline import timeline
from tests.support.engine import envelope_for, rows
from tests.support.letters import Lost, Packed, dead, finished, opened, parked

RETENTION = timedelta(days=14)


async def find(database: Database, text: str, *lookups: Lookup) -> Found:
    return await search.find(database, text, lookups, retention=RETENTION)


async def test_every_name_of_a_message_leads_to_its_flow(database_url: str) -> None:
    async with opened(database_url) as database:
        async with database.transaction() as tx:
            first = tx.send(Packed("p-1"))
            tx.cause = first
            second = tx.send(Lost("p-1"))
            await claim(tx, [IdempotentRequest("anyone /orders", "basket-9", "hash", "p-1")])
            await claim(tx, [IdempotentRequest("anyone /users", "other", "hash", "p-2")])
        (send,) = [row.id for row in await rows(database, schema.outbox) if row.message_id == second.id]
        (letter,) = await parked(database, dead(Lost("p-1"), envelope_for(Lost("p-1"), id=second.id)))

        for text, kind in (
            ("p-1", "key"),
            (f"  {second.id} ", "message"),
            (second.id.upper(), "message"),
            (first.id, "flow"),
            (send, "send"),
            (letter, "dead-letter"),
            ("basket-9", "idempotency"),
        ):
            found = await find(database, text)
            assert kind in [hit.kind for hit in found.hits], text
            for hit in found.hits:
                steps = await timeline(database, hit.flow)
                assert {first.id, second.id} <= {step.message_id for step in steps}, (text, hit)
            assert not found.purged


async def test_what_is_unknown_says_as_what_it_was_looked_for_and_what_is_old_that_it_was_purged(
    database_url: str,
) -> None:
    async with opened(database_url) as database:
        unknown, recent = await find(database, "4711"), await find(database, new_id())
        old = await find(database, first_id(utcnow() - timedelta(days=15)))
        nothing = await find(database, "  ")
        hostile = await find(database, "'; DROP\x00 TABLE <b>")

    assert (unknown.hits, unknown.purged, unknown.looked_for) == ((), False, ("business key", "idempotency key"))
    assert not recent.purged
    assert {"message id", "flow id", "send id", "dead letter id"} <= set(recent.looked_for)
    assert old.purged
    assert (nothing.hits, nothing.looked_for) == ((), ())
    assert hostile.hits == ()


async def test_a_program_can_look_up_in_its_own_tables(sqlite_database_url: str) -> None:
    asked: list[str] = []

    async def by_name(connection: AsyncConnection, text: str) -> Sequence[LookedUp]:
        asked.append(text)
        await connection.execute(sa.select(1))
        return [LookedUp(f"p-{number}", "a parcel") for number in range(60)]

    async with opened(sqlite_database_url) as database:
        found = await find(database, "Ann", Lookup("name", by_name))

    assert asked == ["Ann"]
    assert (len(found.hits), found.more) == (search.HITS, True)
    assert (found.hits[0].kind, found.hits[0].flow, found.hits[0].text) == ("lookup", "p-0", "a parcel")
    assert "name" in found.looked_for


async def test_a_strangers_letter_is_found_by_its_key(database_url: str) -> None:
    async with opened(database_url) as database:
        (letter,) = await parked(database, dead(Packed("p-1")))

        (hit,) = (await find(database, "p-1")).hits

    assert (hit.kind, hit.id, hit.flow) == ("dead-letter", letter, "p-1")


async def test_a_message_is_told_whole(database_url: str) -> None:
    async with opened(database_url) as database:
        async with database.transaction() as tx:
            first = tx.send(Packed("p-1"), headers={"origin": "test"})
            tx.cause = first
            caused = tx.send(Lost("p-1"))
        async with database.transaction() as tx:
            tx.schedule(first.changed(run=1), queue="parcels", delay_seconds=3_600)
        await finished(database, first.id)
        (letter,) = await parked(database, dead(Packed("p-1"), first))

        found = await messages.read(database, first.id)
        none = await messages.read(database, new_id())

    assert none is None
    assert found is not None
    assert (found.type, found.key, found.body, dict(found.headers)) == (
        "parcel.packed", "p-1", first.body, {"origin": "test"},
    )  # fmt: skip
    assert found.properties["message_id"] == first.id
    assert [(one.state, one.destination, one.run) for one in found.sends] == [
        ("waits", "", 0),
        ("scheduled", "parcels", 1),
    ]
    assert [one.endpoint for one in found.done] == ["parcels/parcel.packed"]
    assert [one.id for one in found.letters] == [letter]
    assert [(one.id, one.type) for one in found.caused] == [(caused.id, "parcel.lost")]
