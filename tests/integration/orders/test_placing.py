from __future__ import annotations

import asyncio

import msgspec

from hopline import CommitUnknown, Database, IdempotentRequest, Remembered, new_id, request_hash
from orders import placing, store
from orders.placing import Placed
from tests.unit.orders.examples import line, new_order, new_user


def keyed(key: str, body: bytes, order_id: str) -> IdempotentRequest:
    return IdempotentRequest("anyone /orders", key, request_hash(body), order_id)


async def place(database: Database, *orders: placing.NewOrder) -> list[Placed | Remembered]:
    async with database.transaction() as tx:
        return await placing.place_orders(tx, list(orders))


async def test_a_group_of_orders_is_stored_with_its_messages(database: Database) -> None:
    # Given two orders
    first = new_order([line("apple", 2, "0.495"), line("bread", 1, "1.10")], origin="POST /orders abc")
    second = new_order()

    # When they are placed together
    async with database.transaction() as tx:
        answers = await placing.place_orders(tx, [first, second])
        sends = list(tx.sends)

    # Then both are there, to be decided, and each has one message that carries all
    assert answers == [Placed(first.id), Placed(second.id)]
    row = await store.find_order(database, first.id)
    assert row is not None
    assert (row.state, row.email, row.name, row.total_cents) == ("accepted", "ann@example.com", "Ann Müller", 209)
    assert (row.reasons, row.decided_at) == ([], None)
    assert row.lines == [
        {"sku": "apple", "quantity": 2, "unit_price": "0.495"},
        {"sku": "bread", "quantity": 1, "unit_price": "1.10"},
    ]
    assert [(send.envelope.type, send.envelope.key) for send in sends] == [
        ("order.placed", first.id),
        ("order.placed", second.id),
    ]
    assert sends[0].envelope.headers == {"origin": "POST /orders abc"}
    assert msgspec.json.decode(sends[0].envelope.body)["total_cents"] == 209


async def test_the_same_key_and_body_is_the_same_order_also_within_a_group(database: Database) -> None:
    first, again, later = new_order(), new_order(), new_order()
    orders = [new_order(id=order.id, idempotency=keyed("k", b"body", order.id)) for order in (first, again, later)]

    together = await place(database, *orders[:2])
    afterwards = await place(database, orders[2])

    assert together == [Placed(first.id), Remembered(first.id, same=True)]
    assert afterwards == [Remembered(first.id, same=True)]
    assert await store.count_states(database) == {"accepted": 1, "confirmed": 0, "rejected": 0}


async def test_the_same_key_with_another_body_is_told_apart(database: Database) -> None:
    first, other = new_id(), new_id()
    await place(database, new_order(id=first, idempotency=keyed("k", b"body", first)))

    answers = await place(database, new_order(id=other, idempotency=keyed("k", b"other", other)), new_order())

    assert answers[0] == Remembered(first, same=False)
    assert isinstance(answers[1], Placed)
    assert await store.find_order(database, other) is None


async def test_two_processes_with_the_same_keys_at_the_same_time_store_each_order_once(database: Database) -> None:
    # Given two connections to one database, as two processes have
    second = Database(database.url.render_as_string(hide_password=False))
    keys = [f"key-{number}" for number in range(20)]

    async def one(where: Database, order: list[str]) -> dict[str, str]:
        new = [new_order(idempotency=keyed(key, b"body", "")) for key in order]
        new = [new_order(id=o.id, idempotency=keyed(key, b"body", o.id)) for o, key in zip(new, order, strict=True)]
        answers = await place(where, *new)
        return {
            key: answer.id if isinstance(answer, Placed) else answer.response
            for key, answer in zip(order, answers, strict=True)
        }

    # When both place orders under the same keys, in opposite order, at once
    try:
        mine, theirs = await asyncio.gather(one(database, keys), one(second, keys[::-1]))
    finally:
        await second.close()

    # Then every key has one order, and both were told the same one
    assert mine == theirs
    assert await store.count_states(database) == {"accepted": 20, "confirmed": 0, "rejected": 0}


async def test_reading_back_says_what_was_stored_and_claims_nothing_else(database: Database) -> None:
    stored, lost = new_order(), new_order()
    await place(database, stored)

    async with database.transaction() as tx:
        answers = await placing.read_back_orders(tx, [lost, stored])

    assert isinstance(answers[0], CommitUnknown)
    assert answers[1] == Placed(stored.id)


async def test_a_group_of_registrations(database: Database) -> None:
    user = new_user("Ann@Example.com", "Ann")

    async with database.transaction() as tx:
        answers = await placing.place_users(tx, [user])
        types = [send.envelope.type for send in tx.sends]

    row = await store.find_user(database, user.id)
    assert answers == [Placed(user.id)]
    assert types == ["user.registered"]
    assert row is not None
    assert (row.state, row.email) == ("accepted", "Ann@Example.com")
    async with database.transaction() as tx:
        assert await placing.read_back_users(tx, [user]) == [Placed(user.id)]
