"""Holding messages: a transaction that stores something for a known message keeps the purge from deleting it.

The purge (retention.py) locks messages with FOR UPDATE SKIP LOCKED before it looks at them for the last time. FOR KEY
SHARE conflicts with that lock and with no other that Hopline takes. So the purge skips a held message; a transaction
that wants to hold one that is being purged waits, and then finds it gone. SQLite has one writer at a time anyway.

Order, so that nobody deadlocks: messages are held before the rows that belong to them are locked or changed, each
in the order of their ids.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Any

import sqlalchemy as sa

from hopline.database import Transaction
from hopline.rows import Dialect, Rows
from hopline.schema import Id, dead_letters, messages

_IDS = Rows("held", id=Id)
_LETTERS = Rows("held_by", id=Id)


async def hold(tx: Transaction, ids: Collection[str]) -> set[str]:
    """Keeps messages until the transaction ends; returns the ids of those that are stored here."""
    if not ids:
        return set()
    found = await tx.rows(_holding(tx.dialect), _IDS.given(tx.dialect, id=sorted(set(ids))))
    return {row.id for row in found}


async def hold_of_letters(tx: Transaction, letter_ids: Collection[str]) -> None:
    """Keeps the messages of dead letters until the transaction ends; before the letters themselves are locked."""
    await tx.rows(_holding_of_letters(tx.dialect), _LETTERS.given(tx.dialect, id=sorted(set(letter_ids))))


@cache
def _holding(dialect: Dialect) -> sa.Select[Any]:
    return _kept().where(_IDS.among(dialect, messages.c.id))


@cache
def _holding_of_letters(dialect: Dialect) -> sa.Select[Any]:
    theirs = sa.select(dead_letters.c.message_id).where(_LETTERS.among(dialect, dead_letters.c.id))
    return _kept().where(messages.c.id.in_(theirs))


def _kept() -> sa.Select[Any]:
    return sa.select(messages.c.id).order_by(messages.c.id).with_for_update(read=True, key_share=True)
