from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopline.errors import DependencyDown, MessageError, OutboxFull, Undecodable, UsageError
from hopline.outcome import LONGEST_DELAY_SECONDS, Dead, Defer, Done, Retry
from hopline.retry import RetryPolicy, again_at_once, bounded, decide

policies = st.builds(
    RetryPolicy,
    attempts=st.integers(1, 100),
    first_seconds=st.floats(0, 10),
    cap_seconds=st.floats(10, 10_000),
    jitter=st.floats(0, 1),
)
chances = st.floats(0, 1, exclude_max=True)


@given(policies, st.integers(0, 10_000), chances)
def test_a_delay_is_never_negative_nor_above_the_cap_with_jitter(
    policy: RetryPolicy, attempt: int, chance: float
) -> None:
    delay = policy.delay_seconds(attempt, chance)

    assert 0 <= delay <= policy.cap_seconds * (1 + policy.jitter)


@given(policies, chances)
def test_delays_grow_for_the_same_chance(policy: RetryPolicy, chance: float) -> None:
    delays = [policy.delay_seconds(attempt, chance) for attempt in range(20)]

    assert delays == sorted(delays)


@given(policies, chances)
def test_a_message_runs_exactly_as_often_as_the_policy_says(policy: RetryPolicy, chance: float) -> None:
    attempt = 0
    while isinstance(decide(OSError("down"), attempt, policy, chance), Retry):
        attempt += 1

    assert attempt + 1 == policy.attempts
    assert decide(OSError("down"), attempt, policy, chance) == Dead("exhausted", "down")


@given(policies, st.integers(0, 10_000), chances)
def test_a_pause_spends_no_attempt_however_many_there_were(policy: RetryPolicy, attempt: int, chance: float) -> None:
    pausing = replace(policy, pause=(ConnectionError,))

    outcomes = [decide(error, attempt, pausing, chance) for error in (ConnectionResetError("x"), DependencyDown("x"))]

    assert outcomes == [Defer(0.0, "x", pause=True)] * 2


def test_the_policy_of_the_nearest_class_of_an_error_counts() -> None:
    few, many = RetryPolicy(attempts=2), RetryPolicy(attempts=50)
    policy = RetryPolicy(attempts=8, on={OSError: many, ConnectionError: few})

    assert policy.of(ConnectionResetError()) is few
    assert policy.of(FileNotFoundError()) is many
    assert policy.of(ValueError()) is policy
    assert decide(ConnectionResetError("x"), 1, policy, 0.5) == Dead("exhausted", "x")
    assert isinstance(decide(FileNotFoundError("x"), 40, policy, 0.5), Retry)


@given(policies)
def test_the_longest_schedule_of_any_error_is_the_policys(policy: RetryPolicy) -> None:
    longer = RetryPolicy(attempts=101, first_seconds=10_000, cap_seconds=10_000)

    longest = replace(policy, on={OSError: longer}).longest_seconds()

    assert longest == max(policy.longest_seconds(), longer.longest_seconds())


def test_tries_at_once_are_bounded_and_only_for_what_may_pass_by_itself() -> None:
    policy = RetryPolicy(immediate=2, never=(ValueError,), pause=(ConnectionError,))

    assert [again_at_once(OSError(), tries, policy) for tries in (1, 2, 3)] == [True, True, False]
    for hopeless in (ValueError(), ConnectionResetError(), TimeoutError(), Undecodable("x"), DependencyDown("x")):
        assert not again_at_once(hopeless, 1, policy)


def test_what_no_retry_can_mend_dies_at_once() -> None:
    policy = RetryPolicy(never=(ValueError,))

    assert decide(ValueError("bad"), 0, policy, 0.5) == Dead("permanent", "bad")
    assert decide(Undecodable("bytes"), 0, policy, 0.5) == Dead("undecodable", "bytes")
    assert isinstance(decide(OSError("x"), 0, policy, 0.5), Retry)


@pytest.mark.parametrize(
    "arguments",
    [
        {"attempts": 0},
        {"first_seconds": -1.0},
        {"first_seconds": 5.0, "cap_seconds": 1.0},
        {"jitter": 1.5},
        {"immediate": -1},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        RetryPolicy(**arguments)  # type: ignore[arg-type]


@given(policies, st.integers(0, 200))
def test_a_handler_cannot_ask_for_more_retries_than_its_policy_allows(policy: RetryPolicy, attempt: int) -> None:
    outcome = bounded(Retry(5, "not yet"), attempt, policy)

    assert outcome == (Retry(5, "not yet") if attempt + 1 < policy.attempts else Dead("exhausted", "not yet"))
    assert bounded(Done(), attempt, policy) == Done()


def test_error_classes_may_be_given_in_any_collection() -> None:
    one = RetryPolicy(never=ValueError)  # type: ignore[arg-type]  # what a program without types may write
    several = RetryPolicy(never=[ValueError, KeyError], pause=[OSError])

    assert decide(ValueError("x"), 0, one, 0.5) == Dead("permanent", "x")
    assert decide(KeyError("x"), 0, several, 0.5) == Dead("permanent", "'x'")
    assert isinstance(decide(OSError("x"), 0, several, 0.5), Defer)
    assert several.never == (ValueError, KeyError)


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"attempts": 1.5},
        {"attempts": 10**9},
        {"attempts": True},
        {"immediate": -1},
        {"first_seconds": float("nan")},
        {"cap_seconds": float("inf")},
        {"first_seconds": "1"},
        {"first_seconds": 5.0, "cap_seconds": 1.0},
        {"jitter": float("nan")},
        {"jitter": "much"},
        {"never": "ValueError"},
        {"never": [ValueError("x")]},
        {"pause": None},
        {"on": [ValueError]},
        {"on": {"ValueError": RetryPolicy()}},
        {"on": {ValueError: 3}},
    ],
)
def test_a_policy_says_what_is_wrong_with_it_where_it_is_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="RetryPolicy"):
        RetryPolicy(**wrong)


@pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseExceptionGroup("x", [SystemExit(1)]), StopIteration()],
)
def test_an_exit_is_a_failed_attempt_and_is_not_tried_at_once(error: BaseException) -> None:
    assert isinstance(decide(error, 0, RetryPolicy(), 0.5), Retry)
    assert decide(error, 7, RetryPolicy(), 0.5) == Dead("exhausted", str(error))
    assert not again_at_once(error, 1, RetryPolicy()) or isinstance(error, Exception)


def test_a_full_outbox_pauses_the_queue() -> None:
    assert decide(OutboxFull(10, 10, 5), 0, RetryPolicy(), 0.5) == Defer(0.0, str(OutboxFull(10, 10, 5)), pause=True)


@pytest.mark.parametrize("reason", [None, "", 5])
def test_a_message_error_of_the_programs_own_without_a_reason_gets_one(reason: Any) -> None:
    error = type("Mine", (MessageError,), {"reason": reason})("x")

    assert decide(error, 0, RetryPolicy(), 0.5) == Dead("bad-message", "x")


def test_the_longest_delay_can_be_stored_whatever_its_jitter() -> None:
    policy = RetryPolicy(first_seconds=LONGEST_DELAY_SECONDS, cap_seconds=LONGEST_DELAY_SECONDS, jitter=1.0)

    assert decide(OSError("x"), 0, policy, 0.999) == Retry(LONGEST_DELAY_SECONDS, "x")
