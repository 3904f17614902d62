"""A program whose handlers are in trouble, with real baskets as its messages.

Queue `killing`: a basket that says so kills its worker's process (SIGKILL), in the middle of its group's transaction.
Queue `failing`: every basket fails, until the file that TROUBLED_HEALED names is there.

    python -m tests.faults.programs.troubled arrived 500 --killer
    python -m tests.faults.programs.troubled refused 500
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from itertools import cycle, islice
from pathlib import Path

import msgspec
import sqlalchemy as sa

from hopline import Handlers, Hopline, RetryPolicy, Transaction, message, new_id
from orders import dataset

HEALED = "TROUBLED_HEALED"
ATTEMPTS = 4
BATCH = 250

metadata = sa.MetaData()
taken = sa.Table("taken", metadata, sa.Column("id", sa.String(36), nullable=False))
"""One row an effect: nothing but the engine keeps a second one out."""

handlers = Handlers()


@message("basket.arrived", key="id")
class Arrived(msgspec.Struct):
    id: str
    basket: msgspec.Raw
    kills: bool = False


@message("basket.refused", key="id")
class Refused(msgspec.Struct):
    id: str
    basket: msgspec.Raw


@handlers.on("killing")
async def take_all(arrived: list[Arrived], tx: Transaction) -> None:
    await tx.execute(sa.insert(taken), [{"id": one.id} for one in arrived])
    if any(one.kills for one in arrived):
        os.kill(os.getpid(), signal.SIGKILL)


@handlers.on("failing", retry=RetryPolicy(attempts=ATTEMPTS, first_seconds=0.1, cap_seconds=0.4))
async def take(refused: Refused, tx: Transaction) -> None:
    await tx.execute(sa.insert(taken).values(id=refused.id))
    if not is_healed():
        raise RuntimeError("this never works")


def is_healed() -> bool:
    return Path(os.environ[HEALED]).exists()


app = Hopline(handlers=[handlers], tables=[metadata])


async def send(what: str, count: int, *, killer: bool) -> None:
    """Sends real baskets, and in their middle the one that kills; returns when RabbitMQ has them all."""
    kind = {"arrived": Arrived, "refused": Refused}[what]
    baskets = islice(cycle(dataset.read()), count)
    messages: list[Arrived | Refused] = [kind(new_id(), msgspec.Raw(basket.body)) for basket in baskets]
    if killer:
        messages.insert(count // 2, Arrived(new_id(), msgspec.Raw(b"{}"), kills=True))
    async with app.producing() as producer:
        for start in range(0, len(messages), BATCH):
            async with producer.transaction() as tx:
                for one in messages[start : start + BATCH]:
                    tx.send(one)


if __name__ == "__main__":
    asyncio.run(send(sys.argv[1], int(sys.argv[2]), killer="--killer" in sys.argv))
