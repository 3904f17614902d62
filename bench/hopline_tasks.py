"""No-op messages with Hopline, outbox and inbox on.

`HOPLINE_APP=bench.hopline_tasks:app hopline worker` handles them, `python -m bench.hopline_tasks` sends.
"""

import asyncio
import os

import msgspec
import sqlalchemy as sa
import uvloop

from bench.enqueueing import QUEUE, enqueue
from bench.tally import FILE, Tally
from hopline import Handlers, Hopline, Transaction, message

POLL_SECONDS = 0.005
UNSENT = sa.text("SELECT 1 FROM hopline_outbox WHERE next_at IS NOT NULL LIMIT 1")


@message("noop", key="key")
class Noop(msgspec.Struct):
    """Nothing to do."""

    sent_at: float
    padding: str
    key: str = "noop"


handlers = Handlers()
tally = Tally.from_environment() if FILE in os.environ else None


@handlers.on(QUEUE)
async def noop(messages: list[Noop], tx: Transaction) -> None:  # noqa: ARG001 - it makes the handler one with database effects
    """Counts."""
    assert tally is not None
    for one in messages:
        tally.hit(one.sent_at)


app = Hopline(handlers=[handlers])


async def main() -> None:
    """Sends: each caller has its own row committed; what comes together shares a transaction. Confirmed at the end."""
    async with app.producing() as producer:
        while producer.trouble:  # noqa: ASYNC110 - the engine has no event for it
            await asyncio.sleep(POLL_SECONDS)

        async def store(tx: Transaction, messages: list[Noop]) -> list[None]:
            for one in messages:
                tx.send(one)
            return [None] * len(messages)

        send = producer.group(store)

        async def confirmed() -> None:
            while await producer.database.query(UNSENT):  # noqa: ASYNC110 - the database has no event for it
                await asyncio.sleep(POLL_SECONDS)

        await enqueue(lambda sent_at, padding: send(Noop(sent_at, padding)), confirmed)


if __name__ == "__main__":
    uvloop.run(main())
