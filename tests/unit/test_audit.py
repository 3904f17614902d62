from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopline.accounting import (
    Audit,
    EndpointAudit,
    Held,
    QueueAudit,
    Unsettled,
    account_of_queue,
    explained,
    held_in,
    shares,
)
from hopline.audit import subjects
from hopline.handlers import Endpoint
from hopline.live import QueueReading
from hopline.message import type_of
from tests.support.letters import Packed, handlers

EMPTY, FULL, UNKNOWN = QueueReading(0, 0), QueueReading(3, 0), QueueReading(0, None)

counts = st.integers(0, 10**9)
readings = st.none() | st.builds(QueueReading, counts, st.none() | counts)
looks = st.none() | st.fixed_dictionaries({}, optional={"orders": readings, "orders.dead": readings}).map(
    lambda look: {name: reading for name, reading in look.items() if reading is not None}
)
unsettled = st.lists(st.builds(Unsettled, counts, counts), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("before", "after", "most"),
    [
        (EMPTY, EMPTY, 0),
        (EMPTY, FULL, 3),
        (FULL, EMPTY, 3),
        (UNKNOWN, EMPTY, None),
        (UNKNOWN, FULL, None),
        (None, None, 0),
    ],
)
def test_a_queue_is_empty_only_if_it_was_empty_both_times(
    before: QueueReading | None, after: QueueReading | None, most: int | None
) -> None:
    looks = [{"orders": reading} if reading else {} for reading in (before, after)]

    assert held_in("orders", *looks).most == most


def test_what_lies_in_the_dead_queue_is_held() -> None:
    look = {"orders": QueueReading(2, 1), "orders.dead": QueueReading(55, 0)}

    assert held_in("orders", look, look) == Held(58, 58, 55)


def test_a_broker_that_could_not_be_asked_is_not_empty() -> None:
    assert held_in("orders", None, {}).most is None
    assert held_in("orders", {}, None).most is None


@pytest.mark.parametrize(
    ("sends", "held", "missing", "unproven"),
    [
        ([Unsettled(156, 0)], Held(2, 2, 0), 154, 0),  # purged while some wait
        ([Unsettled(100, 56)], Held(2, 2, 0), 98, 56),
        ([Unsettled(55, 0)], Held(55, 55, 55), 0, 0),  # in the dead queue
        ([Unsettled(5, 0)], Held(0, 0, 0), 5, 0),
        ([Unsettled(5, 3)], Held(0, 0, 0), 5, 3),
        ([Unsettled(5, 0)], Held(None, 2, 0), 0, 3),
        ([Unsettled(5, 0)], Held(None, 9, 0), 0, 0),
    ],
)
def test_unsettled_sends_above_what_the_queue_holds_are_missing_or_unproven(
    sends: list[Unsettled], held: Held, missing: int, unproven: int
) -> None:
    account = account_of_queue("orders", sends, held)

    assert (account.missing, account.unproven) == (missing, unproven)


def test_messages_of_two_endpoints_are_missing_though_it_is_not_known_of_which() -> None:
    sends = [Unsettled(5, 0), Unsettled(5, 0)]

    account = account_of_queue("orders", sends, Held(6, 6, 0))

    assert (account.missing, account.unattributed) == (4, 4)
    assert list(shares(account, sends)) == [(0, 4), (0, 0)]


@given(unsettled, looks, looks)
def test_it_is_never_fine_over_more_sends_than_were_seen(
    sends: Sequence[Unsettled],
    before: dict[str, QueueReading] | None,
    after: dict[str, QueueReading] | None,
) -> None:
    held = held_in("orders", before, after)
    account = account_of_queue("orders", sends, held)
    each = list(shares(account, sends))

    total = sum(one.all for one in sends)
    if before is None or after is None:
        proven = 0
    else:
        proven = sum(max(_all_of(before.get(name)), _all_of(after.get(name))) for name in ("orders", "orders.dead"))
    assert account.missing + account.unproven >= total - proven
    assert 0 <= account.recent <= account.unproven
    assert account.missing <= sum(one.old for one in sends)
    assert account.missing + account.unproven <= total
    missing, unproven = sum(one[0] for one in each), sum(one[1] for one in each)
    assert missing + account.unattributed == account.missing
    assert missing + unproven == account.missing + account.unproven
    for one, (mine, doubtful) in zip(sends, each, strict=True):
        assert mine >= 0
        assert doubtful >= 0
        assert mine + doubtful <= one.all
    if account.is_named:
        assert account.unattributed == 0
        assert missing == sum(one.old for one in sends)


def _all_of(reading: QueueReading | None) -> int:
    return reading.ready + (reading.unacked or 0) if reading else 0


@given(unsettled, counts)
def test_what_is_called_missing_could_not_have_been_in_the_queue(sends: Sequence[Unsettled], held: int) -> None:
    account = account_of_queue("orders", sends, Held(held, held, 0))

    assert account.missing == max(0, sum(one.old for one in sends) - held)


def audit_of(queue: QueueAudit, trouble: str = "") -> Audit:
    figures = (queue.unsettled, 0, 0, 0, 0, 0, 0, queue.missing, queue.unproven)
    return Audit((EndpointAudit("orders/order.placed", "orders", *figures, ()),), (queue,), trouble=trouble)


@pytest.mark.parametrize(
    ("queue", "trouble", "told"),
    [
        (QueueAudit("orders", 9, 3, 2, 6, 0, 0), "", "At least 6 of 9 unsettled sends to the queue orders are"),
        (QueueAudit("orders", 9, 3, 2, 6, 0, 0), "", "it holds 3, 2 of them in orders.dead."),
        (QueueAudit("orders", 3, 3, 3, 0, 0, 0), "", "orders.dead holds 3: a running worker"),
        (QueueAudit("orders", 3, None, 0, 0, 3, 0), "refused.", "nothing proves where: refused. Ask again"),
        (QueueAudit("orders", 3, None, 0, 0, 3, 0), "", "Set HOPLINE_MANAGEMENT_URL"),
        (QueueAudit("orders", 3, 0, 0, 0, 3, 3), "", "Ask again in 15 s"),
    ],
)
def test_what_an_account_means_is_told_once(queue: QueueAudit, trouble: str, told: str) -> None:
    (text,) = explained(audit_of(queue, trouble))

    assert told in text


def test_an_account_that_is_fine_or_named_needs_no_words() -> None:
    assert explained(audit_of(QueueAudit("orders", 0, 0, 0, 0, 0, 0))) == ()
    assert explained(audit_of(QueueAudit("orders", 3, 0, 0, 3, 0, 0))) == ()


def endpoint(name: str, queue: str, type_name: str, version: int) -> Endpoint:
    declared = replace(type_of(Packed), name=type_name, version=version)
    return replace(next(iter(handlers)), name=name, queue=queue, type=declared)


PLACES = st.sets(
    st.tuples(st.sampled_from("ab"), st.sampled_from(["q", "r"]), st.just("t"), st.integers(1, 4)), min_size=1
)


@given(PLACES, st.integers(0, 6), st.sampled_from(["q", "r"]))
def test_each_message_of_a_queue_belongs_to_exactly_one_account(
    places: set[tuple[str, str, str, int]], version: int, queue: str
) -> None:
    by_place = {(queue, type_name, version): name for name, queue, type_name, version in sorted(places)}
    watched = [endpoint(name, *place) for place, name in by_place.items()]

    accounts = [one for one in subjects(watched) if one.queue == queue]

    owners = [one for one in accounts if version in one.versions or (one.others and version not in one.others)]
    assert len(owners) == (1 if accounts else 0)
    assert len({(one.name, one.queue) for one in accounts}) == len(accounts)
