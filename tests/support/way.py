"""The whole way of orders through the database, without RabbitMQ and a mail server: placed, decided, mailed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal

from hopline import Handlers, Settings, new_id, outbox
from hopline.broker import Delivery
from hopline.database import Database, Send, Transaction
from hopline.outbox import Outbox
from hopline.worker import Worker
from orders import emails, handlers, placing, store
from orders.domain import Customer, Line, Product
from orders.mailer import Mailer
from tests.support.engine import ScriptedConsumer, delivery_for

GROUP = 50
SETTINGS = Settings(group_members=GROUP, effect_concurrency=GROUP)
LINES = [Line(sku, 2, Decimal("1.00")) for sku in ("apple", "bread", "cheese")]
CUSTOMER = Customer("ada@example.com", "Ada")


class Office(Mailer):
    """A mailer whose server takes everything at once."""

    def __init__(self) -> None:
        self.domain, self.sender = "example.com", "shop@example.com"

    async def send(self, recipient: str, mail: bytes) -> str:
        return "250 taken"


class Kept:
    """Takes what is committed, as the relay would."""

    def __init__(self) -> None:
        self.sends: list[Send] = []

    def reserve(self, sends: Sequence[Send]) -> int:
        return len(sends)

    def release(self, sends: Sequence[Send]) -> None: ...

    def offer(self, sends: Sequence[Send]) -> None:
        self.sends += sends

    def take(self) -> list[Send]:
        taken, self.sends = self.sends, []
        return taken


class Marks:
    """Marks what was sent before, with the next transaction, as the relay does."""

    def __init__(self) -> None:
        self.confirmed: list[str] = []

    async def board(self, tx: Transaction) -> None:
        outbox.mark_sent(tx, dict.fromkeys(self.confirmed, 0.0))
        self.confirmed = []


class Way:
    """The whole way of groups of orders through the database: placed, decided, mailed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kept, self._marks = Kept(), Marks()
        store_ = Outbox(limit=100_000, lease_seconds=30)
        store_.sender = self._kept
        database.riders += [store_, self._marks]
        registry = Handlers()
        registry.include([handlers.handlers, emails.handlers(Office())])
        self._worker = Worker(database, registry, SETTINGS, instance="counted")
        self.consumer = ScriptedConsumer()
        self._worker.attach(self.consumer)

    async def place(self) -> list[Delivery]:
        new = [placing.NewOrder(new_id(), CUSTOMER, LINES) for _ in range(GROUP)]
        async with self._database.transaction() as tx:
            await placing.place_orders(tx, new)
        return self._deliveries("orders")

    async def handle(self, deliveries: list[Delivery]) -> list[Delivery]:
        self._worker.receive(deliveries)
        async with asyncio.timeout(20):
            await self._worker.drained()
        assert not self._worker.crashed.done()
        return self._deliveries("emails")

    def _deliveries(self, queue: str) -> list[Delivery]:
        sends = self._kept.take()
        self._marks.confirmed += [send.id for send in sends]
        return [delivery_for(queue, send.envelope) for send in sends]


@asynccontextmanager
async def a_shop(url: str) -> AsyncIterator[Database]:
    database = Database(url)
    await database.create(store.metadata)
    products = [(Product(line.sku, line.sku.title(), line.unit_price, 1_000_000), "Food") for line in LINES]
    async with database.transaction() as tx:
        await store.load_products(tx, products, restock=True)
    try:
        yield database
    finally:
        await database.close()
