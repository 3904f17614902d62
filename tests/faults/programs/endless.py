"""A program whose handler never gives control back for one basket, or takes its process along, in one of WAYS.

python -m tests.faults.programs.endless 60 spins
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable
from itertools import cycle, islice

import msgspec
import sqlalchemy as sa

from hopline import Handlers, Hopline, Transaction, message, new_id
from orders import dataset

metadata = sa.MetaData()
taken = sa.Table("taken", metadata, sa.Column("id", sa.String(36), nullable=False))
"""One row an effect: nothing but the engine keeps a second one out."""

handlers = Handlers()


@message("basket.stuck", key="id")
class Stuck(msgspec.Struct):
    id: str
    basket: msgspec.Raw
    way: str = ""


@handlers.on("endless", deadline_seconds=1)
async def take(stuck: Stuck, tx: Transaction) -> None:
    await tx.execute(sa.insert(taken).values(id=stuck.id))
    if stuck.way:
        await WAYS[stuck.way]()


async def _spin() -> None:
    while True:
        pass


async def _hold_the_lock() -> None:
    re.match(r"(a|aa)+$", "a" * 100 + "b")


async def _swallow() -> None:
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            continue


async def _exit_in_a_task() -> None:
    async def leave() -> None:
        raise SystemExit(3)

    task = asyncio.create_task(leave())  # not awaited: asyncio passes its SystemExit through the loop
    await asyncio.sleep(600)
    await task


WAYS: dict[str, Callable[[], Awaitable[None]]] = {
    "spins": _spin,
    "holds-the-lock": _hold_the_lock,
    "swallows": _swallow,
    "exits-in-a-task": _exit_in_a_task,
}

app = Hopline(handlers=[handlers], tables=[metadata])


async def send(count: int, way: str) -> None:
    """Sends real baskets, and in their middle the odd one; returns when RabbitMQ has them all."""
    messages = [Stuck(new_id(), msgspec.Raw(basket.body)) for basket in islice(cycle(dataset.read()), count)]
    messages.insert(count // 2, Stuck(new_id(), msgspec.Raw(b"{}"), way))
    async with app.producing() as producer, producer.transaction() as tx:
        for one in messages:
            tx.send(one)


if __name__ == "__main__":
    asyncio.run(send(int(sys.argv[1]), sys.argv[2]))
