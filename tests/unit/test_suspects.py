from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from hopline.suspects import DEATH_HEARTBEATS, LOOK_HEARTBEATS, Look, Mark, Verdict, judge

BEAT = datetime(2026, 1, 1, tzinfo=UTC)
HEARTBEAT_SECONDS = 2.0
SILENT = DEATH_HEARTBEATS * HEARTBEAT_SECONDS
WATCHED = LOOK_HEARTBEATS * HEARTBEAT_SECONDS


def verdict(*marks: Mark, first: dict[str, Look], at_seconds: float) -> Verdict:
    return judge(marks, first, at_seconds, HEARTBEAT_SECONDS)


def test_an_instance_that_was_silent_for_long_and_while_it_was_watched_is_dead() -> None:
    found = verdict(Mark("w", BEAT, SILENT), first={"w": Look(BEAT, 0.0)}, at_seconds=WATCHED)

    assert found == Verdict(1, undecided=False)


def test_an_old_heartbeat_at_the_first_look_proves_nothing_for_the_database_may_have_been_down() -> None:
    found = verdict(Mark("w", BEAT, 3600), first={"w": Look(BEAT, 0.0)}, at_seconds=0.0)

    assert found == Verdict(0, undecided=True)


def test_an_instance_that_beats_lives() -> None:
    moved = BEAT + timedelta(seconds=2)

    found = verdict(Mark("w", moved, 0.1), first={"w": Look(BEAT, 0.0)}, at_seconds=2.0)

    assert found == Verdict(0, undecided=False)


def test_an_instance_that_stopped_in_order_does_not_count() -> None:
    assert verdict(Mark("w", None, 0.0), first={"w": Look(None, 0.0)}, at_seconds=100.0) == Verdict(0, undecided=False)


def test_two_marks_that_count_make_a_killer() -> None:
    marks = [Mark(name, BEAT, SILENT) for name in "ab"]

    found = verdict(*marks, first={name: Look(BEAT, 0.0) for name in "ab"}, at_seconds=WATCHED)

    assert found.killer
    assert not verdict(marks[0], first={"a": Look(BEAT, 0.0)}, at_seconds=WATCHED).killer


@given(st.floats(0, 100), st.floats(0, 100), st.booleans())
def test_a_mark_counts_is_undecided_or_is_void_and_never_two_of_these(age: float, at: float, moved: bool) -> None:
    mark = Mark("w", BEAT + timedelta(seconds=moved), age)

    found = verdict(mark, first={"w": Look(BEAT, 0.0)}, at_seconds=at)

    assert found.counted + found.undecided <= 1
    assert not (moved and (found.counted or found.undecided))
