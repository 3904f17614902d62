from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from hopline.clock import id_time, new_id
from hopline.deadletter_queries import Letter, WholeLetter
from hopline.errors import MessageTooLarge, Undecodable, UnknownType, UsageError
from hopline.message import Envelope
from hopline.repair.verdicts import Evidence, judge, validate
from tests.support.engine import envelope_for
from tests.support.letters import CODE, Packed

MESSAGE = envelope_for(Packed("p-1"), headers={"traceparent": "00-a-b-01"})
NOW = id_time(MESSAGE.id) + timedelta(minutes=5)
LETTER = Letter(
    id=new_id(),
    queue="parcels",
    endpoint="parcels/parcel.packed",
    message_id=MESSAGE.id,
    type="parcel.packed",
    version=1,
    run=0,
    attempt=7,
    key="p-1",
    reason="exhausted",
    error="NoStock: none left",
    error_type="shop.NoStock",
    frame="shop:reserve",
    fingerprint="0123456789ab",
    dead_at=NOW,
    resolution=None,
    resolved_at=None,
    replaced_by=None,
    body_bytes=10,
)


def evidence(
    *, body: bytes = MESSAGE.body, stored: Envelope | None = MESSAGE, done_at: tuple[str, ...] = (), **changes: Any
) -> Evidence:
    properties = changes.pop("properties", {})
    return Evidence(WholeLetter(replace(LETTER, **changes), "stack", properties, body), stored, frozenset(done_at))


def test_a_replay_is_the_same_message_in_a_new_run() -> None:
    verdict = judge(evidence(run=2), CODE, NOW, as_new=False)

    assert verdict.kind == "ok"
    assert verdict.envelope == MESSAGE.changed(run=3, attempt=0)
    assert verdict.endpoints == {"parcels/parcel.packed"}


@pytest.mark.parametrize(
    ("changes", "kind", "advice"),
    [
        ({"resolution": "discarded", "resolved_at": NOW}, "resolved", "discarded already"),
        ({"type": "parcel.flown"}, "unknown-type", "--app"),
        ({"version": 2}, "unknown-type", "version 2"),
        ({"body": b'{"id": 7}'}, "undecodable", "hopline dead edit"),
        ({"message_id": None, "stored": None}, "no-id", "--as-new"),
        ({"reason": "too-old"}, "too-old", "--as-new"),
        ({"body": b'{"id": "p-2"}'}, "differs", "--as-new"),
        ({"done_at": ("parcels/parcel.packed",)}, "done", "discard"),
    ],
)
def test_what_cannot_be_replayed_is_refused_with_what_to_do(changes: dict[str, Any], kind: str, advice: str) -> None:
    verdict = judge(evidence(**changes), CODE, NOW, as_new=False)

    assert (verdict.kind, verdict.ok, verdict.envelope) == (kind, False, None)
    assert advice in verdict.text


def test_a_message_that_the_inbox_has_forgotten_would_be_parked_again() -> None:
    later = id_time(MESSAGE.id) + timedelta(days=14)

    assert judge(evidence(), CODE, later - timedelta(seconds=1), as_new=False).ok
    assert judge(evidence(), CODE, later, as_new=False).kind == "too-old"


@pytest.mark.parametrize(
    "changes",
    [{"reason": "too-old"}, {"body": b'{"id": "p-2"}'}, {"done_at": ("parcels/parcel.packed",)}],
)
def test_as_new_it_is_a_message_of_its_own_in_the_same_flow(changes: dict[str, Any]) -> None:
    given = evidence(**changes)

    envelope = judge(given, CODE, NOW, as_new=True).envelope

    assert envelope is not None
    assert envelope.id != MESSAGE.id
    assert (envelope.correlation_id, envelope.cause_id) == (MESSAGE.correlation_id, MESSAGE.id)
    assert (envelope.run, envelope.attempt, envelope.headers) == (0, 0, MESSAGE.headers)
    assert envelope.body == given.whole.body


def test_a_strangers_message_gets_its_identity_as_new() -> None:
    given = evidence(
        message_id=None, version=0, key=None, stored=None, properties={"correlation_id": "theirs", "headers": None}
    )

    envelope = judge(given, CODE, NOW, as_new=True).envelope

    assert envelope is not None
    assert (envelope.key, envelope.version, envelope.cause_id) == ("p-1", 1, None)
    assert envelope.correlation_id == envelope.id


def test_kinship_of_a_message_that_this_database_never_stored_is_read_from_its_properties() -> None:
    flow, cause = new_id(), new_id()
    headers = {"hopline-cause": cause, "hopline-key": "p-1", "traceparent": "00-a-b-01", "x-first-death-queue": "q"}
    given = evidence(stored=None, properties={"correlation_id": flow, "headers": headers})

    envelope = judge(given, CODE, NOW, as_new=False).envelope

    assert envelope is not None
    assert (envelope.id, envelope.correlation_id, envelope.cause_id) == (MESSAGE.id, flow, cause)
    assert envelope.headers == {"traceparent": "00-a-b-01"}


@pytest.mark.parametrize(
    ("reason", "alone"), [("killed-workers", True), ("delivery-limit", True), ("exhausted", False)]
)
def test_what_may_kill_its_worker_runs_alone(reason: str, *, alone: bool) -> None:
    envelope = judge(evidence(reason=reason), CODE, NOW, as_new=False).envelope

    assert envelope is not None
    assert envelope.suspect is alone


def test_a_letter_for_all_queues_is_expected_at_every_endpoint_of_its_type() -> None:
    assert CODE.endpoints("", "parcel.packed", 1) == {"parcels/parcel.packed"}
    assert CODE.endpoints("others", "parcel.packed", 1) == frozenset()


def test_an_edited_body_names_what_todays_code_would_leave_out() -> None:
    body = msgspec.json.encode({"id": "p-1", "wieght": 3})

    edited = validate(evidence().whole, body, CODE, 1_000, None)

    assert (edited.key, edited.body, edited.left_out) == ("p-1", body, ("wieght",))


@pytest.mark.parametrize(
    ("body", "new_type", "error"),
    [
        (b"{", None, Undecodable),
        (b'{"id": "p-1", "weight": "heavy"}', None, Undecodable),
        (b'{"id": "p-1"}', ("parcel.packed", 2), UnknownType),
        (b'{"id": "p-1", "more": "' + b"x" * 1_000 + b'"}', None, MessageTooLarge),
        (b'{"id": ""}', None, UsageError),
    ],
)
def test_an_edited_body_that_could_not_succeed_is_refused(
    body: bytes, new_type: tuple[str, int] | None, error: type[Exception]
) -> None:
    with pytest.raises(error):
        validate(evidence().whole, body, CODE, 1_000, new_type)
