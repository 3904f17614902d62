"""Sends again what an audit names as missing: what a purge, a policy or a queue made anew has taken out of RabbitMQ.

Only what is named is sent: then its queue held nothing, so it cannot hide there. Each message is locked and judged
once more in the transaction of the act: what was settled or sent again meanwhile is left alone. It goes to the queue
in which it is missing, in the same run and attempt, so that the inbox absorbs a copy that turns up after all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from hopline import outbox
from hopline.audit import Audit, EndpointAudit, Subject, Window, subjects, unsettled
from hopline.auditlog import Entry, append, check_who, hash_of, message_target
from hopline.database import Database, Transaction, retried, translated
from hopline.errors import BrokerUnavailable, OutboxFull, UsageError
from hopline.handlers import Endpoint
from hopline.outbox import RETRY_AFTER_SECONDS, Outbox
from hopline.schema import check_id, messages
from hopline.schema import outbox as outbox_table

RESEND_MESSAGES = 200
"""The most messages of one transaction; their bodies are read to be hashed for the audit log."""


@dataclass(frozen=True, slots=True)
class Resent:
    """One message that was sent again."""

    message_id: str
    endpoint: str
    queue: str


def check_act(who: str, reason: str) -> None:
    """UsageError without a name or a reason."""
    check_who(who)
    if not reason.strip():
        raise UsageError("say why: messages that are sent again need a reason")


def check_evidence(account: Audit) -> None:
    """BrokerUnavailable if nothing is named because RabbitMQ could not be asked: its queues may hold everything."""
    if account.trouble and account.unproven and not named(account):
        raise BrokerUnavailable(f"nothing was sent again: the queues may hold what is not settled; {account.trouble}")


def named(account: Audit) -> list[EndpointAudit]:
    """The endpoints whose missing messages are known by id."""
    return [one for one in account.endpoints if one.missing_ids]


async def resend(
    database: Database,
    endpoints: Sequence[Endpoint],
    account: Audit,
    *,
    who: str,
    reason: str,
    ids: Sequence[str] | None = None,
) -> AsyncIterator[list[Resent]]:
    """Sends the messages that the account names as missing again, or those of them in `ids`; yields what was sent.

    One transaction for each part, with its rows in the audit log. Raises as `check_act` and `check_evidence` do, and
    OutboxFull if too much is unsent already: what was yielded before is sent.
    """
    check_act(who, reason)
    check_evidence(account)
    chosen = None if ids is None else sorted(set(ids))
    for identifier in chosen or ():
        check_id(identifier)
    watched = {(subject.name, subject.queue): subject for subject in subjects(endpoints)}
    for one in named(account):
        act = _Resending(database, watched[one.endpoint, one.queue], _window(account), who, reason)
        async for sent in act.all() if chosen is None else act.among(chosen):
            yield sent


def _window(account: Audit) -> Window:
    assert account.until is not None, "an account that names something was made of a database"
    return Window(account.until, account.until, account.until)


@dataclass(frozen=True, slots=True)
class _Resending:
    """The missing messages of one endpoint."""

    database: Database
    endpoint: Subject
    window: Window
    who: str
    reason: str

    async def all(self) -> AsyncIterator[list[Resent]]:
        """What is sent is not missing any more, so each part is the next one."""
        while True:
            async with self.database.reading() as connection:
                ids = await unsettled(connection, self.endpoint, self.window, limit=RESEND_MESSAGES)
            sent = await self._send(ids) if ids else []
            if not sent:
                return
            yield sent

    async def among(self, chosen: Sequence[str]) -> AsyncIterator[list[Resent]]:
        """Those of the given ones that are missing."""
        for start in range(0, len(chosen), RESEND_MESSAGES):
            sent = await self._send(chosen[start : start + RESEND_MESSAGES])
            if sent:
                yield sent

    async def _send(self, ids: Sequence[str]) -> list[Resent]:
        await _check_room(self.database, len(ids))

        async def once() -> list[Resent]:
            async with self.database.transaction() as tx:
                return await self._work(tx, ids)

        return await retried(once)

    async def _work(self, tx: Transaction, ids: Sequence[str]) -> list[Resent]:
        # In the order of their ids, so that two who send the same ones cannot deadlock.
        lock = sa.select(messages.c.id, messages.c.body).where(messages.c.id.in_(ids)).order_by(messages.c.id)
        hashes = {row.id: hash_of(row.body) for row in await tx.rows(lock.with_for_update())}
        with translated():
            missing = await unsettled(tx.connection, self.endpoint, self.window, limit=len(ids), among=ids)
        queue = self.endpoint.queue
        latest = (
            sa.select(outbox_table.c.message_id, outbox_table.c.run, outbox_table.c.attempt)
            .where(outbox_table.c.message_id.in_(missing), outbox_table.c.destination.in_(["", queue]))
            .order_by(outbox_table.c.run, outbox_table.c.attempt)
        )
        sends = {row.message_id: (row.message_id, row.run, row.attempt) for row in await tx.rows(latest)}
        if sends:
            await outbox.again(tx, queue, list(sends.values()))
            entries = [
                Entry(self.who, "resend", message_target(i), hashes[i], hashes[i], f"to {queue}: {self.reason}")
                for i in sends
            ]
            await append(tx, entries)
        return [Resent(identifier, self.endpoint.name, queue) for identifier in sends]


async def _check_room(database: Database, count: int) -> None:
    """OutboxFull if the outbox has no room for so many."""
    for store in database.riders:
        if isinstance(store, Outbox):
            async with database.reading() as connection:
                unsent = await outbox.count_unsent(connection, limit=store.limit)
            if unsent + count > store.limit:
                raise OutboxFull(unsent, store.limit, RETRY_AFTER_SECONDS)
