"""The pure part of the history: slots, quantiles, and how counts become rows."""

from __future__ import annotations

import pytest

from hopline.history import Recorder
from hopline.history.reading import point_of, rate_of
from hopline.history.recording import BACKLOG_ROWS, Key
from hopline.history.steps import COLUMNS, known_until, quantile, slot_of
from hopline.schema import HISTORY_SLOTS


@pytest.mark.parametrize(
    ("seconds", "slot"),
    [(-1.0, 0), (0.0, 0), (0.0009, 0), (0.001, 1), (0.0019, 1), (0.002, 2), (0.5, 9), (1.0, 10), (1e9, 22)],
)
def test_a_latency_has_a_slot_that_doubles(seconds: float, slot: int) -> None:
    assert slot_of(seconds) == slot


def slots(**counts: int) -> list[int]:
    """Of 'slot_number=count'."""
    found = [0] * HISTORY_SLOTS
    for name, count in counts.items():
        found[int(name.removeprefix("slot_"))] = count
    return found


def test_a_quantile_lies_within_the_slot_that_holds_it() -> None:
    assert quantile(slots(), 0.5) is None
    assert quantile(slots(slot_0=10), 0.5) == pytest.approx(0.0005)
    assert quantile(slots(slot_1=50, slot_3=50), 0.5) == pytest.approx(0.002)
    assert quantile(slots(slot_1=50, slot_3=50), 0.75) == pytest.approx(0.006)
    assert quantile(slots(slot_1=99, slot_10=1), 0.99) == pytest.approx(0.002)


def test_of_a_step_only_what_all_have_written_is_known() -> None:
    assert known_until(1_021.9) == 1_000
    assert known_until(1_022.0) == 1_010


def taken(recorder: Recorder) -> dict[Key, dict[str, int]]:
    rows = recorder.take().items()
    return {key: {c: n for c, n in zip(COLUMNS, counts, strict=True) if n} for key, counts in rows}


def test_counts_become_rows_when_their_step_is_over_and_sum_up_in_the_coarse_one() -> None:
    confirmed = 0
    recorder = Recorder(lambda: confirmed)
    recorder.roll(960.0)
    recorder.handled("orders/placed", "done", 0.003, 0.012)
    recorder.handled("orders/placed", "retry", 0.003, 0.012)
    confirmed = 5
    recorder.roll(969.9)
    assert taken(recorder) == {}

    recorder.roll(970.1)
    first = taken(recorder)
    recorder.handled("orders/placed", "done", 0.5, 0.6)
    recorder.roll(980.0)
    second = taken(recorder)

    placed = {"done": 1, "retried": 1, "ran_02": 2, "aged_04": 1}
    assert first == {
        (10, 960, "orders/placed"): placed,
        (480, 960, "orders/placed"): placed,
        (10, 960, ""): {"published": 5},
        (480, 960, ""): {"published": 5},
    }
    assert second == {
        (10, 970, "orders/placed"): {"done": 1, "ran_09": 1, "aged_10": 1},
        (480, 960, "orders/placed"): {"done": 2, "retried": 1, "ran_02": 2, "ran_09": 1, "aged_04": 1, "aged_10": 1},
    }


def test_a_coarse_step_begins_with_nothing() -> None:
    recorder = Recorder()
    recorder.roll(1_430.0)
    recorder.handled("e", "done", 0.0, 0.0)
    recorder.roll(1_440.0)
    recorder.handled("e", "done", 0.0, 0.0)
    recorder.roll(1_450.0)

    found = taken(recorder)

    assert {key: counts["done"] for key, counts in found.items()} == {
        (10, 1_430, "e"): 1, (480, 960, "e"): 1, (10, 1_440, "e"): 1, (480, 1_440, "e"): 1,
    }  # fmt: skip


def test_what_could_not_be_written_comes_again_without_undoing_what_is_newer() -> None:
    recorder = Recorder()
    recorder.roll(960.0)
    recorder.handled("e", "done", 0.0, 0.0)
    recorder.roll(970.0)
    failed = recorder.take()
    recorder.handled("e", "done", 0.0, 0.0)
    recorder.roll(980.0)

    recorder.put_back(failed)

    assert {key: counts["done"] for key, counts in taken(recorder).items()} == {
        (10, 960, "e"): 1, (480, 960, "e"): 2, (10, 970, "e"): 1,
    }  # fmt: skip


def test_rows_that_cannot_be_written_for_long_are_dropped_the_oldest_first() -> None:
    recorder = Recorder()
    recorder.put_back({(10, at, "e"): [1] * len(COLUMNS) for at in range(BACKLOG_ROWS + 5)})

    kept = [at for _, at, _ in recorder.take()]

    assert (len(kept), min(kept)) == (BACKLOG_ROWS, 5)


def counts(**given: int) -> list[int]:
    return [given.get(name, 0) for name in COLUMNS]


def test_a_point_and_a_rate_say_how_much_and_how_fast() -> None:
    numbers = counts(done=20, retried=3, dead=2, deferred=1, ran_01=25, aged_03=20)

    point = point_of(960, 10, numbers)
    rate = rate_of("e", 300, numbers)

    assert (point.rate, point.done, point.deferred, point.accepted) == (2.0, 20, 1, 0)
    assert point.handler_p50 == pytest.approx(0.0015)
    assert point.total_p99 == pytest.approx(0.00796)
    assert rate.per_second == pytest.approx(20 / 300)
    assert rate.retry_ratio == pytest.approx(0.2)
    assert rate_of("e", 300, counts()).retry_ratio is None
