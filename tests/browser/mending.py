"""A mail server that refuses every mail for good, in the place of the system's own, and what it leaves behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from aiosmtpd.controller import Controller

from hopline import deadletter_queries
from hopline.database import Database
from hopline.deadletter_queries import Filter
from tests.support.system import DEADLINE_SECONDS, System
from tests.support.waiting import wait_until

REFUSAL = "550 5.1.1 this mailbox is full of <b>bees</b>"


class _Refusing:
    """Answers every recipient with a 5xx, as a server does for an address that is not."""

    async def handle_RCPT(self, *_arguments: object) -> str:  # noqa: N802 - the name that aiosmtpd calls
        return REFUSAL


@asynccontextmanager
async def refusing_mails(running: System) -> AsyncIterator[None]:
    """Has every mail refused until the end of the block."""
    mailbox = running.stack.roles["mailbox"]
    place = urlsplit(running.stack.environment["ORDERS_SMTP_URL"])
    await mailbox.stop()
    refusing = Controller(_Refusing(), hostname=place.hostname or "", port=place.port or 0)
    await asyncio.to_thread(refusing.start)
    try:
        yield
    finally:
        await asyncio.to_thread(refusing.stop)
        await mailbox.start()


async def waits_in_dead_letters(running: System) -> tuple[str, str]:
    """Places a real order, and waits until its mail is a dead letter; the order's id, and the customer's address."""
    (basket,) = running.take_clean(1)
    status, order = await running.post(basket, f"refused-{basket.id}")
    assert status == 202
    database = Database(running.database_url)
    try:
        await wait_until(lambda: _is_dead(database, order), DEADLINE_SECONDS, "the mail is refused and parked")
    finally:
        await database.close()
    return order, str(json.loads(basket.body)["customer"]["email"])


async def _is_dead(database: Database, key: str) -> bool:
    async with database.reading() as connection:
        return bool(await deadletter_queries.find(connection, Filter(key=key), limit=1))
