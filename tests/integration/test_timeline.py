"""The story of a business key with what operators did in it, on both databases."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from hopline import attempts, outbox, repair, scheduled, schema
from hopline.attempts import Attempt
from hopline.clock import new_id, utcnow
from hopline.scheduled import ScheduledFilter
from hopline.timeline import timeline
from tests.support.engine import envelope_for, rows
from tests.support.letters import CODE, Lost, Packed, dead, finished, opened, parked


async def test_the_story_says_who_repaired_what_and_why(database_url: str) -> None:
    envelope = envelope_for(Packed("p-1"))
    async with opened(database_url) as database:
        async with database.transaction() as tx:
            tx.schedule(envelope, queue="parcels", delay_seconds=3_600)
        async with database.reading() as connection:
            (send,) = await scheduled.find(connection, ScheduledFilter(), limit=1)
        await repair.run_now(database, [send.id], who="ann@host", reason="the customer waits")
        (first,) = await parked(database, dead(Packed("p-1"), envelope))
        await repair.replay(database, CODE, [first], who="bob@host")
        (second,) = await parked(database, dead(Packed("p-1"), envelope.changed(run=1)))
        body = msgspec.json.encode(Packed("p-2"))
        edited = await repair.edit(database, CODE, second, body, who="eve@host", reason="wrong id")

        steps = await timeline(database, "p-1")

        new = edited.verdict.envelope
        assert new is not None
        repairs = [step for step in steps if step.what == "repair"]
        assert [step.text for step in repairs] == [
            "the send to the queue parcels was made due now, by ann@host: the customer waits",
            "replayed, by bob@host",
            f"edited as the new message {new.id}, by eve@host: wrong id",
        ]
        assert [step.what for step in steps if step.message_id == new.id] == ["message", "outbox"]
        assert await timeline(database, "p-2") == steps  # one flow, told by either key


async def test_a_cancelled_send_is_told_at_the_time_of_the_act(database_url: str) -> None:
    envelope = envelope_for(Packed("p-1"))
    async with opened(database_url) as database:
        async with database.transaction() as tx:
            tx.schedule(envelope, queue="parcels", delay_seconds=3_600)
        (send,) = await rows(database, schema.outbox)
        await repair.cancel(database, [send.id], who="ann@host", reason="ordered twice")

        steps = await timeline(database, "p-1")

        (act,) = await rows(database, schema.audit_log)
    assert [step.at for step in steps if step.what == "repair"] == [act.at]
    assert {step.what: step.text for step in steps if step.what != "message"} == {
        "outbox": "stored to the queue parcels",
        "repair": "the send to the queue parcels was cancelled, by ann@host: ordered twice",
    }


async def test_a_strangers_dead_letter_with_the_key_is_part_of_its_story(database_url: str) -> None:
    """Its message is nowhere but in the dead letter: it came from another database."""
    async with opened(database_url) as database:
        (letter,) = await parked(database, dead(Packed("p-1")))
        await repair.discard(database, [letter], who="ann@host", reason="theirs")

        steps = await timeline(database, "p-1")

    assert [step.what for step in steps] == ["dead-letter", "repair"]
    assert steps[1].text == "discarded, by ann@host: theirs"


async def test_a_step_that_took_a_while_has_its_begin_and_end_and_who_did_it(database_url: str) -> None:
    first, second = envelope_for(Packed("p-1")), envelope_for(Packed("p-1"))
    async with opened(database_url) as database:
        async with database.transaction() as tx:
            tx.schedule(first, queue="parcels", delay_seconds=0)
            tx.schedule(second, queue="parcels", delay_seconds=0)
        async with database.transaction() as tx:
            sends = {send.envelope.id: send.id for send, _ in await outbox.claim(tx, limit=9, lease_seconds=30)}
            outbox.mark_sent(tx, {sends[first.id]: 0.0})
        failed = Attempt("parcels/x", first, "retry", "NoStock: none", "", "w-1", utcnow() - timedelta(2), utcnow())
        async with database.transaction() as tx:
            await attempts.record(tx, [failed])
        await finished(database, first.id, "parcels/x")

        steps = await timeline(database, "p-1")

    assert {step.message_id for step in steps} == {first.id, second.id}  # one key: one flow
    assert {step.key for step in steps} == {"p-1"}
    sent, waits = sorted((step for step in steps if step.what == "outbox"), key=lambda step: step.message_id)
    assert (sent.id, sent.tone, waits.tone, waits.end) == (sends[first.id], "idle", "busy", None)
    assert sent.start is not None
    assert sent.end is not None
    (confirmed,) = [step for step in steps if step.what == "confirm"]
    assert (confirmed.tone, confirmed.at) == ("ok", sent.end)
    (attempt,) = [step for step in steps if step.what == "attempt"]
    assert (attempt.tone, attempt.error, attempt.endpoint, attempt.worker, attempt.run, attempt.attempt) == (
        "warn", "NoStock: none", "parcels/x", "w-1", 0, 0,
    )  # fmt: skip
    assert attempt.seconds == pytest.approx(172_800, abs=1)
    (done,) = [step for step in steps if step.what == "done"]
    assert (done.tone, done.endpoint, done.end) == ("ok", "parcels/x", done.at)


async def test_a_flow_is_found_by_its_key_and_by_any_id_in_it(database_url: str) -> None:
    async with opened(database_url) as database:
        async with database.transaction() as tx:
            first = tx.send(Packed("p-1"))
            tx.cause = first
            second = tx.send(Lost("p-2"))
            tx.cause = None
            tx.send(Packed("p-3"))

        told = await timeline(database, "p-1")

        for name in ("p-2", first.id, second.id):
            assert await timeline(database, name) == told
        assert {step.message_id for step in told} == {first.id, second.id}
        assert await timeline(database, new_id()) == []
        assert await timeline(database, "p-\x00") == []


async def test_what_was_undone_is_part_of_the_story(database_url: str) -> None:
    async with opened(database_url) as database:
        (letter,) = await parked(database, dead(Packed("p-1")))
        await repair.discard(database, [letter], who="ann", reason="a mistake")
        await repair.undo(database, [letter], who="bob")

        steps = await timeline(database, "p-1")

    assert [(step.what, step.tone) for step in steps] == [
        ("dead-letter", "bad"),
        ("repair", "idle"),
        ("repair", "idle"),
    ]
    assert [step.text for step in steps[1:]] == ["discarded, by ann: a mistake", "parked again, by bob"]
    assert {step.id for step in steps} == {letter}
