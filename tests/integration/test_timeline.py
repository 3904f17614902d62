"""The story of a business key with what operators did in it, on both databases."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from hopline import repair, scheduled, schema
from hopline.scheduled import ScheduledFilter
from hopline.timeline import timeline
from tests.support.engine import envelope_for, rows
from tests.support.letters import CODE, Packed, dead, opened, parked


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
        (second,) = await parked(database, dead(Packed("p-1"), replace(envelope, run=1)))
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
