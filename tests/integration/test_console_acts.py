"""What is done at the console is done, by the engine's own functions, and the audit log has it with who and why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta

import pytest
import sqlalchemy as sa

from hopline import audit as auditing
from hopline import deadletter_queries, pausing, scheduled, schema
from hopline.audit import audit, register
from hopline.clock import utcnow
from hopline.deadletter_queries import Filter
from hopline.live import QueueReading
from hopline.scheduled import ScheduledFilter
from tests.support.console import OPERATOR_PASSWORD, VIEWER_PASSWORD, Stocked, console, stocked
from tests.support.engine import envelope_for, rows
from tests.support.letters import Packed, dead, finished, parked
from tests.support.waiting import wait_until

ANN = "ann (operator, 192.0.2.1)"
VERA = "vera (viewer, 192.0.2.1)"


@pytest.fixture
async def made(database_url: str) -> AsyncIterator[Stocked]:
    async with stocked(database_url) as one:
        yield one


async def logged(made: Stocked) -> list[tuple[str, str, str, str]]:
    return [(one.who, one.action, one.target, one.reason) for one in await made.log()]


async def state_of(made: Stocked, letter: str) -> str:
    async with made.database.reading() as connection:
        whole = await deadletter_queries.get(connection, letter)
    assert whole is not None
    return whole.letter.resolution or "parked"


async def sends_of(made: Stocked) -> int:
    async with made.database.reading() as connection:
        return len(await scheduled.find(connection, ScheduledFilter(), limit=10))


async def job_has_ended(made: Stocked, job: str, as_what: str) -> None:
    """Waits until a replay has ended, as its page's twin says."""
    found = made.desk.replays.find(job.rpartition("/")[2])
    assert found is not None
    await wait_until(lambda: bool(found.ended))
    assert found.ended == as_what, found


async def test_a_letter_is_replayed(made: Stocked) -> None:
    letter = made.names["letter"]
    async with made.person(OPERATOR_PASSWORD, "ann") as ann:
        answer = await ann.post(f"/dead/letters/{letter}/replay", reason="well again")
        assert answer.status_code == 303
        job = answer.headers["location"]
        await wait_until(lambda: _is(made, letter, "replayed"))
        (message,) = [row.message_id for row in await rows(made.database, schema.dead_letters) if row.id == letter]
        running = await ann.page(job)
        assert "running" in running
        await finished(made.database, str(message), run=1)
        await job_has_ended(made, job, "finished")
        assert "finished" in await ann.page(job)
        assert (await ann.json(f"/api{job}"))["tally"]["done"] == 1

    assert await logged(made) == [(ANN, "replay", f"dead-letter {letter}", "well again")]


async def _is(made: Stocked, letter: str, state: str) -> bool:
    return await state_of(made, letter) == state


async def test_a_group_is_replayed_and_stopped_and_what_was_not_sent_stays_parked(made: Stocked) -> None:
    """The canary is sent, nobody handles it, and the operator does not wait."""
    async with made.person(OPERATOR_PASSWORD, "ann") as ann:
        answer = await ann.post(f"/dead/{made.names['fingerprint']}/replay", canary="on", rate="1000", reason="try")
        job = answer.headers["location"]
        await wait_until(lambda: _count(made, "replayed", 1))

        assert await ann.act(f"{job}/stop") == "stopped"
        assert await ann.act(f"{job}/stop") == "it was over already"
        page = await ann.page("/dead")

    assert "stopped by hand" in page
    assert await _count(made, "parked", 2)
    ((who, action, _, reason),) = await logged(made)
    assert (who, action, reason) == (ANN, "replay", "try")


async def _count(made: Stocked, state: str, count: int) -> bool:
    letters = [made.names[name] for name in ("letter", "second", "third")]
    return [await state_of(made, letter) for letter in letters].count(state) == count


async def test_the_chosen_letters_are_discarded_with_a_reason_and_not_without(made: Stocked) -> None:
    chosen = [made.names["letter"], made.names["second"]]
    async with made.person(OPERATOR_PASSWORD, "ann") as ann:
        assert (await ann.post("/dead/letters", act="discard", id=chosen)).status_code == 400
        assert (await ann.post("/dead/letters", act="discard", reason="x")).status_code == 400
        assert await _count(made, "parked", 3)

        told = await ann.act("/dead/letters", act="discard", id=chosen, reason="never again")

    assert told == "2 letters discarded"
    assert await state_of(made, made.names["third"]) == "parked"
    assert sorted(await logged(made)) == sorted(
        (ANN, "discard", f"dead-letter {letter}", "never again") for letter in chosen
    )


async def test_one_letter_and_a_whole_group_are_discarded(made: Stocked) -> None:
    letter = made.names["letter"]
    async with made.person(OPERATOR_PASSWORD, "ann") as ann:
        assert await ann.act(f"/dead/letters/{letter}/discard", reason="one") == "discarded"
        assert "discarded" in await ann.act(f"/dead/letters/{letter}/discard", reason="again")
        assert await ann.act(f"/dead/{made.names['fingerprint']}/discard", reason="all") == "2 letters discarded"

    assert await _count(made, "discarded", 3)
    assert [reason for *_, reason in await logged(made)].count("all") == 2


async def test_a_letter_is_edited_after_its_difference_was_seen(made: Stocked) -> None:
    letter = made.names["letter"]
    place = f"/dead/letters/{letter}/edit"
    async with made.person(OPERATOR_PASSWORD, "ann") as ann:
        assert "&#34;weight&#34;: 1" in await ann.page(place)
        wrong = await ann.post(f"{place}/preview", body='{"id": "p-2", "weight": "heavy"}')
        assert wrong.status_code == 422
        assert "heavy" in wrong.text
        no_json = await ann.post(f"{place}/preview", body="{")
        assert no_json.status_code == 422

        seen = await ann.post(f"{place}/preview", body='{"id": "p-2", "weight": 5}', reason="mistyped")
        assert seen.status_code == 200
        assert "&#34;weight&#34;: 5" in seen.text
        assert await made.log() == []
        sent = await ann.act(place, body='{"id": "p-2", "weight": 5}', reason="mistyped")

    assert sent == "sent as a new message"
    assert await state_of(made, letter) == "edited"
    (entry,) = await made.log()
    assert (entry.who, entry.action, entry.reason) == (ANN, "edit", "mistyped")
    assert entry.before_hash != entry.after_hash


async def test_what_is_scheduled_is_sent_now_or_cancelled(made: Stocked) -> None:
    send = made.names["send"]
    async with made.person(OPERATOR_PASSWORD, "ann") as ann:
        assert (await ann.post("/scheduled", act="cancel")).status_code == 400
        assert await ann.act("/scheduled", act="run-now", id=send, reason="hurry") == "1 send due now"
        late = await ann.act("/scheduled", act="cancel", id=send, reason="no")
        assert "not scheduled any more" in late
        async with made.database.transaction() as tx:
            tx.send(Packed("p-9"), delay_seconds=3_600)
        async with made.database.reading() as connection:
            (other,) = await scheduled.find(connection, ScheduledFilter(), limit=10)
        assert await ann.act("/scheduled", act="cancel", id=other.id, reason="never") == "1 send cancelled"

    assert await sends_of(made) == 0
    assert await logged(made) == [
        (ANN, "cancel", f"send {other.id}", "never"),
        (ANN, "run-now", f"send {send}", "hurry"),
    ]


async def test_a_queue_is_paused_with_a_reason_and_resumed(made: Stocked) -> None:
    async with made.person(OPERATOR_PASSWORD, "ann") as ann:
        assert (await ann.post("/queues/parcels/pause")).status_code == 400
        assert (await ann.post("/queues/no-such/pause", reason="x")).status_code == 400
        assert "is paused" in await ann.act("/queues/parcels/pause", reason="wrong prices")
        assert "was paused already" in await ann.act("/queues/parcels/pause", reason="again")
        async with made.database.reading() as connection:
            assert [pause.queue for pause in await pausing.read(connection)] == ["parcels"]
        assert "is resumed" in await ann.act("/queues/parcels/resume", reason="right again")
        assert "was not paused" in await ann.act("/queues/parcels/resume")

    assert await logged(made) == [
        (ANN, "resume", "queue parcels", "right again"),
        (ANN, "pause", "queue parcels", "wrong prices"),
    ]


async def test_a_worker_is_asked_to_drain(made: Stocked) -> None:
    async with made.person(OPERATOR_PASSWORD, "ann") as ann:
        await wait_until(lambda: _beats(made))
        assert "was asked to drain" in await ann.act("/workers/worker-1/drain", reason="new version")
        assert "drains already" in await ann.act("/workers/worker-1/drain")
        assert "no living process" in await ann.act("/workers/other/drain")

    assert await logged(made) == [(ANN, "drain", "worker worker-1", "new version")]


async def _beats(made: Stocked) -> bool:
    return bool(await rows(made.database, schema.workers))


@pytest.mark.parametrize(("kind", "target"), [("messages", "message"), ("dead/letters", "dead-letter")])
async def test_personal_data_is_masked_for_viewers_and_shown_for_a_reason_that_is_written_down(
    sqlite_database_url: str, kind: str, target: str
) -> None:
    """`id` stands for a field with personal data."""
    async with stocked(sqlite_database_url, personal_fields="id") as made:
        name = made.names["message" if kind == "messages" else "letter"]
        secret = "p-1" if kind == "messages" else "p-2"
        async with made.person(VIEWER_PASSWORD, "vera") as vera, made.person(OPERATOR_PASSWORD) as operator:
            place = f"/{kind}/{name}"
            body = (await vera.json(f"/api{place}"))["body"]
            assert secret not in body["text"]
            assert secret.encode() not in (await vera.get(f"{place}/raw")).content
            assert secret in (await operator.json(f"/api{place}"))["body"]["text"]
            assert (await vera.post(f"{place}/reveal", reason=" ")).status_code == 400
            assert await made.log() == []

            shown = await vera.post(f"{place}/reveal", reason="a customer asks")

        assert shown.status_code == 200
        assert secret in shown.text
        assert await logged(made) == [(VERA, "reveal", f"{target} {name}", "a customer asks")]


async def test_where_viewers_may_not_uncover_they_are_refused(sqlite_database_url: str) -> None:
    async with stocked(sqlite_database_url, viewer_reveals=False) as made:
        async with made.person(VIEWER_PASSWORD) as vera:
            for place in (f"/messages/{made.names['message']}", f"/dead/letters/{made.names['letter']}"):
                assert (await vera.post(f"{place}/reveal", reason="x")).status_code == 403, place
        assert await made.log() == []


async def test_two_who_press_at_once_do_it_once(made: Stocked) -> None:
    letter = made.names["letter"]
    async with made.person(OPERATOR_PASSWORD, "ann") as ann, made.person(OPERATOR_PASSWORD, "bob") as bob:
        await asyncio.gather(*(one.post(f"/dead/letters/{letter}/discard", reason="x") for one in (ann, bob)))

    assert len(await made.log()) == 1


async def test_only_so_many_replays_run_at_once(sqlite_database_url: str) -> None:
    async with console(sqlite_database_url) as made:
        letters = await parked(made.database, *(dead(Packed(f"p-{number}")) for number in range(5)))
        async with made.person(OPERATOR_PASSWORD, "ann") as ann:
            for letter in letters[:4]:
                assert (await ann.post(f"/dead/letters/{letter}/replay")).status_code == 303
            refused = await ann.post(f"/dead/letters/{letters[4]}/replay")

        assert refused.status_code == 400
        assert "4 replays run already" in refused.text
        async with made.database.reading() as connection:
            assert [one.id for one in await deadletter_queries.find(connection, Filter(ids=(letters[4],)), limit=1)]


async def test_what_is_missing_is_sent_again_by_an_operator_only(
    made: Stocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    envelope = envelope_for(Packed("lost"))
    app = made.desk.app
    await register(made.database, list(app.handlers))
    async with made.database.transaction() as tx:
        tx.schedule(envelope, queue="parcels", delay_seconds=0)
    async with made.database.transaction() as tx:
        mine = schema.outbox.c.message_id == envelope.id
        sent = sa.update(schema.outbox).where(mine).values(next_at=None, sent_at=utcnow() - timedelta(hours=1))
        await tx.execute(sent)
        await tx.execute(sa.update(schema.endpoints).values(since=utcnow() - timedelta(days=1)))

    async def empty(_queues: Sequence[str]) -> Mapping[str, QueueReading]:
        return {}

    monkeypatch.setattr(auditing, "SECOND_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(app, "audit", lambda: audit(made.database, list(app.handlers), empty))
    async with made.person(VIEWER_PASSWORD, "vera") as vera:
        assert (await vera.act("/audit/reconcile")).endswith("missing")
        assert "Send what is missing again" not in await vera.page("/audit")
        assert (await vera.post("/audit/resend", reason="purged")).status_code == 403

    async with made.person(OPERATOR_PASSWORD, "ann") as ann:
        assert "Send what is missing again" in await ann.page("/audit")
        assert (await ann.post("/audit/resend", csrf="", reason="purged")).status_code == 403
        assert (await ann.post("/audit/resend", reason=" ")).status_code == 400
        assert await logged(made) == []
        told = await ann.act("/audit/resend", reason="purged", id=envelope.id)

    assert told == "1 message sent again; account again when they are done"
    assert await logged(made) == [(ANN, "resend", f"message {envelope.id}", "to parcels: purged")]
    due = [row for row in await rows(made.database, schema.outbox) if row.message_id == envelope.id and row.next_at]
    assert [row.destination for row in due] == ["parcels"]
