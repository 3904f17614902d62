from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopline.accounting import Unsettled, held_in
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
