from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from hopline.clock import age_text, first_id, id_time, new_id, utcnow
from hopline.properties import is_id


def test_ids_are_version_7_uuids_that_sort_by_time() -> None:
    ids = [new_id() for _ in range(20_000)]

    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert {uuid.UUID(identifier).version for identifier in ids} == {7}
    assert {uuid.UUID(identifier).variant for identifier in ids} == {uuid.RFC_4122}


def test_an_id_tells_when_it_was_made() -> None:
    before = utcnow()

    made = id_time(new_id())

    assert before - timedelta(milliseconds=1) <= made <= utcnow() + timedelta(milliseconds=20)
    assert made.tzinfo is UTC


def test_the_example_of_rfc_9562_reads_as_its_time() -> None:
    # RFC 9562, appendix A.6: 2022-02-22 19:22:22 UTC
    assert id_time("017f22e2-79b0-7cc3-98c4-dc0c0c07398f") == datetime(2022, 2, 22, 19, 22, 22, tzinfo=UTC)


def test_every_id_made_before_a_moment_is_below_its_first_id() -> None:
    before = new_id()

    first = first_id(id_time(before) + timedelta(milliseconds=1))

    assert before < first
    assert first_id(id_time(before)) <= before
    assert is_id(first)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (12, "12 s"), (119, "119 s"), (300, "5 min"), (7_200, "2 h"), (172_800, "2 d")],
)
def test_an_age_is_told_in_its_largest_unit(seconds: float, text: str) -> None:
    assert age_text(seconds) == text
