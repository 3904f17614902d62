"""What is looked at in a status, fine or not; and a queue put together with its handlers."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from hopline.history.reading import rate_of
from hopline.history.steps import COLUMNS
from hopline.pausing import Pause
from hopline.status import (
    Check,
    OutboxStatus,
    PausedQueue,
    QueueStatus,
    Running,
    Status,
    checks,
    queue_reports,
    troubles,
)
from hopline.status.snapshot import held_of, worker_of
from tests.support.letters import handlers
from tests.unit.test_status import NOW, WELL, account, process

PAUSE = Pause("parcels", "ann", "wrong labels", NOW - timedelta(minutes=5))
LINKS = {"publish": {"ready": True, "trouble": ""}, "consume": {"ready": True, "trouble": ""}}


def check(status: Status, key: str) -> Check:
    (found,) = [one for one in checks(status) if one.key == key]
    return found


def test_all_that_is_looked_at_is_told_when_it_is_fine() -> None:
    found = checks(replace(WELL, audit=account(0)))

    assert [one.key for one in found] == [
        "broker", "unsent", "unconfirmed", "age", "consumers", "links", "workers", "paused", "held", "dead-today",
        "parked", "missing",
    ]  # fmt: skip
    assert {one.key for one in found if one.tone != "ok"} == {"consumers"}  # nobody has told how many there should be
    assert all(one.value and not one.text for one in found)
    assert msgspec.json.encode(found)


@pytest.mark.parametrize(
    ("change", "key", "tone", "value"),
    [
        ({"broker_trouble": "refused"}, "broker", "bad", "does not answer"),
        ({"outbox": OutboxStatus(7, 61.0, 0, 0, is_least=True)}, "unsent", "bad", "7+, oldest 61 s"),
        ({"outbox": OutboxStatus(7, 1.0, 0, 0, False, unconfirmed=4)}, "unconfirmed", "ok", "4"),
        ({"queues": (QueueStatus("q", True, 9, 0, 1, 700.0),)}, "age", "warn", "about 12 min in q"),
        ({"queues": (QueueStatus("q", True, 9, 0, 1, 7.0, True),)}, "age", "ok", "over 7.0 s in q"),
        ({"queues": (QueueStatus("q", None, None, None, None),)}, "age", "idle", "unknown"),
        ({"queues": (QueueStatus("q", True, 0, 0, 1, None, False, 2),)}, "consumers", "warn", "1 of 2"),
        ({"queues": (QueueStatus("q", True, 0, 0, 2, None, False, 2),)}, "consumers", "ok", "2 of 2"),
        ({"parked": 10_000, "parked_is_least": True}, "parked", "warn", "10,000+"),
        ({"dead_today": 3}, "dead-today", "warn", "3"),
        ({"audit": account(2)}, "missing", "bad", "2"),
        ({}, "missing", "idle", "unknown"),
    ],
)
def test_each_check_has_its_figure_and_its_tone(change: dict[str, Any], key: str, tone: str, value: str) -> None:
    found = check(replace(WELL, **change), key)

    assert (found.tone, found.value) == (tone, value)


def test_what_a_person_has_paused_is_told_and_is_no_trouble() -> None:
    states: list[dict[str, Any]] = [
        {"queues": ["parcels"], "paused_by_operator": ["parcels"]},
        {"queues": ["parcels"]},
        {"queues": []},
    ]
    status = replace(WELL, queues=(QueueStatus("parcels", True, 3, 0, 0),), held=held_of([PAUSE], states))

    assert [(one.workers, one.of_workers) for one in status.held] == [(1, 2)]
    assert troubles(status) == []
    found = check(status, "held")
    assert (found.tone, found.hint) == ("idle", "hopline queue resume parcels")
    assert "ann" in found.text


@pytest.mark.parametrize(
    ("change", "consuming"),
    [
        ({}, ("orders", "users")),
        ({"links": {"consume": {"ready": False}}}, ()),
        ({"links": {"consume": {"ready": False, "connected": True, "queues": {"users": "403"}}}}, ("orders",)),
        ({"database": "gone"}, ()),
        ({"paused": {"orders": {"probing": False}}}, ("users",)),
        ({"paused": {"orders": {"probing": True}}}, ("orders", "users")),
        ({"paused_by_operator": ["users"]}, ("orders",)),
    ],
)
def test_a_worker_is_expected_to_consume_what_nothing_keeps_it_from(
    change: dict[str, Any], consuming: tuple[str, ...]
) -> None:
    state = {"queues": ["orders", "users"], "links": LINKS, "database": "ok", **change}

    assert worker_of(process(state), 1.0, 8.0).consuming == consuming


def test_a_worker_tells_what_runs_what_blocks_it_and_that_it_drains() -> None:
    since = datetime(2026, 1, 31, 9, 59, tzinfo=UTC)
    state = {
        "links": {"publish": {"ready": False, "trouble": "RabbitMQ blocks publishers: memory"}},
        "running": [{"endpoint": "e", "message_id": "m", "key": "k", "since": since.isoformat()}, "nonsense"],
    }

    worker = worker_of(SimpleNamespace(**vars(process(state)), drain_at=NOW, started_at=since), 1.0, 8.0)

    assert worker.running == (Running("e", "m", "k", since),)
    assert worker.blocked == ("publish",)
    assert (worker.draining, worker.started_at) == (True, since)
    assert not worker_of(process({}), 1.0, 8.0).draining


def test_a_queue_is_put_together_with_its_handlers_their_rates_and_pauses() -> None:
    pause = PausedQueue("parcels", "parcels/parcel.packed", "down", NOW, NOW, False, 1)
    rates = {"parcels/parcel.packed": rate_of("parcels/parcel.packed", 300, [30, *[0] * (len(COLUMNS) - 1)])}
    queue = QueueStatus("parcels", True, 3, 2, 1)
    status = replace(WELL, queues=(queue,), paused=(pause,), held=held_of([PAUSE], []))

    (report,) = queue_reports(status, handlers, rates)
    (without,) = queue_reports(WELL, handlers, {})

    (endpoint,) = report.endpoints
    assert (report.name, report.status) == ("parcels", queue)
    assert report.held is not None
    assert (endpoint.name, endpoint.paused) == ("parcels/parcel.packed", pause)
    assert endpoint.rate is not None
    assert endpoint.rate.per_second == pytest.approx(0.1)
    assert endpoint.policy.delays_seconds[:3] == (1.0, 2.0, 4.0)
    assert (without.held, without.paused, without.endpoints[0].rate) == (None, None, None)
    assert without.status.exists is None
    assert msgspec.json.encode(report)
