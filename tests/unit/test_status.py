from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from hopline.audit import Audit, EndpointAudit, QueueAudit
from hopline.status import Loss, OutboxStatus, QueueStatus, Status, troubles
from hopline.status.snapshot import PausedQueue, UnknownType, paused_of, unknown_of, worker_of

NOW = datetime(2026, 1, 31, 10, tzinfo=UTC)
WELL = Status(
    at=NOW,
    queues=(QueueStatus("orders", True, 3, 2, 1),),
    broker_trouble="",
    outbox=OutboxStatus(5, 2.0, 1, 1, is_least=False),
    parked=0,
    parked_groups=(),
    workers=(),
    paused=(),
    unknown=(),
    losses=(),
    audit=None,
    audit_trouble="",
)


def process(state: Any, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(instance="worker-1", role="worker", version="0.1.0", state=state, **more)


def account(missing: int) -> Audit:
    return Audit((EndpointAudit("orders/order.placed", "orders", missing, 0, 0, 0, 0, 0, 0, missing, 0, ()),))


def test_nothing_needs_a_person_when_all_is_well() -> None:
    assert troubles(WELL) == []
    assert troubles(replace(WELL, audit=account(0))) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"broker_trouble": "connection refused"}, "RabbitMQ: connection refused"),
        ({"queues": (QueueStatus("orders", False, None, None, None),)}, "orders does not exist"),
        ({"queues": (QueueStatus("orders", True, 3, None, 0),)}, "orders holds 3 messages and has no consumer"),
        ({"outbox": OutboxStatus(7, 61.0, 0, 0, is_least=False)}, "7 messages wait for RabbitMQ, the first for 61 s"),
        ({"workers": (worker_of(process({}), 30.0, 8.0),)}, "worker-1 died 30 s ago"),
        ({"workers": (worker_of(process({"database": "gone"}), 1.0, 8.0),)}, "worker-1: database: gone"),
        (
            {"paused": (PausedQueue("emails", "", "SMTP is down", NOW, NOW, False, 1),)},
            "emails is paused: SMTP is down",
        ),
        ({"unknown": (UnknownType("order.placed v3 on orders", 12, 2),)}, "order.placed v3 on orders"),
        ({"losses": (Loss("orders", NOW, "worker-1", 12),)}, "orders was lost; 12 messages are sent again"),
        ({"parked": 1_204}, "1,204 dead letters are parked"),
        ({"audit": account(2)}, "2 messages are missing"),
        ({"audit_trouble": "no answer"}, "the account could not be made: no answer"),
    ],
)
def test_each_trouble_is_told(change: dict[str, Any], told: str) -> None:
    (one,) = troubles(replace(WELL, **change))

    assert told in one


def test_a_lower_bound_and_what_is_unproven_are_told_as_such() -> None:
    (one,) = account(3).endpoints
    least = Audit((one,), (QueueAudit("orders", 5, 2, 0, 3, 0, 0),))
    doubtful = Audit((replace(one, missing=0, unproven=3),), trouble="the management API does not answer")

    unread = replace(doubtful, endpoints=account(0).endpoints)
    assert troubles(replace(WELL, audit=unread)) == ["the management API does not answer (`hopline audit`)"]
    assert troubles(replace(WELL, audit=least)) == ["at least 3 messages are missing (`hopline audit`)"]
    assert troubles(replace(WELL, audit=doubtful)) == [
        "3 messages are unproven: the management API does not answer (`hopline audit`)"
    ]


def test_a_broker_that_does_not_answer_is_told_once() -> None:
    links = {name: {"ready": False, "trouble": "connection refused"} for name in ("publish", "consume")}
    (one,) = account(0).endpoints
    status = replace(
        WELL,
        broker_trouble="connection refused",
        outbox=OutboxStatus(7, 61.0, 0, 0, is_least=False),
        workers=tuple(worker_of(process({"links": links}), 1.0, 8.0) for _ in range(3)),
        audit=Audit((replace(one, unproven=3),), trouble="connection refused"),
    )

    assert troubles(status) == ["RabbitMQ: connection refused"]


def test_a_cause_that_many_processes_tell_of_is_told_once() -> None:
    links = {name: {"ready": False, "trouble": "connection refused"} for name in ("publish", "consume")}
    workers = tuple(
        replace(worker_of(process({"links": links, "database": "gone"}), 1.0, 8.0), instance=f"worker-{number}")
        for number in (1, 2, 3)
    )

    assert troubles(replace(WELL, workers=workers)) == [
        "worker-1 and 2 more: publish, consume: connection refused",
        "worker-1 and 2 more: database: gone",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"queues": (QueueStatus("orders", True, 0, None, 0),)},
        {"queues": (QueueStatus("orders", None, None, None, None),)},
        {"outbox": OutboxStatus(7, 59.0, 9, 9, is_least=False)},
        {"workers": (worker_of(process({}), 700.0, 8.0),)},
    ],
)
def test_what_is_usual_is_no_trouble(change: dict[str, Any]) -> None:
    assert troubles(replace(WELL, **change)) == []


def test_a_paused_queue_has_no_consumer_and_is_told_once() -> None:
    pause = PausedQueue("orders", "orders/order.placed", "the partner is down", NOW, NOW, False, 1)
    status = replace(WELL, queues=(QueueStatus("orders", True, 3, 0, 0),), paused=(pause,))

    assert troubles(status) == ["the queue orders is paused: the partner is down"]


def test_in_flight_is_unknown_if_it_is_for_one_queue() -> None:
    known = (QueueStatus("orders", True, 3, 2, 1), QueueStatus("emails", True, 0, 5, 1))
    gone = QueueStatus("users", False, None, None, None)

    assert replace(WELL, queues=(*known, gone)).in_flight == 7
    assert replace(WELL, queues=(*known, QueueStatus("users", True, 0, None, 1))).in_flight is None


def test_a_process_is_read_as_it_describes_itself() -> None:
    links = {
        "publish": {"ready": False, "trouble": "RabbitMQ blocks publishers: memory", "reconnects": 1},
        "consume": {"ready": True, "trouble": "", "rebuilds": 0},
    }
    state = {"queues": ["orders", "users"], "links": links, "busy": 12, "database": "ok"}

    worker = worker_of(process(state), 1.5, 8.0)

    assert (worker.queues, worker.busy, worker.alive) == (("orders", "users"), 12, True)
    assert worker.troubles == ("publish: RabbitMQ blocks publishers: memory",)
    assert not worker_of(process(state), 8.0, 8.0).alive


def test_a_queue_that_cannot_be_used_is_told_also_by_a_link_that_goes_on() -> None:
    trouble = "the queue users cannot be used: 403"
    link = {"ready": True, "connected": True, "trouble": trouble, "queues": {"users": "403"}}

    worker = worker_of(process({"links": {"publish": link}}), 1.5, 8.0)

    assert worker.troubles == (f"publish: {trouble}",)


@pytest.mark.parametrize(
    "state",
    [None, [], {}, {"queues": "orders", "busy": "much", "links": ["publish"], "paused": None, "unknown": 3}],
)
def test_what_another_version_says_is_left_out_and_no_error(state: Any) -> None:
    worker = worker_of(process(state), 1.0, 8.0)
    states = [state] if isinstance(state, dict) else [{}]

    assert (worker.queues, worker.busy, worker.troubles) == ((), 0, ())
    assert paused_of(states) == ()
    assert unknown_of(states) == ()


def test_a_queue_that_several_workers_pause_is_told_once() -> None:
    def pause(since: datetime, until: datetime, *, probing: bool) -> dict[str, Any]:
        said = {"endpoint": "emails/x", "reason": "SMTP is down", "probing": probing}
        return {"paused": {"emails": {**said, "since": since.isoformat(), "until": until.isoformat()}}}

    early, late = NOW - timedelta(minutes=1), NOW + timedelta(minutes=1)
    broken = {"paused": {"orders": {"since": "yesterday", "until": "2026-01-31T10:00:00"}}}

    emails, orders = paused_of([pause(NOW, late, probing=False), pause(early, NOW, probing=True), broken])

    assert (emails.queue, emails.workers, emails.reason) == ("emails", 2, "SMTP is down")
    assert (emails.since, emails.until, emails.probing) == (early, late, True)
    assert (orders.queue, orders.since, orders.until) == ("orders", None, None)


def test_a_type_that_several_workers_do_not_know_is_told_once() -> None:
    states = [{"unknown": {"order.placed v3 on orders": 12}}, {"unknown": {"order.placed v3 on orders": 3, "x": 0}}]

    assert unknown_of(states) == (UnknownType("order.placed v3 on orders", 15, 2),)
