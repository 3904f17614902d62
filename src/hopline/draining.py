"""Asking one process to drain and stop: a mark on its row, which it sees with its next heartbeat.

It then does what SIGTERM has it do: stops taking, finishes, acknowledges, closes, and ends with status 0. Whatever
supervises it may start a new one; that one has another instance name and no mark.
"""

from __future__ import annotations

from typing import Literal

import sqlalchemy as sa

from hopline.auditlog import Entry, append, check_who, worker_target
from hopline.database import Database, now, retried
from hopline.schema import workers

ROLES = ("worker", "relay")
"""Those that stop when they are asked; an API belongs to its web server."""

Asked = Literal["asked", "asked-before", "unknown", "wrong-role"]


async def drain(database: Database, instance: str, *, who: str, reason: str = "") -> Asked:
    """Asks a process to drain. Whether it still lives is told by its heartbeat, not here."""
    check_who(who)

    async def once() -> Asked:
        async with database.transaction() as tx:
            query = sa.select(workers.c.role, workers.c.drain_at).where(workers.c.instance == instance)
            rows = await tx.rows(query.with_for_update())
            if not rows:
                return "unknown"
            if rows[0].role not in ROLES:
                return "wrong-role"
            if rows[0].drain_at is not None:
                return "asked-before"
            await tx.execute(sa.update(workers).where(workers.c.instance == instance).values(drain_at=now()))
            await append(tx, [Entry(who, "drain", worker_target(instance), None, None, reason)])
            return "asked"

    return await retried(once)
