"""The proof that nobody has what was sent to a queue, over everything that workers may do meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hopline.live import QueueReading
from hopline.loss_watch import is_bare
from hopline.recovery import Holding, holdings_of, nobody_holds

AT = datetime(2026, 1, 1, tzinfo=UTC)
ALIVE_SECONDS = 8.0


@dataclass
class Row:
    """A row of hopline_workers."""

    instance: str
    state: Any
    heartbeat_at: datetime = AT


def said(unsettled: object = 0, delivered: object = 5, dead: object = 0, lag: object = 0.0) -> dict[str, Any]:
    holding = {
        "q": {"delivered": delivered, "unsettled": unsettled, "consuming": True},
        "q.dead": {"delivered": 0, "unsettled": dead, "consuming": True},
    }
    return {"queues": ["q"], "loop_lag_seconds": lag, "links": {"consume": {"holding": holding}}}


def held(unsettled: int = 0, delivered: int = 5) -> Mapping[str, Holding]:
    return {"w": Holding(AT, delivered, unsettled, 1)}


def test_what_a_worker_holds_of_a_queue_and_its_dead_letters_counts() -> None:
    found = holdings_of([Row("w", said(2, dead=1, lag=3.0)), Row("api", {})], "q", AT, ALIVE_SECONDS)

    assert found == {"w": Holding(AT - timedelta(seconds=4), 5, 3, 1)}


def test_a_worker_that_may_be_frozen_makes_the_whole_unclear_until_rabbitmq_has_given_it_up() -> None:
    rows = [Row("w", said()), Row("frozen", said(), AT - timedelta(seconds=9))]
    assert holdings_of(rows, "q", AT, ALIVE_SECONDS) is None

    rows[1].heartbeat_at = AT - timedelta(seconds=121)
    assert holdings_of(rows, "q", AT, ALIVE_SECONDS) == {"w": Holding(AT - timedelta(seconds=1), 5, 0, 1)}


@pytest.mark.parametrize("links", [None, [], {}, {"consume": None}, {"consume": {"holding": {"q": 3}}}])
def test_a_worker_of_the_queue_that_does_not_say_makes_the_whole_unclear(links: object) -> None:
    assert holdings_of([Row("old", {"queues": ["q"], "links": links})], "q", AT, ALIVE_SECONDS) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["q", "queues", "links", "consume", "holding", "unsettled"]), inner, max_size=3
        )
    ),
)


@given(json_values, json_values, json_values)
def test_whatever_a_process_says_is_read(state: object, number: object, lag: object) -> None:
    holdings_of([Row("a", state), Row("b", said(number, number, number, lag))], "q", AT, ALIVE_SECONDS)


@pytest.mark.parametrize(
    ("queue", "dead", "bare"),
    [
        (QueueReading(0, None, 1), QueueReading(0, None, 1), True),
        (QueueReading(1, None, 1), QueueReading(0, None, 1), False),
        (QueueReading(0, None, 1), QueueReading(1, None, 1), False),
        (QueueReading(0, None, 2), QueueReading(0, None, 1), False),  # somebody else may have it
        (QueueReading(0, 0, 0), QueueReading(0, 0, 0), False),  # it may have no leader
        (None, QueueReading(0, 0, 0), False),
    ],
)
def test_a_queue_is_bare_only_if_its_leader_says_so_and_no_stranger_consumes_it(
    queue: QueueReading | None, dead: QueueReading | None, *, bare: bool
) -> None:
    assert is_bare(queue, dead, held()) is bare


FIRST, SECOND = 2.0, 4.0
"""When the queue is read, and is empty."""


@given(st.data())
def test_nothing_is_proven_while_a_message_wanders_from_worker_to_worker(data: st.DataObject) -> None:
    """A message that is always with some worker, or on its way from a closed channel to the next, at any moments."""
    workers = ["a", "b", "c"]
    times = data.draw(st.lists(st.floats(-1, 6), max_size=8, unique=True).map(sorted))
    given_at, left_at = [-2.0, *times[1::2]], times[0::2]
    owners = [data.draw(st.sampled_from(workers)) for _ in given_at]
    assume(not any(left <= FIRST and not any(left < at <= SECOND for at in given_at) for left in left_at))

    def speaks(name: str, at: float) -> Holding:
        delivered = sum(moment <= at for moment, owner in zip(given_at, owners, strict=True) if owner == name)
        has_it = sum(moment <= at for moment in given_at) > sum(moment <= at for moment in left_at)
        latest = owners[sum(moment <= at for moment in given_at) - 1]
        return Holding(AT, delivered, int(has_it and latest == name), 1)

    before = {name: speaks(name, data.draw(st.floats(-1, FIRST))) for name in workers}
    after = {name: speaks(name, data.draw(st.floats(SECOND, 6))) for name in workers}

    assert not nobody_holds(before, after)


def test_it_is_proven_when_nobody_holds_or_is_given_anything() -> None:
    assert nobody_holds(held(), held())
    assert not nobody_holds({}, {})
    assert not nobody_holds(held(), {})
    assert not nobody_holds(held(1), held())
    assert not nobody_holds(held(), held(1))
    assert not nobody_holds(held(), held(delivered=6))
