"""HTTP idempotency: the same key and the same request give the same answer, once, across processes.

Scope is caller and route. The claim is a row in the transaction that does the work, so an answer is
remembered exactly if the work was done; a refused request (4xx) stores nothing. Two requests with one key in
one group meet in memory; across processes the loser waits on the winner's row (Postgres: lock_timeout, then
DatabaseContention, which an API answers with 409 and Retry-After) and reads it back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import sqlalchemy as sa

from hopline.database import Transaction, now
from hopline.rows import Dialect, Rows, insert
from hopline.schema import idempotency as table

KEY_CHARACTERS = 255


@dataclass(frozen=True, slots=True)
class IdempotentRequest:
    """A request that carries an idempotency key, with the answer that it would get."""

    scope: str
    key: str
    request_hash: str
    response: str


@dataclass(frozen=True, slots=True)
class Remembered:
    """The answer that the key's first request got; `same` says whether that was the same request."""

    response: str
    same: bool


def request_hash(canonical_body: bytes) -> str:
    """SHA-256 of a body in canonical form, as hexadecimal."""
    return hashlib.sha256(canonical_body).hexdigest()


async def claim(tx: Transaction, requests: Sequence[IdempotentRequest]) -> list[Remembered | None]:
    """For each request: None if it is the first with its key (do the work), else what is remembered."""
    first: dict[tuple[str, str], IdempotentRequest] = {}
    for request in requests:
        first.setdefault((request.scope, request.key), request)
    won = await _insert(tx, [first[place] for place in sorted(first)])
    remembered = {place: request for place, request in first.items() if place in won}
    lost = [place for place in first if place not in won]
    if lost:
        query = sa.select(table).where(sa.tuple_(table.c.scope, table.c.key).in_(lost))
        for row in await tx.rows(query):
            remembered[row.scope, row.key] = IdempotentRequest(row.scope, row.key, row.request_hash, row.response)
    return [_compare(request, first, won, remembered) for request in requests]


async def _insert(tx: Transaction, requests: Sequence[IdempotentRequest]) -> set[tuple[str, str]]:
    """Inserts in key order, so that two processes with overlapping keys cannot deadlock; returns what was new."""
    given = _CLAIMED.given(
        tx.dialect,
        scope=[request.scope for request in requests],
        key=[request.key for request in requests],
        request_hash=[request.request_hash for request in requests],
        response=[request.response for request in requests],
    )
    return {(row.scope, row.key) for row in await tx.rows(_insertion(tx.dialect), given)}


_CLAIMED = Rows("claimed", scope=sa.Text(), key=sa.Text(), request_hash=sa.Text(), response=sa.Text())


@cache
def _insertion(dialect: Dialect) -> sa.Executable:
    given = _CLAIMED.table(dialect)
    rows = sa.select(*given.c, now()).where(sa.true()).order_by(given.c.scope, given.c.key)
    names = [*(column.name for column in given.c), "created_at"]
    statement = insert(dialect, table).from_select(names, rows).on_conflict_do_nothing()
    return statement.returning(table.c.scope, table.c.key)


def _compare(
    request: IdempotentRequest,
    first: dict[tuple[str, str], IdempotentRequest],
    won: set[tuple[str, str]],
    remembered: dict[tuple[str, str], IdempotentRequest],
) -> Remembered | None:
    place = (request.scope, request.key)
    if place in won and first[place] is request:
        return None
    winner = remembered[place]
    return Remembered(winner.response, winner.request_hash == request.request_hash)
