from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from hopline import Database, Transaction, new_id
from orders import deciding, placing, store
from orders.domain import Line, Product
from orders.messages import OrderConfirmed, OrderPlaced, OrderRejected, UserRegistered, UserWelcomed
from tests.integration.orders.conftest import ON_HAND
from tests.support.waiting import wait_until
from tests.unit.orders.examples import as_placed, line, new_order, new_user, placed

Result = OrderConfirmed | OrderRejected | str


async def accepted(database: Database, *orders: Sequence[Line]) -> list[OrderPlaced]:
    """Orders as the API stores them."""
    new = [new_order(lines) for lines in orders]
    async with database.transaction() as tx:
        await placing.place_orders(tx, new)
    return [as_placed(order) for order in new]


async def decide(database: Database, orders: Sequence[OrderPlaced]) -> list[Result]:
    async with database.transaction() as tx:
        return await deciding.decide(tx, orders)


async def test_orders_are_confirmed_or_rejected_and_the_stock_is_taken(database: Database) -> None:
    # Given an order that can be had, one for more than there is, and one with faults
    good, large, wrong = await accepted(
        database,
        [line("apple", 60), line("bread", 2, "0.495")],
        [line("apple", 60)],
        [line("fuel", 20_000, "0.0024"), line("unicorn")],
    )

    # When they are decided in one group
    results = await decide(database, [good, large, wrong])

    # Then each says so, in its message and in its row, and only the first took stock
    assert isinstance(results[0], OrderConfirmed)
    assert [(one.name, one.quantity, one.cents) for one in results[0].lines] == [("Apple", 60, 6_000), ("Bread", 2, 99)]
    assert (results[0].line_count, results[0].total_cents) == (2, 6_099)
    assert isinstance(results[1], OrderRejected)
    assert [reason.code for reason in results[1].reasons] == ["insufficient-stock"]
    assert isinstance(results[2], OrderRejected)
    assert [reason.code for reason in results[2].reasons] == ["no-list-price", "unknown-product"]
    rows = [await store.find_order(database, order.order_id) for order in (good, large, wrong)]
    assert [row.state for row in rows if row] == ["confirmed", "rejected", "rejected"]
    assert [reason["code"] for reason in rows[2].reasons if rows[2]] == ["no-list-price", "unknown-product"]  # type: ignore[union-attr]
    assert all(row.decided_at >= row.accepted_at for row in rows if row)
    stock = await store.stock(database)
    assert (stock["apple"], stock["bread"], stock["fuel"]) == (40, 98, 1_000_000)


async def test_an_order_is_decided_once(database: Database) -> None:
    (order,) = await accepted(database, [line("apple", 10)])

    first = await decide(database, [order, order])
    again = await decide(database, [order])

    assert isinstance(first[0], OrderConfirmed)
    assert first[1:] + again == ["confirmed", "confirmed"]
    assert (await store.stock(database))["apple"] == ON_HAND - 10


async def test_an_order_that_came_by_another_way_than_the_api_is_stored_too(database: Database) -> None:
    order = placed([line("apple", 10)])

    results = await decide(database, [order])

    assert isinstance(results[0], OrderConfirmed)
    row = await store.find_order(database, order.order_id)
    assert row is not None
    assert (row.state, row.total_cents, len(row.lines)) == ("confirmed", 1_000, 1)


@pytest.mark.parametrize(
    "odd",
    [
        {"lines": [{"sku": "apple", "quantity": 10**4_000, "unit_price": "sNaN"}]},
        {"lines": [{"sku": "apple", "quantity": 1, "unit_price": "1." + "0" * 100_000}]},
        {"lines": [], "total_cents": -(2**63)},
        {"total_cents": 2**63 - 1, "placed_at": "0001-01-01T00:00:00+23:59"},
        {"customer": {"email": "\u0130" * 126 + "@b", "name": "\u202e" * 100}},
    ],
)
async def test_an_odd_order_of_a_stranger_is_decided_beside_a_good_one(database: Database, odd: dict[str, Any]) -> None:
    good = placed([line("apple", 10)])
    body = json.loads(msgspec.json.encode(placed([line("apple", 10)]))) | odd
    order = msgspec.json.decode(json.dumps(body).encode(), type=OrderPlaced)

    results = await decide(database, [order, good])

    assert isinstance(results[0], OrderConfirmed | OrderRejected)
    assert isinstance(results[1], OrderConfirmed)
    assert await store.find_order(database, order.order_id) is not None


async def test_an_account_for_an_address_that_grows_in_lower_case(database: Database) -> None:
    good, odd = new_user("bob@example.com"), new_user("\u0130" * 250 + "@b.c")

    results = await register(database, [good, odd])
    again = await register(database, [new_user("\u0130" * 250 + "@b.c")])

    assert [type(result) for result in results] == [UserWelcomed] * 2
    assert again == ["refused: the address has an account"]


async def test_an_email_of_500_lines_lists_the_first_50(database: Database) -> None:
    (order,) = await accepted(database, [line("apple", 1, "1.00") for _ in range(99)])

    (result,) = await decide(database, [order])

    assert isinstance(result, OrderConfirmed)
    assert (len(result.lines), result.line_count, result.total_cents) == (50, 99, 9_900)


async def test_a_group_that_is_rolled_back_took_nothing(database: Database) -> None:
    (order,) = await accepted(database, [line("apple", 10)])

    with pytest.raises(RuntimeError):
        await fail_after_deciding(database, [order])

    assert (await store.stock(database))["apple"] == ON_HAND
    assert isinstance((await decide(database, [order]))[0], OrderConfirmed)


async def fail_after_deciding(database: Database, orders: list[OrderPlaced]) -> None:
    async with database.transaction() as tx:
        await deciding.decide(tx, orders)
        raise RuntimeError


async def test_groups_at_the_same_time_never_oversell_nor_deadlock(database: Database) -> None:
    # Given 4 workers and 240 orders that all share products, in any order of lines, for more than there is
    skus = ["apple", "bread", "cheese", "dates"]
    choice = random.Random(7)
    wanted = [[line(sku, choice.randint(1, 3)) for sku in choice.sample(skus, 3)] for _ in range(240)]
    orders = await accepted(database, *wanted)
    url = database.url.render_as_string(hide_password=False)
    workers = [Database(url) for _ in range(4)]
    shares = [orders[number::4] for number in range(4)]

    async def work(worker: Database, share: list[OrderPlaced]) -> list[Result]:
        results: list[Result] = []
        for start in range(0, len(share), 10):
            results += await decide(worker, share[start : start + 10])
        return results

    # When they decide groups at the same time
    try:
        decided = await asyncio.gather(*(work(worker, share) for worker, share in zip(workers, shares, strict=True)))
    finally:
        for worker in workers:
            await worker.close()

    # Then no group had to be run again, what is gone is what was confirmed, and some were refused for want of stock
    sold = dict.fromkeys(skus, 0)
    for share, results in zip(shares, decided, strict=True):
        for order, result in zip(share, results, strict=True):
            for one in order.lines if isinstance(result, OrderConfirmed) else []:
                sold[one.sku] += one.quantity
    stock = await store.stock(database)
    assert {sku: ON_HAND - stock[sku] for sku in skus} == sold
    assert all(stock[sku] >= 0 for sku in skus)
    assert sum(stock[sku] < 3 for sku in skus) >= 2  # any order of 3 products needs one of those that are gone
    counts = await store.count_states(database)
    assert counts["accepted"] == 0
    assert counts["rejected"] > 0


async def test_the_number_of_statements_does_not_grow_with_the_group(database: Database) -> None:
    orders = await accepted(database, *[[line(sku) for sku in ("apple", "bread")] for _ in range(40)])

    few = await statements_of(database, orders[:1])
    many = await statements_of(database, orders[1:])

    assert few == many == 3


async def statements_of(database: Database, orders: Sequence[OrderPlaced]) -> int:
    async with database.transaction() as tx:
        counting = Counting(tx)
        await deciding.decide(counting, orders)  # type: ignore[arg-type]
    return counting.count


class Counting:
    """A transaction that counts its statements."""

    def __init__(self, tx: Transaction) -> None:
        self.dialect = tx.dialect
        self.count = 0
        self._tx = tx

    async def execute(self, *arguments: Any) -> Any:
        self.count += 1
        return await self._tx.execute(*arguments)

    async def rows(self, *arguments: Any) -> Any:
        self.count += 1
        return await self._tx.rows(*arguments)

    def defer(self, *arguments: Any) -> None:
        self.count += 1
        self._tx.defer(*arguments)


async def test_the_database_itself_refuses_negative_stock(database: Database) -> None:
    with pytest.raises(IntegrityError):
        async with database.transaction() as tx:
            await tx.execute(sa.update(store.products).values(on_hand=-1))


async def register(database: Database, users: Sequence[placing.NewUser]) -> list[UserWelcomed | str]:
    messages = [UserRegistered(user.id, user.customer, user.registered_at) for user in users]
    async with database.transaction() as tx:
        return await deciding.register(tx, messages)


async def test_an_address_gets_one_account(database: Database) -> None:
    # Given two registrations of one address in a group, written differently
    first, same, other = new_user("Ann@example.com"), new_user("ann@example.com"), new_user("bob@example.com")
    async with database.transaction() as tx:
        await placing.place_users(tx, [first, same, other])

    # When they are decided, and a message comes again
    results = await register(database, [first, same, other])
    again = await register(database, [first])

    # Then the first one has the account, and the second is told so at its own URL
    assert results == [
        UserWelcomed(first.id, first.customer),
        "refused: the address has an account",
        UserWelcomed(other.id, other.customer),
    ]
    assert again == ["was registered already"]
    rows = [await store.find_user(database, user.id) for user in (first, same)]
    assert [row.state for row in rows if row] == ["registered", "refused"]
    assert rows[1] is not None
    assert rows[1].reasons[0]["code"] == "already-registered"


async def test_addresses_are_claimed_in_one_order_so_that_no_two_workers_can_deadlock(
    postgres_database_url: str,
) -> None:
    # Given an address whose claim is not committed yet, and two workers that stop there, each after an address
    # that the other one wants next, if they took them as they come
    first, second, third = (Database(postgres_database_url) for _ in range(3))
    await first.create(store.metadata)
    mine, theirs = [[new_user(f"{name}@example.com") for name in order] for order in ("zma", "amz")]
    try:
        async with first.transaction() as tx:
            await tx.execute(sa.insert(store.user_emails), {"email": "m@example.com", "user_id": new_id()})
            work = [asyncio.create_task(register(*one)) for one in ((second, mine), (third, theirs))]
            waiting = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            await wait_until(lambda: counts(first, waiting, 2), what="both wait for a lock")

        # When it is committed
        results = await asyncio.gather(*work)
    finally:
        for database in (first, second, third):
            await database.close()

    # Then both come to their end, and each address has one account
    welcomed = [result.customer.email for group in results for result in group if isinstance(result, UserWelcomed)]
    assert sorted(welcomed) == ["a@example.com", "z@example.com"]


async def counts(database: Database, query: sa.TextClause, expected: int) -> bool:
    async with database.reading() as connection:
        return bool((await connection.execute(query)).scalar_one() == expected)


async def test_two_workers_register_the_same_addresses_at_the_same_time(database: Database) -> None:
    second = Database(database.url.render_as_string(hide_password=False))
    names = [f"user-{number}@example.com" for number in range(50)]
    mine, theirs = [new_user(name) for name in names], [new_user(name) for name in reversed(names)]

    try:
        results = await asyncio.gather(register(database, mine), register(second, theirs))
    finally:
        await second.close()

    welcomed = [result.customer.email for group in results for result in group if isinstance(result, UserWelcomed)]
    assert sorted(welcomed) == sorted(names)


async def test_loading_the_catalogue_again_keeps_the_stock(database: Database) -> None:
    (order,) = await accepted(database, [line("apple", 10)])
    await decide(database, [order])
    dearer = [(Product("apple", "Better apple", Decimal("2.00"), 500), "Food")]

    async with database.transaction() as tx:
        await store.load_products(tx, dearer, restock=False)
    kept = (await store.stock(database))["apple"]
    async with database.transaction() as tx:
        await store.load_products(tx, dearer, restock=True)

    assert kept == ON_HAND - 10
    assert (await store.stock(database))["apple"] == 500
