"""Acts on dead letters and on scheduled sends. Each writes the audit log in its own transaction.

Safe to repeat and to race: a letter is locked, judged as it is now, and resolved only if it was parked; a send is
changed only while it is not due. What was not done comes back with a verdict, never as an exception. What is sent
goes through the outbox that rides with the database's transactions: a relay of this process sends it at once, else
whichever finds it due.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hopline import outbox, scheduled
from hopline.auditlog import Action, Entry, append, check_who, hash_of, letter_target, send_target
from hopline.clock import utcnow
from hopline.database import Database, Transaction, now, retried, translated
from hopline.deadletter_queries import Filter, Letter, Place, count, find, load
from hopline.deadletters import reopen, resolve
from hopline.errors import UsageError
from hopline.holding import hold_of_letters
from hopline.message import Envelope
from hopline.outbox import Outbox
from hopline.repair.verdicts import Code, Evidence, Verdict, judge, renewed, validate
from hopline.schema import check_id, inbox, messages
from hopline.schema import outbox as outbox_table

Result = TypeVar("Result")

ACT_LETTERS = 50
"""The most letters of one transaction: with their bodies they fit into memory, and no lock is held for long."""

NOT_FOUND = Verdict("not-found", "there is no such dead letter")
PARKED = Verdict("parked", "it is parked: there is nothing to undo")
SENT = Verdict("sent", "its message is not scheduled any more: it was sent, is on its way, or was cancelled")


@dataclass(frozen=True, slots=True)
class Judged:
    """A letter and what was found of it, or done with it."""

    letter_id: str
    letter: Letter | None
    """As it was before."""
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Selection:
    """What a filter chose at one moment: what dies later is not part of it."""

    which: Filter
    count: int


async def select(database: Database, which: Filter) -> Selection:
    """What the filter chooses now."""
    async with database.reading() as connection:
        moment = (await connection.execute(sa.select(now()))).scalar_one()
        bounded = replace(which, until=min(moment, which.until) if which.until else moment)
        return Selection(bounded, await count(connection, bounded))


async def pages(database: Database, selection: Selection, size: int = ACT_LETTERS) -> AsyncIterator[list[str]]:
    """The ids of a selection, the oldest first."""
    after: Place | None = None
    while True:
        async with database.reading() as connection:
            found = await find(connection, selection.which, limit=size, after=after, newest_first=False)
        if not found:
            return
        yield [letter.id for letter in found]
        after = found[-1].place


async def check(database: Database, code: Code, ids: Sequence[str], *, as_new: bool = False) -> list[Judged]:
    """What `replay` would say of at most ACT_LETTERS letters. Changes nothing."""
    _check_ids(ids)
    async with database.reading() as connection:
        return _judged(ids, await _evidence(connection, ids), code, as_new=as_new)


async def replay(
    database: Database,
    code: Code,
    ids: Sequence[str],
    *,
    who: str,
    reason: str = "",
    as_new: bool = False,
    delay_seconds: float = 0.0,
) -> list[Judged]:
    """Sends the messages of at most ACT_LETTERS letters again, each to the queue in which it died.

    The same message in a new run; with `as_new` a new message in the old one's flow. Those with an ok verdict are
    sent, after the delay, in which `undo` takes them back. OutboxFull if too much is unsent already.
    """
    _check_ids(ids)
    check_who(who)
    action: Action = "replay-as-new" if as_new else "replay"

    async def work(tx: Transaction) -> list[Judged]:
        judged = _judged(ids, await _locked(tx, ids), code, as_new=as_new)
        sent = [(one, one.verdict.envelope) for one in judged if one.verdict.envelope is not None]
        by = {one.letter_id: envelope.id if as_new else None for one, envelope in sent}
        resolved = await resolve(tx, by, "replayed")
        assert resolved == by.keys(), "letters that are locked and parked are resolved by nobody else"
        for one, envelope in sent:
            assert one.letter is not None
            tx.schedule(envelope, queue=one.letter.queue, delay_seconds=delay_seconds)
        hashes = {one.letter_id: hash_of(envelope.body) for one, envelope in sent}
        await append(tx, [Entry(who, action, letter_target(i), h, h, reason) for i, h in hashes.items()])
        return judged

    return await _acting(database, work, sends=True)


async def edit(
    database: Database,
    code: Code,
    letter_id: str,
    body: bytes,
    *,
    who: str,
    reason: str = "",
    new_type: tuple[str, int] | None = None,
    delay_seconds: float = 0.0,
) -> Judged:
    """Sends a new message in place of a letter's, to the queue in which it died; an ok verdict has its envelope.

    It is sent after the delay, in which `undo` takes it back.
    Raises as `validate` does if today's code does not accept the body, before anything is stored.
    """
    _check_ids([letter_id])
    check_who(who)

    async def work(tx: Transaction) -> Judged:
        evidence = (await _locked(tx, [letter_id])).get(letter_id)
        if evidence is None or evidence.whole.letter.resolution is not None:
            return Judged(letter_id, evidence.whole.letter if evidence else None, _gone(evidence))
        letter = evidence.whole.letter
        edited = validate(evidence.whole, body, code, database.message_limit_bytes, new_type)
        envelope = renewed(evidence, edited, utcnow())
        await resolve(tx, {letter_id: envelope.id}, "edited")
        tx.schedule(envelope, queue=letter.queue, delay_seconds=delay_seconds)
        before, after = hash_of(evidence.whole.body), hash_of(body)
        await append(tx, [Entry(who, "edit", letter_target(letter_id), before, after, reason)])
        endpoints = code.endpoints(letter.queue, envelope.type, envelope.version)
        return Judged(letter_id, letter, Verdict("ok", envelope=envelope, endpoints=endpoints))

    return await _acting(database, work, sends=True)


async def discard(database: Database, ids: Sequence[str], *, who: str, reason: str) -> list[Judged]:
    """Gives at most ACT_LETTERS letters up for good, for a reason; those with an ok verdict are discarded."""
    _check_ids(ids)
    check_who(who)
    if not reason.strip():
        raise UsageError("say why: a message that is given up for good needs a reason")

    async def work(tx: Transaction) -> list[Judged]:
        evidence = await _locked(tx, ids)
        judged = [
            Judged(i, evidence[i].whole.letter if i in evidence else None, _gone(evidence.get(i))) for i in _once(ids)
        ]
        good = [one.letter_id for one in judged if one.verdict.ok]
        await resolve(tx, dict.fromkeys(good), "discarded")
        hashes = {identifier: hash_of(evidence[identifier].whole.body) for identifier in good}
        await append(tx, [Entry(who, "discard", letter_target(i), h, None, reason) for i, h in hashes.items()])
        return judged

    return await _acting(database, work)


async def undo(database: Database, ids: Sequence[str], *, who: str, reason: str = "") -> list[Judged]:
    """Parks at most ACT_LETTERS letters again; those with an ok verdict are.

    What was discarded always is. What was replayed or edited is while its message is still scheduled (`delay_seconds`):
    that send is cancelled in the same transaction.
    """
    _check_ids(ids)
    check_who(who)

    async def work(tx: Transaction) -> list[Judged]:
        evidence = await _locked(tx, ids)
        letters = {identifier: one.whole.letter for identifier, one in evidence.items()}
        sends = await _sends_of(tx, [one for one in letters.values() if one.resolution in ("replayed", "edited")])
        cancelled = await scheduled.cancel(tx, sorted(sends.values()))
        undone = [i for i, one in letters.items() if one.resolution == "discarded" or sends.get(i) in cancelled]
        await reopen(tx, undone)
        hashes = {identifier: hash_of(evidence[identifier].whole.body) for identifier in undone}
        await append(tx, [Entry(who, "undo", letter_target(i), None, h, reason) for i, h in hashes.items()])
        return [Judged(i, letters.get(i), _undone(letters.get(i), done=i in undone)) for i in _once(ids)]

    return await _acting(database, work)


async def run_now(database: Database, ids: Sequence[str], *, who: str, reason: str = "") -> set[str]:
    """Makes at most ACT_LETTERS scheduled sends due now; returns those that were not due yet."""
    _check_ids(ids)
    check_who(who)

    async def work(tx: Transaction) -> set[str]:
        changed = await scheduled.run_now(tx, ids)
        hashes = await _hashes(tx, changed)
        await append(tx, [Entry(who, "run-now", send_target(i), h, h, reason) for i, h in hashes.items()])
        return changed

    return await _acting(database, work)


async def cancel(database: Database, ids: Sequence[str], *, who: str, reason: str = "") -> set[str]:
    """Sees to it that at most ACT_LETTERS scheduled sends are never sent; returns those that were not due yet."""
    _check_ids(ids)
    check_who(who)

    async def work(tx: Transaction) -> set[str]:
        changed = await scheduled.cancel(tx, ids)
        hashes = await _hashes(tx, changed)
        await append(tx, [Entry(who, "cancel", send_target(i), h, None, reason) for i, h in hashes.items()])
        return changed

    return await _acting(database, work)


async def _acting(
    database: Database, work: Callable[[Transaction], Awaitable[Result]], *, sends: bool = False
) -> Result:
    """One transaction, run again if the database rolled it back for contention."""
    if sends:
        await _measure_outbox(database)

    async def once() -> Result:
        async with database.transaction() as tx:
            return await work(tx)

    return await retried(once)


async def _measure_outbox(database: Database) -> None:
    """A process without a relay does not know how much is unsent. UsageError if nothing would store the sends."""
    stores = [rider for rider in database.riders if isinstance(rider, Outbox)]
    if not stores:
        raise UsageError("this Database has no Outbox among its riders: what a repair sends would be lost")
    for store in stores:
        if store.sender is None:
            async with database.reading() as connection:
                store.unsent = await outbox.count_unsent(connection, limit=store.limit)


async def _hashes(tx: Transaction, ids: set[str]) -> dict[str, str]:
    return {i: hash_of(body) for i, body in sorted((await scheduled.bodies(tx, sorted(ids))).items())}


async def _sends_of(tx: Transaction, letters: Sequence[Letter]) -> dict[str, str]:
    """The send that each replayed or edited letter has become, by the letter's id."""
    sends: dict[str, str] = {}
    for letter in letters:
        run = 0 if letter.replaced_by else letter.run + 1
        query = (
            sa.select(outbox_table.c.id)
            .where(
                outbox_table.c.message_id == (letter.replaced_by or letter.message_id),
                outbox_table.c.destination == letter.queue,
                outbox_table.c.run == run,
                outbox_table.c.attempt == 0,
            )
            .order_by(outbox_table.c.id.desc())
            .limit(1)
        )
        if found := await tx.rows(query):
            sends[letter.id] = found[0].id
    return sends


def _undone(letter: Letter | None, *, done: bool) -> Verdict:
    if letter is None:
        return NOT_FOUND
    if letter.resolution is None:
        return PARKED
    return Verdict("ok") if done else SENT


def _check_ids(ids: Sequence[str]) -> None:
    for identifier in ids:
        check_id(identifier)
    if len(ids) > ACT_LETTERS:
        raise UsageError(f"{len(ids)} at once; one act takes at most {ACT_LETTERS}")


def _once(ids: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(ids))


def _gone(evidence: Evidence | None) -> Verdict:
    """Ok if the letter is parked."""
    if evidence is None:
        return NOT_FOUND
    letter = evidence.whole.letter
    if letter.resolution is None:
        return Verdict("ok")
    return Verdict("resolved", f"{letter.resolution} already, at {letter.resolved_at:%Y-%m-%d %H:%M:%S}")


def _judged(ids: Sequence[str], evidence: Mapping[str, Evidence], code: Code, *, as_new: bool) -> list[Judged]:
    moment = utcnow()
    return [
        Judged(i, evidence[i].whole.letter, judge(evidence[i], code, moment, as_new=as_new))
        if i in evidence
        else Judged(i, None, NOT_FOUND)
        for i in _once(ids)
    ]


async def _locked(tx: Transaction, ids: Sequence[str]) -> dict[str, Evidence]:
    """The letters, locked until the transaction ends, as are their messages against the purge."""
    await hold_of_letters(tx, ids)
    with translated():
        return await _evidence(tx.connection, ids, lock=True)


async def _evidence(connection: AsyncConnection, ids: Sequence[str], *, lock: bool = False) -> dict[str, Evidence]:
    found = await load(connection, ids, lock=lock)
    message_ids = sorted({whole.letter.message_id for whole in found if whole.letter.message_id})
    stored = await connection.execute(sa.select(messages).where(messages.c.id.in_(message_ids)))
    envelopes = {row["id"]: Envelope(**row) for row in stored.mappings()}
    done: dict[str, set[str]] = {}
    for row in await connection.execute(sa.select(inbox).where(inbox.c.message_id.in_(message_ids))):
        done.setdefault(row.message_id, set()).add(row.endpoint)
    return {
        whole.letter.id: Evidence(
            whole,
            envelopes.get(whole.letter.message_id or ""),
            frozenset(done.get(whole.letter.message_id or "", ())),
        )
        for whole in found
    }
