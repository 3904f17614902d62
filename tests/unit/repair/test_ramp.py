from __future__ import annotations

import pytest

from hopline.errors import UsageError
from hopline.repair.ramp import Failure, Plan, Seen, Sent, Tally, decide, result_of

CANARY = Plan(canary=True, rate=1_000, deadline_seconds=60)


@pytest.mark.parametrize(
    ("tally", "next_step"),
    [
        (Tally(500), 1),
        (Tally(500, sent=1), 0),
        (Tally(500, sent=1, done=1), 10),
        (Tally(500, sent=5, done=1), 6),
        (Tally(500, sent=11, done=10), 0),
        (Tally(500, sent=11, done=11), 50),
        (Tally(500, sent=111, done=110), 0),
        (Tally(500, sent=111, done=111), 50),
        (Tally(5_000, sent=1_111, done=111), 0),
        (Tally(5_000, sent=1_111, done=112), 1),
        (Tally(500, sent=11, done=5, failed=1), "failed-again"),
        (Tally(500, sent=11, done=5, failed=1, exhausted=True), "failed-again"),
        (Tally(3, sent=3, done=2, exhausted=True), 0),
        (Tally(3, sent=3, done=3, exhausted=True), "finished"),
        (Tally(3, refused=3, exhausted=True), "finished"),
        (Tally(0, exhausted=True), "finished"),
    ],
)
def test_a_canary_sends_1_10_100_and_the_rest_each_when_all_before_is_done(tally: Tally, next_step: object) -> None:
    assert decide(CANARY, tally, idle_seconds=0) == next_step


def test_a_canary_without_any_news_ends_at_its_deadline() -> None:
    waiting = Tally(500, sent=11, done=10)

    assert decide(CANARY, waiting, idle_seconds=59.9) == 0
    assert decide(CANARY, waiting, idle_seconds=60) == "no-result"
    assert decide(CANARY, Tally(500, sent=11, done=11), idle_seconds=60) == 50


def test_without_a_canary_all_is_sent_at_the_rate() -> None:
    plan = Plan(rate=40)

    assert decide(plan, Tally(500, sent=20), idle_seconds=0) == 10
    assert decide(plan, Tally(500, sent=500, exhausted=True), idle_seconds=0) == "finished"


@pytest.mark.parametrize(("rate", "batch"), [(0.1, 1), (4, 1), (50, 12), (10_000, 50)])
def test_letters_are_sent_in_batches_that_keep_the_rate_even(rate: float, batch: int) -> None:
    assert Plan(rate=rate).batch == batch


@pytest.mark.parametrize("wrong", [{"rate": 0}, {"rate": -1}, {"deadline_seconds": 0}, {"rate": float("nan")}])
def test_a_plan_that_would_never_end_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Plan(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["rate", "deadline_seconds", "delay_seconds"])
@pytest.mark.parametrize("wrong", [float("inf"), float("nan"), -1.0, -float("inf")])
def test_a_plan_has_finite_numbers(name: str, wrong: float) -> None:
    with pytest.raises(UsageError):
        Plan(**{name: wrong})  # type: ignore[arg-type]


HERE, ALL = frozenset({"parcels/packed"}), frozenset({"parcels/packed", "labels/packed"})


def sent(queue: str = "parcels", endpoints: frozenset[str] = HERE) -> Sent:
    return Sent("letter", "message", 1, queue, endpoints)


@pytest.mark.parametrize(
    ("one", "seen"),
    [
        (sent(), Seen(HERE)),
        (sent("", ALL), Seen(ALL)),
        (sent(endpoints=frozenset()), Seen(frozenset({"elsewhere"}))),
        (sent(), Seen(HERE, tried={"parcels/packed": "failed once, and done by its own retry"})),
    ],
)
def test_a_replay_is_done_when_every_endpoint_that_it_goes_to_has_done_it(one: Sent, seen: Seen) -> None:
    assert result_of(one, seen) == "done"


@pytest.mark.parametrize(
    ("one", "seen"),
    [
        (sent(), Seen()),
        (sent(), Seen(frozenset({"labels/packed"}))),
        (sent("", ALL), Seen(HERE)),
        (sent(), Seen(tried={"labels/packed": "not of this replay"})),
        (sent(), Seen(parked={"labels": "not of this replay"})),
        (sent(endpoints=frozenset()), Seen()),
    ],
)
def test_else_its_result_is_not_known_yet(one: Sent, seen: Seen) -> None:
    assert result_of(one, seen) is None


@pytest.mark.parametrize(
    ("one", "seen", "parked"),
    [
        (sent(), Seen(tried={"parcels/packed": "broken"}), False),
        (sent(), Seen(parked={"parcels": "broken"}), True),
        (sent(), Seen(tried={"parcels/packed": "first"}, parked={"parcels": "broken"}), True),
        (sent("", ALL), Seen(HERE, parked={"labels": "broken"}), True),
        (sent("", ALL), Seen(parked={"": "broken"}), True),
        (sent(endpoints=frozenset()), Seen(tried={"anywhere": "broken"}), False),
    ],
)
def test_a_failed_attempt_or_a_dead_letter_of_the_new_run_is_a_failure(one: Sent, seen: Seen, *, parked: bool) -> None:
    failure = result_of(one, seen)

    assert isinstance(failure, Failure)
    assert (failure.error, failure.parked) == ("broken", parked)
