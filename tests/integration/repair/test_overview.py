"""The dead letters at a glance, however many there are: groups, their sizes, and how they grow."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from hopline import deadletter_queries, repair, schema
from hopline.clock import utcnow
from hopline.database import Database
from hopline.deadletter_queries import Filter, Overview
from hopline.fingerprint import Cause
from tests.support.letters import Lost, Packed, dead, opened, parked

OTHER = Cause("shop.errors.NoPrice", "shop.prices:find")


async def overview(database: Database, **bounds: Any) -> Overview:
    async with database.reading() as connection:
        return await deadletter_queries.overview(connection, **bounds)


async def test_groups_are_found_with_their_sizes_and_ends_the_largest_first(database_url: str) -> None:
    async with opened(database_url) as database:
        assert await overview(database) == Overview((), more=False)
        small = await parked(database, dead(Packed("p-1"), cause=OTHER))
        large = await parked(
            database,
            dead(Packed("p-2")),
            dead(Packed("p-3"), queue="letters"),
            dead(Lost("p-4"), error="the last"),
        )
        (gone,) = await parked(database, dead(Packed("p-5"), cause=Cause("x", "y")))
        await repair.discard(database, [gone], who="ann", reason="not parked any more")

        found = await overview(database)

        assert not found.more
        first, second = found.groups
        assert (first.count, first.queues, first.types, first.count_is_least) == (3, 2, 2, False)
        assert (first.sample_id, first.sample_error, first.type) == (large[-1], "the last", "parcel.lost")
        assert first.first_at <= first.last_at
        assert (second.count, second.sample_id, second.error_type) == (1, small[0], "shop.errors.NoPrice")
        async with database.reading() as connection:
            exact = await deadletter_queries.groups(connection, Filter())
        assert [(one.fingerprint, one.count) for one in exact] == [(one.fingerprint, one.count) for one in found.groups]

        for group in found.groups:
            assert (await overview(database, fingerprint=group.fingerprint)).groups == (group,)
        assert (await overview(database, fingerprint="none")).groups == ()
        bounded = await overview(database, limit=1, count_letters=2)
        assert [(one.count, one.count_is_least) for one in bounded.groups] == [(2, True)]


async def test_letters_are_counted_hour_by_hour_up_to_a_bound(database_url: str) -> None:
    async with opened(database_url) as database:
        ids = await parked(database, *(dead(Packed(f"p-{number}")) for number in range(5)))
        ages = (timedelta(minutes=5), timedelta(minutes=70), timedelta(minutes=80), timedelta(hours=23, minutes=30))
        async with database.transaction() as tx:
            for identifier, age in zip(ids, (*ages, timedelta(hours=25)), strict=True):
                letter = schema.dead_letters.c.id == identifier
                await tx.execute(sa.update(schema.dead_letters).where(letter).values(dead_at=utcnow() - age))
        await repair.discard(database, ids[:1], who="ann", reason="counted all the same")
        (group,) = (await overview(database)).groups

        async with database.reading() as connection:
            found = await deadletter_queries.trends(connection, [group.fingerprint, "unknown"])
            none = await deadletter_queries.trends(connection, [])

    assert found[group.fingerprint] == (1, *[0] * 21, 2, 1)
    assert found["unknown"] == (0,) * 24
    assert none == {}


async def test_letters_are_counted_up_to_a_bound(database_url: str) -> None:
    async with opened(database_url) as database:
        await parked(database, *(dead(Packed(f"p-{number}")) for number in range(3)))

        async with database.reading() as connection:
            assert await deadletter_queries.count_up_to(connection, Filter(), 2) == 2
            assert await deadletter_queries.count_up_to(connection, Filter(), 9) == 3
